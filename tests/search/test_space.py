"""The space of a sweep: drawing, deriving, branching, deciding from the config; and that quick composing is exact."""

import json
import re
import time
from collections import Counter

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lit_tfm import config, hardware
from lit_tfm.build import build
from lit_tfm.errors import UserError
from lit_tfm.models.cost import parameters
from lit_tfm.search.composer import Composer, read_word, word
from lit_tfm.search.cost import Costs
from lit_tfm.search.space import Draw, Space

FIXED = ["experiment=bert_small", "tokenizer.vocab_size=1000"]
SHAPE = {
    "model.n_layers": {"low": 1, "high": 4},
    "model.d_model": {"low": 64, "high": 256, "step": 64},
    "model.n_heads": "divisors of model.d_model with head size in [32, 64, 128]",
    "model.d_ff": "4 * model.d_model",
}
BRANCHES = {
    "optimizer": {"choices": ["muon", "adamw"]},
    "optimizer.adamw_lr": {"low": 1e-4, "high": 1e-2, "log": True, "when": "optimizer == muon"},
    "optimizer.weight_decay": {"low": 0.01, "high": 0.3, "when": "optimizer == adamw"},
    "schedule": {"value": "linear", "when": "optimizer == adamw and optimizer.weight_decay > 0.1"},
    "schedule.warmup": {"choices": [0.01, 0.1], "when": "schedule == linear"},
}


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(FIXED)


@pytest.fixture
def space(composer):
    """`space(raw, *constraints)`: a space in bert_small's config."""
    return lambda raw, *constraints: Space(raw, composer, constraints)


# ---- drawing ---------------------------------------------------------------------------------------------------


def test_whole_numbers_stay_whole_floats_stay_floats(space) -> None:
    made = space({"model.n_layers": {"low": 1, "high": 4}, "schedule.warmup": {"low": 0, "high": 0.5, "step": 0.25}})
    draw = Draw(0)
    drawn = [made.sample(draw) for _ in range(60)]
    assert {type(params["model.n_layers"]) for params in drawn} == {int}
    assert {params["model.n_layers"] for params in drawn} == {1, 2, 3, 4}
    assert {params["schedule.warmup"] for params in drawn} == {0.0, 0.25, 0.5}


def test_a_study_draws_it_and_its_parameters_give_the_same_values_again(space) -> None:
    made = space({**SHAPE, **BRANCHES})
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=5))
    for _ in range(25):
        trial = study.ask()
        drawn = made.sample(trial)
        assert drawn == trial.params
        stored = json.loads(json.dumps(drawn))  # as a storage keeps them
        assert made.values(stored) == made.values(drawn)
        study.tell(trial, 0.0)
    names = {name for trial in study.trials for name in trial.params}
    assert names == set(made.names())
    # Optuna refuses a name whose distribution changes: each has had one only.
    for name in names:
        assert len({repr(t.distributions[name]) for t in study.trials if name in t.distributions}) == 1


def test_heads_follow_from_a_head_size_with_a_name_and_choices_of_its_own(space) -> None:
    made = space(SHAPE)
    assert "model.n_heads/head_size" in made.names()
    values = made.values({"model.n_layers": 2, "model.d_model": 192, "model.n_heads/head_size": 64})
    assert values == {"model.n_layers": 2, "model.d_model": 192, "model.n_heads": 3, "model.d_ff": 768}
    assert made.overrides({"model.n_layers": 2, "model.d_model": 192, "model.n_heads/head_size": 64}) == [
        "model.n_layers=2",
        "model.d_model=192",
        "model.n_heads=3",
        "model.d_ff=768",
    ]
    odd = {"model.n_layers": 2, "model.d_model": 192, "model.n_heads/head_size": 128}
    assert made.feasible(odd) == "model.n_heads: model.d_model is not divisible by the head size (1.5 heads)"


