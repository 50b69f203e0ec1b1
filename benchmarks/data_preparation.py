"""From text files to the first batch: a cold cache, a warm one, against Hugging Face's run_mlm recipe.

    OMP_NUM_THREADS=2 python benchmarks/data_preparation.py --path FOLDER

FOLDER holds WikiText-2 (train, valid and test files). Both sides start from the same tokenizer.json and end with a
masked batch of 32 blocks of 128 tokens. The peer is what run_mlm does: `load_dataset("text")`, `map(tokenize,
num_proc=2)`, `map(group_texts, num_proc=2)`, a DataLoader with its masking collator. Ours is what a training run does
before its first step. Each figure is a process of its own, which times itself from its last import to the batch
("prepared") and is timed from outside ("whole process"). A third contestant, ours alone, trains the tokenizer as well.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import measure

NAME, GOAL, WARM_GOAL = "data_preparation", 3.0, 0.3
BLOCK, BATCH = 128, 32
TINY = ["experiment=bert_small", "model=bert_tiny", f"data.block_size={BLOCK}", f"data.batch_size={BATCH}"]


def ours(path: Path, tokenizer: Path | None, cache: Path) -> Callable[[], dict]:
    """Preparation by the product, ready to start: all imports done."""
    from lit_tfm.build import build
    from lit_tfm.config import compose
    from lit_tfm.hardware import choose

    words = [*TINY, f"data.path={path}", f"cache_dir={cache}", "trainer=cpu"]
    words += [] if tokenizer is None else [f"tokenizer.path={tokenizer}"]
    cfg = compose(words)

    def prepare() -> dict:
        data = build(cfg, choose(cfg.trainer)).data
        batch = next(iter(data.train_dataloader()))
        return {"tokens": data.facts.splits["train"].tokens, "batch": list(batch["input_ids"].shape)}

    return prepare


def run_mlm_blocks(path: Path, tokenizer: Path, cache: Path):
    """What run_mlm (not line by line, no padding) prepares: blocks of all splits, and its tokenizer."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    roles = {role: f"[{role[:-6].upper()}]" for role in ("pad_token", "unk_token", "cls_token", "sep_token")}
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), mask_token="[MASK]", **roles)
    files = {split: str(next(path.glob(f"{name}*"))) for split, name in (("train", "train"), ("validation", "valid"))}

    def tokenize(rows: dict) -> dict:
        return fast(rows["text"], return_special_tokens_mask=True)

    def group(rows: dict) -> dict:
        joined = {key: list(chain(*rows[key])) for key in rows}
        length = len(joined["input_ids"]) // BLOCK * BLOCK
        return {key: [ids[i : i + BLOCK] for i in range(0, length, BLOCK)] for key, ids in joined.items()}

    raw = datasets.load_dataset("text", data_files=files, cache_dir=str(cache), keep_linebreaks=True)
    tokens = raw.map(tokenize, batched=True, num_proc=2, remove_columns=["text"])
    return tokens.map(group, batched=True, num_proc=2), fast


def huggingface(path: Path, tokenizer: Path, cache: Path) -> Callable[[], dict]:
    """run_mlm's preparation, ready to start."""
    import datasets  # noqa: F401
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast  # noqa: F401

    def prepare() -> dict:
        blocks, fast = run_mlm_blocks(path, tokenizer, cache)
        collator = DataCollatorForLanguageModeling(fast, mlm_probability=0.15)
        batch = next(iter(DataLoader(blocks["train"], BATCH, shuffle=True, collate_fn=collator)))
        return {"tokens": len(blocks["train"]) * BLOCK, "batch": list(batch["input_ids"].shape)}

    return prepare


SIDES = {"ours": ours, "Hugging Face": huggingface, "ours, tokenizer trained too": ours}


def child(side: str, path: Path, tokenizer: Path | None, cache: Path) -> None:
    """Prepare once and print how long it took."""
    prepare = SIDES[side](path, tokenizer, cache)
    began = time.perf_counter()
    found = prepare()
    print(json.dumps({"prepared": time.perf_counter() - began, **found}))


class Runs:
    """Processes of one side after another; `cold` and `warm` keep what the last round found."""

    def __init__(self, path: Path, tokenizer: Path, folder: Path) -> None:
        self.path, self.tokenizer, self.folder, self.count = path, tokenizer, folder, 0
        self.found: dict[tuple[str, str, str], list[float]] = {}
        self.facts: dict[str, dict] = {}

    def round(self, side: str) -> float:
        """A cold start and a warm one; returns the cold one's preparation in seconds."""
        self.count += 1
        cache = self.folder / str(self.count)
        for state in ("cold", "warm"):
            whole, told = self._process(side, cache)
            self.found.setdefault((side, state, "prepared"), []).append(told["prepared"])
            self.found.setdefault((side, state, "whole process"), []).append(whole)
            self.facts[side] = told
        return self.found[side, "cold", "prepared"][-1]

    def _process(self, side: str, cache: Path) -> tuple[float, dict]:
        words = ["--side", side, "--path", str(self.path), "--cache", str(cache)]
        words += [] if side.endswith("too") else ["--tokenizer", str(self.tokenizer)]
        environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, *words], env=environment, capture_output=True, text=True, check=False
        )
        whole = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{side}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return whole, json.loads(done.stdout.splitlines()[-1])


def lines(runs: Runs) -> list[list[str]]:
    """Rows of the table: each state and way of timing, the sides beside each other."""
    rows = []
    for state in ("cold", "warm"):
        for timing in ("prepared", "whole process"):
            mine, theirs, trained = (runs.found[side, state, timing] for side in SIDES_IN_TABLE)
            middle = [f"{statistics.median(figures):.2f} s" for figures in (theirs, mine, trained)]
            rows.append([state, timing, *middle, str(measure.Ratio.of(theirs, mine))])
    return rows


SIDES_IN_TABLE = ("ours", "Hugging Face", "ours, tokenizer trained too")


def trained_tokenizer(path: Path, folder: Path) -> Path:
    """The tokenizer.json both sides start from: bert_small's on this text."""
    from lit_tfm.build import build_data
    from lit_tfm.config import compose

    target = folder / "tokenizer.json"
    build_data(compose([*TINY, f"data.path={path}", f"cache_dir={folder / 'first'}"])).facts.tokenizer.save(target)
    return target


def section(runs: Runs) -> str:
    head = ["cache", "timed", "Hugging Face", "ours", "ours, tokenizer trained too", "theirs / ours (spread)"]
    tokens = {side: runs.facts[side]["tokens"] for side in ("ours", "Hugging Face")}
    note = f"Training tokens in the end: ours {tokens['ours']:,}, Hugging Face {tokens['Hugging Face']:,}"
    goal = f"The goals: {GOAL:.0f} times as fast with a cold cache, below {WARM_GOAL} s with a warm one."
    versions = measure.circumstances("datasets", "tokenizers", "transformers")
    return f"{versions}\n\n{measure.table(head, lines(runs))}\n\n{note}. {goal}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder with WikiText-2's train, valid, test files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--dry", action="store_true", help="print only, leave RESULTS.md alone")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process of the benchmark's own
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return child(args.side, args.path, args.tokenizer, args.cache)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(args.path.resolve(), trained_tokenizer(args.path, Path(folder)), Path(folder))
        measure.alternate({s: lambda s=s: runs.round(s) for s in SIDES_IN_TABLE}, 3 if args.quick else args.rounds)
    measure.publish(NAME, section(runs), args.dry)
    return None


if __name__ == "__main__":
    main()
