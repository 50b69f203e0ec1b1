"""Starting the contestants of a GPU benchmark one after another, and what they share: a text and a tokenizer.

Every figure is a process of its own (gpu_contestants.py), so that none finds another's memory or compiled kernels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gpu_contestants
from gpu_contestants import WORKS, work_of
from tokenizers import Tokenizer as Inner

from lit_tfm.data.sources.pydoc import PydocText
from lit_tfm.data.tokenizers import BPE

CHILD = Path(gpu_contestants.__file__)


@dataclass
class Runs:
    """Where the text and the tokenizers lie, and the options every contestant gets."""

    folder: Path
    args: argparse.Namespace
    count: int = 0

    def tokenizer(self, name: str) -> Path:
        """A byte-level BPE of the text, filled up with entries that never occur to the work's vocabulary."""
        vocab = work_of(name, self.args.tiny, None).vocab
        path = self.folder / f"{vocab}.json"
        if not path.exists():
            BPE(vocab_size=min(vocab - 8, 4096), sentinels=100 if vocab > 4096 else 4).train(
                [self.text.read_text()]
            ).save(path)
            inner = Inner.from_file(str(path))
            inner.add_special_tokens([f"<|unused_{n}|>" for n in range(vocab - inner.get_vocab_size())])
            inner.save(str(path))
        return path

    @property
    def text(self) -> Path:
        path = self.folder / "text.txt"
        if not path.exists():
            documents = PydocText(cache_dir=self.folder / "cache").documents("train")
            path.write_text("\n".join(documents)[: 20_000 if self.args.tiny else None])
        return path

    def measure(self, side: str, name: str, *options: str) -> dict | None:
        """What a contestant found; None where it had too little memory."""
        self.count += 1
        given = ["--side", side, "--work", name, "--text", self.text, "--tokenizer", self.tokenizer(name)]
        given += ["--folder", self.folder / str(self.count), "--device", self.args.device]
        given += ["--steps", self.args.steps, "--warmup", self.args.warmup]
        given += ["--tiny"] * self.args.tiny + ["--profile"] * self.args.profile + ["--syncs"] * self.args.syncs
        given += ["--nanogpt", self.args.nanogpt] if self.args.nanogpt else []
        command = [sys.executable, CHILD, *given, *options]
        one = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}  # of several, Trainer would take all
        done = subprocess.run(list(map(str, command)), env=one, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} on {name}: exit status {done.returncode}\n{done.stderr[-4000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        fits = not found.get("out_of_memory")
        said = f"{found['tokens_per_second']:,.0f} tokens/s" if fits else "out of memory"
        print(f"{side} on {name}: {said} ({' '.join(options)})", file=sys.stderr)  # should a later one fail
        return found if fits else None

    def largest_batch(self, side: str, name: str, *options: str) -> int:
        """The batch with the most tokens/s: halved until it fits, or doubled until that grows by less than 2 %, or
        memory ends."""
        batch, best, rate, too_large = work_of(name, self.args.tiny, None).batch, 0, 0.0, None
        while batch != too_large:
            found = self.measure(side, name, "--batch", str(batch), *options)
            if found is not None and found["tokens_per_second"] >= 1.02 * rate:
                batch, best, rate = 2 * batch, batch, found["tokens_per_second"]
            elif found is None and not best and batch > 1:
                batch, too_large = batch // 2, batch
            else:
                break
        if not best:
            raise SystemExit(f"{side} on {name}: not even a batch of {batch} fits")
        return best


@contextmanager
def runs(args: argparse.Namespace):
    """`Runs` in a folder that goes away, unless `--keep` names one."""
    if args.device == "cuda" and not gpu_contestants.torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch sees; --device cpu --tiny shows that the script runs")
    with tempfile.TemporaryDirectory() as passing:
        folder = args.keep.resolve() if args.keep else Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        yield Runs(folder, args, max(earlier, default=0))


def options(parser: argparse.ArgumentParser) -> None:
    gpu_contestants.arguments(parser)
    parser.add_argument("--work", choices=WORKS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", default="auto", help="examples of a step; auto = each side's fastest")
    parser.add_argument("--keep", type=Path, help="folder for runs and traces")
    parser.add_argument("--dry", action="store_true", help="print only, leave RESULTS.md alone")
