"""Fuzz one reader: `python fuzz/run.py csv --seconds 600`, guided by coverage (atheris: pip install 'lit_tfm[fuzz]').

Inputs that reach new code are kept in `.cache/fuzz/<name>/` and are where the next run begins. What is found is
written to `fuzz/found/<name>/`, where the tests read it ever after: one input for each kind of exception and place it
was raised at, so that a run goes on behind its first finding. A hang or memory without bound ends it.
"""

import argparse
import hashlib
import logging
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris
from torch import _weights_only_unpickler as unpickling

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fuzz")]
NAMES = ("text", "csv", "jsonl", "cache", "tokenizer", "checkpoint", "run_folder", "yaml")
# Modules whose coverage guides. Of torch only two functions: instrumenting a part of it instruments all of it.
INSTRUMENT = {
    "text": ["lit_tfm.data"],
    "csv": ["lit_tfm.data"],
    "jsonl": ["lit_tfm.data"],
    "cache": ["lit_tfm.data"],
    "tokenizer": ["lit_tfm.data"],
    "checkpoint": ["lit_tfm.callbacks", "lit_tfm.trained"],
    "run_folder": ["lit_tfm.reports", "lit_tfm.runs"],
    "yaml": ["lit_tfm.config", "lit_tfm.targets", "lit_tfm.search", "hydra", "omegaconf"],
}


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("name", choices=NAMES)
    made.add_argument("--seconds", type=int, default=600)
    made.add_argument("--length", type=int, default=4096, help="bytes of an input at most")
    return made.parse_args()


def dictionary(path: Path, words: tuple[bytes, ...]) -> Path:
    """libFuzzer's own format."""
    path.write_text("".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in word)) for word in words))
    return path


def recorded(attempt: Callable[[bytes], str], folder: Path) -> Callable[[bytes], None]:
    """`attempt`, with what it raises written down once for each kind and place."""

    def call(data: bytes) -> None:
        try:
            attempt(data)
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "lit_tfm" in f.filename] or [None]
            place = f"{type(error).__name__} {frames[-1] and (Path(frames[-1].filename).name, frames[-1].name)}"
            path = folder / hashlib.sha256(place.encode()).hexdigest()[:12]
            if not path.exists() or len(data) < path.stat().st_size:
                print(f"FOUND {path.name}: {place}: {str(error)[:200]!r}", file=sys.stderr, flush=True)
                path.write_bytes(data)

    return call


def main() -> None:
    asked = options()
    with atheris.instrument_imports(include=INSTRUMENT[asked.name]):
        from harnesses import HARNESSES

    if asked.name == "checkpoint":
        unpickling.Unpickler.load = atheris.instrument_func(unpickling.Unpickler.load)
        zipfile.ZipFile._RealGetContents = atheris.instrument_func(zipfile.ZipFile._RealGetContents)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    harness = HARNESSES[asked.name]
    kept, found = ROOT / ".cache" / "fuzz" / asked.name, ROOT / "fuzz" / "found" / asked.name
    for folder in (kept, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(harness.seeds()):
        (kept / f"seed-{number}").write_bytes(seed)
    words = dictionary(kept.with_suffix(".dict"), harness.words)
    given = [
        f"-max_total_time={asked.seconds}",
        f"-max_len={asked.length}",
        f"-dict={words}",
        f"-artifact_prefix={found}/",
    ]
    given += ["-timeout=20", "-rss_limit_mb=3000", "-print_final_stats=1", str(kept)]
    atheris.Setup([sys.argv[0], *given], recorded(harness.attempt, found))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
