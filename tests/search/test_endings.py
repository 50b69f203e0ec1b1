"""What an exception or an exit status says of an attempt, and how often it is tried again."""

import signal

import optuna
import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.search.endings import of_exception, of_status, retries
from lit_tfm.search.settings import RETRIES
from lit_tfm.tasks.base import NonFiniteLoss


def caused(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ValueError("a shape\ndoes not fit"), "crash", "ValueError: a shape does not fit"),
        (MemoryError(), "oom", "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom", "Tried to allocate 2 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom", "can't allocate memory"),
        (caused(RuntimeError("worker died"), MemoryError()), "oom", "worker died"),
        (RuntimeError("size mismatch"), "crash", "size mismatch"),
        (caused(UserError("training loss is nan at step 3"), NonFiniteLoss("nan")), "nan", "loss is nan at step 3"),
        (UserError("model.n_heads=3: does not divide"), "refused", "model.n_heads=3: does not divide"),
        (caused(UserError("out: can't be written"), OSError(28, "No space left")), "crash", "can't be written"),
        (optuna.TrialPruned(), "pruned", ""),
        (SystemExit(143), "stopped", "SIGTERM"),
        (SystemExit(130), "stopped", "SIGINT"),
        (SystemExit(1), "crash", "status 1"),
        (SystemExit("words"), "crash", "status 1"),
        (KeyboardInterrupt(), "crash", "KeyboardInterrupt"),
    ],
)
def test_exceptions(error: BaseException, kind: str, reason: str) -> None:
    ending = of_exception(error)
    assert ending.kind == kind
    assert reason in ending.reason
    assert "\n" not in ending.reason
    assert ending.failed == (kind not in ("pruned", "stopped"))


@pytest.mark.parametrize(
    ("status", "log", "kind"),
    [
        (-signal.SIGKILL, "", "killed"),
        (-signal.SIGTERM, "", "stopped"),
        (-signal.SIGSEGV, "", "crash"),
        (143, "", "stopped"),
        (1, "rank 0: torch.OutOfMemoryError: CUDA out of memory", "oom"),  # of ranks in other processes
        (1, "ValueError: x", "crash"),
        (0, "", "crash"),  # gone without a word
    ],
)
def test_statuses(status: int, log: str, kind: str) -> None:
    assert of_status(status, log).kind == kind


def test_a_killed_trial_says_what_may_have_happened() -> None:
    assert of_status(-9).reason == "killed by SIGKILL, perhaps out of memory"
    assert "SIGSEGV" in of_status(-signal.SIGSEGV).reason


def test_retries_by_kind() -> None:
    assert [retries(RETRIES, kind) for kind in ("crash", "oom", "nan", "timeout")] == [1, 1, 0, 0]
    assert retries({"crash": 2}, "killed") == 2
    assert retries(dict.fromkeys(RETRIES, 5), "refused") == 0
