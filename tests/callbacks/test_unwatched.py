"""What Lightning does for a callback at every step: nothing, where the callback has nothing to do."""

import pytest
from lightning import Callback

from lit_tfm.callbacks.unwatched import STEP_HOOKS, leave_out


class Counts(Callback):
    def __init__(self):
        self.seen = 0

    def on_train_batch_end(self, *_):
        self.seen += 1


class Inherits(Counts):
    def on_train_batch_end(self, *given):
        super().on_train_batch_end(*given)
        super().on_train_batch_start(*given[:4])


@pytest.mark.parametrize("kind", [Counts, Inherits])
def test_only_hooks_that_do_something_are_called(kind):
    callback = kind()
    leave_out(callback)
    assert [hook for hook in STEP_HOOKS if callable(getattr(callback, hook))] == ["on_train_batch_end"]
    callback.on_train_batch_end(None, None, None, None, 0)
    assert callback.seen == 1


def test_hooks_of_an_object_stay():
    callback, called = Callback(), []
    callback.on_after_backward = lambda *_: called.append(1)
    leave_out(callback)
    callback.on_after_backward(None, None)
    assert called == [1]
