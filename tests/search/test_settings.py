"""A sweep as it is asked for: reading, overriding, storing; and what each mistake gets, before there is a study."""

import re

import pytest
from omegaconf import OmegaConf

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.search.settings import RETRIES, SweepConfig, known_sweeps, load, masked
from lit_tfm.search.space import Draw, Space

BASE = """
experiment: bert_small
n_trials: 7
fixed: {tokenizer.vocab_size: 1000, data: pydoc}
space:
  optimizer.lr: {low: 1e-3, high: 1e-1, log: true}
  model.d_model: {low: 64, high: 256, step: 64}
  model.n_heads: divisors of model.d_model with head size in [32, 64]
"""


@pytest.fixture
def sweep(tmp_path):
    """`sweep("n_trials=3", yaml=...)`: load what is in a file of its own, with these words typed."""

    def read(*words: str, yaml: str = BASE) -> SweepConfig:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml)
        return load([f"sweep={path}", *words])

    return read


@pytest.fixture
def refused(sweep, tmp_path, monkeypatch):
    """Expects a refusal: one line, and nothing written anywhere; returns the line."""

    def attempt(*words: str, yaml: str = BASE) -> str:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError) as caught:
            sweep(*words, yaml=yaml)
        assert [path.name for path in tmp_path.rglob("*")] == ["mine.yaml"]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return attempt


# ---- reading and overriding ------------------------------------------------------------------------------------


def test_a_yaml_and_what_is_typed_make_the_sweep(sweep) -> None:
    made = sweep("n_trials=9", "workers=2", "timeout=2h", "budget=2e6 tokens", "data.val_limit=16", "model=bert_tiny")
    assert (made.name, made.experiment, made.n_trials, made.workers, made.timeout) == (
        "mine",
        "bert_small",
        9,
        2,
        7200.0,
    )
    assert made.fixed == {"tokenizer.vocab_size": 1000, "data": "pydoc", "data.val_limit": 16, "model": "bert_tiny"}
    assert (made.metric, made.direction, made.retries) == (("val/loss",), ("minimize",), RETRIES)
    assert str(made.folder) == "outputs/sweeps/mine"
    assert str(made.trial_folder(7)) == "outputs/sweeps/mine/trials/0007"
    assert str(made.trial_folder(12345, seed=2)) == "outputs/sweeps/mine/trials/12345/seed-2"


def test_dotted_words_reach_into_sampler_pruner_retries_and_space(sweep) -> None:
    made = sweep(
        "sampler.n_startup_trials=5",
        "pruner={_target_:optuna.pruners.MedianPruner}",
        "pruner.n_startup_trials=2",
        "retries.oom=3",
        "space.optimizer.lr={low:1e-4,high:1e-2,log:true}",
        "space.model.d_model.high=128",
        "space.model.n_heads=null",
        "space.model.n_layers={low:1,high:2}",
        "~space.model.n_layers",
        "fixed.seed=3",
        "seed=4",
    )
    assert made.sampler == {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 5}
    assert made.pruner == {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2}
    assert made.retries == {**RETRIES, "oom": 3}
    assert made.space_raw == {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.d_model": {"low": 64, "high": 128, "step": 64},
    }
    assert (made.fixed["seed"], made.seed) == (3, 4)


def test_one_number_of_retries_is_for_every_kind(sweep) -> None:
    assert sweep("retries=2").retries == dict.fromkeys(RETRIES, 2)


def test_a_composed_trial_is_what_the_command_line_composes(sweep) -> None:
    made = sweep("budget=30s", "trainer.val_every=0.5")
    params = made.space.sample(Draw(4))
    cfg = made.compose(params, 7)
    typed = config.compose([*made.command_words(params), f"output_dir={made.trial_folder(7)}"])
    assert cfg == typed
    assert (cfg.budget, cfg.trainer.max_epochs, cfg.output_dir) == ("30s", None, "outputs/sweeps/mine/trials/0007")
    assert made.compose(params, 7, seed=5).seed == 5
    assert made.compose(params, 7, seed=5).output_dir.endswith("0007/seed-5")


