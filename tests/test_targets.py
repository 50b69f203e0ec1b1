"""Opening somebody else's config executes nothing: only parts of a run can be named, unless one types more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm import build, config, targets, trained
from lit_tfm.errors import UserError
from lit_tfm.runs import RunFolder
from lit_tfm.train import train

CONF_TARGETS = sorted(
    {
        line.partition("_target_:")[2].split()[0]
        for path in config.CONF.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.strip().startswith("_target_:")
    }
)


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch) -> None:
    """What other tests of this process typed does not count here, nor what is typed here elsewhere."""
    monkeypatch.setenv(targets.VARIABLE, "")


@pytest.fixture
def touched(tmp_path) -> Path:
    return tmp_path / "touched"


def payloads(file: Path) -> dict[str, dict]:
    """Configs that would make `file` if they were called."""
    shell, python = f"touch {file}", f"open({str(file)!r}, 'w').close()"
    return {
        "os.system": {"_target_": "os.system", "command": shell},
        "posix.system": {"_target_": "posix.system", "command": shell},
        "builtins.eval": {"_target_": "builtins.eval", "_args_": [python]},
        "builtins.exec": {"_target_": "builtins.exec", "_args_": [python]},
        "subprocess.Popen": {"_target_": "subprocess.Popen", "args": ["touch", str(file)]},
        "partial": {"_target_": "subprocess.run", "_partial_": True, "args": ["touch", str(file)]},
        "pathlib": {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(file)]}]},
        "through this package": {"_target_": "lit_tfm.runs.subprocess.run", "args": ["touch", str(file)]},
        "through a part's module": {"_target_": "lit_tfm.callbacks.checkpoint_files.os.system", "command": shell},
        "through torch": {"_target_": "torch.nn.modules.module.torch.load", "f": str(file)},
        "own writer": {"_target_": "lit_tfm.runs.write_text", "path": str(file), "text": "x"},
        "hydra": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system", "command": shell}},
        "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": str(file.parent), "model": "x", "source": "local"},
        "torch.load": {"_target_": "torch.load", "f": str(file)},
    }


KINDS = sorted(payloads(Path("x")))


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, "nested") for kind in KINDS]
    + [
        (kind, where)
        for kind in ("os.system", "partial")
        for where in ("model", "callbacks", "logger", "optimizer", "list")
    ],
)
def test_a_yaml_can_not_call(kind: str, where: str, touched, tmp_path) -> None:
    payload = payloads(touched)[kind]
    places = {
        "callbacks": {"callbacks": {"mine": payload}},
        "logger": {"logger": {"mine": payload}},
        "nested": {"model": {"d_ff": {"deeper": payload}}},
        "list": {"task": {"replace": [1, payload]}},
    }
    path = tmp_path / "stranger.yaml"
    path.write_text("# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(places.get(where, {where: payload}))))
    with pytest.raises(UserError, match="a config may name only") as caught:
        config.compose([f"experiment={path}"])
    assert "\n" not in str(caught.value)
    assert "if you trust it, type allow_targets=" in str(caught.value)
    assert not touched.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_config_can_not_call(kind: str, touched, tmp_path, session_cache, text_folder) -> None:
    """Without composing: `train(OmegaConf.load(...))`, a rank, a later verb."""
    cfg = config.compose([f"data.path={text_folder}", f"cache_dir={session_cache}", "trainer.accelerator=cpu"])
    payload, facts = payloads(touched)[kind], build.build_data(cfg).facts
    stored = OmegaConf.create(OmegaConf.to_container(cfg))
    stored.allow_targets = ["os", "posix", "builtins", "subprocess", "pathlib", "hydra", "torch", "lit_tfm"]
    for group in ("model", "task", "optimizer", "schedule"):
        broken = OmegaConf.merge(stored, {})
        broken[group] = payload
        with pytest.raises(UserError, match="a config may name only"):
            build.build_task(broken, facts)
    for group in ("data", "tokenizer"):
        broken = OmegaConf.merge(stored, {})
        broken[group] = payload
        with pytest.raises(UserError, match="a config may name only"):
            build.build_data(broken)
    with pytest.raises(UserError, match="a config may name only"):
        build.make_with(OmegaConf.create(payload), monitor="val/loss")
    assert not touched.exists()


def test_a_run_folder_of_a_stranger(touched, tmp_path, session_cache, text_folder, run) -> None:
    folder = run("experiment=bert_small", f"data.path={text_folder}", "trainer.max_steps=1", "data.val_limit=2").folder
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.task = {"_target_": "os.system", "command": f"touch {touched}"}
    cfg.allow_targets = ["os", "posix"]
    OmegaConf.save(cfg, folder / "config.yaml")
    for opening in (
        lambda: train(OmegaConf.load(folder / "config.yaml"), quiet=True),
        lambda: trained.load(RunFolder.open(folder)),
        lambda: trained.task_class(RunFolder.open(folder)),
        lambda: config.compose([f"resume={folder}"]),
    ):
        with pytest.raises(UserError, match="a config may name only"):
            opening()
    assert not touched.exists()


@pytest.mark.parametrize("key", ["hydra", "defaults", "package"])
def test_an_experiment_file_can_not_reach_hydras_own_calls(key: str, touched, tmp_path) -> None:
    """@hydra.main instantiates what stands under hydra.callbacks before any check of ours could run."""
    call = f"{{_target_: os.system, command: touch {touched}}}"
    text = {
        "hydra": f"hydra: {{callbacks: {{x: {call}}}}}",
        "defaults": "defaults: [override /hydra/launcher: submitit_local]\nseed: 1",
        "package": "defaults: ['/model@hydra.callbacks.x: bert_tiny']\nseed: 1",
    }[key]
    path = tmp_path / "stranger.yaml"
    path.write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match="this one sets Hydra's own"):
        config.compose([f"experiment={path}"])
    if key != "hydra":
        return
    env = {**os.environ, targets.VARIABLE: ""}
    command = [sys.executable, "-m", "lit_tfm.train", f"experiment={path}", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not touched.exists()


@pytest.mark.parametrize("target", CONF_TARGETS)
def test_every_target_of_conf_is_allowed(target: str) -> None:
    if (module := targets.sending(target)) is not None:  # only the command line can ask for these
        with pytest.raises(UserError, match=f"allow_targets={module}"):
            targets.find(target, "x")
        targets.allow([module])
    assert targets.find(target, "x") is not None


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.profilers.SimpleProfiler",
        "torchmetrics.classification.MulticlassAccuracy",
    ],
)
def test_parts_of_the_libraries_are_allowed(target: str) -> None:
    assert targets.find(target, "x") is not None


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Module.load_state_dict",  # a method
        "torch.nn.init.normal_",
        "torch.optim.Optimizer.load_state_dict",
        "torch.utils.cpp_extension.load",
        "lightning.pytorch.Trainer",
        "lightning.fabric.utilities.cloud_io._load",
        "lightning.pytorch.callbacks.Callback.__init__",
        "torchmetrics.text.BERTScore",  # loads a model from wherever it is told
        "lit_tfm.train.train",
        "lit_tfm.build.load_task",
        "lit_tfm.build.make",
        "lit_tfm.data.tokenizers.Tokenizer.from_file",
        "lit_tfm.callbacks.projector.write",
        "lit_tfm.models.encoder.Encoder.__init__.__globals__",
        "lit_tfm.models.encoder.__builtins__",
        "optuna.samplers.TPESampler",  # a sweep's own yaml names these, a run's config has no use for them
        "lit_tfmx.models.encoder.Encoder",
        "torch",
        "",
        "...",
        None,
    ],
)
def test_being_importable_is_not_enough(target) -> None:
    with pytest.raises(UserError) as caught:
        targets.find(target, "model")
    assert "model._target_=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_imported_for_a_target_that_is_refused(tmp_path, monkeypatch, touched) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(touched)!r}, 'w').close()\nclass Model: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="type allow_targets=trap"):
        config.compose(["model._target_=trap.Model"])
    assert not touched.exists()
    assert "trap" not in sys.modules


# ---- one's own word --------------------------------------------------------------------------------------------

MINE = """
import os
from lit_tfm.models.encoder import Encoder

