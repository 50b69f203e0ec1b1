"""The resume matrix of several ranks: real processes, real gloo, stopped by a signal to each or killed as a group.

On the same number of ranks a resumed run ends bit-identical; on another it goes on with exactly the samples not yet
seen, and its losses agree but for rounding. docs/reliability.md holds the table.
"""

import importlib.util
import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
from identical import assert_identical
from interruption import next_second
from resume_cases import RECIPES, VARIANTS, options

from lit_tfm import config
from lit_tfm.callbacks.checkpoint_files import newest, step_of
from lit_tfm.train import train

DDP = ["trainer.strategy=ddp", "trainer.devices=2"]
FSDP = ["trainer.strategy=fsdp", "trainer.devices=2"]
SHARDED = [*FSDP, "++callbacks.checkpoints.sharded=true"]
STRATEGIES = {"ddp": DDP, "fsdp": FSDP, "fsdp sharded": SHARDED}
ENDS = {"signal": [143, 143], "kill": [-signal.SIGKILL, -signal.SIGKILL]}
MOMENTS = ["step@1", "step@4", "step@6", "validation@3", "micro@5", "step@7"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory, session_cache, text_folder, labelled_csv):
    """`pair(target, recipe, variant, *words)` runs in two ranks; `pair.whole(...)` is the uninterrupted run."""
    folder, known = tmp_path_factory.mktemp("pair"), {}

    def given(recipe: str, variant: str) -> list[str]:
        return options(recipe, variant, text_folder, labelled_csv, session_cache)

    def start(target: Path, recipe: str, variant: str, *words: str, world: int = 2, **how: Any) -> list[int]:
        return ranks.start(world, [*given(recipe, variant), *words, f"output_dir={target}"], **how)

    def whole(recipe: str, variant: str, *words: str) -> Path:
        key = (recipe, variant, *words)
        if key not in known:
            target = folder / str(len(known))
            assert start(target, recipe, variant, *words) == [0, 0]
            known[key] = target
        return known[key]

    start.whole, start.given = whole, given
    return start


def cases() -> Iterator[Any]:
    quick = {
        ("masked LM, AdamW", "accumulation", "ddp", "micro@5", "kill"),
        ("packed causal LM, Muon", "two loader workers", "fsdp sharded", "step@4", "signal"),
    }
    for recipe in RECIPES:
        for variant in VARIANTS:
            for strategy in STRATEGIES:
                for place, moment in enumerate(MOMENTS):
                    for end in ENDS:
                        case = (recipe, variant, strategy, moment, end)
                        # All pairs of words, not all combinations: a third of them, spread evenly.
                        number = sum(map(list(RECIPES).index, [recipe])) + list(VARIANTS).index(variant) + place
                        if case in quick or (number + list(STRATEGIES).index(strategy) + (end == "kill")) % 3 == 0:
                            yield pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow])


@pytest.mark.parametrize(("recipe", "variant", "strategy", "moment", "end"), cases())
def test_two_ranks_resumed_as_if_nothing_had_been(pair, tmp_path, recipe, variant, strategy, moment, end) -> None:
    target, words = tmp_path / "run", STRATEGIES[strategy]
    assert pair(target, recipe, variant, *words, moment=moment, end=end) == ENDS[end]
    assert pair(target, recipe, variant, *words, "resume=auto") == [0, 0]
    assert_identical(pair.whole(recipe, variant, *words), target)


