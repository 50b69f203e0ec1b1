"""Yamls of somebody else: experiments, sweeps and run folders that reach for secrets, files, other machines or code."""

import contextlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from lit_tfm import build, config, targets
from lit_tfm.errors import UserError
from lit_tfm.runs import RunFolder
from lit_tfm.search import settings
from lit_tfm.trained import config_of

SECRET = "hf_secret_of_a_user"
Task = partial(SimpleNamespace, progress=None)
MLFLOW = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def a_secret_and_nothing_allowed(monkeypatch) -> None:
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.setenv(targets.VARIABLE, "")


def experiment(folder: Path, text: str) -> str:
    path = folder / "stranger.yaml"
    path.write_text(f"# @package _global_\n{text}\n")
    return f"experiment={path}"


def sweep(folder: Path, value: str) -> None:
    (folder / "s.yaml").write_text(f"experiment: bert_small\nspace: {{}}\nconstraints: ['{value}']\n")
    settings.read([f"sweep={folder / 's.yaml'}"])


def run_folder(folder: Path, value: str) -> None:
    (folder / "config.yaml").write_text(f"name: '{value}'\n")
    config_of(RunFolder(folder))


OPENINGS = {
    "experiment": lambda folder, value: config.compose([experiment(folder, f"tags: ['{value}']")]),
    "sweep": sweep,
    "run": run_folder,
}
RESOLVERS = [
    "${oc.env:A_TOKEN}",
    "x${oc.env:A_TOKEN,y}",
    "${oc.decode:${oc.env:A_TOKEN}}",
    "${oc.${name}:A_TOKEN}",
    "${hydra:runtime.cwd}",
    "${oc.create:{_target_: os.system, command: ls}}",
]


@pytest.mark.parametrize("value", RESOLVERS)
@pytest.mark.parametrize("kind", OPENINGS)
def test_a_file_reads_no_environment(kind: str, value: str, tmp_path) -> None:
    """What it read would stand in config.yaml, the curves, the report: wherever a run is shown."""
    with pytest.raises(UserError, match=r"a yaml (may refer to keys|of a run has)") as caught:
        OPENINGS[kind](tmp_path, value)
    assert SECRET not in str(caught.value)


def test_own_keys_and_words_may_be_referred_to(tmp_path) -> None:
    assert config.compose([experiment(tmp_path, "tags: ['of ${seed}']")]).tags == ["of 1"]
    assert config.compose(["tags=['${oc.env:A_TOKEN}']"]).tags == [SECRET]  # typed by whoever starts the run


TWO_STAGES = {
    "one after the other": {"tags": ["$"], "TEXT": "${tags.0}{oc.env:A_TOKEN}"},
    "two beside each other": {"tags": ["$", "{oc.env:A_TOKEN}"], "TEXT": "${tags.0}${tags.1}"},
    "by way of another key": {"tags": ["$", "${tags.0}{oc.env:A_TOKEN}"], "TEXT": "${tags.1}"},
    "in pieces": {"tags": ["$", "{oc.env:A_", "TOKEN}"], "TEXT": "${tags.0}${tags.1}${tags.2}"},
}


@pytest.mark.parametrize("key", ["callbacks.attention.text", "name", "init_from", "model.d_ff"])
@pytest.mark.parametrize("kind", TWO_STAGES)
def test_what_a_reference_reads_as_is_no_program(kind: str, key: str, tmp_path) -> None:
    """Read once it is the text `${oc.env:A_TOKEN}`; whoever asked for the value next read the environment."""
    tree = OmegaConf.create({"tags": TWO_STAGES[kind]["tags"]})
    OmegaConf.update(tree, key, TWO_STAGES[kind]["TEXT"])
    with pytest.raises(UserError, match="after all references were read") as caught:
        config.compose([experiment(tmp_path, OmegaConf.to_yaml(tree))])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", TWO_STAGES)
