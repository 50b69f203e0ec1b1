"""What all tests share: real but small text, a cache of their own, and the door to training."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from filelock import FileLock
from hypothesis import settings

from lit_tfm import config
from lit_tfm.runs import Result
from lit_tfm.train import train

# The same examples every time, and no time limit for one of them: the machine may be busy.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell's background jobs ignore Ctrl-C, and what they start as well: the programs under test would not hear it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED = Path(os.environ.get("LIT_TFM_SHARED_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

# Small enough that a step takes milliseconds, with every default of the recipe left as it is.
TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32", "trainer.accelerator=cpu"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data sets beside the repository; a test that needs them is skipped, visibly, where they are not."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data sets are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.txt, valid.txt and test.txt of Python's own documentation: about 60, 10 and 10 kB."""
    folder = tmp_path_factory.mktemp("text")
    texts = [topics[name] for name in sorted(topics)]
    splits = {"train": texts[:12], "valid": texts[12:15], "test": texts[15:18]}
    for split, parts in splits.items():
        (folder / f"{split}.txt").write_text("\n\n".join(parts)[:60_000], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def labelled_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv with columns text and label (good, bad, plain) that a model can learn: 240 rows."""
    draw = random.Random(0)
    words = {"good": ["great", "fine", "lovely"], "bad": ["awful", "poor", "dull"], "plain": ["usual", "known", "same"]}
    filler = ["the", "film", "was", "a", "story", "and", "we", "saw", "it"]
    rows = ["text,label"]
    for i in range(240):
        label = list(words)[i % 3]
        text = [draw.choice(filler) for _ in range(draw.randint(2, 12))]
        text.insert(draw.randrange(len(text)), draw.choice(words[label]))
        rows.append(f"{' '.join(text)},{label}")
    path = tmp_path_factory.mktemp("csv") / "reviews.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, session_cache: Path) -> Callable[..., Result]:
    """`run("experiment=bert_small", ...)`: trains tiny in this process, into a folder of its own."""

    def start(*overrides: str, folder: str = "run", tiny: bool = True) -> Result:
        given = [*overrides]
        if not any(o.startswith("output_dir=") for o in given):
            given.append(f"output_dir={tmp_path / folder}")
        first = TINY if tiny else ["trainer.precision=32", "trainer.accelerator=cpu"]
        return train(config.compose([*first, f"cache_dir={session_cache}", *given]), quiet=True)

    return start


LEARNT = {  # kind -> overrides; the data come with `trained_runs`
    "masked": ["model=bert_tiny", "task=masked_lm", "data=text", "tokenizer=wordpiece", "data.block_size=32"],
    "causal": ["model=gpt_tiny", "task=causal_lm", "data=text", "tokenizer=bpe", "data.block_size=32"],
    "spans": ["model=t5_tiny", "task=span_corruption", "data=text", "tokenizer=unigram", "tokenizer.sentinels=20"],
    "encoder": ["model=bert_tiny", "task=classification", "data=csv", "tokenizer=wordpiece"],
    "decoder": ["model=gpt_tiny", "task=classification", "data=csv", "tokenizer=bpe"],
    "encoder_decoder": ["model=t5_tiny", "task=classification", "data=csv", "tokenizer=unigram"],
    "pairs": ["model=bert_tiny", "task=classification", "data=csv", "data.text_b=second"],
    "several": ["model=bert_tiny", "task=classification", "data=csv", "data.label_separator='|'"],
}


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory, session_cache: Path, text_folder: Path, labelled_csv: Path) -> Callable[[str], Path]:
    """`trained_runs("encoder")`: the folder of a small run of that kind, only to be read.

    Trained once, also where several processes share the tests.
    """
    several = "PYTEST_XDIST_WORKER" in os.environ
    shared = (tmp_path_factory.getbasetemp().parent if several else tmp_path_factory.getbasetemp()) / "learnt"
    shared.mkdir(exist_ok=True)

    def make(kind: str) -> Path:
        with FileLock(str(shared / f"{kind}.lock")):
            if not (shared / kind / "summary.json").exists():
                path = text_folder if kind in ("masked", "causal", "spans") else rows_of(kind, labelled_csv, shared)
                given = [f"data.path={path}", f"output_dir={shared / kind}", f"cache_dir={session_cache}"]
                given += ["tokenizer.vocab_size=320", "trainer.max_steps=12", "trainer.val_every=6", "budget=null"]
                given += ["optimizer.lr=0.01", "logger.tensorboard=null"]
                train(config.compose([*TINY, *LEARNT[kind], *given]), quiet=True)
        return shared / kind

    return make


def rows_of(kind: str, labelled_csv: Path, folder: Path) -> Path:
    """`pairs` has the columns text and second, `several` labels like good|long."""
    rows = [line.rsplit(",", 1) for line in labelled_csv.read_text().splitlines()[1:]]
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    if kind == "pairs":
        seconds = [rows[i - 1][0] for i in range(len(rows))]
        lines = ["text,second,label"]
        lines += [f"{text},{second},{label}" for (text, label), second in zip(rows, seconds, strict=True)]
    if kind == "several":
        lines = ["text,label", *(f"{text},{label}{'|long' * (len(text.split()) > 7)}" for text, label in rows)]
    path = folder / f"{kind}.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def learnt(trained_runs: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`learnt("encoder")`: a copy of that run, to do with as one likes."""

    def copy(kind: str, name: str | None = None) -> Path:
        return Path(shutil.copytree(trained_runs(kind), tmp_path / (name or kind)))

    return copy
