"""What bad input and faults get: a documented status, one line that says what to type, nothing half-written.

The rows run through the verb's own main, in this process; where the process itself matters they are in test_disk.py
(full and broken disks), test_out_of_memory.py, test_ranks.py and test_stopped.py. Broken data files: tests/data/.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_tfm import config
from lit_tfm.callbacks.checkpoint_files import check
from lit_tfm.errors import UserError
from lit_tfm.train import main, train

SMALL = ["model.d_model=32", "model.n_layers=1", "model.n_heads=2", "tokenizer.vocab_size=300", "data.block_size=16"]
STEP = ["trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.val_every=1", "data.val_limit=4", "budget=null"]
LM = ["experiment=bert_small", *SMALL, *STEP]
QUIET = ["logger.tensorboard=null", "callbacks.attention=null", "callbacks.samples=null", "callbacks.projector=null"]
CLASSES = ["model=bert_tiny", "task=classification", "data=csv", "model.n_layers=1", "tokenizer.vocab_size=300", *STEP]


def compose_and_train(overrides: list[str]) -> None:
    train(config.compose(overrides), quiet=True)


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """`python -m lit_tfm.<verb> ...` in this process; checks status and single line, and returns the line."""

    def attempt(*words: str, status: int = 2, verb=main) -> str:
        monkeypatch.setattr(sys, "argv", ["lit_tfm", *words])
        with pytest.raises(SystemExit) as ended:
            verb()
        errors = capsys.readouterr().err
        assert ended.value.code == status, errors
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("error: ")
        return errors

    return attempt


@pytest.fixture
def refused(tmp_path, session_cache, told):
    """`told`, of a run that leaves no folder behind."""

    def attempt(*overrides: str) -> str:
        folder = tmp_path / "refused" / "run"
        message = told(*overrides, f"cache_dir={session_cache}", f"output_dir={folder}")
        assert not folder.exists()
        return message

    return attempt


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.d_model=30", "model.n_heads=4"], "not divisible by model.n_heads=4"),
        (["model.positions=rotery"], "did you mean 'rotary'"),
        (["model.norm=rsm"], "did you mean 'rms'"),
        (["model.dropout=2"], "model.dropout=2"),
        (["model.max_length=8"], "model.max_length=16"),
        (["model=gpt_tiny"], "needs a model of kind Encoder"),
        (["task=causal_lm"], "needs a model of kind Decoder"),
        (["task=classification"], "label"),
        (["trainer.precision=16"], "choose from auto, 32, bf16-mixed"),
        (["trainer.strategy=dpp"], "did you mean 'ddp'"),
        (["trainer.devices=4096"], "this machine has"),
        (["trainer.devices=none"], "not a number of devices"),
        (["budget=soon"], "type one of 90s, 10m"),
        (["budget=0s"], "neither a time nor an amount of work"),
        (["budget=2e6 words"], "'2e6 tokens', '1e13 flops', auto or null"),
        (["resume=nowhere"], "there is no checkpoint"),
        (["init_from=nowhere"], "no run folder"),
        (["tokenizer.path=nowhere.json"], "nowhere.json"),
        (["data.pack=blocks"], "data.pack=blocks"),
        (["data.batch_size=0"], "at least 1"),
        (["trainer.max_steps=abc"], "trainer.max_steps=abc: must be a whole number"),
        (["trainer.max_steps=0"], "at least 1"),
        (["trainer.accumulate=1.5"], "must be a whole number"),
        (["trainer.val_every=0"], "trainer.val_every=0"),
        (["seed=-1"], "not negative"),
        (["optimizer.lr=fast"], "must be a number"),
        (["schedule.warmup=2"], "at most 1"),
        (["logger.tensorboard=false"], "type logger.tensorboard=null, or logger.tensorboard.KEY=VALUE"),
        (["model.d_model=???"], "type model.d_model=VALUE"),
        (["logger=[null]"], "a list of names is needed, e.g. 'logger=[tensorboard,wandb]'"),
        (["callbacks=[[default]]"], "a list of names is needed"),
        (["callbacks.samples=5"], "type callbacks.samples=null"),
        (["schedule.cooldown=null"], "schedule.cooldown=null: must be a number"),
        (["schedule.shape=true"], "schedule.shape=true: must be a text"),
        (["optimizer.adamw_lr=[1]"], "optimizer.adamw_lr=[1]: must be a number"),
        (["data.cross_documents=maybe"], "data.cross_documents=maybe: must be true or false"),
        (["task.replace=[1,0]"], "task.replace=[1, 0]: must be a list of 3"),
        (["data.holdout.test=true"], "data.holdout"),
        (["task.label_smoothing=2"], "at most 0.999"),
        (["trainer.num_nodes=2"], "torchrun --nnodes=2"),
        (["trainer.max_stesp=3"], "did you mean 'max_steps'"),
        (["model.d_modle=32"], "did you mean 'd_model'"),
        (["modle=bert_tiny"], "did you mean 'model'"),
        (["model=bert_tny"], "did you mean 'bert_tiny'"),
        (["model=null"], "Config group override must be"),
        (["optimizer=adam"], "no such optimizer"),
        (["nonsense"], "type key=value"),
        (["model.d_model=[1"], "type key=value"),
        (["model.d_model=0"], "d_model"),
        (["model.n_heads=0"], "n_heads"),
        (["model.n_layers=-1"], "n_layers"),
        (["model.activation=gleu"], "did you mean"),
        (["task._target_=os.system"], "os.system"),
        (["trainer.accelerator=tpu"], "choose from auto, cpu, gpu"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["trainer.max_steps=null", "trainer.max_epochs=null"], "the run would not end"),
        (["trainer.log_every=0"], "trainer.log_every=0"),
        (["data.val_limit=0"], "data.val_limit=0"),
        (["data.batch_size=null"], "both null"),
        (["data.num_workers=-1"], "data.num_workers"),
        (["data.holdout.validation=1.5"], "holdout"),
        (["task.rate=0"], "rate"),
        (["task.bad_steps=some"], "task.bad_steps"),
        (["watchdog=soon"], "watchdog=soon: not a time"),
        (["watchdog='5 tokens'"], "type one of 90s"),
        (["time_limit=tomorrow"], "time_limit=tomorrow: not a time"),
        (["auto_batch=2"], "auto_batch=2: must be true or false"),
        (["deterministic=maybe"], "must be true or false"),
        (["init_from=/dev/null"], "/dev/null"),
        (["resume=/dev/null"], "/dev/null"),
        (["experiment=nowhere.yaml"], "can't be read"),
        (["callbacks=[defaults]"], "did you mean 'default'"),
        (["callbacks.checkpoints.evry=2"], "did you mean 'every'"),
        (["logger=tensorbord"], "did you mean 'tensorboard'"),
        (["debug=all"], "no such debug"),
        (["schedule=cosin"], "did you mean 'cosine'"),
        (["tokenizer.vocab_size=3"], "vocab_size"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_can_not_be(refused, text_folder, overrides, said) -> None:
    assert said in refused(*LM, f"data.path={text_folder}", *overrides)


def test_a_gpu_that_is_not_there(refused, text_folder) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "no GPU" in refused(*LM, f"data.path={text_folder}", "trainer.accelerator=gpu")


def test_bf16_where_the_device_lacks_it(refused, text_folder, monkeypatch) -> None:
    monkeypatch.setattr("lit_tfm.hardware.has_bf16", lambda accelerator: False)
    message = refused(*LM, f"data.path={text_folder}", "trainer.precision=bf16-mixed")
    assert "no bf16 units" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"some text\x00\x01 and more", "binary"),
        ("caf\xe9 ".encode("latin-1") * 20, "UTF-8"),
    ],
    ids=["empty", "binary", "latin-1"],
)
def test_text_that_can_not_be_read(refused, tmp_path, content, said) -> None:
    path = write(tmp_path / "text" / "train.txt", content)
    message = refused(*LM, f"data.path={path.parent}")
    assert said in message
    assert "train.txt" in message


def test_text_that_is_not_there(refused, text_folder) -> None:
    assert "tran.txt" in refused(*LM, f"data.path={text_folder / 'tran.txt'}")


def test_an_empty_validation_split(refused, tmp_path) -> None:
    write(tmp_path / "text" / "train.txt", "words and words " * 500)
    write(tmp_path / "text" / "valid.txt", "")
    assert "valid" in refused(*LM, f"data.path={tmp_path / 'text'}")


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ("text,label\nfine,good\nbad,poor\n" * 30, ["data.label=lable"], "did you mean 'label'"),
        ("text,label\nfine,good\nbad,poor\n", ["data.text=txt"], "did you mean 'text'"),
        ("text,label\n" + "fine,good\n" * 40, [], "one"),
        ("text,label\nfine,good\nbad,poor,more\n" + "fine,good\n" * 20, [], "3"),
        ("text,label\n" + "fine,good\nbad,poor\n" * 20, ["data.labels=[good,worse]"], "poor"),
    ],
    ids=["label column", "text column", "one class", "fields", "unknown label"],
)
def test_tables_that_do_not_fit(refused, tmp_path, rows, overrides, said) -> None:
    path = write(tmp_path / "rows.csv", rows)
    assert said in refused(*CLASSES, f"data.path={path}", *overrides)


def test_span_corruption_without_sentinels(refused, text_folder) -> None:
    options = ["model=t5_tiny", "task=span_corruption", "data=text", f"data.path={text_folder}", *STEP]
    assert "tokenizer.sentinels" in refused(*options, "tokenizer.vocab_size=300")


def test_more_spans_than_sentinels(refused, text_folder) -> None:
    options = ["model=t5_tiny", "task=span_corruption", "data=text", f"data.path={text_folder}", *STEP]
    options += ["tokenizer.vocab_size=300", "tokenizer.sentinels=2"]
    assert "2 sentinels" in refused(*options)


def test_running_text_is_not_labelled_text(refused, labelled_csv) -> None:
    options = [o for o in CLASSES if not o.startswith(("model=", "task="))]
    message = refused("model=gpt_tiny", "task=causal_lm", *options, f"data.path={labelled_csv}")
    assert "this data set has labels" in message


def test_no_test_split(refused, labelled_csv) -> None:
    assert "data.holdout.test" in refused(*CLASSES, f"data.path={labelled_csv}", "test=true")


def test_an_output_folder_that_can_not_be_made(told, tmp_path, session_cache, text_folder) -> None:
    blocked = write(tmp_path / "file", "a file, not a folder")
    given = [f"data.path={text_folder}", f"cache_dir={session_cache}"]
    assert "can't be written" in told(*LM, *given, f"output_dir={blocked}/run")


def test_an_output_folder_that_holds_something(told, tmp_path, session_cache, text_folder) -> None:
    write(tmp_path / "taken" / "file", "mine")
    given = [f"data.path={text_folder}", f"cache_dir={session_cache}"]
    assert "it is not empty" in told(*LM, *given, f"output_dir={tmp_path / 'taken'}")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


# ---- checkpoints and run folders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, session_cache, text_folder) -> Path:
    """A run of one step; to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = [f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={folder}", *QUIET]
    compose_and_train([*LM, *options])
    return folder


def damaged(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words", "said"),
    [
        ({"config.yaml": None}, [], "no config.yaml"),
        ({"config.yaml": b"model: [1"}, [], "config.yaml"),
        ({"config.yaml": b"\xff\xfe\x00"}, [], "config.yaml"),
        ({"checkpoints": None}, [], "there is no checkpoint"),
        ({"checkpoints/last.ckpt": b""}, ["last.ckpt"], "is broken"),
        ({"checkpoints/last.ckpt": b"PK\x03\x04 nothing"}, ["last.ckpt"], "is broken"),
        ({"checkpoints/last.ckpt": b"x", "checkpoints/best.ckpt": b"y"}, [], "none is whole"),
        ({}, ["model.d_model=64"], "d_model: 32 there, 64 here"),
        ({}, ["seed=9"], "seed: 1 there, 9 here"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_runs_that_can_not_be_gone_on_with(told, finished, tmp_path, damage, words, said) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for name, content in damage.items():
        damaged(folder, name, content)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    target = folder / "checkpoints" / words.pop() if words == ["last.ckpt"] else folder
    assert said in told(f"resume={target}", "trainer.max_steps=3", *words)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"checkpoints": None}, "no weights yet"),
        ({"checkpoints/best.safetensors": b"garbage"}, "no safetensors file that can be read"),
        ({"checkpoints/best.safetensors": b""}, "no safetensors file that can be read"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json"),
    ],
    ids=str,
)
def test_weights_that_can_not_be_taken_over(refused, finished, tmp_path, text_folder, damage, said) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for name, content in damage.items():
        damaged(folder, name, content)
    assert said in refused(*LM, f"data.path={text_folder}", f"init_from={folder}")


def test_loss_that_is_no_number_names_the_checkpoint_before(told, tmp_path, session_cache, text_folder) -> None:
    """Its folder stays: it is whole, and says that the run failed."""
    folder = tmp_path / "run"
    given = [f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={folder}", *QUIET]
    given += ["optimizer=adamw", "optimizer.lr=1e30", "task.grad_clip=0", "trainer.max_steps=20", "task.bad_steps=2"]
    line = told(*LM, *given, "schedule=constant", "trainer.val_every=1")
    assert "is no longer finite" in line or "loss is nan" in line or "are no longer finite" in line, line
    assert "checkpoint" in line
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    kept = list((folder / "checkpoints").glob("*.ckpt")) if (folder / "checkpoints").exists() else []
    assert all(check(path) is None for path in kept)


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [sys.executable, "-m", "lit_tfm.train", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def test_the_command_line_says_one_line_and_exits_with_2(tmp_path) -> None:
    done = command("experiment=bert_smal")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "did you mean 'bert_small'" in done.stderr


def test_a_traceback_comes_on_request() -> None:
    done = command("model.d_modl=3", HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr
    assert "did you mean 'd_model'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "experiment"),
        (["--cfg", "job", "experiment=bert_small"], "d_model: 512"),
        (["experiment=bert_small", "--cfg", "job"], "d_model: 512"),
    ],
)
def test_help_and_config_answer_without_torch(arguments: list[str], said: str) -> None:
    """What makes them answer in about a second; time itself is no test here."""
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['lit_tfm.train', *{arguments!r}]\n"
        "try: runpy.run_module('lit_tfm.train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'lightning', 'datasets'} & set(sys.modules), 'imported something heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


LIMITED = """
import resource, sys
from lit_tfm.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # bytes a file: what a full disk looks like to a write
sys.argv[0] = "lit_tfm.train"
main()
"""


def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(tmp_path, session_cache, text_folder) -> None:
    options = [*LM, f"data.path={text_folder}", f"cache_dir={session_cache}", "output_dir=run", "model.d_model=128"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "make room" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


def test_a_logger_that_is_not_installed(tmp_path, session_cache, text_folder) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    options = [*LM, f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"pip install 'lit_tfm\[wandb\]'"):
        compose_and_train([*options, "logger=[tensorboard,wandb]"])
