"""Hooks of callbacks at little cost: no profiler, which Lightning enters around each of them, and no empty hooks."""

from contextlib import AbstractContextManager, nullcontext

from lightning import Callback
from lightning.pytorch.profilers import PassThroughProfiler

NOTHING = nullcontext()  # holds no state, so one serves all


class Unwatched(PassThroughProfiler):
    """As Lightning's own, whose context is a generator made anew each time (benchmarks/RESULTS.md).

    Where a step's time goes is what `debug=profile` is for.
    """

    def profile(self, action_name: str) -> AbstractContextManager:
        return NOTHING


# What Lightning calls for every callback at every step.
STEP_HOOKS = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward")
STEP_HOOKS += ("on_before_optimizer_step", "on_train_batch_end")


def leave_out(callback: Callback) -> None:
    """Lightning passes by hooks that can't be called; one that does nothing costs a name, a context and a call."""
    for hook in STEP_HOOKS:
        if getattr(type(callback), hook) is getattr(Callback, hook) and hook not in vars(callback):
            setattr(callback, hook, None)
