"""Train a run: `python -m lit_tfm.train experiment=bert_small`.

`train(cfg)` is the one door, for the command line, tests, sweeps and notebooks. The heavy imports stand inside it,
so that `--help` and `--cfg job` answer at once.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lit_tfm.runs import Result, RunFolder

if TYPE_CHECKING:
    from lightning import Callback

TRIAL = "LIT_TFM_TRIAL"  # the trial a run's ranks belong to; search/attempt.py writes and reads it


def train(cfg: DictConfig, quiet: bool = False, callbacks: "Iterable[Callback]" = ()) -> Result:
    """Train what `cfg` (from `config.compose` or a run folder's config.yaml) says; returns when the run has ended.

    `callbacks` are further ones, such as a trial's report to its sweep; a run that a sweep prunes ends in order, with
    the status "pruned". With several devices the ranks run in processes of their own and the result is read from the
    run folder. Raises UserError for a config that can't be trained.
    """
    from lit_tfm.session import Session

    return Session(cfg, quiet, callbacks).run()


def run_rank(folder: Path) -> int:
    """One of the processes of a run. Exit status 0 also where the run was pruned: summary.json says which."""
    from lit_tfm.launch import tell

    try:
        train(RunFolder(folder).config(), callbacks=trial_callbacks())
    except Exception as error:
        return tell(error)
    return 0


def check_grid(configs: list[DictConfig]) -> None:
    """Raises UserError where runs of a `-m` can't follow one another."""
    from lit_tfm import launch

    launch.check_grid(configs)


def trial_callbacks() -> "list[Callback]":
    """Of a trial's rank: rank 0 reports to the study that LIT_TFM_TRIAL names."""
    if TRIAL not in os.environ:
        return []
    from lit_tfm.search.attempt import callbacks_from_environment

    return callbacks_from_environment()


def main() -> None:
    from lit_tfm.leaving import leave_with

    leave_with(_main)


def _main() -> int:
    from lit_tfm.command_line import hydra_verb, run_verb
    from lit_tfm.late_imports import quicken

    if folder := os.environ.get("LIT_TFM_RUN"):  # one rank of a run that launch.py started
        quicken()
        return run_rank(Path(folder))
    return run_verb(lambda: hydra_verb(train, check_grid))


if __name__ == "__main__":
    main()
