"""A build of torch for CPUs that takes fake tensors "on cuda" (shapes, dtypes, devices; no numbers) through autograd.

python tests/support/fake_cuda.py LIBRARY < cases.json     # fake_steps.py, in a process that is so prepared
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
TORCH = Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def compile_library(path: Path) -> None:
    given = ["-std=c++20", "-shared", "-fPIC", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", SOURCE, "-o", path, *given], check=True)


def load_library(path: Path) -> None:
    """Before torch is imported: that asks for CUDA's hooks once, and keeps what it found."""
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(TORCH / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(path))


if __name__ == "__main__":
    load_library(Path(sys.argv[1]))
    import fake_steps

    for case in json.load(sys.stdin):
        print(json.dumps(fake_steps.outcome(case)), flush=True)
    os._exit(0)  # autograd's thread of a device that is none cannot be ended
