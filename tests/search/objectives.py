"""What trials of the tests do instead of training; importable, for it runs in other processes."""

import math
import os
import resource
import signal
import time
from pathlib import Path

from lit_tfm.errors import UserError
from lit_tfm.search.attempt import train


def distance(cfg, callbacks):
    """Smallest at a learning rate of 0.01."""
    return (math.log10(cfg.optimizer.lr) + 2) ** 2


def number_of(cfg) -> int:
    return int(Path(cfg.output_dir).name)


def troubled(cfg, callbacks):
    """Every kind of end, by the trial's number."""
    number = number_of(cfg)
    if number == 1:
        raise ValueError("a shape does not fit")
    if number == 2:
        return math.nan
    if number == 3:
        return out_of_memory()
    if number == 4:
        time.sleep(60)
    if number == 5:
        raise UserError("data.path=nowhere: there is no such folder")
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        return {"train/loss": 1.0}
    if number == 8:
        os._exit(3)
    return distance(cfg, callbacks)


def out_of_memory():
    """A real allocation that fails: 8 GB under a limit of what is used now and 1 GB."""
    import torch

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
    return float(torch.zeros(2**31).sum())


def fails_once(cfg, callbacks):
    """The first attempt at each trial crashes, leaving a mark; the second finds it."""
    mark = Path(cfg.output_dir) / "mark"
    if not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(cfg.trainer.accumulate))
        raise MemoryError("no room") if number_of(cfg) % 2 else OSError("a disk that came back")
    return {"val/loss": distance(cfg, callbacks), "val/accumulate": cfg.trainer.accumulate}


def two_goals(cfg, callbacks):
    return [distance(cfg, callbacks), cfg.optimizer.lr]


def by_seed(cfg, callbacks):
    """Trials with a learning rate below 0.01 are hopeless whatever the seed."""
    return float(cfg.seed) + (100 if cfg.optimizer.lr < 0.01 else 0)


def reports(cfg, callbacks):
    """Even trials get better, odd ones worse: told at four rungs."""
    (told,) = callbacks
    for step in range(1, 5):
        value = number_of(cfg) % 2 * 10.0 + 1 / step
        if told.report(step, value):
            told.pruned = True
            from optuna import TrialPruned

            raise TrialPruned
    return value


def sleeps(cfg, callbacks):
    time.sleep(1.0)
    return distance(cfg, callbacks)


def faulty(cfg, callbacks):
    """Real training; some trials raise, diverge, run out of memory, or never end."""
    folder = Path(cfg.output_dir)
    with open(folder.parent.parent / "starts.txt", "a") as file:
        file.write(f"{folder.name} {cfg.optimizer.lr}\n")
    number = number_of(cfg)
    if number == 1:
        raise ValueError("a shape does not fit")
    if number == 2:
        cfg.optimizer.lr = 1e38
    if number == 3:
        return out_of_memory()
    if number == 4 and "endless" in cfg.tags:
        time.sleep(600)
    return train(cfg, callbacks)