def test_nor_in_a_sweep(kind: str, tmp_path) -> None:
    tree = {"experiment": "bert_small", "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
    tree["fixed"] = {
        "tags": TWO_STAGES[kind]["tags"],
        "init_from": TWO_STAGES[kind]["TEXT"].replace("tags", "fixed.tags"),
    }
    tree["fixed"]["tags"] = [text.replace("${tags", "${fixed.tags") for text in tree["fixed"]["tags"]]
    for text in (OmegaConf.to_yaml(tree), OmegaConf.to_yaml(tree).replace("${", "\\${").replace("fixed.tags", "tags")):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(UserError, match=r"a yaml may refer to keys|after all references were read") as caught:
            settings.load([f"sweep={tmp_path / 's.yaml'}"])
        assert SECRET not in str(caught.value)


def test_a_dollar_is_a_letter(tmp_path) -> None:
    tags = ["$", "costs 5$", "^a$", "$HOME", "{a}", "$ ${seed}", "${seed}$", "${name}{b}"]
    given = OmegaConf.to_yaml(OmegaConf.create({"name": "x", "tags": tags}))
    assert config.compose([experiment(tmp_path, given)]).tags == [*tags[:5], "$ 1", "1$", "x{b}"]


def test_what_is_checked_is_what_is_called(tmp_path) -> None:
    """One interpolation, two meanings: in the whole config it is harmless, in the node alone it is a call."""
    touched = tmp_path / "touched"
    cfg = OmegaConf.create(
        {
            "evil": "torch.nn.Identity",
            "model": {
                "_target_": "lit_tfm.models.encoder.Encoder",
                "evil": "os.mkdir",  # not on the short list of what Hydra itself refuses, as os.system is
                "d_ff": {"_target_": "${evil}", "path": str(touched)},
            },
        }
    )
    with contextlib.suppress(Exception):  # however it is refused, and whatever else is wrong with such a model
        build.make(cfg.model, vocab_size=9)
    assert not touched.exists()


@pytest.mark.parametrize(
    "entry",
    [
        "/model: ../../../../{folder}/evil",
        "/model: {folder}/evil",
        "override /model: [bert_tiny, ../evil]",
        "../../{folder}/evil",
        "/elsewhere: bert_tiny",
        "override /model: '${{seed}}'",
        "optional /model: ..",
    ],
)
def test_a_defaults_list_reads_no_other_file(entry: str, tmp_path) -> None:
    """Hydra would follow the path, and what it finds there may set Hydra's own keys, which it calls unasked."""
    call = f"{{_target_: os.system, command: touch {tmp_path / 'touched'}}}"
    (tmp_path / "evil.yaml").write_text(f"# @package _global_\nhydra: {{callbacks: {{x: {call}}}}}\n")
    with pytest.raises(UserError, match=r"defaults: .*the name of one of its yamls"):
        config.compose([experiment(tmp_path, f"defaults:\n  - {entry.format(folder=tmp_path)}")])


def test_a_defaults_list_of_names_is_followed(tmp_path) -> None:
    text = "defaults:\n  - char_gpt\n  - override /model: gpt_tiny\n  - override /callbacks: [default, ema]"
    cfg = config.compose([experiment(tmp_path, text)])
    assert (cfg.choices.model, "ema" in cfg.callbacks) == ("gpt_tiny", True)


# ---- who is told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [f"logger: {{mine: {MLFLOW}}}", "defaults: [override /logger: [mlflow]]"])
def test_a_file_can_not_have_a_run_sent_elsewhere(text: str, tmp_path) -> None:
    given = experiment(tmp_path, text)
    with pytest.raises(UserError, match=r"sends what a run logs to another machine.*allow_targets=lightning\S+mlflow"):
        config.compose([given])
    assert "mlflow" in str(config.compose([given, "allow_targets=lightning.pytorch.loggers.mlflow"]).logger).lower()


def test_a_logger_is_asked_for_by_the_command_line(tmp_path) -> None:
    assert config.compose(["logger=[tensorboard,mlflow]"]).logger.mlflow.experiment_name == "lit_tfm"
    assert "lightning.pytorch.loggers.mlflow" in targets.allowed()


def test_a_word_for_a_logger_does_not_trust_where_a_file_sends_it(tmp_path) -> None:
    given = experiment(tmp_path, "logger: {mlflow: {tracking_uri: 'http://127.0.0.1:9'}}")
    with pytest.raises(UserError, match="sends what a run logs"):
        config.compose([given, "logger=[tensorboard,mlflow]"])


def test_a_run_folder_can_not_either(tmp_path, session_cache, text_folder, run) -> None:
    folder = run("experiment=bert_small", f"data.path={text_folder}", "trainer.max_steps=1", "data.val_limit=2").folder
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.logger.mine = MLFLOW
    OmegaConf.save(cfg, folder / "config.yaml")
    for words in ([f"resume={folder}"], [f"resume={folder}", "logger.mine.tags=null"]):
        with pytest.raises(UserError, match="sends what a run logs"):
            config.compose(words)
    with pytest.raises(UserError, match="sends what a run logs"):
        build.make_with(cfg.logger.mine, save_dir=folder)


@pytest.mark.parametrize("key", ["save_dir", "root_dir", "dirpath"])
def test_no_part_writes_to_another_machine(key: str) -> None:
    """fsspec, behind Lightning's paths, would take the address."""
    kind = "callbacks.ModelCheckpoint" if key == "dirpath" else "loggers.CSVLogger"
    with pytest.raises(UserError, match="on another machine"):
        build.make(OmegaConf.create({"_target_": f"lightning.pytorch.{kind}", key: "memory://x"}))


LIGHTNINGS = "lightning.pytorch.loggers."
BOARD = "lit_tfm.callbacks.tensorboard.Board"


@pytest.mark.parametrize(
    ("logger", "places"),
    [
        (f"{LIGHTNINGS}CSVLogger", {"name": "{mine}", "version": ""}),
        (f"{LIGHTNINGS}CSVLogger", {"name": "", "version": "{mine}"}),
        (f"{LIGHTNINGS}CSVLogger", {"name": "..", "version": "mine"}),
        (f"{LIGHTNINGS}CSVLogger", {"save_dir": "{mine}", "name": "", "version": ""}),
        (f"{LIGHTNINGS}TensorBoardLogger", {"name": "{mine}"}),
        (f"{LIGHTNINGS}TensorBoardLogger", {"sub_dir": "{mine}"}),
        (f"{LIGHTNINGS}TensorBoardLogger", {"sub_dir": "../../../mine"}),
        (f"{LIGHTNINGS}TensorBoardLogger", {"name": "$A_TOKEN"}),
        (BOARD, {"name": "", "version": "x$A_TOKEN"}),
        (BOARD, {"name": "", "version": "", "sub_dir": "$MINE"}),
    ],
)
def test_a_logger_stays_in_the_run(logger: str, places: dict, tmp_path, monkeypatch) -> None:
    """Lightning's join an absolute name, and remove the metrics.csv that lies there."""
    mine, run = tmp_path / "mine", RunFolder(tmp_path / "run")
    for folder in (mine, run.path):
        folder.mkdir()
    (mine / "metrics.csv").write_text("precious")
    monkeypatch.setenv("MINE", str(mine))
    node = {"_target_": logger, **{key: value.replace("{mine}", str(mine)) for key, value in places.items()}}
    with pytest.raises(UserError, match=r"logger.x.* outside of the run's folder.* type allow_targets=l") as caught:
        build.build_loggers(OmegaConf.create({"logger": {"x": node}}), Task(), run, None)
    assert SECRET not in str(caught.value)
    assert (list(run.path.iterdir()), (mine / "metrics.csv").read_text()) == ([], "precious")
    targets.allow([str(caught.value).rpartition("=")[2]])
    assert build.build_loggers(OmegaConf.create({"logger": {"x": node}}), Task(), run, None)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("SpikeDetection", "exclude_batches_path"),
        ("ModelCheckpoint", "dirpath"),
        ("OnExceptionCheckpoint", "dirpath"),
    ],
)
def test_nor_does_a_callback_leave_it(part: str, key: str, tmp_path) -> None:
    """The first writes, over what is there, the file that it is told."""
    node = OmegaConf.create({"_target_": f"lightning.pytorch.callbacks.{part}", key: str(tmp_path / "settings.json")})
    with pytest.raises(UserError, match=r"outside of the run's folder.* type allow_targets=l") as caught:
        build.make(node)
    targets.allow([str(caught.value).rpartition("=")[2]])
    assert build.make(node)


