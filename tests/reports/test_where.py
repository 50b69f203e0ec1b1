"""The language of --where: what it means, and that nothing in it can run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.errors import UserError
from lit_tfm.reports.where import Where

RUN = {
    "val/loss": 3.5,
    "best/val/loss": 3.0,
    "optimizer": "adamw",
    "optimizer.lr": 0.001,
    "model.d_model": 128,
    "task.tied": True,
    "data.path": None,
    "status": "finished",
    "parameters": 25_000_000,
}
NAMES = [*RUN, "val/accuracy", "task.d_model"]


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("val/loss<4", True),
        ("val/loss < 3.5", False),
        ("val/loss <= 3.5 and best/val/loss > 2.9", True),
        ("4 > val/loss", True),
        ("best/val/loss < val/loss", True),
        ("optimizer == adamw", True),
        ("optimizer = 'adamw'", True),
        ('optimizer != "adamw"', False),
        ("lr == 1e-3", True),
        ("lr == .001", True),
        ("parameters <= 25M and parameters > 24000k", True),
        ("model.d_model in [64, 128]", True),
        ("model.d_model not in (64, 128)", False),
        ("optimizer in [adamw, muon]", True),
        ("not optimizer == muon", True),
        ("task.tied", True),
        ("tied == true", True),
        ("tied == 1", False),
        ("data.path == null", True),
        ("status == finished and (val/loss > 9 or lr < 1)", True),
        ("val/loss > 9 and lr < 1 or status == finished", True),
        ("val/loss > 9 and (lr < 1 or status == finished)", False),
        ("val/accuracy > 0", False),  # this run has none
        ("not val/accuracy > 0", False),
        ("val/accuracy > 0 or lr < 1", True),
        ("optimizer < 4", False),  # a text is neither smaller nor larger
    ],
)
def test_meaning(expression, passes) -> None:
    assert Where(expression, NAMES)(RUN.__getitem__) is passes


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("val/los < 4", "no run has val/los, did you mean 'val/loss'"),
        ("optimzer == adamw", "did you mean 'optimizer'"),
        ("d_model == 4", "may be model.d_model or task.d_model"),
        ("val/loss <", "ends too early"),
        ("val/loss < < 4", "'<' stands where"),
        ("(val/loss < 4", r"a \) is missing"),
        ("val/loss < 4 lr", "what is 'lr' doing there"),
        ("optimizer in adamw", "a list"),
        ("optimizer in [adamw", "a ] is missing"),
        ("optimizer not adamw", "'in' has to follow"),
        ("", "nothing is asked"),
        ("   ", "nothing is asked"),
        ("optimizer == 'adamw", "can't be read"),
        ("__import__('os').system('x')", "no run has __import__"),
        ("zzz == 1", "metrics are val/loss"),
    ],
)
def test_mistakes_are_told(expression, says) -> None:
    with pytest.raises(UserError, match=says) as told:
        Where(expression, NAMES)
    assert len(str(told.value).splitlines()) == 1


@given(st.text(alphabet="val/os<>=!()[]'\", andorti4.1e", max_size=30))
def test_any_text_is_read_or_refused(text) -> None:
    try:
        condition = Where(text, NAMES)
    except UserError:
        return
    assert condition(RUN.__getitem__) in (True, False)
