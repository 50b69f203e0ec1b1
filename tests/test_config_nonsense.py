"""Any value for any key: the config is composed, or refused in one line. No exception of another kind comes out."""

import math
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.search.composer import word

RECIPES = ["bert_small", "char_gpt", "t5_small", "emotion_bert"]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    math.inf,
    math.nan,
    2**70,
    "",
    " ",
    "???",
    "${seed}",
    "${nothing}",
    "[",
    "a=b",
    "é\0\n",
]
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.sampled_from(ODD), max_size=3),
    st.dictionaries(st.sampled_from(["_target_", "a", "low", "0"]), st.sampled_from([*ODD, "os.system"]), max_size=2),
)


def keys(recipe: str) -> list[str]:
    """Dotted names of groups, nodes and values."""
    found = []

    def walk(node, prefix: str) -> None:
        for key, value in node.items():
            found.append(prefix + str(key))
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config.compose([f"experiment={recipe}"])), "")
    return sorted(key for key in found if not key.startswith("choices"))


KEYS = {recipe: keys(recipe) for recipe in RECIPES}


def refused_or_composed(overrides: list[str]) -> None:
    with suppress(UserError):
        config.compose(overrides)


def check(recipe: str, data: st.DataObject) -> None:
    key, value = data.draw(st.sampled_from(KEYS[recipe])), data.draw(VALUES)
    typed = word(key, value) if data.draw(st.booleans()) else f"{key}={value}"
    refused_or_composed([f"experiment={recipe}", typed])


@given(recipe=st.sampled_from(RECIPES), data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_nonsense(recipe: str, data: st.DataObject) -> None:
    check(recipe, data)


@pytest.mark.slow
@given(recipe=st.sampled_from(RECIPES), data=st.data())
@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
def test_much_nonsense(recipe: str, data: st.DataObject) -> None:
    check(recipe, data)


def test_a_name_that_is_left_open_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"^name=\?\?\?: a value is needed; type name=VALUE$"):
        config.compose(["experiment=bert_small", "name=???"])
