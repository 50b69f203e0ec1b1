"""The page "Custom Scalars" of TensorBoard: what belongs together in one chart, over all runs that are shown."""

from lightning import Callback, Trainer

from lit_tfm.callbacks.tensorboard import boards, tag
from lit_tfm.tasks.base import Task

TITLE = "At a glance"  # one for all tasks: TensorBoard joins the charts of runs under the same title
FIGURES = 3  # of the task's headline, beside the loss
BESIDE = {
    "learning rate": "train/learning_rate",
    "gradient norm": "train/grad_norm",
    "tokens per second": "speed/tokens_per_second",
}


class Layout(Callback):
    """Says once, at the start, which charts there are; does nothing without TensorBoard."""

    def on_fit_start(self, trainer: Trainer, pl_module: Task) -> None:
        for logger in boards(trainer) if trainer.is_global_zero else []:
            logger.experiment.add_custom_scalars({TITLE: charts(pl_module)})


def charts(task: Task) -> dict[str, list]:
    """Training and validation loss together, the task's own figures, then what explains them."""
    figures = [name for name in task.headline if name != "loss"][:FIGURES]
    return {
        "loss: train and val": _lines("train/loss", "val/loss"),
        **{name.replace("_", " "): _lines(f"val/{name}") for name in figures},
        **{title: _lines(name) for title, name in BESIDE.items()},
    }


def _lines(*names: str) -> list:
    """Tags are given as regular expressions, matched from the start."""
    return ["Multiline", [f"{tag(name)}$" for name in names]]
