"""Opening somebody else's run, sweep or data executes nothing: real payloads in every file, past every verb.

Each payload, unpickled, makes a folder. Whether a verb goes on in spite of it or refuses is its own business; the
folder must not be there.
"""

import ast
import contextlib
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from lit_tfm import config, evaluate, predict
from lit_tfm.build import resume_checkpoint
from lit_tfm.callbacks.checkpoint_files import check
from lit_tfm.compare import compare
from lit_tfm.compare import parser as compare_parser
from lit_tfm.data import store
from lit_tfm.data.classification import read_labels
from lit_tfm.errors import UserError
from lit_tfm.generate import generate
from lit_tfm.reports.reading import read_run
from lit_tfm.rerun import rerun
from lit_tfm.search.looking import look
from lit_tfm.search.samplers import CmaEs, build
from lit_tfm.search.settings import load
from lit_tfm.search.status import table
from lit_tfm.search.study import open_study
from lit_tfm.train import train
from lit_tfm.trained import weights

PACKAGE = Path(__file__).parent.parent / "lit_tfm"


class Touch:
    """Unpickling it makes the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def touched(tmp_path) -> Path:
    return tmp_path / "touched"


def pickled(touched: Path, form: str) -> bytes:
    """The payload as torch's archive, as its old format, and as a bare pickle."""
    if form == "bare":
        return pickle.dumps(Touch(touched))
    file = touched.with_name("payload")
    content = {"state_dict": Touch(touched), "global_step": 1, "loops": {}, "lit_tfm": {}}
    torch.save(content, file, _use_new_zipfile_serialization=form == "archive")
    return file.read_bytes()


def test_the_payloads_work(touched) -> None:
    """Otherwise the tests below would prove nothing."""
    for form in ("archive", "old"):
        (touched.with_name("x.ckpt")).write_bytes(pickled(touched, form))
        torch.load(touched.with_name("x.ckpt"), weights_only=False)
        touched.rmdir()
    pickle.loads(pickled(touched, "bare"))
    assert touched.exists()


def attempt(*doings) -> None:
    """Each is done; whether it is refused or goes on is all the same here. A wrong word on a command line is not."""
    for doing in doings:
        with contextlib.suppress(UserError):
            doing()


