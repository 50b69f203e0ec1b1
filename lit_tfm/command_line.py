"""What every verb does around its work: one line and exit status 2 for a mistake, a traceback only on request."""

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lit_tfm.config import explain
from lit_tfm.errors import UserError

FULL = "HYDRA_FULL_ERROR"


def run_verb(verb: Callable[[], object]) -> int:
    """Exit status: 0, or 2 after a mistake a person can mend. `HYDRA_FULL_ERROR=1` brings its traceback.

    Other exceptions pass: they are defects, and their traceback is what is needed.
    """
    wanted = os.environ.get(FULL) == "1"
    os.environ[FULL] = "1"  # otherwise Hydra prints exceptions itself and exits with status 1
    try:
        verb()
        return 0
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if wanted:
            raise
        message = error if isinstance(error, UserError) else explain(error)
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    finally:
        os.environ[FULL] = "1" if wanted else "0"