def test_a_budget_alone_ends_a_trial_unless_the_sweep_says_otherwise(sweep) -> None:
    params = sweep().space.sample(Draw(0))
    assert sweep("budget=30s").compose(params, 0).trainer.max_epochs is None
    assert sweep("budget=30s", "trainer.max_epochs=2").compose(params, 0).trainer.max_epochs == 2
    assert sweep().compose(params, 0).trainer.max_epochs == 40  # the experiment's own


def test_it_is_stored_as_plain_values_without_its_password(sweep) -> None:
    made = sweep("storage=postgresql://me:s3cret@host:5432/base", "seeds=[1,2]", "rungs=[0.1,1]", "allow_targets=[x]")
    plain = made.to_plain()
    text = OmegaConf.to_yaml(OmegaConf.create(plain))
    assert "s3cret" not in text
    assert plain["storage"] == "postgresql://me:***@host:5432/base"
    assert "allow_targets" not in plain
    back = SweepConfig.from_plain(OmegaConf.to_container(OmegaConf.create(text)), storage=made.storage)
    assert back.fingerprint() == made.fingerprint()
    assert (back.storage, back.seeds, back.rungs, back.allow_targets) == (made.storage, (1, 2), (0.1, 1.0), ())
    with pytest.raises(UserError, match="no sweep: bogus"):
        SweepConfig.from_plain({**plain, "bogus": 1})
    # What a stored sweep says of targets counts for nothing.
    assert SweepConfig.from_plain({**plain, "allow_targets": ["os"]}).allow_targets == ()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, None),
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql+psycopg://u:p@h/d?x=1", "postgresql+psycopg://u:***@h/d?x=1"),
    ],
)
def test_passwords_are_masked(given, shown) -> None:
    assert masked(given) == shown


def test_what_may_change_while_a_study_goes_on(sweep) -> None:
    old = sweep().fingerprint()

    def differences(*words: str, yaml: str = BASE) -> list[str]:
        return Space.differences(old, sweep(*words, yaml=yaml).fingerprint())

    same = ("n_trials=99", "workers=3", "timeout=1h", "retries=4", "seed=9", "sampler.n_startup_trials=3")
    assert differences(*same, "cache_dir=elsewhere") == []
    assert differences("space.optimizer.lr.high=0.2") == [
        'space.optimizer.lr: {"low": 0.001, "high": 0.1, "log": true, "step": null} -> '
        '{"low": 0.001, "high": 0.2, "log": true, "step": null}'
    ]
    assert differences("budget=9s") == ['budget: null -> "9s"']
    assert differences("direction=maximize") == ['direction: ["minimize"] -> ["maximize"]']
    assert differences("data.val_limit=3") == ["fixed.data.val_limit: not there -> 3"]
    assert differences("experiment=pydoc_bert", "data=pydoc_modules")[0].startswith("experiment: ")


def test_worker_processes_with_one_seed_draw_differently_and_again_the_same(sweep) -> None:
    made = sweep("sampler={_target_:optuna.samplers.RandomSampler}")

    def drawn(salt: int) -> dict:
        return made.space.sample(__import__("optuna").create_study(sampler=made.build_sampler(salt)).ask())

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_grid_is_written_out_from_a_finite_space(sweep) -> None:
    made = sweep("sampler={_target_:optuna.samplers.GridSampler}", "space.optimizer.lr={choices:[0.01,0.02]}")
    assert made.build_sampler()._search_space == {
        "model.d_model": [64, 128, 192, 256],
        "model.n_heads/head_size": [32, 64],
        "optimizer.lr": [0.01, 0.02],
    }


def test_without_a_sweep_those_there_are_listed() -> None:
    with pytest.raises(UserError, match="type one sweep=NAME; there is bert_small, "):
        load([])
    with pytest.raises(UserError, match=r"no such sweep, did you mean 'bert_small'\?; there is bert_small, "):
        load(["sweep=bert_smal"])
    assert {"bert_small", "gpt_small", "t5_small", "sst2", "bert_small_isoparams", "pydoc_quick"} <= set(known_sweeps())