@pytest.mark.parametrize("form", ["archive", "old", "bare"])
def test_a_checkpoint_of_a_stranger_is_read_and_not_executed(form: str, touched, tmp_path) -> None:
    """By the functions that all verbs read it with."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(pickled(touched, form))
    assert check(path) is not None
    for reading in (weights, lambda path: resume_checkpoint(path, None)):
        with pytest.raises((UserError, pickle.UnpicklingError, RuntimeError)):
            reading(path)
    assert not touched.exists()


@pytest.mark.parametrize("form", ["archive", *(pytest.param(name, marks=pytest.mark.slow) for name in ("old", "bare"))])
def test_checkpoints_of_a_stranger(form: str, touched, trained_runs, tmp_path, session_cache, text_folder) -> None:
    """Past every verb."""
    run = Path(shutil.copytree(trained_runs("causal"), tmp_path / "theirs"))
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt", "last.safetensors", "best.safetensors"):
        (run / "checkpoints" / name).write_bytes(pickled(touched, form))
    words = [
        "model=gpt_tiny",
        "task=causal_lm",
        "data=text",
        f"data.path={text_folder}",
        f"tokenizer.path={run}/tokenizer.json",
    ]
    words += [f"cache_dir={session_cache}", "trainer.accelerator=cpu", f"output_dir={tmp_path / 'new'}"]
    attempt(
        lambda: train(config.compose([f"resume={run}"]), quiet=True),
        lambda: train(config.compose([f"resume={run / 'checkpoints' / 'last.ckpt'}"]), quiet=True),
        lambda: train(config.compose([*words, f"init_from={run}", "dry_run=true"]), quiet=True),
        lambda: train(config.compose([*words, f"init_from={run / 'checkpoints' / 'best.ckpt'}"]), quiet=True),
        *(lambda kind=kind: evaluate.evaluate([str(run), "--checkpoint", kind]) for kind in ("best", "last")),
        lambda: evaluate.evaluate([str(run), "--checkpoint", str(run / "checkpoints" / "previous.ckpt")]),
        lambda: generate([str(run), "--prompt", "a text", "--max-new-tokens", "2"]),
        lambda: compare(compare_parser().parse_args([str(run)])),
    )
    assert check(run / "checkpoints" / "last.ckpt") is not None
    assert not touched.exists()


FILES = ["tokenizer.json", "metrics.csv", "summary.json", "data.json", "environment.json", "config.yaml", "trial.json"]


@pytest.mark.parametrize("name", FILES)
def test_every_other_file_of_a_run(name: str, touched, trained_runs, tmp_path) -> None:
    run = Path(shutil.copytree(trained_runs("encoder"), tmp_path / "theirs"))
    (run / name).write_bytes(pickled(touched, "bare"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt(
            lambda: predict.predict([str(run), "a film"]),
            lambda: evaluate.evaluate([str(run), "--resamples", "0"]),
            lambda: rerun([str(run), "dry_run=true"]) if name in ("config.yaml", "data.json") else None,
            lambda: read_run(run),
            lambda: compare(compare_parser().parse_args([str(run)])),
        )
    assert not touched.exists()


def test_yaml_can_not_call_either(touched, tmp_path, trained_runs) -> None:
    run = Path(shutil.copytree(trained_runs("encoder"), tmp_path / "theirs"))
    call = f"!!python/object/apply:os.mkdir ['{touched}']\n"
    (run / "config.yaml").write_text(call)
    (tmp_path / "sweep.yaml").write_text(f"experiment: {call}")
    attempt(
        lambda: config.compose([f"experiment={run / 'config.yaml'}"]),
        lambda: config.compose([f"resume={run}"]),
        lambda: load([f"sweep={tmp_path / 'sweep.yaml'}"]),
        lambda: read_run(run),
        lambda: predict.predict([str(run), "a film"]),
    )
    assert not touched.exists()


def test_labels_hold_no_objects(touched, tmp_path) -> None:
    (tmp_path / "labels.json").write_text('["a"]')
    np.save(tmp_path / "labels.npy", np.array([Touch(touched)], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        read_labels(tmp_path)
    assert not touched.exists()


@pytest.mark.parametrize("names", ["labels.npy", "*.json *.bin"])
def test_caches(names: str, touched, labelled_csv, tmp_path) -> None:
    words = ["model=bert_tiny", "task=classification", "data=csv", f"data.path={labelled_csv}", "tokenizer=byte"]
    words += [f"cache_dir={tmp_path / 'cache'}", "trainer.accelerator=cpu", "dry_run=true"]
    train(config.compose(words), quiet=True)
    objects = np.array([Touch(touched)], dtype=object)
    spoilt = [path for name in names.split() for path in (tmp_path / "cache").rglob(name) if path.name != store.SEAL]
    assert spoilt
    for path in spoilt:
        if path.suffix == ".npy":
            np.save(path, objects, allow_pickle=True)
        else:
            path.write_bytes(pickled(touched, "bare"))
    for folder in {path.parent for path in spoilt}:
        (folder / store.SEAL).unlink()
        store._seal(folder)  # as if it had been written so
        assert store.damage(folder) is None
    with contextlib.suppress(UserError, ValueError, KeyError, IndexError):
        train(config.compose(words), quiet=True)
    assert not touched.exists()


# ---- sweeps ----------------------------------------------------------------------------------------------------

SWEEP = """
experiment: bert_small
fixed: {model: bert_tiny, data: pydoc, tokenizer: byte}
space: {optimizer.lr: {low: 1e-4, high: 1e-1}, task.rate: {low: 0.1, high: 0.2}}
sampler: {_target_: optuna.samplers.CmaEsSampler}
"""


def study_with(state: bytes) -> optuna.Study:
    """Of a stranger: one complete trial whose attributes hold `state` as CMA-ES keeps its own."""
    study = optuna.create_study(study_name="theirs")
    for number in range(12):
        study.add_trial(
            optuna.trial.create_trial(
                params={"a": 0.1 + number / 50, "b": 0.3},
                distributions=dict.fromkeys("ab", optuna.distributions.FloatDistribution(0, 1)),
                value=float(number),
                system_attrs={"cma:optimizer:0": state.hex(), "cma:generation": 0},
            )
        )
    return study


def ask(study: optuna.Study, sampler: optuna.samplers.BaseSampler) -> None:
    study.sampler = sampler
    trial = study.ask()
    for name in "ab":
        trial.suggest_float(name, 0, 1)


def test_a_study_of_a_stranger(touched) -> None:
    """CMA-ES keeps a pickle of itself in the study."""
    pytest.importorskip("cmaes")
    sampler = build({"_target_": "optuna.samplers.CmaEsSampler", "n_startup_trials": 1}, "sampler", {"seed": 1})
    with pytest.raises(UserError, match=r"holds no state of CmaEsSampler \(it names posix.mkdir\)"):
        ask(study_with(pickle.dumps(Touch(touched))), sampler)
    assert not touched.exists()


@pytest.mark.parametrize("options", [{}, {"use_separable_cma": True}, {"with_margin": True}])
def test_cma_es_goes_on_from_its_own_state(options: dict) -> None:
    """The same draws as Optuna's own sampler, which unpickles anything."""
    pytest.importorskip("cmaes")
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (optuna.samplers.CmaEsSampler, CmaEs):
            study = optuna.create_study(sampler=kind(seed=1, n_startup_trials=1, **options))
            study.optimize(lambda trial: sum(trial.suggest_float(name, 0, 1) ** 2 for name in "ab"), n_trials=20)
            drawn.append([trial.params for trial in study.trials])
            assert any("optimizer" in key for trial in study.trials for key in trial.system_attrs)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["study.journal", "sweep.yaml", "study.db", "trials/0000/trial.json"])
