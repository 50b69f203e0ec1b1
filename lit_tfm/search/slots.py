"""Where each worker computes: its GPUs, or its share of the CPU's cores. Plain arithmetic; imports no torch."""

import os

from lit_tfm.errors import UserError


def visible_devices(count: int, environment: str | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs there are: as it names them already, else 0 .. count-1."""
    if environment is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in environment.split(",") if name.strip()][:count]


def slots(workers: int, devices: list[str], gpus_per_trial: int, trials_per_gpu: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None: left as it is, on a machine without GPUs.

    With `gpus_per_trial` n each worker gets n GPUs of its own; `trials_per_gpu` k lets k workers share them. Workers
    are spread: the second trial of a GPU starts when each has one.
    Raises UserError where there are more workers than places.
    """
    if not devices or gpus_per_trial == 0:
        return ["" if devices else None] * workers
    groups = [devices[i : i + gpus_per_trial] for i in range(0, len(devices), gpus_per_trial)]
    groups = [group for group in groups if len(group) == gpus_per_trial]
    places = len(groups) * trials_per_gpu
    if workers > places:
        raise UserError(
            f"workers={workers}: {len(devices)} GPUs have room for {places} trials at a time (gpus_per_trial="
            f"{gpus_per_trial}, trials_per_gpu={trials_per_gpu}); type workers={max(1, places)} "
            "or a larger trials_per_gpu"
        )
    return [",".join(groups[worker % len(groups)]) for worker in range(workers)]


def threads(workers: int, cores: int | None = None, asked: str | None = None) -> int:
    """CPU threads of each trial: its share of the cores, or fewer where OMP_NUM_THREADS (`asked`) says so."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // workers)
    return min(share, int(asked)) if asked and asked.isdigit() and int(asked) else share