# ---- mistakes --------------------------------------------------------------------------------------------------

D = "space.model.d_model"
LR = "space.optimizer.lr"
BOTH = ("metric=[val/loss,parameters]", "direction=[minimize,minimize]")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        # keys
        ("n_trals=5", "did you mean 'n_trials'?"),
        ("samplr.seed=1", "did you mean 'sampler'?"),
        ("modle=bert_tiny", "did you mean 'model'?"),
        ("trainer.val_evry=0.5", "did you mean 'val_every'?"),
        ("space.model.d_modle={low:1,high:2}", "did you mean 'd_model'?"),
        ("space.modl.d_model={low:1,high:2}", "no such key"),
        ("space.optimzer={choices:[adamw]}", "no such key"),
        ("space.optimizer.lrr={low:1,high:2}", "did you mean 'lr'?"),
        ("space.trainer.max_stepz={low:1,high:2}", "did you mean 'max_steps'?"),
        ("space.optimizer={choices:[adamw,muonn]}", "no such optimizer, did you mean 'muon'?"),
        ("~space.model.d_modl", "it is not searched, did you mean 'model.d_model'?"),
        ("~n_trials", "only ~space.KEY and ~fixed.KEY"),
        ("hydra.run.dir=x", "no such key"),
        ("n_trials.x=1", "n_trials has no parts"),
        ("seed=[", "is no override"),
        ("model.d_ff=1,2,3", "type space.model.d_ff={choices:[...]}"),
        ("experiment=bert_smal", "did you mean 'bert_small'?"),
        ("model.d_model=128", "model.d_model is searched and fixed at 128; type ~space.model.d_model"),
        # ranges
        (f"{D}={{low:5,high:5}}", "an empty range"),
        (f"{D}={{low:9,high:5}}", "an empty range"),
        (f"{LR}={{low:0,high:1,log:true}}", "log: true needs low above 0, not 0"),
        (f"{LR}={{low:-1.0,high:1,log:true}}", "not -1"),
        (f"{D}={{low:8,high:64,step:8,log:true}}", "step and log exclude each other"),
        (f"{D}={{low:8,high:64,step:0}}", "step=0: must be above 0"),
        (f"{D}={{low:8,high:60,step:8}}", "type high=56 or 64"),
        (f"{D}={{low:8,high:60,step:100}}", "type high=108"),
        (f"{D}={{low:a,high:60}}", "low=a: a number is needed"),
        (f"{D}={{low:1}}", "high=None: a number is needed"),
        (f"{D}={{low:1,high:inf}}", "high=inf: a number is needed"),
        (f"{D}={{low:true,high:3}}", "low=True: a number is needed"),
        (f"{LR}={{low:1,high:2,log:yes}}", "log=yes: write true or false"),
        (f"{D}={{low:1,hihg:2}}", "did you mean 'high'?"),
        (f"{D}={{low:1,high:2,choices:[1]}}", "is no entry"),
        (f"{D}={{}}", "is no entry"),
        (f"{D}=64", "a value that stays goes to fixed: model.d_model=64"),
        (f"{D}={{value:64}}", "64 is one value only"),
        # choices
        (f"{D}={{choices:[]}}", "at least one value"),
        (f"{D}={{choices:64}}", "at least one value"),
        (f"{D}={{choices:[64,wide]}}", "of mixed type (number, text)"),
        ("space.model.gated={choices:[true,1]}", "of mixed type (number, true or false)"),
        (f"{D}={{choices:[64,64]}}", "a value stands there twice"),
        (f"{D}={{choices:[{{a:1}}]}}", "numbers, texts, true and false, null or lists"),
        # arithmetic, dependent choices
        ("space.model.d_ff='4 * model.d_modl'", "did you mean 'model.d_model'?"),
        ("space.model.d_ff='4 *'", "can't be read"),
        ("space.model.d_ff='model.d_ff + 1'", "model.d_ff -> model.d_ff: each needs the other"),
        ("space.model.d_model='4 * model.n_heads'", "model.d_model -> model.n_heads -> model.d_model"),
        ("space.model.d_ff='__import__(1)'", "only the functions min, max, round, int"),
        ("space.model.d_ff='model.d_model / 0'", "divides by zero"),
        ("space.model.n_heads='divisors of model.d_model'", "write divisors of model.d_model with head size in"),
        ("space.model.n_heads='divisors of model.d_modl with head size in [32]'", "did you mean 'model.d_model'?"),
        ("space.model.n_heads='divisors of model.d_model with head size in [a]'", "whole numbers are needed"),
        ("space.model.n_heads='divisors of model.d_model with head size in [0]'", "from 1 on"),
        ("space.model.n_heads='divisors of model.d_model with head size in [8, 8]'", "different whole numbers"),
        # branches
        (f"{D}={{low:1,high:2,when:'optimzer == muon'}}", "did you mean 'optimizer'?"),
        (f"{D}={{low:1,high:2,when:'optimizer == muonn'}}", "optimizer is never muonn, did you mean 'muon'?"),
        (f"{D}={{low:1,high:2,when:'optimizer.lr == big'}}", "optimizer.lr is a number, big is none"),
        (f"{D}={{low:1,high:2,when:'optimizer'}}", "must be a comparison"),
        (f"{D}={{low:1,high:2,when:3}}", "must be a comparison"),
        # constraints
        ("constraints=['parametrs <= 1e6']", "did you mean 'parameters'?"),
        ("constraints=['parameters']", "must be a comparison"),
        ("constraints=['parameters <= 1000']", "none of 200 configurations drawn is feasible"),
        ("space.model.d_model={choices:[100]}", "none of 200 configurations drawn is feasible"),
        # values that the config refuses
        ("space.trainer.accumulate={low:0,high:1}", "trainer.accumulate=0: must be a whole number, at least 1"),
        ("space.schedule.warmup={low:1.5,high:2}", "at most 1"),
        # objective
        ("metric=[val/loss,parameters]", "metric has 2 names and direction 1"),
        ("metric=loss", "metric=loss: write val/NAME"),
        ("metric=paramters", "did you mean 'parameters'?"),
        ("direction=down", "direction=down: no such direction; it can be minimize or maximize"),
        ("direction=minimise", "did you mean 'minimize'?"),
        # counts and times
        ("n_trials=0", "n_trials=0: must be a whole number, at least 1"),
        ("n_trials=1.5", "must be a whole number"),
        ("n_trials=true", "must be a whole number"),
        ("workers=0", "workers=0: must be a whole number, at least 1"),
        ("trials_per_gpu=0", "at least 1"),
        ("gpus_per_trial=-1", "at least 0"),
        ("timeout=soon", "timeout=soon: not a time"),
        ("trial_timeout='2e6 tokens'", "not a time"),
        ("budget=soon", "budget=soon: neither a time nor an amount of work"),
        ("budget=auto", "type e.g. budget=90s"),
        ("rungs=[0.5,0.1]", "rising shares"),
        ("rungs=[0,1]", "rising shares"),
        ("rungs=0.5", "rising shares"),
        ("seeds=[]", "different whole numbers"),
        ("seeds=[1,1]", "different whole numbers"),
        ("retries.nann=1", "did you mean 'nan'?"),
        ("retries=-1", "must be a whole number, not negative"),
        ("name=a/b", "a folder is called so"),
        # samplers and pruners
        ("sampler=tpe", "type sampler._target_=optuna.samplers.NAME"),
        ("sampler._target_=optuna.samplers.TPESamplr", "did you mean 'TPESampler'?"),
        ("sampler._target_=os.system", "must be optuna.samplers.NAME"),
        ("sampler._target_=optuna.samplers.nsgaii", "must be optuna.samplers.NAME"),
        ("sampler._target_=optuna.pruners.MedianPruner", "must be optuna.samplers.NAME"),
        ("sampler._target_=optuna.samplers.os.system", "must be optuna.samplers.NAME"),
        ("sampler.n_startup_trial=1", "did you mean 'n_startup_trials'?"),
        ("sampler={_target_:optuna.samplers.GridSampler}", "optimizer.lr is continuous; give it a step or choices"),
        ("sampler={_target_:optuna.samplers.BruteForceSampler}", "optimizer.lr is continuous"),
        ("sampler={_target_:optuna.samplers.CmaEsSampler}", "draws numbers only, and model.n_heads is a choice"),
        ("sampler={_target_:optuna.samplers.QMCSampler}", "draws numbers only, and model.n_heads is a choice"),
        ("sampler={_target_:optuna.samplers.PartialFixedSampler}", "goes to fixed"),
        ("sampler={_target_:optuna.samplers.NSGAIISampler,population_size:1}", "population_size"),
        ("pruner={_target_:optuna.pruners.MedianPrunr}", "did you mean 'MedianPruner'?"),
        ("pruner={_target_:subprocess.Popen,args:[ls]}", "must be optuna.pruners.NAME"),
        (
            "pruner={_target_:optuna.pruners.PatientPruner,patience:1,wrapped_pruner:{_target_:os.system}}",
            "must be optuna",
        ),
        ("pruner={_target_:optuna.pruners.PercentilePruner}", "needs percentile; type pruner.percentile=..."),
        ("pruner={_target_:optuna.pruners.MedianPruner,n_warmup_step:1}", "did you mean 'n_warmup_steps'?"),
        ("pruner.n_startup_trials=1", "the sweep has no pruner"),
        # keys that are the sweep's own
        ("space.budget={choices:[1m,2m]}", "space.budget: budget is a key of the sweep itself"),
        ("fixed.workers=2", "workers is a key of the sweep itself; type workers=2"),
        ("fixed.output_dir=x", "the sweep names the trials' folders"),
        ("space.output_dir={choices:[a,b]}", "the sweep names the trials' folders"),
        ("resume=auto", "running the sweep's command again goes on with it"),
        ("dry_run=true", "try one trial with lit_tfm.train first"),
        ("space.experiment={choices:[bert_small]}", "write experiment=NAME beside the space"),
    ],
)
def test_a_mistake_gets_one_line_and_nothing_is_written(refused, word: str, said: str) -> None:
    assert said in refused(word)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*BOTH, "pruner={_target_:optuna.pruners.NopPruner}"), "type pruner=null"),
        ((*BOTH, "metric=[val/loss,val/loss]"), "stands there twice"),
        (("budget=9s", "space.trainer.max_steps={low:1,high:9}"), "budget=9s ends every trial"),
        (("budget=9s", "space.trainer.max_epochs={low:1,high:9}"), "~space.trainer.max_epochs, or budget=null"),
        (("seeds=[1,2]", "fixed.seed=1"), "both name the seed"),
        (("seeds=[1,2]", "space.seed={low:1,high:9}"), "seed is searched"),
        (("sampler={_target_:optuna.samplers.GPSampler}", f"{D}.when='optimizer.lr > 0.01'"), "can't do branches"),
        (("~space.model.d_model", "~space.model.n_heads", "~space.optimizer.lr"), "space: a sweep needs one"),
        (
            ("~space.model.n_heads", "~space.optimizer.lr", "space.model.d_model='64 * model.n_layers'"),
            "nothing is drawn, all entries are derived",
        ),
        (
            ("space.optimizer={choices:[adamw,muon]}", "space.optimizer.adamw_lr={low:0.1,high:1}"),
            "set it only where it belongs: {..., when: optimizer == muon}",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together(refused, words, said: str) -> None:
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("", "holds no keys"),
        ("- a\n- b\n", "holds no keys"),
        ("experiment: [", "can't be read"),
        ("experiment: a\nexperiment: b\n", "can't be read"),
        ("experiment: ${nothing}\nspace: {}", "can't be read"),
        ("expriment: bert_small\n", "did you mean 'experiment'?"),
        ("experiment: bert_small\n", "space: a sweep needs one"),
        ("space: {seed: {low: 1, high: 2}}\n", "experiment: a sweep needs one"),
        ("experiment: bert_small\nspace: [1]\n", "space=[1]: not a mapping"),
        ("experiment: a\nspace: {seed: {low: 1, high: 2}}\nfixed: {trainer: {val_every: 1}}", "trainer.val_every"),
        ("experiment: bert_small\nspace: {seed: {low: 1, high: 2}}\nallow_targets: [os]", "allow_targets"),
        ("experiment: 3\nspace: {seed: {low: 1, high: 2}}", "experiment=3: a text is needed"),
    ],
)  # fmt: skip
def test_a_yaml_that_is_no_sweep(refused, yaml: str, said: str) -> None:
    assert said in refused(yaml=yaml)


