"""The console script. It imports nothing before Ctrl-C ends the process quietly, because imports take most of a second.

Until the command itself runs, there is nothing to save and nothing to say. The exit code is that of ``main``.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` is made of; the names that `signal` adds take longer
import os


def _end(number: int, _: object) -> None:
    os._exit(128 + number)


def main() -> None:
    """Run the command line, and exit with its code."""
    _signal.signal(_signal.SIGINT, _end)
    try:
        from deephash_cli.cli import main as command_line

        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        command_line.main()
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        _signal.signal(_signal.SIGINT, _end)  # Python would print a traceback while it ends
