"""The language of a sweep's arithmetic and conditions: what it computes, what it refuses, that it runs nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.errors import UserError
from lit_tfm.search.expressions import LARGEST, Expression

VALUES = {"model.d_model": 384, "model.n_heads": 6, "optimizer": "adamw", "optimizer.lr": 3e-4, "model.gated": True}


def value(text: str, condition: bool = False):
    return Expression(text, VALUES, condition).evaluate(VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 * model.d_model", 1536),
        ("model.d_model // model.n_heads", 64),
        ("model.d_model / model.n_heads", 64),
        ("8 / 3 * model.d_model", 1024),
        ("model.d_model % 5", 4),
        ("2 ** 10 - 1", 1023),
        ("-model.d_model + 400", 16),
        ("round(model.d_model * 2.7 / 64) * 64", 1024),
        ("min(model.d_model, 256)", 256),
        ("max(1, model.n_heads - 8, 0.5)", 1),
        ("int(3.9)", 3),
        ("optimizer.lr / 10", 3e-5),
        ("+" * 400 + "1", 1),
        (" 4  *\n model.d_model ", 1536),
        ("7", 7),
    ],
)
def test_arithmetic(text: str, expected: float) -> None:
    found = value(text)
    assert found == pytest.approx(expected)
    assert isinstance(found, int) == isinstance(expected, int)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer == adamw", True),
        ("optimizer == 'adamw'", True),
        ("optimizer != adamw", False),
        ("optimizer in [muon, adamw]", True),
        ("optimizer not in [muon, lion]", True),
        ("model.d_model > 256", True),
        ("128 < model.d_model <= 383", False),
        ("optimizer == muon or model.n_heads == 6", True),
        ("optimizer == adamw and not model.n_heads == 6", False),
        ("not (optimizer == muon and model.n_heads == 6)", True),
        ("model.d_model / model.n_heads >= 64", True),
        ("model.gated == true", True),
        ("optimizer.lr < -1", False),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    assert value(text, condition=True) is expected


def test_names_are_the_keys_that_are_read() -> None:
    assert Expression("4 * model.d_model + model.n_heads * model.d_model", VALUES).names == [
        "model.d_model",
        "model.n_heads",
    ]
    condition = Expression("optimizer in [adamw, lion] and model.n_heads > 4", VALUES, condition=True)
    assert condition.names == ["optimizer", "model.n_heads"]
    assert condition.literals == [("optimizer", "adamw"), ("optimizer", "lion"), ("model.n_heads", 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4 * model.d_modl", "did you mean 'model.d_model'?"),
        ("4 *", "can't be read"),
        ("", "can't be read"),
        ("d_model", "d_model is no key"),
        ("4 * optimizer", "optimizer is 'adamw', no number"),
        ("model.gated + 1", "model.gated is True, no number"),
        ("model.d_model / (model.n_heads - 6)", "divides by zero"),
        ("model.d_model % 0", "divides by zero"),
        ("2 ** 65", "an exponent of 65"),
        ("10 ** 19", "beyond 1e18"),
        ("(10 ** 18) ** 64", "beyond 1e18"),
        ("(0 - 8) ** 0.5", "none that is real"),
        ("1e17 * 1e17", "beyond 1e18"),
        ("model.d_model == 4", "only numbers, keys"),
        ("[1, 2]", "only numbers, keys"),
        ("'text'", "only numbers, keys"),
        ("True", "only numbers, keys"),
        ("round(1.5, 1)", "round takes one number"),
        ("min()", "only the functions"),
        ("min(*model.d_model)", "only the functions"),
        ("1 if model.n_heads else 2", "only numbers, keys"),
        ("9" * 30, "only numbers, keys"),
        ("1+" * 300 + "1", "longer than 500"),
        ("(" * 240 + "1" + ")" * 240, "can't be read"),
    ],
)
def test_what_arithmetic_refuses(text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        value(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimzer == adamw", "did you mean 'optimizer'?"),
        ("model.d_modl > 3", "did you mean 'model.d_model'?"),
        ("model.d_model", "must be a comparison"),
        ("4 * model.d_model", "must be a comparison"),
        ("optimizer in adamw", "`in` needs a list"),
        ("optimizer in []", "at least one"),
        ("optimizer in [[adamw]]", "a list holds words and numbers"),
        ("optimizer is adamw", "only == != < <= > >= and in"),
        ("1 == 1", "names no key"),
        ("optimizer > 3", "can't be compared"),
        ("optimizer = adamw", "can't be read"),
    ],
)
def test_what_conditions_refuse(text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        value(text, condition=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {file}')",
        "open('{file}', 'w')",
        "eval('1')",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "model.d_model.__class__",
        "().__class__.__bases__[0].__subclasses__()",
        "(x := 3)",
        "f'{{1}}'",
        "model.d_model if 1 else 2",
        "min.__self__",
        "max(open('{file}', 'w'), 1)",
        "9 ** 9 ** 9 ** 9",
        "'a' * 999999999",
    ],
)
@pytest.mark.parametrize("condition", [False, True])
def test_nothing_is_executed(text: str, condition: bool, tmp_path) -> None:
    file = tmp_path / "made"
    text = text.format(file=file)
    with pytest.raises(UserError):
        value(f"{text} == model.d_model" if condition else text, condition)
    assert not file.exists()


WORDS = st.sampled_from(["model.d_model", "optimizer", "model.x", "1", "0", "3.5", "1e18", "'a'", "min", "round"])
SIGNS = st.sampled_from(
    ["+", "-", "*", "/", "//", "%", "**", "(", ")", ",", "==", "<", " and ", " not ", " in ", "[", "]"]
)


@given(st.lists(WORDS | SIGNS, max_size=12).map("".join) | st.text(max_size=40))
def test_any_text_gives_a_bounded_number_or_a_message(text: str) -> None:
    for condition in (False, True):
        try:
            found = value(text, condition)
        except UserError:
            continue
        own = not condition and text.strip() in VALUES  # a key alone
        assert own or (isinstance(found, bool) if condition else -LARGEST <= found <= LARGEST)