def test_tpe_learns_about_head_sizes_across_widths(space) -> None:
    """The encoding's purpose: where small heads are better at every width, they come to be proposed more often."""
    made = space(SHAPE)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=10))
    sizes = []
    for _ in range(50):
        trial = study.ask()
        size = made.sample(trial)["model.n_heads/head_size"]
        sizes.append(size)
        study.tell(trial, size)
    assert Counter(sizes[20:])[32] > 0.5 * 30  # a third by chance


def test_what_an_entry_reads_is_drawn_before_it_however_the_yaml_is_ordered(space) -> None:
    made = space(dict(reversed(SHAPE.items())))
    order = list(made.entries)
    assert order.index("model.d_model") < min(order.index("model.n_heads"), order.index("model.d_ff"))


def test_derived_values_may_read_what_only_the_config_holds(space) -> None:
    made = space({"model.n_layers": {"low": 1, "high": 2}, "model.d_ff": "2 * model.d_model + tokenizer.vocab_size"})
    assert made.values({"model.n_layers": 1})["model.d_ff"] == 2 * 512 + 1000
    # d_ff stands in no yaml: the model's config derives it.
    assert space({"model.n_layers": {"low": 1, "high": 2}, "model.max_length": "model.d_ff / 2"}).values(
        {"model.n_layers": 1}
    ) == {"model.n_layers": 1, "model.max_length": 1024}


def test_a_derived_value_reads_the_group_that_was_drawn(space) -> None:
    made = space({"model.d_ff": "3 * model.d_model", "model": {"choices": ["bert_tiny", "bert_mini"]}})
    assert made.values({"model": "bert_tiny"})["model.d_ff"] == 3 * 128
    assert made.values({"model": "bert_mini"})["model.d_ff"] == 3 * 256


def test_branches_are_drawn_only_where_they_hold(space) -> None:
    made, draw = space(BRANCHES), Draw(0)
    seen = set()
    for _ in range(80):
        drawn = made.sample(draw)
        muon, decay = drawn["optimizer"] == "muon", drawn.get("optimizer.weight_decay")
        assert ("optimizer.adamw_lr" in drawn) == muon
        assert (decay is not None) == (not muon)
        # `schedule` hangs on a key that may itself not be drawn; `schedule.warmup` on `schedule`.
        linear = decay is not None and decay > 0.1
        assert ("schedule.warmup" in drawn) == linear
        assert ("schedule" in made.values(drawn)) == linear
        assert made.feasible(drawn) is None
        seen.add((muon, linear))
    assert seen == {(True, False), (False, False), (False, True)}
    assert set(made.conditional()) == {"optimizer.adamw_lr", "optimizer.weight_decay", "schedule.warmup"}


def test_a_condition_may_ask_for_what_the_experiment_chose(space) -> None:
    lr = {"low": 1e-4, "high": 1e-2}
    made = space({"optimizer.lr": lr, "optimizer.adamw_lr": {**lr, "when": "optimizer == muon"}})
    assert set(made.sample(Draw(0))) == {"optimizer.lr", "optimizer.adamw_lr"}
    made = space({"optimizer.lr": lr, "optimizer.adamw_lr": {**lr, "when": "optimizer == lion"}})
    assert set(made.sample(Draw(0))) == {"optimizer.lr"}


def test_lists_and_null_can_be_chosen(space) -> None:
    lists = [[1.0, 0.0, 0.0], [0.8, 0.1, 0.1]]
    made = space({"task.replace": {"choices": lists}, "model.softcap": {"choices": [None, 15.0]}})
    study = optuna.create_study()
    for _ in range(10):
        drawn = made.sample(study.ask())
        cfg = made.composer.compose(made.values(drawn))
        assert list(cfg.task.replace) in lists
        assert cfg.model.softcap in (None, 15.0)


def test_a_parameter_that_is_missing_is_told(space) -> None:
    with pytest.raises(UserError, match=r"without model.d_model is of another space; it has model.n_layers"):
        space(SHAPE).values({"model.n_layers": 3})


