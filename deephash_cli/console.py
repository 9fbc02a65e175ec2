"""Console output: messages, and progress as a bar on a terminal or as plain lines elsewhere."""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deephash_cli.errors import one_line

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

_LINE_SECONDS = 10  # without a terminal, a long task prints its progress this often
_SHORT_SECONDS = 2  # without a terminal, a task shorter than this prints nothing


def be_silent() -> None:
    """Print nothing from now on, because another process prints the messages."""
    console.quiet = errors.quiet = True


def say(message: str) -> None:
    """Print one line to standard output."""
    console.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print one line to standard error, as a warning."""
    errors.print(f"warning: {one_line(message)}", markup=False)


@contextlib.contextmanager
def progress(task: str, total: int, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show the progress of a task: a bar on a terminal, a line now and then elsewhere. Yields ``update(done, note)``.

    Args:
        task: Name of the task and of what is counted, such as "writing, codes".
        total: Number of steps until the task is done.
        quiet: Whether to print no lines without a terminal, for tasks that print their own.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bars:
            bar = bars.add_task(task, total=total, note="")

            def move(done: int, note: str | None = None) -> None:
                if note is not None:
                    bars.update(bar, note=note)
                bars.update(bar, completed=done)

            yield move
            move(total)
        return
    started = last = time.monotonic()

    def line(done: int, note: str | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if not quiet and done < total and now - last >= _LINE_SECONDS:
            last = now
            say(f"{task}: {done}/{total} {note or ''}".rstrip())

    yield line
    seconds = time.monotonic() - started
    if not quiet and seconds >= _SHORT_SECONDS:
        say(f"{task}: {total} in {seconds:.0f} s")


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's messages and warnings, which give advice for Lightning's own users. Errors remain exceptions."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for package in ("pytorch_lightning", "lightning_fabric"):
            warnings.filterwarnings("ignore", module=rf"{package}\.")
        try:
            yield
        finally:
            log.setLevel(level)
