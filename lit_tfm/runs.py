"""The run folder: what is in it, how it is written and read. Imports no torch, so that comparing runs starts at once.

config.yaml        the resolved config: training from it again is the same run
command.txt        what was typed
environment.json   versions, git commit and whether it was clean, hardware
data.json          the data set that was really used, its hash, splits, tokens; what was wasted
tokenizer.json     the tokenizer
metrics.csv        step,seconds,tokens,name,value: one line a number
summary.json       status, steps, tokens, seconds, parameters, last and best metrics
checkpoints/       last.ckpt, best.ckpt ..., and the same weights as *.safetensors; in shards, a .ckpt is a folder
events.out.*       TensorBoard
.lock              while it is trained: by whom (holding.py)
"""

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm.callbacks.replacing import is_sharded
from lit_tfm.errors import UserError
from lit_tfm.foreign import load_config
from lit_tfm.holding import LOCK

_RECORDED = ("torch", "lightning", "torchmetrics", "hydra-core", "optuna", "datasets", "tokenizers", "numpy", "lit_tfm")
COMMAND_VARIABLE = "LIT_TFM_COMMAND"  # for processes to which nothing was typed
# scheme://user:password@, and a token that stands alone before the @; a password may hold @ and /.
_IN_ADDRESS = re.compile(r"(\b[\w+.-]+://(?:[^\s:/@,]*:(?=[^\s,]*@)|(?=[\w.-]{16,}@)))[^\s,]*@")
_SECRET = re.compile(
    r"\b((?:\w+\.)*(?:\w*(?:password|passwd|secret|api_?key)|(?:(?:access|auth|api|hf|hub)_)?token)(?:=|: ))"
    r"(?!null\b|[\[{])[^\s&,'\"]+",
    re.IGNORECASE,
)
ENDED = ("finished", "pruned")  # statuses of a run that has nothing left to do
# What a run makes in its folder, as far as its first checkpoint.
MADE = ("config.yaml", "command.txt", "environment.json", "data.json", "tokenizer.json", "metrics.csv", "summary.json")
BESIDE = ("trial.json", "log.txt", "error.txt", LOCK)  # what lies in a folder before it holds a run: a sweep's, a lock


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, and of itself."""
    return checkpoint if checkpoint.is_dir() and not is_sharded(checkpoint) else checkpoint.parent.parent


@dataclass(frozen=True)
class Result:
    """What a run reached. `metrics` are the last values, `best` those of the best validation."""

    folder: Path | None
    status: str  # finished | pruned | stopped | failed; "dry run" where nothing was trained
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """Paths, and atomic writes, of one run. Constructing it touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def create(cls, path: str | Path, exact: bool) -> "RunFolder":
        """A new folder; with `exact` it must be empty or absent, else a number is added until the name is free.

        Raises UserError where it can't be written or an exact one already holds a run.
        """
        path, attempt = Path(path), 1
        while True:
            chosen = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
            try:
                chosen.mkdir(parents=True)
                break
            except FileExistsError:
                if exact and chosen.is_dir() and all(entry.name in BESIDE for entry in chosen.iterdir()):
                    break
                if exact:
                    hint = "resume=auto goes on with it" if (chosen / "config.yaml").exists() else "it is not empty"
                    raise UserError(f"output_dir={chosen} exists already: {hint}; or name another folder") from None
                attempt += 1
            except OSError as error:
                raise UserError(
                    f"output_dir={path}: can't be written ({error.strerror}); name a folder that can"
                ) from None
        if not os.access(chosen, os.W_OK):
            raise UserError(f"output_dir={chosen}: can't be written; name a folder that can")
        return cls(chosen)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises UserError where `path` holds none."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"{path} is no run folder: it has no config.yaml; name a folder like outputs/<experiment>/<time>"
            )
        return cls(path)

    def keep_inside(self) -> None:
        """Raises UserError where a link in the folder leads out of it: what is written there would change that file."""
        root = self.path.resolve()
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                link = Path(folder, name)
                if link.is_symlink() and not link.resolve().is_relative_to(root):
                    place = self.path / link.relative_to(root)
                    raise UserError(
                        f"{place} is a link out of the folder, to {os.readlink(link)}: nothing is written through it; "
                        "put what it points to in its place"
                    )

    def status(self) -> str | None:
        """running, finished, pruned, stopped or failed; None where the folder does not say."""
        return self.read_json("summary.json").get("status") if (self / "summary.json").exists() else None

    def clear_beginning(self) -> None:
        """Empty the folder of a run that was stopped before its first checkpoint: it starts again.

        Where anything else lies there, such as a checkpoint or a run that has ended, nothing is touched.
        """
        entries = [e for e in self.path.iterdir() if e.name not in BESIDE] if self.path.is_dir() else []
        folder = self / "checkpoints"
        kept = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        ours = all(e.name in MADE or e == folder or e.name.startswith(("events.out.tfevents.", ".")) for e in entries)
        if kept or not ours or self.status() in ENDED:
            return
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def remove_if_empty(self) -> None:
        """Also where nothing but this process's lock lies there."""
        if all(entry.name == LOCK for entry in self.path.iterdir()):
            (self / LOCK).unlink(missing_ok=True)
            self.path.rmdir()

    def config(self) -> DictConfig:
        return load_config(self / "config.yaml")

    def write_config(self, cfg: DictConfig) -> None:
        """Without the folder and the checkpoint gone on from: training from this config again is a new run."""
        plain = {**OmegaConf.to_container(cfg), "output_dir": None, "resume": None}
        write_text(self / "config.yaml", without_passwords(OmegaConf.to_yaml(OmegaConf.create(plain))))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self / name, json.dumps(content, indent=1, default=str) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self / name).read_text(encoding="utf-8"))

    def write_origin(self, cfg: DictConfig, hardware: str) -> None:
        """What a person needs to know where the run came from: config, command, environment."""
        self.write_config(cfg)
        write_text(self / "command.txt", command() + "\n")
        self.write_json("environment.json", environment(hardware))

    def update_summary(self, **values: Any) -> None:
        """Replace these keys of summary.json, in one atomic write."""
        known = self.read_json("summary.json") if (self / "summary.json").exists() else {}
        self.write_json("summary.json", {**known, **values})


def write_text(path: Path, text: str) -> None:
    """To a temporary name, synced, renamed: a reader or a crash never meets half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def without_passwords(text: str) -> str:
    """Those in addresses, and what stands behind password=, token= and the like, as ***."""
    text = _IN_ADDRESS.sub(r"\1***@", text)
    return _SECRET.sub(r"\1***", text)


def command() -> str:
    """What was typed, as it can be typed again but for passwords; of a trial, what would train it alone."""
    if told := os.environ.get(COMMAND_VARIABLE):
        return without_passwords(told)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else " ".join(["python", *sys.argv[:1]])
    typed = [argument.removeprefix("++") for argument in sys.argv[1:]]  # config.loosen put it there
    return " ".join([program, *(shlex.quote(without_passwords(word)) for word in typed)])


def environment(hardware: str) -> dict[str, Any]:
    """Versions, commit and machine. No environment variables: they may hold credentials."""
    return {
        "directory": os.getcwd(),  # what relative paths in the config start from
        "python": platform.python_version(),
        "packages": packages(),
        "git": git_state(),
        "hardware": hardware,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


@cache
def packages() -> dict[str, str | None]:
    """Versions of what matters; None where a package is not installed."""
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


@cache
def git_state() -> dict[str, Any] | None:
    """Commit of the folder lit_tfm runs from and whether it was clean; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except (OSError, subprocess.SubprocessError):
        return None