# ---- composing -------------------------------------------------------------------------------------------------


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_quick_composing_equals_hydras(space, seed: int) -> None:
    made = space({**SHAPE, **BRANCHES, "seed": {"low": 1, "high": 9}, "tags": {"choices": [["a b"], ["c,'d", "e"]]}})
    drawn = made.sample(Draw(seed))
    quick = made.composer.compose(made.values(drawn))
    slow = config.compose([*FIXED, *made.overrides(drawn)])
    assert quick == slow
    assert OmegaConf.to_yaml(quick) == OmegaConf.to_yaml(slow)


def test_a_composed_config_follows_interpolations_and_shares_nothing(tmp_path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "linked.yaml").write_text(
        "# @package _global_\n"
        "data: {block_size: 32}\nmodel: {max_length: '${data.block_size}', d_ff: '${model.d_model}'}\n"
    )
    made = Composer(["experiment=linked"], str(tmp_path))
    one, two = made.compose({"data.block_size": 64}), made.compose({"model.d_model": 128})
    assert (one.model.max_length, two.model.max_length, two.model.d_ff) == (64, 32, 128)
    one.model.d_model = 1
    assert made.compose({}).model.d_model == 512


def test_a_trial_composes_in_milliseconds(composer) -> None:
    composer.compose({"model.d_model": 128})
    began = time.process_time()
    for width in range(128, 128 + 64 * 20, 64):
        composer.compose({"model.d_model": width, "optimizer.lr": 0.01, "output_dir": "x"})
    assert (time.process_time() - began) / 20 < 0.05  # measured: 0.005; Hydra: 0.15


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs", "Cc"]), max_size=12)
)


@settings(max_examples=300)
@given(PLAIN | st.lists(PLAIN, max_size=3))
def test_a_word_is_read_back_as_the_value_it_was_written_from(value) -> None:
    key, read = read_word(word("a.b", value))
    assert (key, read) == ("a.b", value)
    assert type(read) is type(value)


# ---- deciding --------------------------------------------------------------------------------------------------


def test_constraints_are_decided_from_the_config_and_explained(space) -> None:
    made = space(SHAPE, "parameters <= 1e6", "model.n_layers * model.d_model <= 400")
    small = {"model.n_layers": 1, "model.d_model": 64, "model.n_heads/head_size": 32}
    assert made.feasible(small) is None
    wide = {"model.n_layers": 3, "model.d_model": 192, "model.n_heads/head_size": 32}
    assert made.feasible(wide) == "parameters <= 1e6: parameters is 1,592,832"
    deep = {"model.n_layers": 6, "model.d_model": 128, "model.n_heads/head_size": 32}
    assert made.feasible(deep).startswith("parameters <= 1e6")
    made = space(SHAPE, "model.n_layers * model.d_model <= 400")
    assert made.feasible(deep).endswith("<= 400: model.n_layers is 6, model.d_model is 128")


