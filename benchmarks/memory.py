"""Peak memory of a causal LM with a vocabulary of 50 thousand, against Hugging Face's Trainer.

    python benchmarks/memory.py data.path=../shared/data/wikitext-2

Each side trains the same GPT-2 (benchmarks/throughput.py) a few steps in a process of its own. The figure is the most
resident memory from before the model is built to the end of training, less what was resident then (packages, data).
Linux only: the peak is reset and read in /proc.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import throughput
from measure import Ratio, alternate, circumstances, publish, table

GOAL = 0.5
STATUS = Path("/proc/self/status")


def resident(line: str) -> float:
    """MiB of a line of /proc/self/status: VmRSS now, VmHWM at most since it was reset."""
    found = next(row for row in STATUS.read_text().splitlines() if row.startswith(line))
    return int(found.split()[1]) / 1024


def side(which: str, shape: throughput.Shape, steps: int, words: list[str]) -> None:
    """In the process of a side: train, and print the MiB of the model's share."""
    if which == "ours":
        throughput.prepared("gpt", shape, words)
        run = throughput.ours("gpt", shape, steps, 1, words)
    else:
        run = throughput.peer("gpt", shape, steps, 1, words)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    run()
    print(f"\npeak {resident('VmHWM') - before:.1f} of {resident('VmHWM'):.1f}")


def measured(which: str, argv: list[str]) -> tuple[float, float]:
    """MiB of a side: what the model took, and the whole process."""
    command = [sys.executable, __file__, "--side", which, *argv]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    words = said.rsplit("peak ", 1)[1].split()
    return float(words[0]), float(words[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--quick", action="store_true", help="one step a turn")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="as on the command line of train, e.g. data.path=...")
    options = parser.parse_args()
    if options.quick:
        options.steps = 1
    shape = throughput.Shape(options.d_model, options.layers, 4, options.length, options.batch, options.vocab)
    if options.side:
        side(options.side, shape, options.steps, options.words)
        return
    sizes = ("d_model", "layers", "length", "batch", "vocab", "steps")
    argv = [word for name in sizes for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    argv += options.words
    throughput.prepared("gpt", shape, options.words)  # the cache is warm for both
    peaks = alternate({which: lambda which=which: measured(which, argv) for which in ("ours", "peer")}, options.rounds)
    rows = []
    for number, name in enumerate(("model and training", "whole process")):
        mine, others = ([peak[number] for peak in peaks[which]] for which in ("ours", "peer"))
        middle = [f"{statistics.median(of):,.0f} MiB" for of in (mine, others)]
        rows.append([name, *middle, Ratio.of(mine, others), "" if number else GOAL])
    line = f"{options.rounds} turns of {options.steps + 1} steps, {shape}."
    head = ["peak of", "ours", "Trainer", "ours / theirs", "goal"]
    lines = [circumstances("lightning", "transformers"), line, table(head, rows)]
    publish("memory", "\n\n".join(lines), options.dry)


if __name__ == "__main__":
    main()
