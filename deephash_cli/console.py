"""What a person sees while a command runs: messages, progress bars on a terminal, plain lines without one."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

_LINE_SECONDS = 10  # without a terminal, a long task says how far it is this often


def say(message: str) -> None:
    """Print one line."""
    console.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print one line to standard error."""
    errors.print(f"warning: {message}", markup=False)


@contextlib.contextmanager
def progress(task: str, total: int) -> Iterator[Callable[..., None]]:
    """Show how far a task is: a bar on a terminal, a line now and then elsewhere. Yields ``update(done, note)``."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bars:
            bar = bars.add_task(task, total=total, note="")
            yield lambda done, note="": bars.update(bar, completed=done, note=note)
        return
    started = last = time.monotonic()

    def update(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last >= _LINE_SECONDS:
            last = now
            say(f"{task}: {done}/{total} {note}".rstrip())

    yield update
    say(f"{task}: done in {time.monotonic() - started:.0f} s")
