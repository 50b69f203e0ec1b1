"""Predictions for texts of the command line, as a person reads them."""

from collections.abc import Sequence

from rich.text import Text

from lit_tfm.console import Console
from lit_tfm.prediction.predictor import Prediction
from lit_tfm.prediction.rows import Row
from lit_tfm.terminal import visible

BAR = 20  # characters of a probability of 1


def show(console: Console, rows: Sequence[Row], predictions: Sequence[Prediction]) -> None:
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        if number:
            console.print()
        found = prediction.json
        console.print(Text(visible(row.text, 400), style="dim" if "filled" in found else "bold"))
        if row.text_b is not None:
            console.print(Text(visible(row.text_b, 400), style="bold"))
        if "filled" in found:
            console.print(Text(visible(found["filled"], 400), style="bold"))
            for mask in found["masks"]:
                bars(console, [(option["token"], option["probability"]) for option in mask])
                if mask is not found["masks"][-1]:
                    console.print()
            continue
        if isinstance(found["predicted"], list):
            console.print(Text(f"  predicted: {visible(', '.join(found['predicted'])) or 'none'}", style="green"))
        ranked = found.get("top") or [{"label": found["predicted"], "probability": found["probability"]}]
        bars(console, [(option["label"], option["probability"]) for option in ranked])


def bars(console: Console, options: Sequence[tuple[str, float]]) -> None:
    names = [visible(name, 40) or repr(name) for name, _ in options]
    width = max(map(len, names), default=0)
    for i, (name, (_, probability)) in enumerate(zip(names, options, strict=True)):
        bar = "█" * round(BAR * probability)
        line = Text(f"  {name:{width}}  {probability:.4f}  ", style="green" if i == 0 else "")
        console.print(line.append(bar, style="cyan"))
