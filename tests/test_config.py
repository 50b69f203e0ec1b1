"""Composing a config, and what a mistake in it gets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm import config
from lit_tfm.errors import UserError

EXPERIMENTS = sorted(p.stem for p in (config.CONF / "experiment").glob("*.yaml"))


def test_a_parameter_that_no_yaml_names_needs_no_plus() -> None:
    cfg = config.compose(["experiment=bert_small", "model.rotary_base=5000"])
    assert cfg.model.rotary_base == 5000


def test_options_and_parameters_can_be_given_together() -> None:
    cfg = config.compose(["model=bert_tiny", "model.d_model=256", "seed=7"])
    assert (cfg.model.d_model, cfg.model.n_layers, cfg.seed) == (256, 2, 7)
    assert cfg.choices.model == "bert_tiny"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=bert_smal", "did you mean 'bert_small'?"),
        ("modle=bert_small", "did you mean 'model'?"),
        ("model.d_modl=3", "did you mean 'd_model'?"),
        ("modle.d_model=3", "did you mean 'model'?"),
        ("trainer.devicez=2", "did you mean 'devices'?"),
        ("sede=2", "did you mean 'seed'?"),
        ("task.rat=0.2", "did you mean 'rate'?"),
        ("optimizer.learning_rat=1", "optimizer.learning_rat"),
        ("experiment=nonsense", "bert_small"),
        ("seed=[", "is no override"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_spelling(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config.compose(["experiment=bert_small", override] if not override.startswith("experiment") else [override])
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: {d_modle: 3}", "did you mean 'd_model'?"),
        ("trainer: {max_step: 3}", "did you mean 'max_steps'?"),
        ("bugdet: 10m", "did you mean 'budget'?"),
        ("name: ${nmae}", "Interpolation key 'nmae' not found"),
    ],
)
def test_a_typo_inside_an_experiment_yaml_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(UserError, match=re.escape(said)):
        config.compose(["experiment=mine"], config_dir=tmp_path)


@pytest.mark.parametrize("key", ["output_dir", "resume", "init_from", "cache_dir", "data.path", "tokenizer.path"])
@pytest.mark.parametrize("name", ["5", "2024_11", "1.50", "1e3", "on", "nan", "a+b"])
def test_a_folder_is_called_what_was_typed(key: str, name: str) -> None:
    """Hydra reads most of these as numbers or truths: another folder, or none."""
    assert OmegaConf.select(config.compose([f"{key}={name}"]), key) == name


def test_no_path_is_none(tmp_path: Path) -> None:
    assert config.compose(["init_from=null"]).init_from is None
    (tmp_path / "mine.yaml").write_text("init_from: 7\n")
    with pytest.raises(UserError, match=r"init_from=7: must be a text"):
        config.compose([f"experiment={tmp_path / 'mine.yaml'}"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_says_how_it_is_run(name: str) -> None:
    cfg = config.compose([f"experiment={name}"])
    assert cfg.name == name
    lines = (config.CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert f"python -m lit_tfm.train experiment={name}" in lines[1]


def test_the_composed_config_is_plain_and_resolved() -> None:
    cfg = config.compose(["experiment=bert_small"])
    text = OmegaConf.to_yaml(cfg)
    assert "${" not in text
    assert OmegaConf.create(text) == cfg


# ---- an experiment that is a file ------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path) -> Path:
    """As a sweep's best.yaml: an experiment that stands on another."""
    path = tmp_path / "some where" / "best.yaml"
    path.parent.mkdir()
    path.write_text(
        "# @package _global_\ndefaults:\n  - gpt_small\n  - override /model: gpt_tiny\n  - override /optimizer: adamw\n"
        "optimizer: {lr: 0.003}\nmodel: {d_ff: 96}\nseed: 5\n"
    )
    return path


def test_an_experiment_may_be_a_file_anywhere(mine) -> None:
    cfg = config.compose([f"experiment='{mine}'", "seed=6"])
    assert (cfg.name, cfg.choices.experiment, cfg.choices.model, cfg.choices.tokenizer) == (
        "best",
        "best",
        "gpt_tiny",
        "bpe",
    )
    assert (cfg.model.d_ff, cfg.optimizer.lr, cfg.seed, cfg.data.block_size) == (96, 0.003, 6, 256)
    inside = config.compose(["experiment=gpt_small", "model=gpt_tiny", "optimizer=adamw", "seed=6"])
    same = [key for key in cfg if cfg[key] == inside[key]]
    assert set(cfg) - set(same) == {"name", "choices", "optimizer", "model"}


def test_a_file_is_read_anew_and_two_of_one_name_are_two(mine, tmp_path) -> None:
    (tmp_path / "best.yaml").write_text("seed: 8\nname: other\n")
    assert config.compose([f"experiment='{mine}'"]).seed == 5
    other = config.compose([f"experiment={tmp_path / 'best.yaml'}"])
    assert (other.seed, other.name, other.choices.model) == (8, "other", "bert_small")
    mine.write_text("seed: 9\n")
    assert config.compose([f"experiment='{mine}'"]).seed == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "holds no keys"),
        ("- a", "holds no keys"),
        ("seed: [", "can't be read"),
        ("model: {d_modle: 3}", "did you mean 'd_model'?"),
        ("defaults: [override /model: bert_tinny]", "did you mean 'bert_tiny'?"),
        ("hydra: {run: {dir: x}}", "this one sets Hydra's own"),
    ],
)
def test_a_file_that_is_no_experiment(tmp_path, content, said: str) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        config.compose([f"experiment={path}"])
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_a_file_and_records_what_was_typed(mine, tmp_path) -> None:
    """`--cfg job` through @hydra.main; command.txt is sys.argv, which composing must leave as it was."""
    code = (
        "import sys; from lit_tfm import command_line; from lit_tfm.runs import command\n"
        "command_line.hydra_verb(lambda cfg: print(cfg.seed, cfg.name, sys.argv[1:]))"
    )
    words, kept = [f"experiment={mine}", "model.softcap=30"], {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, **kept)
    assert done.stdout == f"5 best {words}\n", done.stderr
    missing = subprocess.run([sys.executable, "-m", "lit_tfm.train", "experiment=nowhere/best.yaml"], **kept)
    assert (missing.returncode, missing.stderr) == (
        2,
        "error: experiment=nowhere/best.yaml: can't be read: No such file or directory\n",
    )
