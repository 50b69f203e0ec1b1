"""What a person reads: one screen before training, one after it."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lit_tfm.build import Parts, Transfer
from lit_tfm.console import Console
from lit_tfm.hardware import matmul_rate
from lit_tfm.models.cost import parameters
from lit_tfm.terminal import visible


def before(console: Console, cfg, parts: Parts, folder: Path | None) -> None:
    """What will be trained, on what, where, and for how long."""
    data, task = parts.data, parts.task
    if notice := data.records().get("notice"):
        console.print(
            Panel(
                Text(visible(notice), style="bold"),
                title="another data set than asked for",
                border_style="red",
                box=box.HEAVY,
            )
        )
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    for name, value in _lines(cfg, parts):
        table.add_row(name, value)
    content: list[Any] = [table]
    if parts.transfer is not None:
        content.append(_transfer(parts.transfer))
    title, below = Text(visible(str(cfg.name)), style="bold"), Text(visible(str(folder or "dry run")))
    console.print(Panel(Group(*content), title=title, subtitle=below, box=box.ROUNDED))
    if cfg.budget == "auto" and task.progress.budget:
        minutes = task.progress.budget / 60
        console.print(f"No accelerator here: training stops after budget={minutes:g}m. budget=null trains all steps.")


def _lines(cfg, parts: Parts) -> list[tuple[str, str | Text]]:
    data, task, hardware = parts.data, parts.task, parts.hardware
    record, progress, config = data.records(), task.progress, task.model.config
    train, validation = (task.facts.splits[name] for name in ("train", "validation"))
    share = train.wasted_tokens / max(1, train.wasted_tokens + train.tokens)
    labels = task.facts.labels
    kinds = f"{len(labels)} classes" if labels else f"{train.documents:,} documents"
    model = cfg.choices.get("model", type(task.model).__name__)
    processes = f"{hardware.world_size} process{'es' if hardware.world_size > 1 else ''}"
    vocabulary = task.facts.tokenizer.vocab_size
    return [
        (
            "data",
            f"{record['name']}: {train.examples:,} training, {validation.examples:,} validation examples; {kinds}",
        ),
        *[("", f"of the {split} split {limit:,} are used") for split, limit in record["limits"].items()],
        *[("", Text(told, style="yellow")) for told in _overlaps(record.get("overlap", {}), task.facts.splits)],
        ("tokens", f"{train.tokens:,} an epoch, {100 * share:.1f} % more as padding; vocabulary {vocabulary:,}"),
        ("model", f"{model}: {config.n_layers} layers, d_model {config.d_model}, {config.n_heads} heads"),
        ("parameters", f"{parameters(task):,}"),
        ("FLOPs a token", f"{_si(task.flops_per_token).strip()} in training"),
        ("learning", " ".join(filter(None, map(cfg.choices.get, ("task", "optimizer", "schedule"))))),
        ("device", f"{hardware.name}; {processes} ({hardware.strategy}), {hardware.precision}"),
        ("length", _length(progress, data)),
        ("estimated", _estimate(parts)),
    ]


def _overlaps(counts: dict[str, int], splits) -> list[str]:
    return [
        f"{count:,} of {splits[split].documents:,} {split} texts are training texts as well: its figures flatter"
        for split, count in counts.items()
        if count
    ]


def _length(progress, data) -> str:
    """All bounds: the run ends with whichever is reached first."""
    bounds = [_budget(progress)] if progress.asked is not None else []
    if progress.max_steps is not None:
        epochs = progress.max_steps / max(1, data.steps_per_epoch)
        bounds.append(f"{progress.max_steps:,} steps ({epochs:.3g} epochs)")
    return f"at most {', or '.join(bounds)}" if len(bounds) > 1 else bounds[0]


def _budget(progress) -> str:
    asked = progress.asked
    if asked.unit == "seconds":
        return f"{_time(asked.amount)} of training"
    tokens = f"{progress.max_tokens:,.0f} tokens"
    return tokens if asked.unit == "tokens" else f"{_si(asked.amount)}FLOPs ({tokens})"


def _estimate(parts: Parts) -> str:
    """Time of all there is to do, from its FLOPs and the matrix products this device makes a second."""
    train, progress = parts.task.facts.splits["train"], parts.task.progress
    tokens = [progress.max_tokens] if progress.max_tokens else []
    if progress.max_steps is not None:
        tokens.append(progress.max_steps / max(1, parts.data.steps_per_epoch) * train.tokens)
    if not tokens:
        return f"{_time(progress.budget)}: the budget"
    rate = matmul_rate(parts.hardware) * parts.hardware.world_size / 2
    seconds = parts.task.flops_per_token * min(tokens) / rate
    if progress.budget is not None and seconds > progress.budget:
        return f"{_time(progress.budget)}: the budget; all steps would take about {_time(seconds)}"
    return f"about {_time(seconds)}, at half the speed of plain matrix products ({_si(2 * rate)}FLOP/s)"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def _transfer(transfer: Transfer) -> str:
    text = f"weights from {transfer.source}: {len(transfer.matched)} tensors taken over"
    for kind in ("reshaped", "missing", "unused"):
        if names := getattr(transfer, kind):
            text += f"; {kind}: {', '.join(names[:6])}{' ...' * (len(names) > 6)}"
    return text


def after(console: Console, cfg, result, headline: tuple[str, ...]) -> None:
    """What was reached, and what to type next."""
    table = Table(title=f"{cfg.name}: {result.status}", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("metric", "last", "best"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in _ordered(result.metrics, headline):
        best = result.best.get(name)
        table.add_row(name, _number(result.metrics[name]), _number(best) if best is not None else "")
    console.print(table)
    summary = result.summary
    rate = summary["tokens"] / max(summary["seconds"], 1e-9)
    reached = f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.1f} s of training"
    console.print(f"{reached} ({rate:,.0f} tokens/s)", highlight=False)
    console.print(f"{summary['parameters']:,} parameters; data: {summary['data']}\n", highlight=False)
    for what, line in (
        ("run folder", str(result.folder)),
        ("look", "tensorboard --logdir outputs"),
        ("go on", f"python -m lit_tfm.train resume={result.folder} trainer.max_steps=... budget=..."),
        ("build on", f"python -m lit_tfm.train experiment=... init_from={result.folder}"),
    ):
        console.print(
            Text(f"{what:12}", "bold cyan").append(visible(line), "none"), highlight=False, soft_wrap=True
        )  # to be copied whole


def _ordered(metrics: dict[str, float], headline: tuple[str, ...]) -> list[str]:
    """Test first, then validation, the task's most important figures first in each."""
    rank = {name: i for i, name in enumerate(headline)}
    stage = {"test": 0, "val": 1, "train": 2}

    def place(name: str) -> tuple[int, int, str]:
        kind, _, leaf = name.partition("/")
        return stage.get(kind, 3), rank.get(leaf, len(rank)), name

    return sorted(metrics, key=place)


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.3e}"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"
