"""best.yaml is an experiment: it composes to the config of the best trial, whatever the sweep was made of."""

from pathlib import Path

import optuna
import pytest
import yaml
from omegaconf import OmegaConf
from optuna.trial import TrialState, create_trial

from lit_tfm import config
from lit_tfm.runs import RunFolder
from lit_tfm.search import best, settings
from lit_tfm.search.space import Draw
from lit_tfm.train import train

SMALL = {
    "data.block_size": 32,
    "data.batch_size": 8,
    "data.val_limit": 8,
    "tokenizer.vocab_size": 400,
    "trainer.precision": 32,
    "trainer.accelerator": "cpu",
    "trainer.val_every": 0.5,
}
SPACE = {
    "model.d_model": {"choices": [32, 64]},
    "model.n_heads": "divisors of model.d_model with head size in [16, 32]",
    "model.d_ff": "3 * model.d_model",
    "model.n_layers": {"low": 1, "high": 2},
    "optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True},
}


def swept(folder: Path, sweep: dict, values: list[list[float]], states: str = "", seed: int = 0, config_dir=None):
    """(settings, study): trials drawn from the space, with the config.yaml that a run of each leaves."""
    (folder / "my.yaml").write_text(yaml.safe_dump({"experiment": "bert_small", **sweep}))
    found = settings.load([f"sweep={folder / 'my.yaml'}", f"output_dir={folder / 'out'}"], config_dir)
    found.folder.mkdir()
    (found.folder / "sweep.yaml").write_text(yaml.safe_dump(found.to_plain()))
    study = optuna.create_study(study_name="my", directions=list(found.direction))
    draw = Draw(seed)
    for number, reached in enumerate(values):
        params = found.space.sample(draw)
        while found.space.feasible(params) is not None:
            params = found.space.sample(draw)
        cfg = found.compose(params, number)
        run = RunFolder(found.trial_folder(number))
        run.path.mkdir(parents=True)
        run.write_config(cfg)
        state = {"P": TrialState.PRUNED, "F": TrialState.FAIL}.get(states[number : number + 1], TrialState.COMPLETE)
        trial = create_trial(state=state, values=reached if state == TrialState.COMPLETE else None)
        trial.params, trial.distributions = params, {key: _any(value) for key, value in params.items()}
        study.add_trial(trial)
    return found, study


def _any(value):
    return optuna.distributions.CategoricalDistribution([value])


def apart_from_its_place(cfg) -> dict:
    plain = OmegaConf.to_container(cfg, resolve=True)
    plain["choices"].pop("experiment", None)  # the name of the yaml it came from
    return {key: value for key, value in plain.items() if key not in ("output_dir", "resume")}


def check(folder: Path, number: int, name: str = "best.yaml", config_dir=None) -> str:
    """The yaml's text, after it has composed to that trial's config."""
    path = folder / "out" / name
    target = OmegaConf.load(folder / "out" / "trials" / f"{number:04d}" / "config.yaml")
    composed = config.compose([f"experiment={path}"], config_dir)
    assert apart_from_its_place(composed) == apart_from_its_place(target)
    return path.read_text()


def test_it_composes_to_the_best_trial(tmp_path: Path) -> None:
    sweep = {"fixed": {**SMALL, "data": "pydoc", "seed": 7}, "space": SPACE, "budget": "2e6 tokens"}
    found, study = swept(tmp_path, sweep, [[3.0], [1.5], [1.0], [2.0]], states="CCPC")
    assert best.write(found.folder, study, found) == found.folder / "best.yaml"
    lines = check(tmp_path, 1).splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python -m lit_tfm.train experiment={tmp_path}/out/best.yaml"
    assert lines[2].startswith("# val/loss 1.5000: trial 1 of the sweep my (")
    assert lines[3:6] == ["defaults:", "  - bert_small", "  - override /data: pydoc"]
    told = "\n".join(lines)
    assert "budget: 2e6 tokens" in told.replace('"', "")
    searched = [line.split(":")[0].strip() for line in lines if line.endswith("# searched")]
    assert sorted(searched) == ["d_model", "lr", "n_heads", "n_layers"]
    assert "d_ff" in told  # what follows from it, as well
    assert "dropout" not in told  # what the experiment says anyway is not said again


def test_groups_branches_and_keys_that_no_yaml_names(tmp_path: Path) -> None:
    space = {
        "optimizer": {"choices": ["adamw", "muon", "lion"]},
        "optimizer.momentum": {"low": 0.8, "high": 0.99, "when": "optimizer == muon"},
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model": {"choices": ["bert_tiny", "bert_mini"]},
        "model.softcap": {"choices": [20.0, 30.0]},
    }
    fixed = {"callbacks": ["default", "ema"], "schedule": "cosine", "tags": ["1e3", "yes", "a: b", "null", "#x", "7"]}
    found, study = swept(tmp_path, {"fixed": fixed, "space": space}, [[v] for v in (4.0, 3.0, 2.0, 1.0)], seed=3)
    best.write(found.folder, study, found)
    text = check(tmp_path, 3)
    assert "override /callbacks: [default, ema]" in text
    assert "override /schedule: cosine" in text
    assert "override /optimizer: " in text
    assert "softcap: " in text


