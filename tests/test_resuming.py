"""What a run goes on with, and what it refuses to go on with."""

from pathlib import Path

import pytest
from interruption import Crash, Interrupt
from omegaconf import OmegaConf

from lit_tfm import config, launch
from lit_tfm.callbacks.checkpoint_files import read
from lit_tfm.errors import UserError
from lit_tfm.resuming import differences
from lit_tfm.runs import RunFolder
from lit_tfm.train import train

OPTIONS = [
    *["experiment=bert_small", "data=text", "data.block_size=32", "data.batch_size=6", "data.val_limit=6"],
    *["tokenizer.vocab_size=300", "trainer.max_steps=6", "trainer.val_every=2", "trainer.log_every=1", "budget=null"],
    *["model.d_model=16", "model.n_layers=1"],
]


@pytest.fixture
def mlm(text_folder) -> list[str]:
    return [*OPTIONS, f"data.path={text_folder}"]


def typed(*options: str):
    return config.compose(["experiment=bert_small", *options])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.d_model=64", "model.d_model: 512 there, 64 here"),
        ("model.dropout=0.2", "model.dropout: 0.0 there, 0.2 here"),  # stands in no yaml
        ("task.rate=0.15", "task.rate: 0.3 there, 0.15 here"),
        ("data.batch_size=8", "data.batch_size: 16 there, 8 here"),
        ("data.val_limit=9", "data.val_limit: 128 there, 9 here"),
        ("tokenizer.vocab_size=500", "tokenizer.vocab_size: 8192 there, 500 here"),
        ("optimizer.lr=0.5", "optimizer.lr: 0.02 there, 0.5 here"),
        ("schedule.cooldown=0.5", "schedule.cooldown: 0.6 there, 0.5 here"),
        ("seed=2", "seed: 1 there, 2 here"),
        ("trainer.precision=bf16-true", "trainer.precision: auto there, bf16-true here"),
        ("callbacks=[default,ema]", "callbacks.ema._target_: null there, lit_tfm.callbacks.ema.EMA here"),
        ("model.softcap=null", "model.softcap: 15.0 there, null here"),
    ],
)
def test_what_matters_is_named_with_both_values(option, said) -> None:
    assert differences(typed(), typed(option)) == [said]


def test_every_difference_is_listed() -> None:
    found = differences(typed(), typed("optimizer=adamw", "task.grad_clip=2", "seed=4"))
    assert {line.partition(":")[0] for line in found} >= {"optimizer._target_", "task.grad_clip", "seed"}


def test_what_does_not_matter_may_differ() -> None:
    free = [
        *["trainer.log_every=3", "trainer.val_every=5", "trainer.max_steps=900", "trainer.max_epochs=80", "budget=9m"],
        *["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.accumulate=2", "test=true"],
        *["data.num_workers=2", "data.path=elsewhere", "callbacks.samples=null", "++callbacks.checkpoints.every=5"],
        *["logger=[]", "tags=[a]", "model.compile=true", "task.bad_steps=9", "name=other", "cache_dir=/elsewhere"],
        *["callbacks.early_stopping._target_=lit_tfm.callbacks.early_stopping.early_stopping", "deterministic=true"],
    ]
    assert differences(typed(), typed(*free)) == []


def test_a_default_that_is_typed_is_no_difference() -> None:
    assert differences(typed(), typed("model.softcap=15", "model.dropout=0", "task.bad_steps=5")) == []
    assert differences(typed("model.softcap=15.0"), typed()) == []


