"""Signals: one request stops a task in order, a burst is one request, and a second one ends the process at once."""

import os
import signal
import threading

import pytest

from deephash_cli import stopping as module
from deephash_cli.errors import Stopped
from deephash_cli.stopping import noting, stopping

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


class EndedAtOnceError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def clock(monkeypatch):
    """Return a list with the current time, which tests set."""

    def end(code):
        raise EndedAtOnceError(code)

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "_exit", end)
    return now


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_stops_at_once(number, code):
    with pytest.raises(Stopped) as stopped, stopping():
        send(number)
    assert (stopped.value.exit_code, stopped.value.saved) == (code, False)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_task_can_note_it(number, code, capsys):
    with stopping(), noting("stopping after this chapter") as requests:
        assert requests.exit_code == 0
        send(number)
        assert requests.exit_code == code
    name = "Ctrl-C" if number == signal.SIGINT else "signal"
    assert capsys.readouterr().err == f"stopping after this chapter; a second {name} stops at once\n"


def test_a_burst_of_signals_is_one_request(clock, capsys):
    with stopping(), noting("stopping") as requests:
        send(signal.SIGTERM)
        clock[0] += 0.1
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert requests.exit_code == 143
    assert capsys.readouterr().err.count("stopping") == 1


def test_a_second_request_ends_the_process(clock):
    with stopping(), noting(None):
        send(signal.SIGTERM)
        clock[0] += 1
        with pytest.raises(EndedAtOnceError, match="130"):
            send(signal.SIGINT)


def test_a_second_request_ends_a_process_that_is_stopping(clock):
    with stopping():
        with pytest.raises(Stopped):
            send(signal.SIGINT)
        clock[0] += 1
        with pytest.raises(EndedAtOnceError, match="143"):
            send(signal.SIGTERM)


def test_a_request_to_save_ends_nothing():
    with stopping(), noting("stopping") as requests:
        send(signal.SIGUSR1)
        assert (requests.exit_code, requests.save) == (0, True)


def test_after_the_task_a_signal_stops_at_once_again():
    with stopping():
        with noting(None):
            pass
        with pytest.raises(Stopped):
            send(signal.SIGTERM)


def test_the_signals_of_a_program_that_calls_the_package_are_its_own():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with noting("stopping"):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    with stopping():
        thread = threading.Thread(target=lambda: noting("stopping").__enter__())
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGUSR1) == before[2]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_message_that_cannot_be_printed_is_left_out(monkeypatch):
    class Reentered:
        def write(self, text):
            raise RuntimeError("reentrant call")

    monkeypatch.setattr(module.sys, "stderr", Reentered())
    with stopping(), noting("stopping") as requests:
        send(signal.SIGTERM)
        assert requests.exit_code == 143
