"""Labelled texts: from any table to batches of similar length, and what is said of labels that don't fit."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lit_tfm.data.classification import ClassificationData, LabelledTexts, in_order
from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Byte, WordPiece
from lit_tfm.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "data"


class Collator:
    """Examples as plain values; adds [cls] a [sep] (b [sep]) in name only."""

    def special_tokens(self, pair):
        return 3 if pair else 2

    def __call__(self, examples):
        return [
            (e["key"], e["tokens"].tolist(), None if e["tokens_b"] is None else e["tokens_b"].tolist(), e["label"])
            for e in examples
        ]


def prepared(data, seed=1):
    data.prepare_data()
    data.connect(Collator(), seed=seed)
    return data


def make(path, cache, **options):
    return prepared(ClassificationData(Byte(), path=str(path), cache_dir=cache, **options))


def from_yaml(name, cache, recipe=None, **overrides):
    """As build.py does it."""
    cfg = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), overrides)
    return prepared(instantiate(cfg, _partial_=True)(tokenizer=recipe or Byte(), cache_dir=cache, seed=1))


def rows(data, split="train"):
    """{text: label} of a split, read through the data set."""
    dataset = data.dataset(split)
    examples = dataset.__getitems__([Key(0, i) for i in range(len(dataset))])
    decode = data.facts.tokenizer.decode
    return [
        (decode(e["tokens"]), None if e["tokens_b"] is None else decode(e["tokens_b"]), e["label"]) for e in examples
    ]


def write_csv(path, table):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three splits of texts of unequal length with two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 200), ("dev", 30), ("test", 20)):
        table = [["text", "label"]]
        table += [["x" * int(n), "odd" if n % 2 else "even"] for n in random.integers(1, 60, count)]
        write_csv(tmp_path / f"{split}.csv", table)
    return tmp_path


def test_texts_and_labels_arrive_as_they_are(folder, cache):
    data = make(folder, cache)
    assert data.facts.labels == ("even", "odd")
    assert not data.facts.multi_label
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        with open(folder / f"{name}.csv", newline="") as file:
            expected = [(row["text"], None, data.facts.labels.index(row["label"])) for row in csv.DictReader(file)]
        assert rows(data, split) == expected
        stats = data.facts.splits[split]
        assert stats.examples == stats.documents == len(expected)
        assert stats.tokens == sum(len(text) + 2 for text, *_ in expected)
    assert json.loads(json.dumps(data.records()))["labels"] == ["even", "odd"]


def test_batches_hold_the_budget_and_every_example_once(folder, cache):
    data = make(folder, cache, batch_tokens=300)
    for split, loader in (("train", iter(data.train_dataloader())), ("validation", iter(data.val_dataloader()))):
        steps = data.steps_per_epoch if split == "train" else len(data.val_dataloader())
        batches = [next(loader) for _ in range(steps)]
        assert sorted(e[0].index for b in batches for e in b) == list(range(data.facts.splits[split].examples))
        padded = [len(b) * (2 + max(len(e[1]) for e in b)) for b in batches]
        assert max(padded) <= 300
        assert sum(padded) - data.facts.splits[split].tokens == data.facts.splits[split].wasted_tokens
    assert data.facts.splits["train"].wasted_tokens < 0.1 * data.facts.splits["train"].tokens
    by_number = make(folder, cache, batch_size=16, batch_tokens=None)
    assert {len(next(iter(by_number.train_dataloader()))) for _ in range(3)} <= {16, 200 % 16}


def test_workers_and_resume_change_nothing(folder, cache):
    def take(count, step=0, **options):
        data = make(folder, cache, batch_tokens=300, **options)
        data.trainer = SimpleNamespace(
            global_rank=0, world_size=1, accumulate_grad_batches=1, global_step=step,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )  # fmt: skip
        batches = iter(data.train_dataloader())
        return [next(batches) for _ in range(count)]

    through = take(60)
    assert len({e[0].epoch for b in through for e in b}) > 1
    assert take(60, num_workers=2) == through
    assert take(10, step=50) == through[50:]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20),
    room=st.integers(2, 40),
    pair=st.booleans(),
)
def test_long_texts_are_cut_from_the_longer_one(sizes, room, pair):
    flat = [n for both in sizes for n in both][: None if pair else len(sizes)]
    tokens = np.arange(sum(flat), dtype=np.uint16)
    store = SimpleNamespace(
        tokens=tokens, offsets=np.concatenate([[0], np.cumsum(flat)]).astype(np.int64), meta={"pair": pair}
    )
    data = LabelledTexts(store, np.zeros(len(sizes), dtype=np.int64), room, specials=3)
    cut = 0
    for i, example in enumerate(data.__getitems__([Key(0, i) for i in range(len(sizes))])):
        whole = flat[2 * i : 2 * i + 2] if pair else flat[i : i + 1]
        kept = [example["tokens"], example["tokens_b"]][: len(whole)]
        total = sum(len(part) for part in kept)
        assert total == min(room, sum(whole))
        assert data.lengths[i] == total + 3
        assert (example["tokens_b"] is not None) == pair
        for part, size, document in zip(kept, whole, range(len(whole) * i, len(whole) * (i + 1)), strict=True):
            start = int(store.offsets[document])
            assert part.tolist() == list(range(start, start + len(part)))
            # a text is cut only where the other one is no longer than it
            assert len(part) == size or all(len(other) <= len(part) + 1 for other in kept)
        cut += sum(whole) > room
    assert data.truncated == cut


def test_truncation_is_counted(folder, cache):
    data = make(folder, cache, max_length=22)
    long = sum(len(text) > 20 for text, *_ in rows(make(folder, cache)))
    assert data.facts.splits["train"].truncated == long > 0
    assert max(len(text) for text, *_ in rows(data)) == 20


def test_two_texts(tmp_path, cache):
    write_csv(tmp_path / "pairs.csv", [["q", "s", "label"], *[[f"a{i}", f"bb{i}", str(i % 3)] for i in range(60)]])
    data = make(tmp_path / "pairs.csv", cache, text="q", text_b="s")
    assert data.facts.labels == ("0", "1", "2")
    both = rows(data, "train") + rows(data, "validation")
    assert sorted(both) == sorted((f"a{i}", f"bb{i}", i % 3) for i in range(60))
    assert data.facts.splits["train"].tokens == sum(len(a) + len(b) + 3 for a, b, _ in rows(data))


def test_several_labels_in_lists_in_cells_and_in_columns(tmp_path, cache):
    """Three ways of writing the same multi-label set give the same data."""
    tags = ["red", "green", "blue"]
    sets = [[tag for k, tag in enumerate(tags) if i >> k & 1] for i in range(40)]
    lists = tmp_path / "lists.jsonl"
    lists.write_text("\n".join(json.dumps({"text": f"t{i}", "label": s}) for i, s in enumerate(sets)))
    cells = write_csv(
        tmp_path / "cells.csv", [["text", "label"], *[[f"t{i}", "|".join(s)] for i, s in enumerate(sets)]]
    )
    columns = [[f"t{i}", *[int(tag in s) for tag in tags]] for i, s in enumerate(sets)]
    columns = write_csv(tmp_path / "columns.csv", [["text", *tags], *columns])
    one = make(lists, cache, labels=tags)
    two = make(cells, cache, labels=tags, label_separator="|")
    three = make(columns, cache, label=tags)
    for data in (one, two, three):
        assert data.facts.multi_label
        assert data.facts.labels == tuple(tags)
        found = {text: label.tolist() for s in ("train", "validation") for text, _, label in rows(data, s)}
        assert found == {f"t{i}": [int(tag in s) for tag in tags] for i, s in enumerate(sets)}


def test_labels_are_ordered_and_named(tmp_path, cache):
    assert in_order({"10", "9", "-1", "b", "a"}) == ["-1", "9", "10", "a", "b"]
    file = write_csv(tmp_path / "numbers.csv", [["text", "label"], *[[f"t{i}", i % 12 + 1] for i in range(60)]])
    assert make(file, cache).facts.labels == tuple(str(i) for i in range(1, 13))
    months = [f"m{i}" for i in range(12)]
    named = make(file, cache, labels=months, label_offset=1)
    assert named.facts.labels == tuple(months)
    assert all(int(text[1:]) % 12 == label for text, _, label in rows(named))


def test_held_out_rows_are_drawn_over_the_whole_file(tmp_path, cache):
    """Files sorted by label are common: the first or last tenth would hold one class."""
    table = [["text", "label"], *[[f"t{i}", "ab"[i // 100]] for i in range(200)]]
    data = make(write_csv(tmp_path / "sorted.csv", table), cache, holdout={"validation": 0.2, "test": 30})
    counts = {split: len(rows(data, split)) for split in data.stores}
    assert counts == {"train": 130, "validation": 40, "test": 30}
    assert {label for _, _, label in rows(data, "validation")} == {0, 1}
    texts = [text for split in data.stores for text, *_ in rows(data, split)]
    assert sorted(texts) == sorted(f"t{i}" for i in range(200))


def test_a_subset_and_a_limit(folder, cache):
    data = make(folder, cache, subset=8, val_limit=7)
    seen = {e[0].index for _, b in zip(range(20), data.train_dataloader(), strict=False) for e in b}
    assert len(seen) == 8 == data.facts.splits["train"].examples
    assert sum(len(b) for b in data.val_dataloader()) == 7


def test_hidden_test_labels_leave_the_test_split_out(folder, cache):
    (folder / "test.csv").unlink()
    (folder / "test.jsonl").write_text('{"text": "abc", "label": -1}\n{"text": "abd", "label": null}\n')
    data = make(folder, cache)
    assert set(data.facts.splits) == {"train", "validation"}
    with pytest.raises(UserError, match="no test split"):
        data.test_dataloader()


def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, cache):
    def told(path=folder, **options):
        with pytest.raises(UserError) as error:
            make(path, cache, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean 'label'" in told(label="labl")
    assert "text, label" in told(text="sentence")
    assert "max_length=3" in told(max_length=3)
    one = write_csv(tmp_path / "one.csv", [["text", "label"], *[[f"t{i}", "same"] for i in range(20)]])
    assert "one class only (same)" in told(one)
    two = write_csv(
        tmp_path / "two.csv", [["text", "label"], *[[f"t{i}", "ab"[i % 2] if i else ""] for i in range(20)]]
    )
    assert "has no label" in told(two)
    write_csv(folder / "dev.csv", [["text", "label"], ["abc", "evn"]])
    assert "validation split" in told()
    assert "did you mean 'even'" in told()
    write_csv(folder / "dev.csv", [["text", "label"]])
    assert "dev.csv: the file has a header and no rows" in told()
    marks = write_csv(tmp_path / "marks.csv", [["text", "a", "b"], *[["t", 0, 2]] * 9])
    assert "each holds 0 or 1" in told(marks, label=["a", "b"])


# ---- real data, through the yamls ----------------------------------------------------------------------------------


def test_every_yaml_can_be_made():
    for file in sorted(CONF.glob("*.yaml")):
        cfg = OmegaConf.load(file)
        data = instantiate(cfg, _partial_=True)(tokenizer=Byte(), seed=0, cache_dir="unused")
        assert file.read_text().startswith("# ")
        assert data.path or data.hub or data.fallback or file.stem in ("csv", "text", "tinyshakespeare")


def test_emotion(shared_data, cache):
    data = from_yaml("emotion", cache, path=str(shared_data / "emotion"))
    assert data.facts.labels == ("sadness", "joy", "love", "anger", "fear", "surprise")
    assert [data.facts.splits[s].examples for s in ("train", "validation", "test")] == [16_000, 2_000, 2_000]
    assert np.bincount(data.classes["train"]).tolist() == [4_666, 5_362, 1_304, 2_159, 1_937, 572]
    assert rows(data, "test")[0] == ("im feeling rather rotten so im not very ambitious right now", None, 0)
    train = data.facts.splits["train"]
    assert train.wasted_tokens < 0.05 * train.tokens


def test_sst2(shared_data, cache):
    data = from_yaml("sst2", cache, recipe=WordPiece(vocab_size=1000), path=str(shared_data / "sst2"))
    assert data.facts.labels == ("negative", "positive")
    assert [np.bincount(data.classes[s]).tolist() for s in ("train", "validation", "test")] == [
        [3_310, 3_610], [428, 444], [912, 909],
    ]  # fmt: skip
    assert rows(data, "validation")[0] == ("one long string of cliches", None, 0)


def test_ag_news_split_in_two(shared_data, cache):
    path = str(shared_data / "ag_news" / "test.csv")
    data = from_yaml("ag_news", cache, path=path, holdout={"validation": 0.1, "test": 0.4}, max_length=2000)
    assert data.facts.labels == ("World", "Sports", "Business", "Sci/Tech")
    counts = {split: np.bincount(data.classes[split]).tolist() for split in data.stores}
    assert np.sum(list(counts.values()), axis=0).tolist() == [1_900] * 4
    assert [sum(counts[s]) for s in ("train", "validation", "test")] == [3_800, 760, 3_040]
    texts = {text: label for split in data.stores for text, _, label in rows(data, split)}
    title = next(text for text in texts if text.startswith("Fears for T N pension after talks Unions representing"))
    assert data.facts.labels[texts[title]] == "Business"


@pytest.mark.slow
def test_pydoc_modules_needs_no_network(cache):
    data = from_yaml("pydoc_modules", cache)
    assert len(data.facts.labels) == 24
    assert {label for _, _, label in rows(data, "validation")} == set(range(24))
