"""Mutations of valid inputs, for the fuzz tests: seeded, so that a failing input is made again from its number."""

import contextlib
import io
import json
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deephash_cli.errors import DeephashError, one_line

CHUNK = 50  # inputs in one test
LONGEST_MESSAGE = 400  # characters
SECONDS = 1  # of computing, for one input
MEMORY = 256 * 2**20  # bytes, for one input
EXIT_CODES = (0, 2, 3, 4, 5, 6, 130)  # those of deephash --help without 1, which is a bug

# Pieces of text that parsers of commands, tables and lists treat differently from letters.
PIECES = (
    "'", '"', "\\", "(", ")", "[", "]", "{", "}", ",", ";", ":", "=", "+", "++", "~", "@", "$", "${", "${x}", "${k}",
    "${oc.env:HOME}", "#", "%", "&", "*", "?", "!", "|", "<", ">", "`", " ", "  ", "\t", "\n", "\r", "\r\n", "\0",
    "/", "./", "../", "//", "-", "--", ".", "..", "é", "e\u0301", "日本", "\u00a0", "\u200b", "\ufeff", "\u202e", "🙂",
    "\x1b[31m", "\x85", "\u2028", "0", "1", "-1", "1e5", "2024", "0x1f", "1_000", "inf", "nan", "null", "None",
    "true", "false", "yes", "???", "_target_", "a" * 300,
)  # fmt: skip


def chunks(fast: int, everything: int, size: int = CHUNK) -> list[Any]:
    """Return test parameters: ranges of the numbers of inputs.

    Args:
        fast: Number of inputs in the default suite.
        everything: Number of all inputs; those beyond the first are marked as slow.
        size: Number of inputs in one slow test.
    """
    slow = range(fast, everything, size)
    return [
        pytest.param(range(fast), id=f"0-{fast - 1}"),
        *(
            pytest.param(range(start, min(start + size, everything)), id=f"{start}-", marks=pytest.mark.slow)
            for start in slow
        ),
    ]


def rng_of(number: int) -> np.random.Generator:
    """Return the generator of random numbers of one input."""
    return np.random.default_rng([20240607, number])


def flip(file: Path, number: int, size: int | None = None) -> None:
    """Flip one bit of a file: one of its first ``size`` bytes, or of all."""
    content, rng = bytearray(file.read_bytes()), rng_of(number)
    content[int(rng.integers(len(content) if size is None else size))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def flip_at(file: Path, position: int) -> None:
    """Flip a bit of the byte at a position."""
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def pick(rng: np.random.Generator, items: Any) -> Any:
    """Return one of several items."""
    return items[int(rng.integers(len(items)))]


def text(rng: np.random.Generator, original: str) -> str:
    """Return a text with one to three changes: a piece inserted, characters removed, repeated, swapped or replaced."""
    changed = original
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(changed) + 1))
        end = min(len(changed), at + int(rng.integers(1, 4)))
        kind = int(rng.integers(6))
        if kind <= 1:
            changed = changed[:at] + pick(rng, PIECES) + changed[at:]
        elif kind == 2:
            changed = changed[:at] + changed[end:]
        elif kind == 3:
            changed = changed[:at] + changed[at:end] * 2 + changed[end:]
        elif kind == 4:
            changed = changed[:at] + changed[at:end][::-1] + changed[end:]
        else:
            changed = changed[:at] + pick(rng, PIECES) + changed[end:]
    return changed


def content(rng: np.random.Generator, original: bytes) -> bytes:
    """Return the bytes of a file with a few bytes changed, inserted, removed or repeated, or the file cut or longer."""
    changed = bytearray(original)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(changed) + 1))
        end = min(len(changed), at + int(rng.integers(1, 9)))
        kind = int(rng.integers(7))
        if kind == 0:
            changed[at:end] = rng.integers(0, 256, end - at, dtype=np.uint8).tobytes()
        elif kind == 1:
            changed[at:at] = rng.integers(0, 256, int(rng.integers(1, 5)), dtype=np.uint8).tobytes()
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = changed[at:end]
        elif kind == 4 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 5:
            del changed[at:]
        else:
            changed[at:end] = pick(rng, PIECES).encode()
    return bytes(changed)


