"""The harnesses lie beside the fuzzer that calls them, in fuzz/."""

import sys
from pathlib import Path

FUZZ = str(Path(__file__).parents[2] / "fuzz")
if FUZZ not in sys.path:
    sys.path.insert(0, FUZZ)
