"""Two processes against one on a CPU, one thread each: DDP and FSDP2, and what two independent processes reach.

    OMP_NUM_THREADS=1 python benchmarks/distributed.py --path FOLDER

FOLDER holds WikiText-2. Every contestant is `python -m lit_tfm.train` with the same batch for each process (a masked LM
of 4 layers, d 256, vocabulary 8192, by default). Efficiency is tokens/s of two processes over twice those of one. Two
single processes at the same time exchange nothing: what they lose to one alone is the machine's (memory bandwidth,
clock, other programs), and no exchange can win it back; so "of the bound" compares with them. Where the rest goes is
read from step_clock.py: the parts of the median step, beside those of the two independent processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from data_preparation import trained_tokenizer
from step_clock import PARTS

NAME, GOAL = "distributed", 0.85
CONTESTANTS = {"one process": 1, "two at once": 2, "ddp": 2, "fsdp": 2}


class Training:
    """Runs of the product, and the parts of their steps."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.count = args, folder, 0
        self.tokenizer = trained_tokenizer(args.path, folder)
        self.parts: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}

    def round(self, name: str) -> float:
        """Tokens a second of all processes together, from the median step of the slowest."""
        self.count += 1
        if name == "two at once":
            processes = [self._start(f"{self.count}-{n}", 1, []) for n in range(2)]
            found = [part for label, process in processes for part in self._end(label, process)]
        else:
            more = [] if name == "one process" else [f"trainer={name}", "trainer.devices=2"]
            found = self._end(*self._start(str(self.count), CONTESTANTS[name], more))
        self.parts[name] += found
        tokens = CONTESTANTS[name] * self.args.batch * self.args.length
        return tokens / max(part["step"] for part in found)

    def _start(self, label: str, processes: int, more: list[str]) -> tuple[str, subprocess.Popen]:
        args, folder = self.args, self.folder
        words = ["experiment=bert_small", *more, f"model.d_model={args.width}", f"model.n_layers={args.layers}"]
        words += ["model.n_heads=4", f"data.path={args.path}", f"data.block_size={args.length}"]
        words += [f"data.batch_size={args.batch * processes}", "data.val_limit=2", f"tokenizer.path={self.tokenizer}"]
        words += [
            f"trainer.max_steps={args.steps}",
            f"trainer.val_every={args.steps}",
            "trainer.accelerator=cpu",
            "trainer.precision=32",
            "budget=null",
        ]
        words += [f"cache_dir={folder / 'first'}", f"output_dir={folder / 'runs' / label}", "callbacks=[]"]
        words += [f"+callbacks.clock={{_target_: step_clock.StepClock, file: {folder / label}}}"]
        words += ["allow_targets=step_clock"]
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lit_tfm.train", *words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return label, subprocess.Popen(command, env=environment, **pipes)

    def _end(self, label: str, process: subprocess.Popen) -> list[dict[str, float]]:
        complaint = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"exit status {process.returncode}\n{complaint[-3000:]}")
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob(f"{label}.[0-9].json"))]


def section(figures: dict[str, list[float]], parts: dict[str, list[dict[str, float]]]) -> str:
    rows = []
    for name, processes in CONTESTANTS.items():
        share = [rate / processes for rate in figures[name]]
        bound = [rate / 2 for rate in figures["two at once"]]
        against = [measure.Ratio.of(share, figures["one process"]), measure.Ratio.of(share, bound)]
        told = [str(ratio) for ratio in against] if processes == 2 else ["", ""]
        rows.append([name, f"{statistics.median(figures[name]):,.0f}", *told])
    head = ["contestant", "tokens/s, all processes", f"efficiency (spread); goal {GOAL}", "of the bound (spread)"]
    medians = {n: {p: statistics.median(found[p] for found in parts[n]) for p in (*PARTS, "step")} for n in CONTESTANTS}
    places = [[n, *(f"{1000 * medians[n][p]:.0f}" for p in (*PARTS, "step"))] for n in CONTESTANTS]
    where = measure.table(["ms of the median step", *PARTS, "step"], places)
    return f"{measure.circumstances('lightning')}\n\n{measure.table(head, rows)}\n\n{where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder with WikiText-2's train, valid, test files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16, help="blocks of each process")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--dry", action="store_true", help="print only, leave RESULTS.md alone")
    args = parser.parse_args()
    args.path = args.path.resolve()
    with tempfile.TemporaryDirectory() as folder:
        training = Training(args, Path(folder))
        rounds = 3 if args.quick else args.rounds
        figures = measure.alternate({n: lambda n=n: training.round(n) for n in CONTESTANTS}, rounds)
    measure.publish(NAME, section(figures, training.parts), args.dry)


if __name__ == "__main__":
    main()
