"""What bad input gets: one line that says what was given, what is allowed and what to type; nothing half-written."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.train import train

SMALL = ["model.d_model=32", "model.n_layers=1", "model.n_heads=2", "tokenizer.vocab_size=300", "data.block_size=16"]
STEP = ["trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.val_every=1", "data.val_limit=4", "budget=null"]
LM = ["experiment=bert_small", *SMALL, *STEP]
CLASSES = ["model=bert_tiny", "task=classification", "data=csv", "model.n_layers=1", "tokenizer.vocab_size=300", *STEP]


def compose_and_train(overrides: list[str]) -> None:
    train(config.compose(overrides), quiet=True)


@pytest.fixture
def refused(tmp_path, session_cache):
    """Trains, expects a refusal, and checks that it is one line and left no folder behind; returns the line."""

    def attempt(*overrides: str) -> str:
        folder = tmp_path / "refused" / "run"
        with pytest.raises(UserError) as caught:
            compose_and_train([*overrides, f"cache_dir={session_cache}", f"output_dir={folder}"])
        assert not folder.exists()
        message = str(caught.value)
        assert "\n" not in message
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
        (["task.label_smoothing=2"], "at most 0.999"),
        (["trainer.num_nodes=2"], "torchrun --nnodes=2"),
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


def test_an_output_folder_that_can_not_be_made(tmp_path, session_cache, text_folder) -> None:
    blocked = write(tmp_path / "file", "a file, not a folder")
    cfg = config.compose([*LM, f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={blocked}/run"])
    with pytest.raises(UserError, match="can't be written"):
        train(cfg, quiet=True)


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
