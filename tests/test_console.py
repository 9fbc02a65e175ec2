"""Console output: a bar on a terminal, plain lines without one, no colours in files."""

import io

import pytest
from rich.console import Console

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
