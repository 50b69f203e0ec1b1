"""What every verb does around its work: one line and exit status 2 for a mistake, a traceback only on request."""

import os
import sys
import tempfile
from collections.abc import Callable

import hydra
from omegaconf import DictConfig, open_dict

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.late_imports import quicken
from lit_tfm.terminal import guard, visible

FULL = "HYDRA_FULL_ERROR"


def run_verb(verb: Callable[[], object]) -> int:
    """Exit status: 0, 130 after Ctrl-C, or 2 (`UserError.status`) after what a person can mend, told in one line.

    `HYDRA_FULL_ERROR=1` brings the mistake's traceback. Other exceptions pass: they are defects, and their traceback is
    what is needed.
    """
    quicken()
    guard()
    try:
        verb()
        return 0
    except UserError as error:
        if os.environ.get(FULL) == "1":
            raise
        print(f"error: {visible(' '.join(str(error).split()))}", file=sys.stderr)  # it may quote what a file holds
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away: `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def hydra_verb(
    verb: Callable[[DictConfig], object], check: Callable[[list[DictConfig]], None] = lambda configs: None
) -> None:
    """Compose the config from the command line and run the verb on it; under `-m`, once for each combination.

    All combinations are composed, and told to `check` where there are several, before the first one runs. Then one
    that fails does not stop the others; the first failure is raised when all have run.
    """
    configs = _compose_all()
    if len(configs) > 1:
        check_apart(configs)
        check(configs)
    failures: list[Exception] = []
    for cfg in configs:
        try:
            verb(cfg)
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _compose_all() -> list[DictConfig]:
    """The configs that the command line asks for."""
    configs: list[DictConfig] = []
    failures: list[Exception] = []

    @hydra.main(config_path=str(config.CONF), config_name="train", version_base="1.3")
    def composed(cfg: DictConfig) -> None:
        try:
            with open_dict(cfg):
                configs.append(config.finish(cfg))
        except Exception as error:  # raised through Hydra, it would lose its traceback or be announced twice
            failures.append(error)

    asked = os.environ.get(FULL, "0")
    typed = sys.argv[1:]
    sys.argv[1:] = config.loosen(typed)
    os.environ[FULL] = "1"  # otherwise Hydra prints its exceptions itself and exits with status 1
    with tempfile.TemporaryDirectory() as notes:  # Hydra's own of a `-m`
        # Beside the other overrides: argparse takes them in one piece only, before or behind options.
        words = [place for place, word in enumerate(sys.argv) if place and "=" in word and word[0] != "-"]
        sys.argv.insert(min(words, default=len(sys.argv)), f"hydra.sweep.dir='{notes}'")
        try:
            composed()
        except config.COMPOSING as error:
            raise config.explain(error) from error
        finally:
            sys.argv[1:] = typed
            os.environ[FULL] = asked
    if failures:
        raise failures[0]
    return configs


def check_apart(configs: list[DictConfig]) -> None:
    """Raises UserError where runs of one `-m` would share a folder or go on from the same checkpoint."""
    folders, checkpoints = ([str(cfg[key]) for cfg in configs if cfg[key]] for key in ("output_dir", "resume"))
    if len(set(folders)) < len(folders):
        raise UserError(
            f"output_dir={folders[0]}: one folder for {len(configs)} runs; leave it out, or name it by what differs: "
            "'output_dir=outputs/mine/${seed}'"
        )
    alone = not folders and "auto" in checkpoints  # which run is whose could not be told
    if alone or any(name != "auto" and checkpoints.count(name) > 1 for name in checkpoints):
        raise UserError(
            f"resume={checkpoints[0]}: {len(configs)} runs can't go on from one; go on with one run at a time, or name "
            "the folders by what differs: resume=auto 'output_dir=outputs/mine/${seed}'"
        )