def test_an_experiment_that_is_a_file_is_written_out(tmp_path: Path) -> None:
    """The file may change or go: best.yaml does not need it."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "# @package _global_\ndefaults:\n  - gpt_small\n  - override /data: pydoc\nmodel:\n  n_layers: 3\nseed: 5\n"
    )
    sweep = {"experiment": str(mine), "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
    found, study = swept(tmp_path, sweep, [[2.0], [1.0]])
    best.write(found.folder, study, found)
    mine.unlink()
    assert "mine.yaml" not in check(tmp_path, 1)


def test_groups_of_a_folder_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "conf" / "data" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text((config.CONF / "data" / "pydoc.yaml").read_text())
    sweep = {"fixed": {"data": "mine"}, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
    found, study = swept(tmp_path, sweep, [[1.0]], config_dir=tmp_path / "conf")
    best.write(found.folder, study, found)
    assert "override /data: mine" in check(tmp_path, 0, config_dir=tmp_path / "conf")
    assert f"train --config-dir {tmp_path}/conf experiment=" in best.command(found.folder)


def test_an_accumulation_that_memory_asked_for_stays(tmp_path: Path) -> None:
    """After an out-of-memory a trial goes on with smaller micro-batches: so does whoever trains it again."""
    found, study = swept(tmp_path, {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}, [[1.0]])
    run = RunFolder(found.trial_folder(0))
    cfg = run.config()
    cfg.trainer.accumulate = 4
    run.write_config(cfg)
    best.write(found.folder, study, found)
    assert "accumulate: 4" in check(tmp_path, 0)


def test_a_trial_of_another_machine(tmp_path: Path) -> None:
    """Its folder can't be seen from here, its parameters can."""
    found, study = swept(tmp_path, {"space": SPACE, "fixed": {"data": "pydoc"}}, [[2.0], [1.0]])
    config_yaml = found.trial_folder(1) / "config.yaml"
    kept = config_yaml.read_text()
    config_yaml.unlink()
    best.write(found.folder, study, found)
    config_yaml.write_text(kept)
    check(tmp_path, 1)


def test_several_objectives_have_a_yaml_for_each_of_the_front(tmp_path: Path) -> None:
    sweep = {
        "metric": ["val/loss", "parameters"],
        "direction": ["minimize", "minimize"],
        "space": {"model.n_layers": {"low": 1, "high": 4}, "optimizer.lr": {"low": 1e-4, "high": 1e-2}},
        "fixed": {"data": "pydoc"},
    }
    found, study = swept(tmp_path, sweep, [[3.0, 10.0], [2.0, 30.0], [3.5, 20.0], [2.5, 20.0]])
    (found.folder / "best-9.yaml").write_text("of another time")
    best.write(found.folder, study, found)
    written = sorted(path.name for path in found.folder.glob("best*"))
    assert written == ["best-0.yaml", "best-1.yaml", "best-3.yaml", "best.yaml"]
    for number in (0, 1, 3):
        check(tmp_path, number, f"best-{number}.yaml")
    check(tmp_path, 1)  # the best in the first objective


def test_nothing_completed_leaves_no_best(tmp_path: Path) -> None:
    found, study = swept(tmp_path, {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}, [[0], [0]], states="PF")
    (found.folder / "best.yaml").write_text("of another time")
    assert best.write(found.folder, study, found) is None
    assert not list(found.folder.glob("best*"))


TEXTS = ["word", "two words", "1e3", "1_000", "yes", "null", "a: b", "#", "", "it's", 'say "x"', "back\\slash", "tab\t"]
TEXTS += ["line\nend", "日本", "~", "-", "[1]", "{a: b}", "0x1F", "12:30:00", "!!python/none", "&a", "*a", "%", "x #y"]
NUMBERS = [None, True, 3, -0.5, 1e-05, 1e300, float("inf")]
NESTED = [[1, "2", None, [True]], {"a": {"b": 1.5}, "c d": "e"}, [], {}]


@pytest.mark.parametrize("value", [*TEXTS, *NUMBERS, *NESTED])
def test_a_value_is_read_back_as_it_was(value) -> None:
    read = OmegaConf.to_container(OmegaConf.create(f"key: {best.text(value)}\n"))["key"]
    assert read == value
    assert type(read) is type(value)


def test_it_trains_to_the_same_loss(tmp_path: Path, text_folder: Path, session_cache: Path) -> None:
    fixed = {**SMALL, "data.path": str(text_folder), "cache_dir": str(session_cache), "trainer.max_steps": 4}
    found, study = swept(tmp_path, {"fixed": fixed, "space": SPACE}, [[1.0]])
    first = train(OmegaConf.merge(found.compose(study.trials[0].params, 0), {"output_dir": str(tmp_path / "first")}))
    best.write(found.folder, study, found)
    words = [f"experiment={found.folder / 'best.yaml'}", f"output_dir={tmp_path / 'again'}"]
    again = train(config.compose(words), quiet=True)
    assert again.best["val/loss"] == first.best["val/loss"]
    assert again.summary["steps"] == 4
