"""Language-modelling data: from files to batches, the same for every rank, worker and resume."""

import json
import logging
import multiprocessing
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_tfm.data.language_modeling import LanguageModelingData
from lit_tfm.data.tokenizers import BPE, Byte, Char
from lit_tfm.errors import UserError


class Collator:
    """Examples as they are, in plain tensors; picklable."""

    def __init__(self, extra_tokens=0):
        self.extra_tokens = extra_tokens

    def __call__(self, examples):
        return [
            (e["key"], torch.from_numpy(e["tokens"]), None if e["document_ids"] is None else e["document_ids"].copy())
            for e in examples
        ]


def lines(count, seed=0):
    """Documents of a line each, unequal in length."""
    random = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in random.integers(0, 50, random.integers(1, 30))) for _ in range(count)]


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for split, count in (("train", 300), ("valid", 40), ("test", 30)):
        (folder / f"{split}.txt").write_text("\n".join(lines(count, count)) + "\n")
    return folder


def make(path, cache, extra=0, **options):
    options = {"document": "line", "block_size": 32, "batch_size": 8, **options}
    data = LanguageModelingData(Byte(), path=str(path), cache_dir=cache, **options)
    data.prepare_data()
    data.connect(Collator(extra), seed=3)
    return data


def take(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def same(a, b):
    return len(a) == len(b) and all(
        one[0] == two[0] and torch.equal(one[1], two[1]) and np.array_equal(one[2], two[2])
        for one, two in zip(a, b, strict=True)
    )


def test_documents_begin_with_the_separator_and_nothing_is_lost(text, cache):
    data = make(text, cache)
    sep, decode = data.facts.tokenizer.sep_id, data.facts.tokenizer.decode
    for split, store in data.stores.items():
        name = {"validation": "valid"}.get(split, split)
        documents = [store.document(i) for i in range(len(store))]
        assert all(d[0] == sep and (d[1:] != sep).all() for d in documents)
        assert [decode(d[1:]) for d in documents] == (text / f"{name}.txt").read_text().splitlines()


def test_facts_count_what_is_there(text, cache):
    data = make(text, cache)
    texts = (text / "valid.txt").read_text().splitlines()
    stats = data.facts.splits["validation"]
    assert stats.documents == 40
    assert stats.bytes == sum(len(t) for t in texts)
    assert stats.words == sum(len(t.split()) for t in texts)
    assert stats.tokens == stats.bytes + 40
    assert stats.examples == -(-stats.tokens // 32)
    assert stats.examples * 32 == stats.tokens + stats.wasted_tokens
    assert stats.unknown_tokens == 0
    assert json.loads(json.dumps(data.records()))["splits"]["validation"]["tokens"] == stats.tokens


@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_an_epoch_is_every_token_once(text, cache, pack):
    data = make(text, cache, extra=1, pack=pack)
    n = data.facts.splits["train"].tokens
    batches = take(data.train_dataloader(), data.steps_per_epoch)
    inputs = torch.cat([tokens[:-1] for batch in batches for _, tokens, _ in batch])
    labels = torch.cat([tokens[1:] for batch in batches for _, tokens, _ in batch])
    stored = torch.from_numpy(data.stores["train"].tokens.astype(np.int64))
    assert len(inputs) == n
    for seen in (inputs, labels):
        assert torch.equal(seen.bincount(minlength=512), stored.bincount(minlength=512))


@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_resume_and_workers_change_nothing(text, cache, pack):
    def loader(step=0, **options):
        data = make(text, cache, extra=1, pack=pack, **options)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=0, world_size=1, accumulate_grad_batches=1, global_step=step, strategy=strategy
        )
        return data.train_dataloader()

    steps = make(text, cache, extra=1, pack=pack).steps_per_epoch + 3  # over the border of an epoch
    through = take(loader(), steps)
    before = torch.get_rng_state()
    resumed = take(loader(steps - 4), 4)
    assert torch.equal(torch.get_rng_state(), before), "the loader drew from the global generator"
    assert all(same(a, b) for a, b in zip(resumed, through[-4:], strict=True))
    assert all(same(a, b) for a, b in zip(take(loader(num_workers=2), steps), through, strict=True))


def test_ranks_and_micro_batches_share_the_global_batch(text, cache):
    whole = take(make(text, cache).train_dataloader(), 4)
    for world, accumulate in ((2, 1), (2, 2), (3, 1)):
        union = [[] for _ in range(4)]
        for rank in range(world):
            data = make(text, cache)
            data.trainer = SimpleNamespace(
                global_rank=rank, world_size=world, accumulate_grad_batches=accumulate, global_step=0,
                strategy=SimpleNamespace(root_device=torch.device("cpu")),
            )  # fmt: skip
            micro = take(data.train_dataloader(), 4 * accumulate)
            for step in range(4):
                union[step] += [e for batch in micro[step * accumulate : (step + 1) * accumulate] for e in batch]
        for step in range(4):
            key = lambda e: e[0].index  # noqa: E731
            assert same(sorted(union[step], key=key), sorted(whole[step], key=key))


def test_validation_is_one_pass_in_order_and_can_be_limited(text, cache):
    data = make(text, cache)
    seen = [e[0].index for batch in data.val_dataloader() for e in batch]
    assert seen == list(range(data.facts.splits["validation"].examples))
    limited = make(text, cache, val_limit=5)
    assert sum(len(batch) for batch in limited.val_dataloader()) == 5
    assert limited.facts.splits["validation"] == data.facts.splits["validation"]
    assert len(list(data.test_dataloader())) == len(data.test_dataloader())


def test_a_subset_trains_on_few_examples(text, cache):
    data = make(text, cache, subset=8)
    assert data.facts.splits["train"].examples == 8
    assert data.facts.splits["train"].tokens == 8 * 32
    assert data.steps_per_epoch == 1
    few = set(data.stores["train"].tokens[: 8 * 32].tolist())
    assert {int(t) for batch in take(data.train_dataloader(), 5) for _, tokens, _ in batch for t in tokens} <= few


def test_seeds_differ_and_repeat(text, cache):
    def first(seed):
        data = make(text, cache)
        data.connect(Collator(), seed)
        return take(data.train_dataloader(), 2)

    assert same(first(1)[1], first(1)[1])
    assert not same(first(1)[1], first(2)[1])


@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_epochs_come_in_another_order(text, cache, pack):
    data = make(text, cache, pack=pack)
    plan = data.plan("train")
    orders = [[plan.batch(epoch, step).tolist() for step in range(plan.steps(epoch))] for epoch in range(2)]
    assert orders[0] != orders[1]
    assert [e[0].index for b in take(data.train_dataloader(), 1) for e in b] == orders[0][0]


def test_one_file_is_split_at_its_end(tmp_path, cache):
    file = tmp_path / "input.txt"
    file.write_text("".join(f"{i:06d}\n" for i in range(1000)))
    data = make(file, cache, document="file", holdout={"validation": 0.2, "test": 700})
    text = {s: data.facts.tokenizer.decode(store.tokens) for s, store in data.stores.items()}
    assert text["train"] + text["validation"] + text["test"] == file.read_text()
    assert len(text["validation"]) == 1400
    assert len(text["test"]) == 700


def test_many_documents_are_held_out_at_random_but_always_the_same(tmp_path, cache):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}) for line in lines(200)))

    def held_out():
        store = make(file, cache).stores["validation"]
        return [store.document(i).tolist() for i in range(len(store))]

    assert len(held_out()) == 20
    assert held_out() == held_out()
    positions = [lines(200).index(make(file, cache).facts.tokenizer.decode(d[1:])) for d in held_out()]
    assert positions == sorted(positions)
    assert positions != list(range(180, 200))


