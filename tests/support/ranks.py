"""Real ranks, cheaply: processes forked from one that has imported everything, joined by gloo, each calls train().

Starting Python and torch anew takes ten seconds a process; a fork of a warm one takes none. The fork server itself
computes nothing, so the ranks start as clean as others do.
"""

import faulthandler
import json
import multiprocessing
import os
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch
from interruption import Crash, Interrupt
from lightning import Callback

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.launch import free_port
from lit_tfm.train import train

CRASHED = 77
PATIENCE = 300  # seconds
WARM = ["ranks", "lit_tfm.session", "lit_tfm.search.nursery", "torch.utils.tensorboard", "torch._dynamo"]


class Samples(Callback):
    """Writes down which samples each step of this rank was made of: (step, epoch, index) a sample."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def setup(self, trainer, task, stage) -> None:
        if not isinstance(trainer.datamodule.collator, Telling):
            trainer.datamodule.collator = Telling(trainer.datamodule.collator)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        step = batch_idx // trainer.accumulate_grad_batches + 1
        with open(self.file, "a") as file:
            file.writelines(json.dumps([step, *key]) + "\n" for key in batch["keys"])


class Telling:
    """A collator that also says which samples it was given."""

    def __init__(self, collator) -> None:
        self.collator = collator

    def __call__(self, examples):
        keys = [example["key"] for example in examples]
        return {**self.collator(examples), "keys": [(key.epoch, key.index) for key in keys if not key.filler]}

    def __getattr__(self, name):
        return getattr(self.__dict__["collator"], name)


def start(world: int, words: list[str], moment: str | None = None, end: str = "signal", samples: Path | None = None):
    """Run `train` with `words` in `world` ranks; returns their exit statuses (negative: killed by that signal).

    When one of them is killed, so are the others, as by a machine that goes down.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    port = free_port()
    given = [(rank, world, port, words, moment, end, samples) for rank in range(world)]
    processes = [context.Process(target=be, args=arguments) for arguments in given]
    for process in processes:
        process.start()
    alive = list(processes)
    while alive:
        ended = wait([process.sentinel for process in alive], timeout=PATIENCE)
        for process in alive:
            if not ended or any(p.exitcode is not None and p.exitcode < 0 for p in processes):
                process.kill()
        alive = [process for process in alive if process.is_alive()]
        assert ended, "the ranks hang"
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def be(rank: int, world: int, port: int, words: list[str], moment: str | None, end: str, samples: Path | None) -> None:
    """One rank, from its environment to its exit status."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    multiprocessing.set_start_method("fork", force=True)  # for loader workers: a child of a fork server takes after it
    os.cpu_count = lambda: max(world, 8)  # more ranks than this machine has cores are refused
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(PATIENCE * 0.8, exit=True)  # where they hang
    callbacks: list[Callback] = [Interrupt(moment, end)] if moment else []
    if samples is not None:
        callbacks.append(Samples(samples.with_name(f"{samples.name}-{rank}")))
    status = 0
    try:
        train(config.compose(words), quiet=True, callbacks=callbacks)
    except SystemExit as error:
        status = error.code
    except Crash:
        status = CRASHED
    except UserError as error:
        print(error, flush=True)
        status = 2
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)  # gloo's threads now and then abort a process that shuts down in order
