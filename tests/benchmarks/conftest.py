"""Benchmarks are scripts that import each other by name, as `python benchmarks/x.py` lets them; so do their tests."""

import sys
from pathlib import Path

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.insert(0, BENCHMARKS)