def test_the_cache_is_used_and_told_apart(text, tmp_path):
    cache = tmp_path / "cache"

    def folders():
        return {p for kind in ("tokens", "tokenizers") for p in (cache / kind).iterdir() if p.is_dir()}

    make(text, cache)
    first = {path: path.stat().st_mtime_ns for path in folders()}
    assert len(first) == 4  # three splits and a tokenizer
    make(text, cache, block_size=16, batch_size=2, pack="documents")
    assert {path: path.stat().st_mtime_ns for path in folders()} == first
    (text / "valid.txt").write_text("another text\n")
    assert make(text, cache).facts.splits["validation"].documents == 1
    make(text, cache, document="file")
    assert folders() > set(first)


def prepare_together(barrier, path, cache, told):
    """Body of a process: what it logs and what it gets."""
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("lit_tfm").addHandler(handler)
    logging.getLogger("lit_tfm").setLevel(logging.INFO)
    data = LanguageModelingData(BPE(vocab_size=300), path=path, cache_dir=cache, document="line")
    barrier.wait()
    data.prepare_data()
    told.put((heard, data.facts.tokenizer.hash, int(data.stores["train"].tokens.astype(int).sum())))


def test_processes_at_once_on_an_empty_cache_tokenise_once(text, tmp_path):
    context = multiprocessing.get_context("fork")  # real processes, without importing torch anew
    barrier, told = context.Barrier(3), context.Queue()
    arguments = (barrier, str(text), tmp_path / "cache", told)
    runs = [context.Process(target=prepare_together, args=arguments) for _ in range(3)]
    for run in runs:
        run.start()
    results = [told.get(timeout=60) for _ in runs]
    for run in runs:
        run.join(timeout=60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    work = [line for heard, *_ in results for line in heard]
    assert sum("tokenizing the train split" in line for line in work) == 1
    assert sum("training the tokenizer" in line for line in work) == 1
    assert len({result[1:] for result in results}) == 1


def test_workers_do_not_warn_of_forks(text, cache, capfd):
    data = LanguageModelingData(BPE(vocab_size=300), path=str(text), cache_dir=cache, document="line", num_workers=2)
    data.prepare_data()
    data.facts.tokenizer.encode_batch(["in several threads"] * 1000)
    data.connect(Collator(), seed=0)
    take(data.train_dataloader(), 2)
    assert "tokenizers" not in capfd.readouterr().err


def test_what_is_wrong_is_said_in_one_line(text, tmp_path, cache):
    def told(path=text, **options):
        with pytest.raises(UserError) as error:
            make(path, cache, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean 'stream'" in told(pack="steam")
    assert "block_size=0" in told(block_size=0)
    assert "data.holdout.validation" in told(text / "train.txt", holdout={})
    assert "no test split" in told_by(lambda: make(text / "train.txt", cache).test_dataloader())
    assert "leaves nothing" in told(text / "train.txt", holdout={"validation": 0.6, "test": 0.5})
    assert "only validation and test" in told(holdout={"valid": 0.1})
    assert "did you mean 'config'" in told(hub={"repo": "a/b", "confg": "x"})
    assert "batch_size" in told(batch_size=None)
    assert "val_limit=0" in told(val_limit=0)
    (text / "valid.txt").write_text("\n \n")
    assert "valid.txt" in told()
    assert "data.path is not given" in told_by(lambda: LanguageModelingData(Byte(), cache_dir=cache).prepare_data())


def told_by(act):
    with pytest.raises(UserError) as error:
        act()
    return str(error.value)


def test_a_tokenizer_without_a_separator_is_refused(text, tmp_path, cache):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    data = LanguageModelingData(Byte(path=str(tmp_path / "tokenizer.json")), path=str(text), cache_dir=cache)
    with pytest.raises(UserError, match="sep"):
        data.prepare_data()


# ---- real data -----------------------------------------------------------------------------------------------------


def test_wikitext2(shared_data, cache):
    """The official counts, documents that are articles, and a loader that costs next to nothing."""
    data = LanguageModelingData(Byte(), path=str(shared_data / "wikitext-2"), document="wikitext", cache_dir=cache)
    data.prepare_data()
    data.connect(Collator(1), seed=1)
    facts = data.facts
    assert [facts.splits[s].words for s in ("train", "validation", "test")] == [2_088_628, 217_646, 245_569]
    assert [facts.splits[s].bytes for s in ("train", "validation", "test")] == [10_797_148, 1_121_681, 1_256_449]
    assert [facts.splits[s].documents for s in ("validation", "test")] == [60, 60]
    assert facts.splits["train"].wasted_tokens < 128
    assert facts.splits["train"].tokens == 10_797_148 + facts.splits["train"].documents

    began = time.perf_counter()
    batches = take(data.train_dataloader(), 100)
    assert (time.perf_counter() - began) / 100 < 0.01  # measured: 0.0002 s a batch of 32 blocks of 128
    assert all(len(tokens) == 129 for batch in batches for _, tokens, _ in batch)
    sep = facts.tokenizer.sep_id
    for batch in batches:
        for _, tokens, ids in batch:
            assert np.array_equal(np.diff(ids), (tokens[1:] == sep).int().numpy())


def test_tinyshakespeare_by_characters(shared_data, cache):
    """nanoGPT's split: the last tenth of the text."""
    path = shared_data / "tinyshakespeare" / "input.txt"
    data = LanguageModelingData(Char(), path=str(path), block_size=64, batch_size=12, cache_dir=cache)
    data.prepare_data()
    splits = data.facts.splits
    assert data.facts.tokenizer.vocab_size == 65 + 5
    assert splits["train"].tokens + splits["validation"].tokens == 1_115_394 + 2
    assert splits["validation"].bytes == 111_539
    assert splits["validation"].unknown_tokens == 0


@pytest.mark.slow
def test_pydoc_needs_no_network(cache):
    data = LanguageModelingData(BPE(vocab_size=1000), fallback="pydoc", cache_dir=cache)
    data.prepare_data()
    data.connect(Collator(), seed=0)
    assert data.facts.splits["train"].bytes > 1e6
    assert data.records()["notice"] is None
    assert len(take(data.train_dataloader(), 1)[0]) == 32
