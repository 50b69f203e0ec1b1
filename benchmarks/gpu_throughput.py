"""Tokens a second and MFU on one GPU in bf16: gpt2_124m at 1024 tokens, bert_base at 512, t5_base, against nanoGPT with
compile and Hugging Face's Trainer with bf16 and SDPA.

    python benchmarks/gpu_throughput.py                        # one H100 or H200
    python benchmarks/gpu_throughput.py --nanogpt PATH         # the real nanoGPT's model
    python benchmarks/gpu_throughput.py --profile --keep DIR   # with a trace of ours in DIR
    python benchmarks/gpu_throughput.py --device cpu --tiny    # does it run?

MFU is model FLOPs (matrix products, backward twice the forward; ours counts the logits it computes, the peers' theirs)
over 989 TFLOP/s, the dense bf16 peak of H100 SXM and H200; beside it, over the matrix rate of the same process. Writes
docs/images/speed_gpu.png as well, for README.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import gpu_runs
import measure
import pictures
from gpu_contestants import DENSE_BF16, WORKS, work_of

NAME = "gpu_throughput"
GOALS = {"nanogpt": 1.2, "huggingface": 2.0}


class Found(NamedTuple):
    """Of one work: table rows, tokens/s of ours over each peer's, what a training step of ours waited for."""

    rows: list[list[str]]
    ratios: dict[str, measure.Ratio]
    waits: list[str]


def contestants(name: str, args: argparse.Namespace) -> dict[str, list[str]]:
    """Side -> its options on this work."""
    precision = ["--precision", "bf16-mixed" if args.device == "cuda" else "32"]
    compiled = args.device == "cuda"
    ours = [*precision, "data.cross_documents=true", f"model.compile={str(compiled).lower()}"]
    sides = {"ours": ours, "huggingface": precision}
    if WORKS[name].task == "causal_lm":
        sides["nanogpt"] = [*precision, *["--compile"] * compiled]
    return sides


def compare(name: str, runs: gpu_runs.Runs, args: argparse.Namespace) -> Found:
    """One work, all sides."""
    sides = contestants(name, args)
    auto = args.batch == "auto"
    fixed = None if auto else int(args.batch)
    batch = {side: runs.largest_batch(side, name, *given) if auto else fixed for side, given in sides.items()}
    found: dict[str, list[dict]] = {side: [] for side in sides}

    def once(side: str) -> float:
        figures = runs.measure(side, name, "--batch", str(batch[side]), *sides[side])
        if figures is None:
            raise SystemExit(f"{side} on {name}: a batch of {batch[side]} does not fit; type a smaller --batch")
        found[side].append(figures)
        return figures["tokens_per_second"]

    rates = measure.alternate({side: lambda side=side: once(side) for side in sides}, args.rounds)
    rows, ratios = [], {side: measure.Ratio.of(rates["ours"], rates[side]) for side in sides if side != "ours"}
    for side in sides:
        flops = median(f["model_flops"] for f in found[side])
        peak = median(f["peak"] for f in found[side]) if "peak" in found[side][0] else None
        ratio = f"{ratios[side]}; goal {GOALS[side]}" if side in ratios else ""
        memory = f"{max(f['memory_gib'] for f in found[side]):.1f} GiB" if peak else "-"
        mfu = [f"{flops / DENSE_BF16:.1%}", f"{flops / peak:.1%}"] if peak else ["-", "-"]
        rows.append([name, side, str(batch[side]), f"{median(rates[side]):,.0f}", *mfu, memory, ratio])
    waits = sorted({line for f in found["ours"] for line in f["waits"]})
    return Found(rows, ratios, [f"{name}: {line}" for line in waits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu_runs.options(parser)
    args = parser.parse_args()
    with gpu_runs.runs(args) as runs:
        found = {name: compare(name, runs, args) for name in args.work or WORKS}
    rows = [row for one in found.values() for row in one.rows]
    waits = [line for one in found.values() for line in one.waits]
    head = ["model", "side", "batch", "tokens/s", "MFU of 989 TFLOP/s", "of the matrix rate", "memory", "ours / theirs"]
    shapes = ", ".join(f"{name} at {work_of(name, args.tiny, None).length}" for name in found)
    told = "\n".join(["", "What waited for the GPU within a step of ours:", *waits]) if waits else ""
    nanogpt = "the checkout's model" if args.nanogpt else "a loop written from nanoGPT's published settings"
    table = measure.table(head, rows)
    section = f"{measure.circumstances('transformers')}\n\n{table}\n\n{shapes}; nanogpt is {nanogpt}.{told}"
    measure.publish(NAME, section, args.dry)
    if not args.dry:
        draw({name: one.ratios for name, one in found.items()})


def draw(found: Mapping[str, Mapping[str, measure.Ratio]]) -> Path:
    """docs/images/speed_gpu.png, of work -> peer -> ratio."""
    bars = {f"{name}\n{peer}": ratio for name, ratios in found.items() for peer, ratio in ratios.items()}
    goals = {label: GOALS[label.partition("\n")[2]] for label in bars}
    return pictures.ratios("speed_gpu", bars, goals, "tokens/s on one GPU, bf16", "the peer")


if __name__ == "__main__":
    main()
