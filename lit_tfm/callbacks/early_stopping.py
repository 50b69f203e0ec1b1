"""Early stopping on whatever the task monitors."""

from lightning.pytorch.callbacks import EarlyStopping


def early_stopping(monitor: str, mode: str, patience: int = 5, min_delta: float = 0.0) -> EarlyStopping:
    """`patience` counts validations without an improvement of more than `min_delta`."""
    return EarlyStopping(
        monitor=monitor, mode=mode, patience=patience, min_delta=min_delta, check_on_train_epoch_end=False
    )
