"""A value of a config is of the kind that its parameter is annotated with."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from lit_tfm import annotations, targets
from lit_tfm.config import CONF
from lit_tfm.models.encoder import Encoder
from lit_tfm.tasks.masked_lm import MaskedLM

FITTING = [
    (1, int), (1, float), (1.5, float), (True, bool), ("a", str), (None, int | None), ([1, 2], list[int]),
    ([], Sequence[str]), ([1.0, 0, 0], tuple[float, float, float]), ([1, 2, 3], tuple[int, ...]),
    ({"test": 0.1}, dict[str, float] | None), ("a", Literal["a", "b"]), (3, Any), ("x", Encoder),
    (["a", 1], list[str | int]),
]  # fmt: skip
UNFIT = [
    (1.5, int, "a whole number"),
    (True, int, "a whole number"),
    (True, float, "a number"),
    ("1", float, "a number"),
    (1, bool, "true or false"),
    (1, str, "a text"),
    (None, float, "a number"),
    ([1, "a"], list[int], "a list"),
    ("ab", list[str], "a list"),
    ([1, 0], tuple[float, float, float], "a list of 3: a number, a number, a number"),
    ({"test": "a"}, dict[str, float] | None, "a mapping or null"),
    ("c", Literal["a", "b"], "a or b"),
    ([1], int | str | None, "a whole number or a text or null"),
]


@pytest.mark.parametrize(("value", "hint"), FITTING)
def test_what_fits(value, hint) -> None:
    assert annotations.fits(value, hint)


@pytest.mark.parametrize(("value", "hint", "words"), UNFIT)
def test_what_does_not_and_what_would(value, hint, words) -> None:
    assert not annotations.fits(value, hint)
    assert annotations.told(hint) == words


def test_what_a_class_passes_on_is_judged_by_its_bases() -> None:
    found = annotations.hints(MaskedLM)
    assert found["rate"] is found["grad_clip"] is float


def test_a_model_judges_its_numbers_itself() -> None:
    assert annotations.hints(Encoder) == {}


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_what_is_shipped_fits(file) -> None:
    def judge(node: Any) -> None:
        made = targets.find(node["_target_"], file.stem) if "_target_" in node else None
        for key, value in node.items():
            if isinstance(value, dict):
                judge(value)
            elif made is not None and not key.startswith("_") and "${" not in str(value):
                assert annotations.fits(value, annotations.hints(made).get(key, Any)), key

    if file.stem not in ("wandb", "mlflow"):  # they send numbers away, which only a command line may ask for
        judge(OmegaConf.to_container(OmegaConf.load(file)))
