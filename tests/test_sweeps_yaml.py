"""The sweeps that ship: each says its command and what it is for, loads, and has configurations that can be trained."""

import re

import pytest

from lit_tfm import config
from lit_tfm.search.settings import known_sweeps, load
from lit_tfm.search.space import Draw

NAMES = known_sweeps()


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_it_is_run_and_what_it_is_for(name: str) -> None:
    first, second, *_ = (config.ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()
    assert re.match(rf"# python -m lit_tfm\.sweep sweep={name}\b", first)
    assert second.startswith("# ")
    assert not second.startswith("# python")


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_most_of_what_it_draws_can_be_trained(name: str) -> None:
    sweep, draw = load([f"sweep={name}"]), Draw(0)
    drawn = [sweep.space.sample(draw) for _ in range(8)]
    feasible = [params for params in drawn if sweep.space.feasible(params) is None]
    assert len(feasible) >= 4
    cfg = sweep.compose(feasible[0], 3)
    assert cfg == config.compose([*sweep.command_words(feasible[0]), f"output_dir={sweep.trial_folder(3)}"])
    assert cfg.output_dir == f"outputs/sweeps/{name}/trials/0003"


def test_shapes_at_equal_parameters_differ_by_less_than_eight_percent() -> None:
    sweep, draw = load(["sweep=bert_small_isoparams"]), Draw(1)
    drawn = [sweep.space.values(sweep.space.sample(draw)) for _ in range(40)]
    sizes = {
        (values["model.n_layers"], values["model.d_model"]): 8192 * values["model.d_model"]
        + (2 + 12 * values["model.n_layers"]) * values["model.d_model"] ** 2
        for values in drawn
    }
    assert len(sizes) >= 5
    assert all(abs(size / 17e6 - 1) < 0.08 for size in sizes.values())
