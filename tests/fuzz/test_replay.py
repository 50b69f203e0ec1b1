"""What fuzzing found, and inputs that reach all over the readers: taken, or refused in one line. Needs no atheris."""

import base64
from pathlib import Path

import harnesses
import pytest

ROOT = Path(__file__).parents[2] / "fuzz"
FOUND = sorted((ROOT / "found").glob("*/*"))


PLACES = {"yaml": 3, "run_folder": 7, "cache": 20, "checkpoint": 40}  # of a seed, where an input takes longer


@pytest.mark.parametrize("name", harnesses.HARNESSES)
def test_seeds(name: str) -> None:
    """Whole files and, of each, a cut and a flipped bit in as many places."""
    harness = harnesses.HARNESSES[name]
    for seed in harness.seeds():
        harness.attempt(seed)
        for place in range(1, len(seed), max(1, len(seed) // PLACES.get(name, 100))):
            harness.attempt(seed[:place])
            harness.attempt(seed[:place] + bytes([seed[place] ^ 1]) + seed[place + 1 :])


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name[:12]}")
def test_found(path: Path) -> None:
    harnesses.HARNESSES[path.parent.name].attempt(path.read_bytes())


@pytest.mark.parametrize("path", sorted((ROOT / "corpus").glob("*.txt")), ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    """Inputs, in base64, by which the fuzzer reached new code."""
    for line in path.read_text().splitlines():
        harnesses.HARNESSES[path.stem].attempt(base64.b64decode(line))


def test_a_harness_tells_what_it_is_there_to_tell(tmp_path, monkeypatch) -> None:
    """An exception that is no UserError, text that can't be stored, and a file written by a reader."""
    jsonl = harnesses.HARNESSES["jsonl"]
    monkeypatch.setattr(harnesses.reading, "HALF", harnesses.reading.re.compile("$^"))
    with pytest.raises(harnesses.Finding, match="can't be stored"):
        jsonl.attempt(b'\0{"text": "\\ud800", "label": 1}\n')
    rows = harnesses.Files.rows
    monkeypatch.setattr(
        harnesses.Files, "rows", lambda self, split: (Path(self.name).with_name("new").touch(), *rows(self, split))[1:]
    )
    with pytest.raises(harnesses.Finding, match="wrote into the folder"):
        jsonl.attempt(b'\0{"text": "a", "label": 1}\n')
    monkeypatch.setattr(harnesses.store, "damage", lambda folder: None)
    with pytest.raises(harnesses.Finding, match="was not noticed"):
        harnesses.HARNESSES["cache"].attempt(b"\x04" + bytes(45))