def test_files_of_a_sweep(name: str, touched, tmp_path) -> None:
    """Gone on with, and looked at."""
    folder, path = tmp_path / "sweep", tmp_path / "theirs.yaml"
    path.write_text(SWEEP)
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "sweep.yaml").write_text("name: theirs\n")
    (folder / name).write_bytes(pickled(touched, "bare"))
    storage = [f"storage=sqlite:///{folder / 'study.db'}"] if name == "study.db" else []
    settings = load([f"sweep={path}", f"output_dir={folder}", *storage])
    attempt(
        lambda: open_study(settings, folder),
        lambda: table(*look([f"sweep={folder}", *storage])),
    )
    assert not touched.exists()


# ---- all of the source -----------------------------------------------------------------------------------------

# What may run what a file holds -> what has to stand beside it. None: never.
DANGEROUS = {
    "torch.load": ("weights_only", True),
    "np.load": None,  # with allow_pickle, that is; False is the default
    "trainer.fit": ("weights_only", True),
    "trainer.test": ("weights_only", True),
    "trainer.validate": ("weights_only", True),
    "trainer.predict": ("weights_only", True),
}
NEVER = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads", "marshal.loads"}
NEVER |= {"eval", "exec", "compile", "os.system", "os.popen", "torch.hub.load", "shelve.open", "yaml.unsafe_load"}
NEVER |= {"yaml.full_load", "instantiate", "hydra.utils.instantiate", "runpy.run_path", "pd.read_pickle", "__import__"}
NEVER |= {"torch.jit.load", "torch.package.PackageImporter", "torch.serialization.add_safe_globals"}
NEVER |= {"FileSystemReader", "dcp.FileSystemReader"}  # unpickle a checkpoint's .metadata, with no way to forbid it


# What writes files under names that an archive gives.
UNPACKING = {"extract", "extractall", "unpack_archive", "tarfile"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def wrong_with(name: str, call: ast.Call) -> str | None:
    given = {word.arg: word.value for word in call.keywords}
    short = name.split("self.")[-1]
    if "trust_remote_code" in given:
        return "trust_remote_code"
    if "shell" in given:
        return "a shell"
    if name == "dcp.load" and "storage_reader" not in given:
        return "without a storage_reader"
    if name in NEVER or name.endswith(".load_from_checkpoint"):
        return "never"
    if name == "np.load":
        return "allow_pickle" if "allow_pickle" in given else None
    if name == "yaml.load":
        loader = ast.unparse(given.get("Loader") or call.args[1])
        return None if "SafeLoader" in loader or loader == "_Loader" else loader
    # A dry run has no checkpoint to load.
    if short in DANGEROUS and (short == "torch.load" or "ckpt_path" in given):
        key, value = DANGEROUS[short]
        found = given.get(key)
        return None if isinstance(found, ast.Constant) and found.value is value else f"without {key}={value}"
    return None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_in_the_source_runs_what_a_file_holds(path: Path) -> None:
    source = path.read_text()
    found = [(name, call.lineno, wrong_with(name, call)) for name, call in calls(ast.parse(source))]
    assert not [entry for entry in found if entry[2]]
    assert "trust_remote_code" not in source
    assert not UNPACKING & set(re.findall(r"\w+", source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t, yaml.Loader)",
        "yaml.load(t, Loader=yaml.UnsafeLoader)",
        "pickle.loads(b)",
        "trainer.fit(t, ckpt_path=p)",
        "self.trainer.test(t, ckpt_path=p, weights_only=False)",
        "Task.load_from_checkpoint(p)",
        "load_dataset(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
        "dcp.load(state, checkpoint_id=p)",
        "dcp.load(state, storage_reader=dcp.FileSystemReader(p))",
    ],
)
def test_that_test_sees(source: str) -> None:
    assert any(wrong_with(name, call) for name, call in calls(ast.parse(source)))
