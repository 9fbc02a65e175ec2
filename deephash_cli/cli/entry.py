"""The console script. It imports nothing before Ctrl-C ends the process quietly, because imports take most of a second.

Until the command itself runs, there is nothing to save and nothing to say. The exit code is that of ``main``.
"""

import os
import signal
from types import FrameType


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def main() -> None:
    """Run the command line, and exit with its code."""
    signal.signal(signal.SIGINT, _end)
    try:
        from deephash_cli.cli import main as command_line

        signal.signal(signal.SIGINT, signal.default_int_handler)
        command_line.main()
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        signal.signal(signal.SIGINT, _end)  # Python would print a traceback while it ends
