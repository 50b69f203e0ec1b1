"""The warm parent: everything is imported and nothing has been run; it forks a process for each attempt.

A worker forks it from itself at its very start. What the worker does later (samplers that compute, connections to a
database, threads) never reaches a trial, and a trial costs a fork instead of ten seconds of imports.
"""

import ctypes
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait

import lit_tfm.callbacks
import lit_tfm.data
import lit_tfm.models
import lit_tfm.optim
import lit_tfm.tasks
from lit_tfm.runs import git_state, packages

PR_SET_PDEATHSIG = 1
# Imported by name only when a run needs them; each would cost every trial its time.
LATE = ("torch.utils.tensorboard", "torch._dynamo", "rich.progress", "matplotlib.pyplot", "safetensors.torch")


def modules() -> list[str]:
    """What a trial would otherwise import late."""
    packages = (lit_tfm.callbacks, lit_tfm.data, lit_tfm.models, lit_tfm.optim, lit_tfm.tasks)
    found = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.") if not m.ispkg]
    return [*found, *LATE]


def die_with_parent() -> None:
    """Have the kernel end this process when its parent does (Linux; elsewhere the connections alone tell)."""
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


class Nursery:
    """The worker's end. `perform(order) -> exit status` is what each process does."""

    def __init__(self, perform: Callable[[object], int]) -> None:
        self.link, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.link.close()
            try:
                _serve(theirs, perform)
            finally:
                os._exit(0)
        theirs.close()

    def start(self, order: object) -> int:
        """The id of a new process that performs `order`. Raises EOFError where the nursery is gone."""
        self.link.send(order)
        kind, pid, _ = self.link.recv()
        while kind != "started":  # the end of an earlier one that nobody waited for
            kind, pid, _ = self.link.recv()
        return pid


def _serve(link: Connection, perform: Callable[[object], int]) -> None:
    die_with_parent()
    packages(), git_state()  # of every trial's environment.json; looked up once
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    while True:
        for ready in wait([link, ours]):
            if ready is ours:
                ours.recv(4096)
                _bury(link)
            else:
                try:
                    order = link.recv()
                except EOFError:
                    return
                link.send(("started", _child(order, perform, (link, ours, theirs)), 0))


def _child(order: object, perform: Callable[[object], int], closed: tuple) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for end in closed:
            end.close()
        status = perform(order)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _bury(link: Connection) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        link.send(("ended", pid, os.waitstatus_to_exitcode(status)))