def test_a_yaml_that_can_not_be_read(tmp_path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load([f"sweep={tmp_path / 'none.yaml'}"])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't be read"):
        load([f"sweep={tmp_path / 'binary.yaml'}"])


@pytest.mark.parametrize(
    ("name", "package"), [("GPSampler", "scipy"), ("WilcoxonPruner", "scipy"), ("CmaEsSampler", "cmaes")]
)
def test_a_package_that_is_missing_is_named(sweep, monkeypatch, name: str, package: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == package else wanted)
    what = "pruner" if name.endswith("Pruner") else "sampler"
    plain = BASE.replace("divisors of model.d_model with head size in [32, 64]", "model.d_model / 64")
    with pytest.raises(UserError, match=re.escape(f"{name} needs the package {package}: pip install {package}")):
        sweep(f"{what}={{_target_:optuna.{what}s.{name}}}", yaml=plain)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["budget=2e6 tokens"], 200_000),
        (["budget=90s"], 9_000),  # milliseconds
        (["fixed.debug=limit"], 100),  # no budget: thousandths
    ],
)
def test_resources_of_a_pruner_may_be_shares_of_a_trial(sweep, words, expected) -> None:
    halving = "pruner={_target_:optuna.pruners.SuccessiveHalvingPruner,min_resource:0.1}"
    assert sweep(*words, halving).build_pruner()._min_resource == expected
    whole = "pruner={_target_:optuna.pruners.SuccessiveHalvingPruner,min_resource:7}"
    assert sweep(*words, whole).build_pruner()._min_resource == 7
    nested = "pruner={_target_:optuna.pruners.PatientPruner,patience:1,wrapped_pruner:"
    nested += "{_target_:optuna.pruners.MedianPruner,n_warmup_steps:0.1}}"
    assert sweep(*words, nested).build_pruner()._wrapped_pruner._n_warmup_steps == expected
    hyperband = sweep(*words, "pruner={_target_:optuna.pruners.HyperbandPruner,min_resource:0.1}").build_pruner()
    assert hyperband._max_resource == 10 * expected


