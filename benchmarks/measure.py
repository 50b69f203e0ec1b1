"""What every benchmark shares: contestants take turns in one run, ratios of medians with their spread, and the table's
place in RESULTS.md.

A script of this folder is run as `python benchmarks/<name>.py`; it measures one thing against a peer, prints its table
and, unless told `--dry`, puts it between the marks of its name in RESULTS.md.
"""

import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from lit_tfm.hardware import device_name

RESULTS = Path(__file__).with_name("RESULTS.md")
_PLACE = re.compile(r"(?:(?<=^)|(?<==))/(?:[^/]*/)*")  # the folders of an absolute path


def alternate(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contestant's figures, one a round, in the order of the rounds.

    They take turns, every other round in the opposite order: a machine that grows slower meanwhile slows all alike.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            figures[name].append(contestants[name]())
    return figures


@dataclass(frozen=True)
class Ratio:
    """Ours over theirs: the ratio of the medians, and the smallest and largest of the rounds' own ratios."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        rounds = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(statistics.median(ours) / statistics.median(theirs), min(rounds), max(rounds))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def circumstances(*packages: str) -> str:
    """Two lines for the head of a table: the day, the machine and the versions; the command."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else device_name("cpu")  # with its threads
    return (
        f"{date.today().isoformat()}, {device}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {versions}.\n`{command()}`"
    )


def command() -> str:
    """The line that was typed, without what only says where the table goes and where things lie on this machine."""
    words = [_PLACE.sub("", word) for word in sys.argv[1:] if word != "--dry" and not word.startswith("cache_dir=")]
    variables = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    return " ".join([*variables, f"python benchmarks/{Path(sys.argv[0]).name}", *words])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def publish(name: str, section: str, dry: bool = False, results: Path = RESULTS) -> None:
    """Print the section and, unless `dry`, put it between the marks `<!-- name -->` and `<!-- end of name -->`.

    Raises SystemExit where the page lacks them: a benchmark's table stands below a text that says what it means.
    """
    print(section)
    if dry:
        return
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = results.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{results} lacks the lines {begin} and {end}; put them where the table is to stand")
    results.write_text(f"{before}{begin}\n{section}\n{end}{after}", encoding="utf-8")
