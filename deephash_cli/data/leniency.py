"""Let an audit go on where other commands stop: what is wrong with a data set is kept as sentences."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from deephash_cli.errors import DataError

_KEPT: ContextVar[list[str] | None] = ContextVar("sentences_kept", default=None)


@contextlib.contextmanager
def faults_kept() -> Iterator[list[str]]:
    """Within the context, ``refuse`` raises nothing. Yields the list to which it adds its sentences."""
    found: list[str] = []
    token = _KEPT.set(found)
    try:
        yield found
    finally:
        _KEPT.reset(token)


def is_lenient() -> bool:
    """Return whether a ``faults_kept`` context is open."""
    return _KEPT.get() is not None


def refuse(error: DataError) -> None:
    """Raise an error that a reader can do without, or keep its sentence within ``faults_kept``.

    The caller goes on after the call, without what is wrong.
    """
    found = _KEPT.get()
    if found is None:
        raise error
    found.append(str(error))