def test_auto_refuses_another_run_and_changes_nothing(run, mlm) -> None:
    folder = run(*mlm).folder
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    other = [*mlm, f"output_dir={folder}", "resume=auto", "optimizer.lr=0.01", "seed=9", "trainer.max_steps=8"]
    with pytest.raises(UserError) as refused:
        run(*other)
    assert "optimizer.lr: 0.02 there, 0.01 here" in str(refused.value)
    assert "seed: 1 there, 9 here" in str(refused.value)
    assert "resume_force=true" in str(refused.value)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def learning_rates(folder: Path) -> dict[int, float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return {int(row[0]): float(row[4]) for row in rows if row[3] == "train/learning_rate"}


def test_force_goes_on_with_what_was_typed(run, mlm) -> None:
    """The checkpoint brings the optimizer's options along; those of the config have to win."""
    constant = ["schedule=constant", "schedule.warmup=0"]
    folder = run(*mlm, *constant).folder
    again = [*mlm, *constant, f"output_dir={folder}", "resume=auto", "trainer.max_steps=8", "optimizer.lr=0.005"]
    assert run(*again, "resume_force=true").summary["steps"] == 8
    assert learning_rates(folder) == {**dict.fromkeys(range(1, 7), 0.02), 7: 0.005, 8: 0.005}
    train(config.compose([f"resume={folder}", "trainer.max_steps=9"]), quiet=True)
    with pytest.raises(UserError, match=r"seed: 1 there, 3 here"):  # force was for once
        train(config.compose([f"resume={folder}", "seed=3", "trainer.max_steps=9"]), quiet=True)


def test_what_was_typed_outlives_a_crash_before_the_next_checkpoint(run, mlm) -> None:
    """config.yaml says 0.005 by then, and the newest checkpoint is still one of 0.02."""
    folder = run(*mlm, "schedule=constant", "schedule.warmup=0").folder
    typed = [f"resume={folder}", "trainer.max_steps=8", "optimizer.lr=0.005", "optimizer.weight_decay=0.3"]
    with pytest.raises(Crash):
        train(config.compose([*typed, "resume_force=true"]), quiet=True, callbacks=[Interrupt("step@7", "crash")])
    assert train(config.compose([f"resume={folder}", "trainer.max_steps=8"]), quiet=True).summary["steps"] == 8
    assert learning_rates(folder) == {**dict.fromkeys(range(1, 7), 0.02), 7: 0.005, 8: 0.005}
    groups = read(folder / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert {group["name"]: group["weight_decay"] for group in groups}["matrices"] == 0.3


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.d_model=32", r"\[32, 16\] there, \[64, 32\] here"),
        ("optimizer=adamw", "can't go on with the state of"),
    ],
)
def test_force_does_not_do_the_impossible(run, mlm, option, said) -> None:
    folder = run(*mlm, "trainer.max_steps=2").folder
    with pytest.raises(UserError, match=said):
        run(*mlm, f"output_dir={folder}", "resume=auto", "resume_force=true", "trainer.max_steps=3", option)


def test_other_data_under_the_same_name_are_noticed(run, mlm, text_folder, tmp_path) -> None:
    tokenizer = run(*mlm, "trainer.max_steps=2").folder / "tokenizer.json"
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in text_folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    again = [*mlm, f"output_dir={tmp_path / 'run'}", "resume=auto", f"data.path={moved}"]
    assert run(*again, "trainer.max_steps=3").summary["steps"] == 3  # elsewhere, but the same
    (moved / "train.txt").write_text((moved / "train.txt").read_text() * 2)
    with pytest.raises(UserError, match="the data's hash"):
        run(*again, "trainer.max_steps=4", f"tokenizer.path={tokenizer}")


def test_a_run_that_never_came_to_a_checkpoint_starts_again(run, mlm, tmp_path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / ".last.ckpt.partial").write_bytes(b"half")
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / ".summary.json.77").write_text("{")
    (folder / "metrics.csv").write_text("step,seconds,tokens,name,value\n1,0,0,train/loss,7\n")
    assert run(*mlm, "resume=auto").summary["steps"] == 6
    assert not (folder / ".summary.json.77").exists()
    assert "train/loss,7\n" not in (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("kept", ["notes.txt", "checkpoints/best.safetensors", "finished"])
def test_a_folder_with_anything_of_worth_is_not_cleared(run, mlm, tmp_path, kept) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    if kept == "finished":
        RunFolder(folder).write_json("summary.json", {"status": "finished"})
    else:
        (folder / kept).write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="exists already"):
        run(*mlm, "resume=auto")
    assert sorted(folder.rglob("*")) == before


def test_a_refusal_of_rank_zero_reaches_every_rank(monkeypatch) -> None:
    told = []
    monkeypatch.setattr(launch, "from_rank_zero", lambda value: told.append(value) or (None, "no such run"))

    def decide():
        raise UserError("no such run")

    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match="no such run"):
            launch.agreed(decide)
    assert told == [(None, "no such run"), (None, None)]


def test_the_key_is_documented() -> None:
    assert OmegaConf.load(config.CONF / "train.yaml").resume_force is False
