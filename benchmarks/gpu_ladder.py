"""What each rung brings on one GPU, tokens a second of our own training: fp32, TF32, bf16, compile, the fused
optimizer, the fused head, packing; every row has what the rows above it have. nanoT5 publishes 7.3 from fp32 to bf16 +
compile.

"+ fused optimizer" is two things: one kernel a step, and one wait less. Only a fused AdamW takes the mark of a step
that is to be left out on the device; without it the host reads loss and norm before it lets the optimizer run.

    python benchmarks/gpu_ladder.py                       # t5_base and gpt2_124m on one H100 or H200
    python benchmarks/gpu_ladder.py --device cpu --tiny   # does it run?

Rows before the last see one document a row, as data come: short ones padded to the longest of their batch. So their
batches differ in shape, and what is compiled is compiled anew for some: they warm up longer, and beside them stands how
many graphs there are, how many came while time was taken (which tells on the figure), and the graph breaks.

The batch is that of the first row (fp32 holds the least), so that what is compared is the same step.
"""

import argparse
from statistics import median

import gpu_runs
import measure

NAME, GOAL = "gpu_ladder", 10.0
WARMER = 4  # times the warm-up, where shapes differ and blocks are compiled


def rungs(args: argparse.Namespace) -> dict[str, list[str]]:
    """Row -> options of the contestant `ours`."""
    cuda = args.device == "cuda"
    bf16 = ["--tf32", "--precision", "bf16-mixed" if cuda else "32"]
    documents = ["data.pack=documents", "data.document=paragraph"]
    plain, whole = ["optimizer.fused=false"], ["--whole-head"]
    compiled = [f"model.compile={str(cuda).lower()}"]
    longer = ["--warmup", str(WARMER * args.warmup)]
    return {
        "fp32": ["--precision", "32", *documents, *plain, *whole],
        "+ TF32": ["--tf32", "--precision", "32", *documents, *plain, *whole],
        "+ bf16": [*bf16, *documents, *plain, *whole],
        "+ compile, per block": [*bf16, *documents, *plain, *whole, *compiled, *longer],
        "+ fused optimizer": [*bf16, *documents, *whole, *compiled, *longer],
        "+ fused head": [*bf16, *documents, *compiled, *longer],
        "+ packing": [*bf16, "data.document=paragraph", "data.cross_documents=true", *compiled],
    }


def rows_of(name: str, runs: gpu_runs.Runs, args: argparse.Namespace) -> list[list[str]]:
    """Table rows of one model: real tokens a second, padding left out."""
    ladder = rungs(args)
    first = next(iter(ladder.values()))
    batch = runs.largest_batch("ours", name, *first) if args.batch == "auto" else int(args.batch)
    graphs: dict[str, str] = {}

    def once(rung: str) -> float:
        found = runs.measure("ours", name, "--batch", str(batch), *ladder[rung])
        if found is None:
            raise SystemExit(f"{rung} on {name}: a batch of {batch} does not fit; type a smaller --batch")
        graphs[rung] = ", ".join(f"{number} {what}" for what, number in found["compiled"].items())
        return found["tokens_per_second"]

    rates = measure.alternate({rung: lambda rung=rung: once(rung) for rung in ladder}, args.rounds)
    rows, before = [], None
    for rung, figures in rates.items():
        steps = "" if before is None else str(measure.Ratio.of(figures, rates[before]))
        whole = str(measure.Ratio.of(figures, rates["fp32"]))
        rows.append([name, rung, str(batch), f"{median(figures):,.0f}", steps, whole, graphs[rung]])
        before = rung
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu_runs.options(parser)
    args = parser.parse_args()
    with gpu_runs.runs(args) as runs:
        rows = [row for name in args.work or ("t5_base", "gpt2_124m") for row in rows_of(name, runs, args)]
    head = ["model", "rung", "batch", "tokens/s, no padding", "over the row above", f"over fp32; goal {GOAL:.0f}"]
    head += ["compiled"]
    measure.publish(NAME, f"{measure.circumstances('lightning')}\n\n{measure.table(head, rows)}", args.dry)


if __name__ == "__main__":
    main()