@pytest.mark.parametrize(
    ("target", "args", "said"),
    [
        (f"{LIGHTNINGS}CSVLogger", ["memory://x"], r"x\._args_\[0\]=memory://x: on another machine"),
        (f"{LIGHTNINGS}CSVLogger", ["/home/me"], "outside of the run's folder"),
        ("lightning.pytorch.callbacks.ModelCheckpoint", ["memory://x"], "on another machine"),
        ("lit_tfm.callbacks.attention.AttentionMaps", ["text", "many"], r"x\._args_\[1\]=many: must be a whole number"),
        ("lit_tfm.callbacks.attention.AttentionMaps", ["text", 2, 3, 4], "takes 3 of them"),
        ("lit_tfm.callbacks.attention.AttentionMaps", "text", "a list is needed"),
    ],
)
def test_values_without_names_are_judged_as_those_with(target: str, args, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build.make(OmegaConf.create({"x": {"_target_": target, "_args_": args}}).x)


def test_values_without_names() -> None:
    linear = {"_target_": "torch.nn.Linear", "_args_": [2, 3]}
    made = build.make(OmegaConf.create({"_target_": "torch.nn.Sequential", "_args_": [linear, linear]}))
    assert [part.out_features for part in made] == [3, 3]
    with pytest.raises(UserError, match="in_features, which is given by its name as well"):
        build.make(OmegaConf.create({**linear, "in_features": 2}))


def test_a_logger_in_the_run_is_made(tmp_path) -> None:
    nodes = {
        "a": {"_target_": f"{LIGHTNINGS}CSVLogger"},
        "b": {"_target_": f"{LIGHTNINGS}TensorBoardLogger", "name": "tb", "version": 3, "sub_dir": "a/b"},
        "c": {"_target_": "lit_tfm.callbacks.tensorboard.tensorboard"},
    }
    made = build.build_loggers(OmegaConf.create({"logger": nodes}), Task(), RunFolder(tmp_path), None)
    folders = [tmp_path / "lightning_logs" / "version_0", tmp_path / "tb" / "version_3" / "a" / "b", tmp_path]
    assert [Path(logger.log_dir) for logger in made[1:]] == folders


@pytest.mark.parametrize("group", ["logger", "callbacks", "model.d_ff"])
def test_no_config_makes_what_cuts_a_file(group: str, tmp_path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("precious")
    node = {"_target_": "lit_tfm.callbacks.metrics_csv.MetricsCsv", "path": str(mine), "progress": None}
    tree = OmegaConf.create({"model": {"_target_": "lit_tfm.models.encoder.Encoder"}})
    OmegaConf.update(tree, f"{group}.x", {**node, "resume_step": 0})
    with pytest.raises(UserError, match="a config may name only"):
        build.make(tree[group.partition(".")[0]])
    assert mine.read_text() == "precious"


# ---- sweeps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["allow_targets", "++allow_targets", "+allow_targets", "hydra.searchpath", "a=b c"])
@pytest.mark.parametrize("where", ["fixed", "space"])
def test_a_sweep_can_not_allow_itself_anything(key: str, where: str, tmp_path) -> None:
    touched = tmp_path / "touched"
    parts = {"fixed": {"model": "bert_tiny"}, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
    parts[where][key] = ["os", "posix"] if where == "fixed" else {"choices": [["os"], ["posix"]]}
    parts["fixed"]["model.d_ff"] = {"_target_": "os.system", "command": f"touch {touched}"}
    (tmp_path / "s.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"experiment": "bert_small", **parts})))
    with pytest.raises(UserError, match="no key that a sweep may set"):
        settings.load([f"sweep={tmp_path / 's.yaml'}"])
    assert targets.allowed() == ()
    assert not touched.exists()


def test_a_sweep_can_not_have_trials_sent_elsewhere(tmp_path) -> None:
    text = "experiment: bert_small\nfixed: {logger: [mlflow], logger.mlflow.tracking_uri: 'http://127.0.0.1:9'}\n"
    (tmp_path / "s.yaml").write_text(text + "space: {optimizer.lr: {low: 1e-4, high: 1e-2}}\n")
    with pytest.raises(UserError, match="sends what a run logs"):
        settings.load([f"sweep={tmp_path / 's.yaml'}"])
    typed = "allow_targets=lightning.pytorch.loggers.mlflow"
    assert settings.load([f"sweep={tmp_path / 's.yaml'}", typed]).allow_targets
