"""What every verb does around its work: one line and exit status 2 for a mistake, a traceback only on request."""

import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig, open_dict

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.terminal import visible

FULL = "HYDRA_FULL_ERROR"


def run_verb(verb: Callable[[], object]) -> int:
    """Exit status: 0, or 2 after a mistake a person can mend, told in one line.

    `HYDRA_FULL_ERROR=1` brings the mistake's traceback. Other exceptions pass: they are defects, and their traceback is
    what is needed.
    """
    try:
        verb()
        return 0
    except UserError as error:
        if os.environ.get(FULL) == "1":
            raise
        print(f"error: {visible(' '.join(str(error).split()))}", file=sys.stderr)  # it may quote what a file holds
        return 2
    except BrokenPipeError:  # the reader went away: `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def hydra_verb(verb: Callable[[DictConfig], object]) -> None:
    """Compose the config from the command line and run the verb on it; under `-m`, once for each combination.

    Under `-m` a combination that fails does not stop the others; the first failure is raised when all have run.
    """
    failures: list[Exception] = []
    asked = os.environ.get(FULL, "0")

    @hydra.main(config_path=str(config.CONF), config_name="train", version_base="1.3")
    def composed(cfg: DictConfig) -> None:
        os.environ[FULL] = asked
        try:
            with open_dict(cfg):
                verb(config.finish(cfg))
        except Exception as error:  # raised through Hydra, it would lose its traceback or be announced twice
            failures.append(error)
        os.environ[FULL] = "1"

    sys.argv[1:] = config.loosen(sys.argv[1:])
    os.environ[FULL] = "1"  # otherwise Hydra prints its exceptions itself and exits with status 1
    try:
        composed()
    except config.COMPOSING as error:
        raise config.explain(error) from error
    finally:
        os.environ[FULL] = asked
    if failures:
        raise failures[0]
