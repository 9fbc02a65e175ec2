"""Compare asymmetric search, which rescores a shortlist, with search by distance and with exact asymmetric search.

Everything is printed as Markdown. The searches of a table take turns in one process, with the same number of threads.
A ratio is the median over rounds, so that other load on the machine affects both sides.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# The measured code is imported in functions: the number of threads must be set before.
from evaluation import environment, head, machine, row, usable_cores

BITS = 64
QUERIES = 200
SLOW = 20  # queries of exact asymmetric search, which takes long
TOP = 10
SHORTLIST = 1000
ALLOWED = 1.5  # time of asymmetric search, relative to search by distance
ROWS = 2**16  # codes generated at a time
# Kinds of codes: the number of centres that the continuous codes lie around, and their spread; None for none.
KINDS = {"random": None, "clustered": (1000, 0.78), "learned": (100, 0.53)}


def make(n: int, kind: str, seed: int) -> Any:
    """Generate continuous codes (n, bits): normal ones, or centres of -1 and 1 with normal noise."""
    import numpy as np

    rng = np.random.default_rng(seed)
    u = rng.standard_normal((n, BITS), np.float32)
    if (shape := KINDS[kind]) is not None:
        centres, spread = shape
        signs = np.where(np.random.default_rng(0).random((centres, BITS)) < 0.5, 1, -1).astype(np.float32)
        u = u * np.float32(spread) + signs[rng.integers(0, centres, n)]
    return u


def packed(n: int, kind: str, seed: int) -> Any:
    """Generate packed codes, some at a time."""
    import numpy as np

    sizes = [min(ROWS, n - start) for start in range(0, n, ROWS)]
    parts = [make(size, kind, seed + part) for part, size in enumerate(sizes)]
    return np.concatenate([np.packbits(u >= 0, axis=1, bitorder="little") for u in parts])


def compare(n: int, kind: str, repeat: int) -> None:
    """Time the searches in turn, and measure what the shortlist loses."""
    import numpy as np

    from deephash_cli.retrieval import indexes, rescoring

    database, u = packed(n, kind, 1000), make(QUERIES, kind, 2)
    queries = np.packbits(u >= 0, axis=1, bitorder="little")
    built = {"exact": indexes.Exact(database, BITS)}
    try:
        built["flat (faiss)"] = indexes.build("flat", database, BITS, {})
    except indexes.ConfigError as error:
        print(f"without faiss: {error}")

    def asymmetric(index: Any, rows: slice, shortlist: int = SHORTLIST) -> Any:
        return rescoring.nearest(index, database, queries[rows], u[rows], TOP, shortlist)

    def one_by_one(search: Callable[[slice], Any]) -> Callable[[], None]:
        def run() -> None:
            for start in range(QUERIES):
                search(slice(start, start + 1))

        return run

    everything = slice(QUERIES)
    searches: dict[str, tuple[int, Callable[[], Any]]] = {}
    for name, index in built.items():
        searches |= {
            f"{name}: the {TOP} nearest": (QUERIES, lambda index=index: index.nearest(queries, TOP)),
            f"{name}: a shortlist of {SHORTLIST}": (QUERIES, lambda index=index: index.nearest(queries, SHORTLIST)),
            f"{name}: asymmetric": (QUERIES, lambda index=index: asymmetric(index, everything)),
        }
    exact = built["exact"]
    searches |= {
        f"one by one: the {TOP} nearest": (QUERIES, one_by_one(lambda rows: exact.nearest(queries[rows], TOP))),
        "one by one: asymmetric": (QUERIES, one_by_one(lambda rows: asymmetric(exact, rows))),
        "exact asymmetric": (SLOW, lambda: asymmetric(exact, slice(SLOW), n)),
    }
    print(f"\n### {n:,} codes, {kind}\n")
    best = asymmetric(exact, everything, n)[0][:, -1:]
    found = asymmetric(exact, everything)[0]
    nearest = exact.nearest(queries, TOP)[1]
    by_distance = np.where(np.unpackbits(database[nearest], axis=2, bitorder="little"), 1.0, -1.0) @ u[:, :, None]
    print(
        f"The {TOP} best scores, of which are found: {float((found >= best).mean()):.4f} with the shortlist, ", end=""
    )
    print(f"{float((by_distance[..., 0] >= best - 1e-9).mean()):.4f} by distance alone.\n")
    table(searches, repeat)


def table(searches: dict[str, tuple[int, Callable[[], Any]]], repeat: int) -> None:
    """Time searches in turn, and compare each with the search by distance above it."""
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for round_ in range(repeat + 1):
        for name, (count, run) in searches.items():
            start = time.perf_counter()
            run()
            if round_:  # the first round compiles
                seconds[name].append((time.perf_counter() - start) / count)
    head("search", "ms per query, median", "minimum", "relative to the nearest by distance", f"at most {ALLOWED}")
    base: list[float] = []
    for name, taken in seconds.items():
        base = taken if name.endswith("nearest") else base
        ratio = statistics.median(ours / theirs for ours, theirs in zip(taken, base, strict=True))
        verdict = ("yes" if ratio <= ALLOWED else "no") if name.endswith(": asymmetric") else "-"
        row(name, f"{statistics.median(taken) * 1e3:.3f}", f"{min(taken) * 1e3:.3f}", f"{ratio:.2f}", verdict)


def main() -> None:
    """Measure what the arguments select."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be repeated; default: all")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: the usable cores")
    parser.add_argument("--repeat", type=int, default=15, help="timed runs per search")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        compare(int(options.measure[0]), options.measure[1], int(options.measure[2]))
        return
    print(machine(options.threads), flush=True)
    n, repeat = (20_000, 2) if options.quick else (1_000_000, options.repeat)
    for kind in options.kind or KINDS:
        command = [sys.executable, "-u", __file__, "--measure", str(n), kind, str(repeat)]
        subprocess.run(command, check=True, env=environment(options.threads))


if __name__ == "__main__":
    main()
