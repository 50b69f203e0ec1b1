"""`auto_batch`: a step that does not fit is done again in smaller micro-batches, and no step before it is lost."""

from lightning import Callback, Trainer

from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.whereabouts import BACKWARD, FORWARD, LOADING, Whereabouts
from lit_tfm.tasks.out_of_memory import let_go, ran_out


class AutoBatch(Callback):
    """Saves the run as it was before the step that ran out of memory; the session goes on from there.

    Up to the backward pass a step has changed neither weights nor optimizer, so all that has to be done is to forget
    it. With several ranks nothing is saved: the others stand in the middle of an exchange, and a checkpoint needs them
    all. They go on from the last one there is.
    """

    def __init__(self, where: Whereabouts) -> None:
        self.where = where

    def on_exception(self, trainer: Trainer, pl_module, exception: BaseException) -> None:
        if not ran_out(exception) or self.where.phase not in (LOADING, FORWARD, BACKWARD) or trainer.world_size > 1:
            return
        phase = self.where.phase
        pl_module.forget_step()
        let_go(exception)
        try:
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save_last(trainer)
        except (MemoryError, RuntimeError) as error:  # not even for that: the checkpoint before is there still
            if not ran_out(error):
                raise
        self.where.phase = phase  # what is told is where it happened