class Mine(Encoder):
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_models"
    sys.modules.pop("my_models", None)


@pytest.mark.parametrize("word", ["allow_targets=my_models", "++allow_targets=[other,my_models]"])
def test_a_module_is_allowed_by_typing_it(mine, word: str) -> None:
    with pytest.raises(UserError, match="type allow_targets=my_models"):
        config.compose(["model._target_=my_models.Mine"])
    cfg = config.compose(["model._target_=my_models.Mine", word])
    assert "my_models" in cfg.allow_targets
    assert targets.find("my_models.Mine", "model").__name__ == "Mine"
    # What it happens to have imported is not its own.
    with pytest.raises(UserError, match=r"my_models.os.system is posix.system: .*type allow_targets=posix"):
        config.compose(["model._target_=my_models.os.system", word])
    with pytest.raises(UserError, match="type allow_targets=my_models2"):
        config.compose(["model._target_=my_models2.Mine", word])


def test_what_a_yaml_allows_counts_for_nothing(mine, tmp_path) -> None:
    path = tmp_path / "stranger.yaml"
    path.write_text("# @package _global_\nallow_targets: [my_models]\nmodel: {_target_: my_models.Mine}\n")
    with pytest.raises(UserError, match="type allow_targets=my_models"):
        config.compose([f"experiment={path}"])
    path.write_text("# @package _global_\nallow_targets: [my_models]\n")
    assert config.compose([f"experiment={path}"]).allow_targets == []


@pytest.mark.parametrize("word", ["allow_targets=", "allow_targets=3", "allow_targets=[a b]", "allow_targets=['os;x']"])
def test_a_word_that_allows_nothing_is_told(word: str) -> None:
    with pytest.raises(UserError, match=r"modules are needed, e.g. allow_targets=my_tasks"):
        config.compose([word])


def test_verbs_on_run_folders_obey_the_word_and_pass_the_others_on() -> None:
    assert targets.take(["RUN", "allow_targets=my_models", "--split", "test"]) == ["RUN", "--split", "test"]
    assert targets.allowed() == ("my_models",)


def test_ranks_and_trials_have_it_too(tmp_path) -> None:
    (tmp_path / "my_plain.py").write_text("class Mine: pass\n")
    targets.allow(["my_plain"])
    code = "from lit_tfm import targets; print(targets.find('my_plain.Mine', 'model').__name__)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "Mine", done.stderr
