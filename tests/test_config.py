"""Composing a config, and what a mistake in it gets."""

import re
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
    ],
)
def test_a_typo_inside_an_experiment_yaml_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(UserError, match=re.escape(said)):
        config.compose(["experiment=mine"], config_dir=tmp_path)


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
