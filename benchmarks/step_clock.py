"""A callback that says where the seconds of training steps go, for benchmarks: one json a rank.

'callbacks.clock={_target_: step_clock.StepClock, file: PATH}' allow_targets=step_clock
"""

import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch.distributed as dist
from lightning import Callback

PARTS = ("waiting for the batch", "forward", "backward", "exchange", "the rest")


class StepClock(Callback):
    """Medians over steps after the first `skip`; written to `file` with the rank for a suffix when training ends.

    `exchange` is the one small all-reduce of the task (loss, counts, clock): it waits for the slowest rank. What DDP
    and FSDP exchange lies inside forward and backward.
    """

    def __init__(self, file: str, skip: int = 3) -> None:
        self.file, self.skip = Path(file), skip
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.now, self.exchanged, self.ended = 0.0, 0.0, 0.0

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part].append(now - self.now)
        self.now = now

    def on_train_start(self, *_: object) -> None:
        original = dist.all_reduce

        def timed(*args: object, **kwargs: object) -> object:
            began = time.perf_counter()
            result = original(*args, **kwargs)
            self.exchanged += time.perf_counter() - began
            return result

        dist.all_reduce = timed
        self.now = time.perf_counter()

    def on_train_batch_start(self, *_: object) -> None:
        self._lap("waiting for the batch")
        self.exchanged = 0.0

    def on_before_backward(self, *_: object) -> None:
        self._lap("forward")

    def on_after_backward(self, *_: object) -> None:
        self._lap("backward")

    def on_train_batch_end(self, *_: object) -> None:
        self._lap("the rest")
        self.parts["exchange"].append(self.exchanged)
        self.parts["the rest"][-1] -= self.exchanged

    def on_train_end(self, trainer, pl_module) -> None:
        found = {part: statistics.median(self.parts[part][self.skip :]) for part in PARTS}
        steps = [sum(laps) for laps in zip(*(self.parts[part] for part in PARTS), strict=False)][self.skip :]
        found["step"] = statistics.median(steps)
        self.file.with_suffix(f".{trainer.global_rank}.json").write_text(json.dumps(found))
