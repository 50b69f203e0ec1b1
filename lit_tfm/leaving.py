"""The end of a process that is one of several.

Now and then, on a busy machine, a process ends by SIGABRT while C++ takes gloo's threads down ("terminate called
without an active exception"). The run is complete then, and whoever started the ranks is told that one was killed. So
such a process leaves when Python has done all that it does at its end, and before the rest.
"""

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def leave_with(work: Callable[[], int]) -> NoReturn:
    """End this process with the status of `work`, or of what it raises. To be called before anything heavy is imported:
    what is registered first with atexit runs last."""
    status = 1

    def leave() -> None:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(leave)
    try:
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        status = 130
        raise
    sys.exit(status)
