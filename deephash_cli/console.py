"""Console output: messages, tables, and progress as a bar on a terminal or as plain lines elsewhere."""

import contextlib
import logging
import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from deephash_cli.errors import one_line
from deephash_cli.hiding import hide

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

_MOVED_EVERY = 0.05  # seconds between two movements of a bar, which take longer than a short step
_LINE_SECONDS = 10  # without a terminal, a long task prints its progress this often
_SHORT_SECONDS = 2  # without a terminal, a task shorter than this prints nothing


def be_silent() -> None:
    """Print nothing from now on, because another process prints the messages."""
    console.quiet = errors.quiet = True


def say(message: str) -> None:
    """Print a message to standard output."""
    console.print(visible(message), markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """Return a text, which may have several lines, with every command to the terminal escaped as Python does."""
    return "\n".join(map(one_line, text.split("\n")))


def warn(message: str) -> None:
    """Print one line to standard error, as a warning, without secrets."""
    errors.print(f"warning: {one_line(hide(message))}", markup=False)


def say_wrapped(text: str) -> None:
    """Print a text to standard output, wrapped between its words; a word that is wider than the screen stays whole."""
    lines = textwrap.wrap(text, console.width, break_long_words=False, break_on_hyphens=False)
    say("\n".join(lines))


def show(table: Table, title: str = "") -> None:
    """Print a table without breaking a word.

    Each column is at least as wide as its longest word. Columns that do not fit follow in another table, which starts
    with the first column again. Only a word that does not fit even then is broken.

    Args:
        table: Columns and rows; a column may have a least width of its own.
        title: Text above the table, without markup; it may have several lines.
    """
    for line in title.splitlines():
        say_wrapped(line)
    first, *others = [_width(column) for column in table.columns]
    room = console.width - 1 - (first.minimum + 3)  # a column has a line and two spaces beside its text
    parts: list[list[int]] = [[]]
    used = 0
    for number, width in enumerate(others, start=1):
        if parts[-1] and used + width.minimum + 3 > room:
            parts.append([])
            used = 0
        parts[-1].append(number)
        used += width.minimum + 3
    for part in parts:
        chosen = [0, *part]
        widths = _shared_out([[first, *others][number] for number in chosen], console.width - 1 - 3 * len(chosen))
        narrow = Table(show_header=table.show_header)
        for number, width in zip(chosen, widths, strict=True):
            column = table.columns[number]
            narrow.add_column(
                column.header, justify=column.justify, style=column.style, width=max(1, width), overflow="fold"
            )
        for row in zip(*(table.columns[number].cells for number in chosen), strict=True):
            narrow.add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in row))
        console.print(narrow)


def _width(column: Column) -> Measurement:
    """Return the widths of the longest word and of the longest line of a column, in characters."""
    options = console.options.update(width=10_000)
    widths = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    least = max(column.min_width or 1, *(width.minimum for width in widths))
    return Measurement(least, max(least, *(width.maximum for width in widths)))


def _shared_out(wanted: Sequence[Measurement], room: int) -> list[int]:
    """Return the width of each column: its longest word, and an equal share of what is left up to its longest line."""
    widths = [width.minimum for width in wanted]
    left = room - sum(widths)
    narrowest_first = sorted(range(len(wanted)), key=lambda number: wanted[number].maximum - wanted[number].minimum)
    for place, number in enumerate(narrowest_first):
        share = min(wanted[number].maximum - wanted[number].minimum, max(left, 0) // (len(wanted) - place))
        widths[number] += share
        left -= share
    widest = widths.index(max(widths))
    widths[widest] -= max(0, sum(widths) - room)
    return widths


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
            bar, moved = bars.add_task(task, total=total, note=""), -math.inf

            def move(done: int, note: str | None = None) -> None:
                nonlocal moved
                now = time.monotonic()
                if note is not None:
                    bars.update(bar, note=note)
                elif done < total and now - moved < _MOVED_EVERY:
                    return
                bars.update(bar, completed=done)
                moved = now

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


def with_speed(update: Callable[..., None], total: int, unit: str) -> Callable[[int], None]:
    """Return a function that updates the progress of a task, and notes its speed and how long the rest takes.

    Args:
        update: Function that ``progress`` yields.
        total: Number of steps until the task is done.
        unit: What the steps are, such as "images". Steps that were done before the first update are not a part of the
            speed.
    """
    first: list[tuple[float, int]] = []

    def move(done: int) -> None:
        now = time.monotonic()
        since, before = first[0] if first else (now, done)
        first[:] = [(since, before)]
        if done > before and now > since:
            speed = (done - before) / (now - since)
            rest = "" if console.is_terminal else f", {_short((total - done) / speed)} left"  # a bar shows it itself
            update(done, f"{speed:.{0 if speed >= 10 else 1}f} {unit}/s{rest}")
        else:
            update(done)

    return move


def _short(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.0f} h"


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