def test_a_share_of_what_is_not_known_is_refused(sweep) -> None:
    with pytest.raises(UserError, match=r"pruner.min_resource=0.1: a share of a trial needs a budget"):
        sweep("pruner={_target_:optuna.pruners.SuccessiveHalvingPruner,min_resource:0.1}")


def test_the_experiment_may_be_a_file(sweep, tmp_path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("# @package _global_\ndefaults: [bert_small, override /model: bert_tiny]\nmodel: {d_ff: 96}\n")
    made = sweep(f"experiment={path}")
    cfg = made.compose(made.space.sample(Draw(0)), 0)
    assert (cfg.name, cfg.choices.model, cfg.model.d_ff) == ("best", "bert_tiny", 96)


@pytest.mark.parametrize(
    "yaml",
    [
        BASE.replace("fixed: {", "fixed: {task._target_: os.system, "),
        BASE + "  task._target_: {choices: [os.system, lit_tfm.tasks.masked_lm.MaskedLM]}\n",
        BASE + "  logger: {choices: [tensorboard]}\n  logger.tensorboard._target_: {choices: [subprocess.run]}\n",
    ],
)
def test_a_sweep_of_a_stranger_calls_nothing(refused, yaml: str, monkeypatch) -> None:
    monkeypatch.setenv("LIT_TFM_ALLOW_TARGETS", "")
    assert "a config may name only" in refused(yaml=yaml)