REMOVED = object()
ODD_VALUES = (
    REMOVED, None, True, False, 0, 1, -1, 2, 3, 13, 2**31, 2**63, 10**400, -(10**30), 0.0, 0.5, -0.5, 1e308,
    float("nan"), float("inf"), "", "0", "12", "null", "x", "é\n", "../../etc/passwd", "\0", "\ud800", "a" * 5000,
    [], [None], [0], ["x"], [[]], [1, 2, 3], {}, {"x": 1}, {"": None}, {"_target_": "os.system"}, {"0": {"0": []}},
)  # fmt: skip


def value(rng: np.random.Generator, original: Any) -> tuple[Any, str]:
    """Return a copy of a JSON value in which one value is another or removed, and a description of the change."""
    copy = json.loads(json.dumps(original))
    places: list[tuple[Any, Any, str]] = []

    def visit(node: Any, name: str) -> None:
        for key, child in node.items() if isinstance(node, dict) else list(enumerate(node))[:6]:
            places.append((node, key, f"{name}.{key}"))
            if isinstance(child, dict | list):
                visit(child, f"{name}.{key}")

    visit(copy, "")
    node, key, name = pick(rng, places)
    if rng.integers(12) == 0:
        node = copy = {"content": copy}
        new, key, name = pick(rng, ODD_VALUES), "content", "everything"
    elif rng.integers(4) == 0 and isinstance(node[key], list | dict) and node[key]:
        new = node[key]  # one of its items occurs once more, or in another place
        if isinstance(new, list):
            new.insert(0, pick(rng, new))
        else:
            new[pick(rng, ("extra", "", "0", "_target_"))] = pick(rng, list(new.values()))
    else:
        new = pick(rng, ODD_VALUES)
    if new is REMOVED:
        del node[key]
    else:
        node[key] = new
    if name == "everything":
        copy = copy.get("content", {})
    return copy, f"{name[1:] if name[0] == '.' else name} = {'removed' if new is REMOVED else repr(new)[:60]}"


def as_json(changed: Any) -> str:
    """Return a value as JSON text. Python's own words for infinities and NaN are kept, as other programs write them."""
    return json.dumps(changed)


def refusal(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """Do something that may be refused.

    Returns:
        The result, or None if it was refused; and what is wrong with the refusal, or None if nothing is.
    """
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return work(), None
        except DeephashError as error:
            return None, wrong_message(one_line(str(error)))  # as it is printed
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(str(error)[:200].split())
            return None, f"{type(error).__name__}: {message} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"


@contextlib.contextmanager
def little_memory(limit: int = MEMORY) -> Iterator[None]:
    """Let this process take no more than some bytes in addition to what it has; more is a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def bounded(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """Do something that may be refused, as `refusal`; more than a second of computing is wrong, too."""
    started = time.process_time()
    result, wrong = refusal(work)
    seconds = time.process_time() - started
    return result, wrong or (f"{seconds:.1f} seconds" if seconds > SECONDS else None)


def wrong_message(message: str) -> str | None:
    """Return what is wrong with an error's message, or None if it is one line that is not too long."""
    if not message.strip():
        return "the message is empty"
    if len(message.splitlines()) > 1 or "\n" in message or "\r" in message or "\x1b" in message or "\0" in message:
        return f"the message has several lines or control characters: {message[:300]!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"the message has {len(message)} characters: {message[:300]!r}"
    return None


def report(failures: list[str]) -> str:
    """Return the text of a failed test: how many inputs failed, and one failure of each kind, at most ten."""
    kinds: dict[str, str] = {}
    for failure in failures:
        first = failure.splitlines()[0]
        kinds.setdefault(first.rpartition("(")[2] if first.endswith(")") else first.rpartition(": ")[2][:40], failure)
    return "\n".join([f"{len(failures)} inputs failed:", *(failure[:1500] for failure in list(kinds.values())[:10])])
