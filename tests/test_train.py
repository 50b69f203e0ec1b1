"""The one door, end to end on real text: what a run leaves behind, how it ends, how it goes on."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_tfm import config
from lit_tfm.build import build, facts_of, load_task
from lit_tfm.errors import UserError
from lit_tfm.hardware import choose
from lit_tfm.runs import RunFolder
from lit_tfm.train import train

EXPERIMENTS = sorted(p.stem for p in (config.CONF / "experiment").glob("*.yaml"))
TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32", "trainer.accelerator=cpu"]
QUICK = ["trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=2", "data.val_limit=8", "budget=null"]
MLM = ["experiment=bert_small", "data.block_size=32", "data.batch_size=8", "tokenizer.vocab_size=400"]


@pytest.fixture
def masked(text_folder: Path) -> list[str]:
    return [*MLM, f"data.path={text_folder}", *QUICK]


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"{name}.safetensors")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_is_complete(run, masked) -> None:
    result = run(*masked)
    assert result.status == "finished"
    for name in ("config.yaml", "command.txt", "environment.json", "data.json", "metrics.csv", "tokenizer.json"):
        assert (result.folder / name).stat().st_size > 0
    summary = json.loads((result.folder / "summary.json").read_text())
    assert {"status", "steps", "tokens", "seconds", "parameters", "metrics", "best", "data", "seed"} <= set(summary)
    assert {"flops_per_token", "monitor", "mode"} <= set(summary)  # what comparing runs needs
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 8 * 32
    assert summary["metrics"]["val/loss"] == result.metrics["val/loss"]
    assert json.loads((result.folder / "environment.json").read_text())["packages"]["lightning"]


def test_metrics_csv_holds_every_number_once(run, masked) -> None:
    folder = run(*masked).folder
    rows = rows_of(folder)
    places = [(row["step"], row["name"]) for row in rows]
    assert len(places) == len(set(places))
    assert [int(row["step"]) for row in rows if row["name"] == "val/loss"] == [3, 6]
    assert [int(row["step"]) for row in rows if row["name"] == "train/loss"] == [1, 2, 4, 6]


def test_checkpoints_hold_plain_values_and_plain_weights(run, masked) -> None:
    folder = run(*masked).folder
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] in (3, 6)
    plain = weights(folder, "best")
    assert plain.keys() <= checkpoint["state_dict"].keys()
    assert all(torch.equal(plain[name], checkpoint["state_dict"][name]) for name in plain)


def test_a_task_is_rebuilt_from_the_run_folder_alone(run, masked, text_folder) -> None:
    result = run(*masked)
    task = load_task(RunFolder.open(result.folder), "last")
    assert facts_of(RunFolder.open(result.folder)).splits["validation"].tokens > 0
    stored = weights(result.folder)
    assert all(torch.equal(stored[name], value) for name, value in task.state_dict().items() if name in stored)


def test_tensorboard_has_scalars_and_hparams_with_the_real_metric(run, masked) -> None:
    result = run(*masked)
    events = EventAccumulator(str(result.folder)).Reload()
    names = events.Tags()["scalars"]
    assert {"loss/train", "loss/val", "best/loss", "optimizer/learning_rate", "optimizer/grad_norm"} <= set(names)
    assert "hp_metric" not in names
    assert events.Scalars("best/loss")[-1].value == pytest.approx(result.best["val/loss"])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    named = set(HParamsPluginData.FromString(content).session_start_info.hparams)
    assert {"model/d_model", "model/n_layers", "data/block_size", "chosen/model", "seed"} <= named


def test_the_same_config_gives_the_same_weights(run, masked) -> None:
    one, two = run(*masked, folder="one"), run(*masked, folder="two")
    assert one.metrics == two.metrics
    assert all(
        torch.equal(a, b) for a, b in zip(weights(one.folder).values(), weights(two.folder).values(), strict=True)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [3, 4])  # right after a validation, and between two
def test_a_resumed_run_ends_with_the_same_bits(run, masked, stop, accumulate) -> None:
    options = [*masked, "trainer.max_steps=7", "model.dropout=0.1", f"trainer.accumulate={accumulate}"]
    whole = run(*options, f"++callbacks.checkpoints.every={stop}", folder="whole")
    uninterrupted = weights(whole.folder)
    part = whole.folder / "checkpoints" / f"step-{stop}.ckpt"
    again = run(*options, f"resume={part}")
    assert again.folder == whole.folder
    rows = rows_of(whole.folder)
    places = [(row["step"], row["name"]) for row in rows]
    assert len(places) == len(set(places)), "a resumed run wrote points twice"
    assert again.metrics == whole.metrics
    assert all(torch.equal(value, uninterrupted[name]) for name, value in weights(again.folder).items())


def test_resume_auto_starts_where_nothing_is_and_goes_on_where_something_is(run, masked, tmp_path) -> None:
    first = run(*masked, "resume=auto", folder="auto")
    assert first.summary["steps"] == 6
    longer = run(*masked, "resume=auto", f"output_dir={first.folder}", "trainer.max_steps=9")
    assert longer.summary["steps"] == 9
    assert longer.folder == first.folder


def test_an_existing_folder_is_never_overwritten(run, masked) -> None:
    result = run(*masked)
    before = (result.folder / "summary.json").read_text()
    with pytest.raises(UserError, match="resume=auto"):
        run(*masked, f"output_dir={result.folder}")
    assert (result.folder / "summary.json").read_text() == before


def test_a_budget_ends_the_run_and_anneals_to_its_end(run, masked) -> None:
    result = run(*masked, "budget=2s", "trainer.max_steps=100000", "trainer.val_every=0.5", "trainer.log_every=1")
    assert 0 < result.summary["steps"] < 100000
    assert result.summary["seconds"] >= 2
    rates = [float(row["value"]) for row in rows_of(result.folder) if row["name"] == "train/learning_rate"]
    assert rates[-1] < 0.3 * max(rates)


def test_a_budget_of_tokens_ends_the_run_at_its_tokens_and_anneals_to_its_end(run, masked) -> None:
    options = ["trainer.max_epochs=null", "trainer.max_steps=null", "trainer.log_every=1", "trainer.val_every=0.4"]
    result = run(*masked, "budget=2000 tokens", "schedule=linear", "schedule.warmup=0", *options)
    assert result.summary["tokens"] == 2048  # the first whole number of steps of 8 * 32 that holds them
    rows = rows_of(result.folder)
    assert [int(row["step"]) for row in rows if row["name"] == "val/loss"] == [4, 7, 8]  # 0.4, 0.8, the end
    rates = [float(row["value"]) for row in rows if row["name"] == "train/learning_rate"]
    # Linear from the middle of the first step to the middle of the last, which here is cut short.
    assert [rate / rates[0] for rate in rates] == pytest.approx([(2000 - 128 - 256 * i) / 1872 for i in range(8)])


def test_a_budget_of_flops_is_one_of_tokens(run, masked) -> None:
    parts = build(cfg := config.compose([*TINY, *masked, "budget=1e9 flops"]), choose(cfg.trainer))
    progress = parts.task.progress
    assert progress.max_tokens == pytest.approx(1e9 / parts.task.flops_per_token)
    assert progress.max_steps == 6  # the other bound holds as well


def test_a_run_without_any_bound_is_refused(run, masked) -> None:
    with pytest.raises(UserError, match="would not end"):
        run(*masked, "trainer.max_steps=null", "trainer.max_epochs=null")


@pytest.mark.parametrize("stop", [3, 4])  # between two validations, and right after one
def test_a_resumed_run_of_tokens_ends_with_the_same_bits(run, masked, stop) -> None:
    options = [*masked, "budget=1700 tokens", "trainer.max_steps=null", "trainer.max_epochs=null", "model.dropout=0.1"]
    options += ["trainer.val_every=0.5"]  # of 7 steps: after the fourth, and at the end
    whole = run(*options, f"++callbacks.checkpoints.every={stop}", folder="whole")
    assert whole.summary["steps"] == 7
    uninterrupted = weights(whole.folder)
    again = run(*options, f"resume={whole.folder / 'checkpoints' / f'step-{stop}.ckpt'}")
    assert again.metrics == whole.metrics
    assert again.summary["tokens"] == whole.summary["tokens"]
    assert all(torch.equal(value, uninterrupted[name]) for name, value in weights(again.folder).items())


def test_a_finished_budget_is_finished_after_a_resume(run, masked, tmp_path) -> None:
    options = [*masked, "budget=1700 tokens", "trainer.max_steps=null", "trainer.max_epochs=null"]
    first = run(*options)
    again = run(*options, f"resume={first.folder}")
    assert again.status == "finished"
    assert again.summary["steps"] == first.summary["steps"]
    # Killed after its last checkpoint, before it could say so: it says so now, without another step.
    summary = json.loads((first.folder / "summary.json").read_text())
    (first.folder / "summary.json").write_text(json.dumps({**summary, "status": "running", "best": {}}))
    before = weights(first.folder)
    late = run(*options, f"resume={first.folder}", "test=true")
    assert late.status == "finished"
    assert (late.summary["steps"], late.best) == (first.summary["steps"], first.best)
    assert math.isfinite(late.metrics["test/loss"])
    assert all(torch.equal(value, before[name]) for name, value in weights(late.folder).items())


DIVERGING = """
from lit_tfm.tasks.masked_lm import MaskedLM

