"""Console output: a bar on a terminal, plain lines without one, no colours in files."""

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from deephash_cli import console
from deephash_cli.errors import DeephashError, print_error


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns, and the text that is drawn on it."""
    screen = io.StringIO()
    fake = Console(
        file=screen, force_terminal=True, width=100, highlight=False, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(console, "console", fake)
    return screen


def test_messages_are_one_line_however_long_and_are_not_read_as_markup(capsys):
    text = "runs/[bold]x[/bold] " + "long " * 100
    console.say(text)
    console.warn(text)
    captured = capsys.readouterr()
    assert captured.out == f"{text}\n"
    assert captured.err == f"warning: {text}\n"


def test_no_name_of_a_file_breaks_the_line_or_controls_the_terminal(capsys):
    console.warn("a\n\x1b[2J\u2028é.jpg")
    print_error(DeephashError("a\n\x1b[2J\u2028é.jpg"))
    shown = r"a\n\x1b[2J\u2028é.jpg"
    assert capsys.readouterr().err == f"warning: {shown}\nerror: {shown}\n"


def test_no_colours_where_there_is_no_terminal(capsys):
    console.console.print("[red]text[/red]")
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize("width", [40, 80])
def test_a_table_breaks_no_word_and_what_does_not_fit_follows(capsys, monkeypatch, width):
    monkeypatch.setattr(console.console, "width", width)
    table = Table("a name", *(f"heading_{number}" for number in range(9)), "a long one")
    for row in range(3):
        table.add_row(
            f"row (trainer.max_epochs={row})", *(f"[bold]0.{row}{n} ± 0.1[/]" for n in range(9)), "many words"
        )
    console.show(table, f"a title with [brackets] {'and words ' * 20}\nof two lines")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    words = re.sub("[│┃]", " ", " ".join(lines)).split()
    assert {f"heading_{number}" for number in range(9)} | {
        "[brackets]",
        "(trainer.max_epochs=2)",
        "0.28",
        "many",
    } <= set(words)
    assert words.count("(trainer.max_epochs=1)") == sum("┏" in line for line in lines) > 1


def test_only_a_word_wider_than_the_screen_is_broken(capsys, monkeypatch):
    monkeypatch.setattr(console.console, "width", 40)
    table = Table("id", "label")
    table.add_row("x" * 50, "boot")
    console.show(table)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40
    assert out.count("x") == 50
    assert "boot" in out
    console.say_wrapped(f"a {'y' * 50} b")
    assert capsys.readouterr().out == f"a\n{'y' * 50}\nb\n"


def test_a_short_task_says_nothing_without_a_terminal(capsys):
    with console.progress("counting", 3) as show:
        for done in range(4):
            show(done)
    assert capsys.readouterr().out == ""


def test_a_long_task_says_how_far_it_is_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("counting, sheep", 10) as show:
        for done in range(1, 11):
            show(done, "asleep" if done > 5 else None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["counting, sheep: 3/10", "counting, sheep: 6/10 asleep", "counting, sheep: 9/10 asleep",
                     "counting, sheep: 10 in 44 s"]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (1, ["4/6 0.2 sheep/s, 10 s left"]),
        (200, ["402/1200 40 sheep/s, 20 s left", "802/1200 40 sheep/s, 10 s left"]),
    ],
)
def test_a_task_with_a_speed_says_how_fast_it_is_and_how_long_the_rest_takes(capsys, monkeypatch, step, shown):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    total = 6 * step
    with console.progress("counting, sheep", total) as update:
        show = console.with_speed(update, total, "sheep")
        show(2)  # done by an earlier process: not a part of the speed
        for done in range(2 + step, total + 1, step):
            clock[0] += 5
            show(done)
    lines = [line.removeprefix("counting, sheep: ") for line in capsys.readouterr().out.splitlines()]
    assert lines[:-1] == shown


def test_a_quiet_task_leaves_the_lines_to_somebody_else(capsys, monkeypatch):
    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("counting", 3, quiet=True) as show:
        show(1)
        show(2)
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(terminal):
    with console.progress("counting", 4) as show:
        show(1)
        show(2, "half-way")
        show(3)
    text = terminal.getvalue()
    assert "counting" in text
    assert "half-way" in text
    assert "100%" in text


def test_an_error_leaves_the_terminal_as_it_was(terminal):
    with pytest.raises(ZeroDivisionError), console.progress("counting", 4):
        raise ZeroDivisionError
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"
