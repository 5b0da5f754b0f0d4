"""How every command ends: a fault in one message and an exit status, not in a traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from runtime.log import start_logging
from runtime.machine import explain
from utils import RUN_AGAIN, InputError, Interrupted, RunFault, logger

CUT_OFF = 141
"""Exit status of a program whose output nobody reads any more, as the shell gives it for SIGPIPE."""


def run_entry_point(main: Callable[[], None]) -> NoReturn:
    """Run an entry point, whose faults end in one message and an exit status, not in a traceback.

    2: a fault in what the user gave, found before the work; 3: one that ended the work, such as a full disk;
    `RUN_AGAIN`: a signal stopped a training; 130: the keyboard; `CUT_OFF`: nobody reads the output any more.
    """
    start_logging()
    # Pillow's, without the file's name; what can't be read is told by whoever reads it
    warnings.filterwarnings("ignore", "Corrupt EXIF data")
    try:
        main()
    except RunFault as fault:
        logger.error("%s", fault)
        sys.exit(3)
    except InputError as fault:
        logger.error("%s", fault)
        sys.exit(2)
    except Interrupted:
        sys.exit(RUN_AGAIN)
    except KeyboardInterrupt:
        logger.error("stopped by the keyboard")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try once more as it ends
        sys.exit(CUT_OFF)
    except (OSError, RuntimeError, MemoryError) as fault:
        text = explain(fault)
        if text is None:
            raise
        logger.error("%s.", text)
        sys.exit(3)
    sys.exit(0)