class Diverging(MaskedLM):
    def step(self, batch):
        output = super().step(batch)
        fault = float("nan") if self.training and self.trainer.global_step == 4 else 1.0
        return output._replace(loss_sum=output.loss_sum * fault)
"""


def test_a_nan_loss_stops_says_the_step_and_keeps_the_last_good_checkpoint(run, masked, tmp_path, monkeypatch) -> None:
    (tmp_path / "diverging.py").write_text(DIVERGING)
    monkeypatch.syspath_prepend(tmp_path)
    told = r"loss is nan at step 5; it appears first in the loss itself .*; the last good checkpoint is .*last.ckpt"
    with pytest.raises(UserError, match=told):
        run(*masked, "task._target_=diverging.Diverging", "allow_targets=diverging", "task.bad_steps=1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "at step 5" in summary["reason"]
    assert summary["steps"] == 4  # the fifth is not counted: its weights are not used
    assert all(torch.isfinite(w).all() for w in weights(tmp_path / "run").values())


def test_weights_that_overflowed_replace_no_checkpoint(run, masked, tmp_path) -> None:
    broken = ["task.grad_clip=0", "optimizer=adamw", "optimizer.lr=1e30", "trainer.val_every=1"]
    with pytest.raises(UserError, match=r"no longer finite at step 1; no checkpoint"):
        run(*masked, *broken)
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_dry_run_does_a_step_and_writes_nothing(run, masked, tmp_path) -> None:
    result = run(*masked, "dry_run=true")
    assert result.status == "dry run"
    assert math.isfinite(result.metrics["train/loss"])
    assert not (tmp_path / "run").exists()


def test_a_run_may_have_neither_loggers_nor_callbacks(run, masked) -> None:
    result = run(*masked, "logger=[]", "callbacks=[]")
    assert result.status == "finished"
    assert rows_of(result.folder)
    assert not list(result.folder.glob("events*"))


def test_the_test_split_is_measured_with_the_best_checkpoint(run, masked) -> None:
    result = run(*masked, "test=true")
    assert math.isfinite(result.metrics["test/loss"])
    assert (
        json.loads((result.folder / "summary.json").read_text())["metrics"]["test/loss"] == result.metrics["test/loss"]
    )


class NoNumbers(Callback):
    """As where every validation loss is NaN: none is the best."""

    def on_validation_end(self, trainer, pl_module) -> None:
        pl_module.measured["val/loss"] = math.nan
        trainer.callback_metrics["val/loss"] = torch.tensor(math.nan)


def test_where_none_is_the_best_the_last_weights_are_tested(masked, tmp_path, session_cache, capsys) -> None:
    given = [*TINY, *masked, f"cache_dir={session_cache}", f"output_dir={tmp_path / 'run'}", "test=true"]
    result = train(config.compose(given), callbacks=[NoNumbers()])
    assert not (result.folder / "checkpoints" / "best.ckpt").exists()
    assert math.isfinite(result.metrics["test/loss"])
    assert "best.ckpt: there is none, so the last weights are tested" in capsys.readouterr().out


def test_init_from_takes_over_what_fits_and_says_what_does_not(run, masked, labelled_csv, session_cache) -> None:
    first = run(*masked, "model.tie_embeddings=false", folder="pretrained")
    classify = ["model=bert_small", "task=classification", "data=csv", f"data.path={labelled_csv}", *QUICK]
    classify += [f"init_from={first.folder}", f"cache_dir={session_cache}"]
    with pytest.raises(UserError, match=r"type tokenizer.path="):  # its ids would be other words
        run(*classify)
    same = f"tokenizer.path={first.folder / 'tokenizer.json'}"
    cfg = config.compose([*TINY, *classify, same])
    parts = build(cfg, choose(cfg.trainer))
    old = weights(first.folder, "best")
    assert torch.equal(parts.task.state_dict()["model.embedding.weight"], old["model.embedding.weight"])
    assert parts.transfer.missing
    assert all("model." not in name for name in parts.transfer.missing)
    assert parts.transfer.unused == ["head.matrix"]
    assert run(*classify, same, folder="tuned").status == "finished"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_a_step(run, name, text_folder, shared) -> None:
    cfg = config.compose([f"experiment={name}"])
    real = {"sst2": "sst2", "emotion": "emotion", "ag_news": "ag_news/test.csv"}
    options = []
    if cfg.choices.data in real:
        options = [f"data.path={shared / real[cfg.choices.data]}", "data.subset=16", "data.test_limit=8"]
    elif "pydoc" not in cfg.choices.data:
        options = [f"data.path={text_folder}", "data.block_size=32", "data.batch_size=4"]
    if "vocab_size" in cfg.tokenizer:
        options.append("tokenizer.vocab_size=500")
    result = run(f"experiment={name}", *options, *QUICK, "trainer.max_steps=1", "trainer.val_every=1")
    assert result.status == "finished"
    assert math.isfinite(result.metrics["val/loss"])


@pytest.mark.parametrize("preset", ["one_batch", "overfit", "limit", "profile"])
def test_debug_presets_run(run, masked, preset) -> None:
    options = [o for o in masked if o not in QUICK]
    result = run(*options, f"debug={preset}", "trainer.max_steps=20" if preset != "one_batch" else "seed=1")
    assert result.status == "finished"
    if preset == "profile":
        assert "Self CPU" in (result.folder / "profile.txt").read_text()
    if preset == "overfit":
        assert result.summary["steps"] == 20


def test_a_moving_average_is_what_is_validated_and_saved(run, masked) -> None:
    plain = run(*masked, folder="plain")
    averaged = run(*masked, "callbacks=[default,ema]", "callbacks.ema.decay=0.5", folder="averaged")
    assert averaged.metrics["train/loss"] == plain.metrics["train/loss"]
    assert averaged.metrics["val/loss"] != plain.metrics["val/loss"]


def test_resume_needs_no_more_words_than_the_folder(run, masked, session_cache) -> None:
    first = run(*masked)
    before = (first.folder / "config.yaml").read_text()
    longer = train(config.compose([f"resume={first.folder}", "trainer.max_steps=9"]), quiet=True)
    assert longer.folder == first.folder
    assert longer.summary["steps"] == 9
    rows = [int(row["step"]) for row in rows_of(first.folder) if row["name"] == "val/loss"]
    assert rows == [3, 6, 9]
    changed = (first.folder / "config.yaml").read_text()
    assert changed == before.replace("max_steps: 6", "max_steps: 9")


def test_resume_refuses_another_model_and_leaves_the_folder_as_it_was(run, masked) -> None:
    folder = run(*masked).folder
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"model.d_model: 32 there, 64 here"):
        train(config.compose([f"resume={folder}", "model.d_model=64", "trainer.max_steps=9"]), quiet=True)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_finished_run_is_not_trained_further_by_resuming_it(run, masked) -> None:
    first = run(*masked)
    again = train(config.compose([f"resume={first.folder}"]), quiet=True)
    assert again.summary["steps"] == first.summary["steps"]
    assert again.status == "finished"


def test_a_longer_run_goes_on_validating(run, masked) -> None:
    options = [o for o in masked if "val_every" not in o]
    first = run(*options, "trainer.val_every=0.5", "trainer.max_steps=4")
    train(config.compose([f"resume={first.folder}", "trainer.max_steps=12"]), quiet=True)
    steps = [int(row["step"]) for row in rows_of(first.folder) if row["name"] == "val/loss"]
    assert steps == [2, 4, 6, 12]
