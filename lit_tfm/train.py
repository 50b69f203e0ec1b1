"""Train a run: `python -m lit_tfm.train experiment=bert_small`.

`train(cfg)` is the one door, for the command line, tests, sweeps and notebooks. The heavy imports stand inside it,
so that `--help` and `--cfg job` answer at once.
"""

import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lit_tfm.errors import UserError
from lit_tfm.runs import Result


def train(cfg: DictConfig, quiet: bool = False) -> Result:
    """Train what `cfg` (from `config.compose` or a run folder's config.yaml) says; returns when the run has ended.

    With several devices the ranks run in processes of their own and the result is read from the run folder.
    Raises UserError for a config that can't be trained.
    """
    from lit_tfm.session import Session

    return Session(cfg, quiet).run()


def run_rank(folder: Path) -> int:
    from lit_tfm.launch import tell

    try:
        train(OmegaConf.load(folder / "config.yaml"))
    except UserError as error:
        tell(error)
        return 2
    return 0


def main() -> None:
    from lit_tfm.command_line import hydra_verb, run_verb

    if folder := os.environ.get("LIT_TFM_RUN"):  # one rank of a run that launch.py started
        sys.exit(run_rank(Path(folder)))
    sys.exit(run_verb(lambda: hydra_verb(train)))


if __name__ == "__main__":
    main()