def test_what_only_rank_zero_meets_ends_every_rank_in_order(pair, tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    assert pair(tmp_path / "taken", "masked LM, AdamW", "plain", *DDP) == [2, 2]
    if importlib.util.find_spec("wandb") is None:  # refused when the trainer is built, with the folder made already
        assert pair(tmp_path / "new", "masked LM, AdamW", "plain", *DDP, "logger=[tensorboard,wandb]") == [2, 2]
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("end", ENDS)
def test_two_ranks_stopped_after_every_single_step(pair, tmp_path, strategy, end) -> None:
    target, words = tmp_path / "run", [*STRATEGIES[strategy], "++callbacks.checkpoints.every=1"]
    recipe, variant = "packed causal LM, Muon", "plain"
    for step in range(1, 9):
        moment = f"step@{step}" if end == "kill" else f"batch@{step}"
        assert pair(target, recipe, variant, *words, "resume=auto", moment=moment, end=end) == ENDS[end]
    assert pair(target, recipe, variant, *words, "resume=auto") == [0, 0]
    assert_identical(pair.whole(recipe, variant, *words), target)


# ---- a broken checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp sharded"])
def test_all_ranks_go_on_from_the_one_before_a_broken_one(pair, tmp_path, strategy) -> None:
    recipe, variant, target, words = (
        "packed causal LM, Muon",
        "two loader workers",
        tmp_path / "run",
        STRATEGIES[strategy],
    )
    whole = pair.whole(recipe, variant, *words)
    shutil.copytree(whole, target)
    summary = json.loads((target / "summary.json").read_text())
    (target / "summary.json").write_text(json.dumps({**summary, "status": "stopped"}))
    last = target / "checkpoints" / "last.ckpt"
    spoilt = last if last.is_file() else sorted(last.glob("shard-00002*"))[0]
    data = bytearray(spoilt.read_bytes())
    data[len(data) // 2] ^= 1
    spoilt.unlink()  # best.ckpt may be the same file under another name
    spoilt.write_bytes(data)
    next_second(target)
    assert pair(target, recipe, variant, *words, "resume=auto") == [0, 0]
    assert_identical(whole, target)


def test_a_disk_that_is_full_for_one_rank_ends_both(pair, tmp_path) -> None:
    """Neither waits for the other, and what was saved before is whole."""
    target = tmp_path / "run"
    assert pair(target, "masked LM, AdamW", "plain", *SHARDED, moment="save@4", end="full") == [2, 2]
    found, broken = newest(target / "checkpoints")
    assert (step_of(found), broken) == (3, [])
    assert not list((target / "checkpoints").glob(".*"))


# ---- another number of ranks -----------------------------------------------------------------------------------

EVEN = [
    "trainer.max_steps=12",
    "model.dropout=0",
    "task.head_dropout=0",
    "callbacks=[default]",
]  # two epochs of 6 steps
ROWS = "bucketed classification, Lion"
ONE = ["trainer.strategy=auto", "trainer.devices=1"]
FOUR = ["trainer.strategy=ddp", "trainer.devices=4"]
CHANGES = [  # (before, world, after, world)
    pytest.param(SHARDED, 2, ONE, 1, id="2 fsdp sharded to 1"),
    pytest.param(DDP, 2, ONE, 1, id="2 ddp to 1", marks=pytest.mark.slow),
    pytest.param(FSDP, 2, ONE, 1, id="2 fsdp to 1", marks=pytest.mark.slow),
    pytest.param(ONE, 1, DDP, 2, id="1 to 2 ddp", marks=pytest.mark.slow),
    pytest.param(ONE, 1, SHARDED, 2, id="1 to 2 fsdp sharded", marks=pytest.mark.slow),
    pytest.param(DDP, 2, FSDP, 2, id="ddp to fsdp", marks=pytest.mark.slow),
    pytest.param(SHARDED, 2, DDP, 2, id="fsdp sharded to ddp", marks=pytest.mark.slow),
    pytest.param(FSDP, 2, SHARDED, 2, id="fsdp to fsdp sharded", marks=pytest.mark.slow),
    pytest.param(DDP, 2, FOUR, 4, id="2 to 4 ddp", marks=pytest.mark.slow),
    pytest.param(FOUR, 4, SHARDED, 2, id="4 ddp to 2 fsdp sharded", marks=pytest.mark.slow),
    pytest.param([*SHARDED, "trainer.devices=4"], 4, SHARDED, 2, id="4 to 2 fsdp sharded", marks=pytest.mark.slow),
    pytest.param(SHARDED, 2, [*SHARDED, "trainer.devices=4"], 4, id="2 to 4 fsdp sharded", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session")
def alone(pair, tmp_path_factory) -> Path:
    """The uninterrupted run of one process."""
    target = tmp_path_factory.mktemp("alone") / "run"
    train(config.compose([*pair.given(ROWS, "plain"), *EVEN, *ONE, f"output_dir={target}"]), quiet=True)
    return target


@pytest.mark.parametrize(("before", "world", "after", "other"), CHANGES)
def test_another_number_of_ranks_sees_exactly_the_rest(pair, alone, tmp_path, before, world, after, other) -> None:
    """Stopped in the second epoch, after step 8 of 12."""
    target, seen = tmp_path / "run", tmp_path / "seen"
    ended = pair(target, ROWS, "plain", *EVEN, *before, world=world, moment="batch@8", samples=seen)
    assert ended == [143] * world
    assert 216 < len(read_samples(seen)) < 2 * 216
    again = pair(target, ROWS, "plain", *EVEN, *after, "resume=auto", world=other, samples=seen)
    assert again == [0] * other
    found = Counter((epoch, index) for _, epoch, index in read_samples(seen))
    assert found == Counter((epoch, index) for epoch in (0, 1) for index in range(216))
    expected, got = losses(alone), losses(target)
    assert got.keys() == expected.keys()
    for place, value in expected.items():
        assert got[place] == pytest.approx(value, rel=2e-4), place


def read_samples(seen: Path) -> list[list[int]]:
    files = seen.parent.glob(f"{seen.name}-*")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def losses(run: Path) -> dict[tuple[str, str], float]:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    return {(step, name): float(value) for step, _, _, name, value in rows if name in ("train/loss", "val/loss")}