def test_a_shape_that_no_model_has_is_infeasible_not_a_failed_trial(space) -> None:
    made = space({"model.d_model": {"choices": [96, 128]}, "model.n_heads": {"choices": [3, 4, 5]}})
    assert made.feasible({"model.d_model": 96, "model.n_heads": 3}) is None
    assert "not divisible by model.n_heads=5" in made.feasible({"model.d_model": 96, "model.n_heads": 5})


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["experiment=bert_small"], ["model.n_layers=3", "model.tie_embeddings=true"]),
        (
            ["experiment=bert_small", "task.rate=0.15"],
            ["model.n_layers=5", "model.positions=learned", "model.bias=true"],
        ),
        (["experiment=gpt_small"], ["model.n_layers=3", "model.n_kv_heads=1", "model.gated=true"]),
        (["experiment=t5_small"], ["model.n_layers=2", "model.n_decoder_layers=4", "model.positions=t5"]),
        (["experiment=sst2_bert"], ["model.n_layers=3", "task.pooling=attention"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_costs_before_building_are_those_of_the_task_that_is_built(
    words, overrides, text_folder, labelled_csv, session_cache
) -> None:
    data = [f"data.path={text_folder}", "data.block_size=32", "data.cross_documents=true"]
    if words == ["experiment=sst2_bert"]:
        data = [f"data.path={labelled_csv}", "data.text=text", "data.label=label", "data.labels=[good,bad,plain]"]
    small = ["model.d_model=32", "model.n_heads=2", "tokenizer.vocab_size=400", "budget=null", "test=false"]
    given_words = [*words, *data, *small, *overrides, f"cache_dir={session_cache}", "trainer.accelerator=cpu"]
    cfg = config.compose(given_words)
    task = build(cfg, hardware.choose(cfg.trainer)).task
    counted = Costs(task.facts.tokenizer.vocab_size)
    assert counted.parameters(cfg) == parameters(task)
    if words != ["experiment=sst2_bert"]:  # whose examples are shorter than the longest
        assert counted.flops_per_token(cfg) == pytest.approx(task.flops_per_token, rel=0.02)
    # Without the tokenizer, the largest vocabulary it may have.
    assert Costs().parameters(cfg) >= parameters(task)


def test_counting_a_shape_again_costs_milliseconds(space) -> None:
    made = space(SHAPE, "parameters <= 1e9", "flops_per_token <= 1e12")
    shapes = [
        {"model.n_layers": n, "model.d_model": 128, "model.n_heads/head_size": 32}
        for n in (1, 2, 3, 4)
        for _ in range(5)
    ]
    made.feasible(shapes[0])
    began = time.process_time()
    assert [made.feasible(shape) for shape in shapes] == [None] * 20
    assert (time.process_time() - began) / 20 < 0.05  # measured: 0.007, most of it composing


def test_a_vocabulary_that_only_the_data_know_is_asked_for() -> None:
    made = Space({"model.n_layers": {"low": 1, "high": 2}}, Composer(["experiment=char_gpt"]), ["parameters <= 1e6"])
    with pytest.raises(UserError, match=r"type fixed.tokenizer.vocab_size=8192"):
        made.feasible({"model.n_layers": 1})
    made.vocab_size = 65
    assert made.feasible({"model.n_layers": 1}) is None


def test_an_infeasible_space_is_refused_with_what_stands_in_the_way(space) -> None:
    made = space(SHAPE, "parameters <= 1000")
    with pytest.raises(UserError) as caught:
        made.check_feasible()
    said = str(caught.value)
    assert re.search(r"none of 200 configurations drawn is feasible; \d+ of them break 'parameters <= 1000'", said)
    # The smallest there is: one layer, d_model 64.
    assert "(nearest: parameters is 121,344)" in said


# ---- telling apart ---------------------------------------------------------------------------------------------


def test_formatting_changes_no_fingerprint(space) -> None:
    one = space({**SHAPE, **BRANCHES}, "parameters<=1e6")
    two = space(
        {
            **dict(reversed(BRANCHES.items())),
            **SHAPE,
            "model.d_ff": "(4*model.d_model)",
            "optimizer.adamw_lr": {"when": "optimizer  ==muon", "log": True, "high": 0.01, "low": 0.0001},
        },
        "parameters  <= 1e6",
    )
    assert Space.differences(one.fingerprint(), two.fingerprint()) == []
    stored = json.loads(json.dumps(one.fingerprint()))
    assert Space.differences(stored, two.fingerprint()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.n_layers": {"low": 1, "high": 5}}, '"high": 4'),
        ({"model.n_layers": {"low": 1.0, "high": 4}}, '"low": 1.0'),
        ({"model.d_ff": "3 * model.d_model"}, "3 * model.d_model"),
        ({"model.n_heads": "divisors of model.d_model with head size in [32, 64]"}, "[32, 64, 128]"),
        ({"model.softcap": {"choices": [15.0, 30.0]}}, "space.model.softcap: not there -> "),
    ],
)
def test_a_change_is_one_line(space, change, said) -> None:
    old, new = space(SHAPE).fingerprint(), space({**SHAPE, **change}).fingerprint()
    lines = Space.differences(old, new)
    assert len(lines) == 1
    assert said in lines[0]
    assert lines[0].startswith(f"space.{next(iter(change))}: ")
