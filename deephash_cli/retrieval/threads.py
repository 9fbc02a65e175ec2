"""Threads that share the work of an evaluation or a search."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from deephash_cli.cores import usable_cores

S = TypeVar("S")
T = TypeVar("T")

_AHEAD = 4  # parts per thread that may be computed before the caller takes them


def usable_threads() -> int:
    """Number of threads to use: OMP_NUM_THREADS, or the number of cores that this process may use."""
    if (limit := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(limit) > 0:
        return int(limit)
    return usable_cores()


def settled(threads: int | None) -> int:
    """Return the number of threads that a caller asked for; None stands for `usable_threads`.

    Raises:
        ValueError: If it is below 1.
    """
    threads = usable_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads


def in_order(work: Callable[[S], T], parts: Iterable[S], threads: int) -> Iterator[T]:
    """Yield the result of the work on each part, in the order of the parts.

    With several threads work starts at the call, before the caller asks for the first result, and only a few parts are
    computed ahead, which bounds memory. With one thread it is `map`.
    """
    if threads == 1:
        return map(work, parts)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="retrieval")
    rest = iter(parts)
    running = deque(pool.submit(work, part) for part in islice(rest, _AHEAD * threads))

    def results() -> Iterator[T]:
        try:
            for part in rest:
                yield running.popleft().result()
                running.append(pool.submit(work, part))
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    return results()
