"""Compare search with faiss, the kinds of index, and memory for ten million codes. See README.md here.

Everything is printed as Markdown. The engines of a table take turns in one process, with the same number of threads. A
ratio is the median over rounds, so that other load on the machine affects both sides.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The measured code is imported in functions: a process starts with the peak memory of the one that started it.
from evaluation import environment, head, machine, peak, row, usable_cores

BITS = 64
QUERIES = 200
TOP = 100
RADIUS = 8
WANTED = 0.95  # share of faiss's own speed that ours should reach
LIMIT = 1e9  # bytes of memory that a process may use to search ten million codes on disk
CENTRES, FLIPPED = 1000, 0.1  # number of centres of clustered codes, and the share of bits that are flipped
ROWS = 2**16  # codes generated at a time
PARTS = ("speed", "kinds", "memory")


def make(n: int, clustered: bool, seed: int) -> Any:
    """Generate packed codes, at random or clustered around centres."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if not clustered:
        return rng.integers(0, 256, (n, BITS // 8), np.uint8)
    centres = np.random.default_rng(0).random((CENTRES, BITS)) < 0.5
    packed = np.empty((n, BITS // 8), np.uint8)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        bits = centres[rng.integers(0, CENTRES, rows)] ^ (rng.random((rows, BITS)) < FLIPPED)
        packed[start : start + rows] = np.packbits(bits, axis=1, bitorder="little")
    return packed


def speed(n: int, repeat: int, clustered: bool) -> None:
    """Time deephash's and faiss's own exact search in turn."""
    import faiss
    import numpy as np

    from deephash_cli.retrieval import indexes, ranking
    from deephash_cli.retrieval.threads import usable_threads

    packed, queries = make(n, clustered, 1), make(QUERIES, clustered, 2)
    bare = faiss.IndexBinaryFlat(BITS)
    bare.add(packed)
    faiss.omp_set_num_threads(usable_threads())
    flat = indexes.build("flat", packed, BITS, {})
    engines: dict[str, Callable[[], Any]] = {
        "faiss.IndexBinaryFlat.search": lambda: bare.search(queries, TOP),
        "indexes, flat": lambda: flat.nearest(queries, TOP),
        "ranking.nearest": lambda: ranking.nearest(queries, packed, BITS, TOP),
    }
    results = [run() for run in engines.values()]  # compiled code, caches
    for distances, positions in results[1:]:
        if not all(map(np.array_equal, (distances, positions), results[0])):
            raise SystemExit("nothing was timed: the engines find different items")
    table(f"the {TOP} nearest, {n:,} codes, {'clustered' if clustered else 'random'}", engines, repeat)

    def ranges() -> int:
        return int(bare.range_search(queries, RADIUS + 1)[0][-1])

    def sizes(index: Any) -> int:
        return sum(len(positions) for _, positions in index.within(queries, RADIUS))

    exact = indexes.Exact(packed, BITS)
    engines = {
        "faiss.IndexBinaryFlat.range_search": ranges,
        "indexes, flat": lambda: sizes(flat),
        "ranking.within": lambda: sizes(exact),
    }
    found = {name: run() for name, run in engines.items()}
    if len(set(found.values())) > 1:
        raise SystemExit(f"nothing was timed: the engines find different numbers of items, {found}")
    kind = "clustered" if clustered else "random"
    table(f"within {RADIUS}, {n:,} codes, {kind}, {ranges() / QUERIES:,.0f} found per query", engines, repeat)


def table(title: str, engines: dict[str, Callable[[], Any]], repeat: int) -> None:
    """Time engines in turn, and compare the others with the first."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeat):
        for name, run in engines.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"\n### {title}\n")
    head("engine", "ms, median", "minimum", "queries/s", "speed / faiss's own", f"at least {WANTED}")
    first = next(iter(seconds.values()))
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(first, taken, strict=True))
        verdict = "yes" if ratio >= WANTED else "no"
        row(name, f"{middle * 1e3:.1f}", f"{min(taken) * 1e3:.1f}", f"{QUERIES / middle:,.0f}", f"{ratio:.2f}", verdict)


def kinds(n: int, clustered: bool) -> None:
    """Measure what each kind of index finds with its default settings, and how fast."""
    from deephash_cli.cli.checking import check
    from deephash_cli.commands.index import compare
    from deephash_cli.retrieval import indexes

    settings = check("index", [], None, multirun=False)
    packed, queries = make(n, clustered, 1), make(QUERIES, clustered, 2)
    exact = indexes.Exact(packed, BITS)
    print(f"\n### kinds, {n:,} codes, {'clustered' if clustered else 'random'}\n")
    columns = (
        "seconds to build",
        "recall of 10",
        "queries/s",
        "exact",
        f"recall within {RADIUS}",
        "queries/s",
        "exact",
    )
    head("kind", *columns, "")
    for kind in indexes.KINDS[1:]:
        start = time.perf_counter()
        index = indexes.build(kind, packed, BITS, settings.get(kind, {}))
        cells = [f"{time.perf_counter() - start:.1f}"]
        measured = compare(index, exact, queries, None, 10, RADIUS)
        for part in (measured["nearest"], measured["within"]):
            if part is None:
                cells += ["-"] * 3
                continue
            cells.append("-" if part["recall"] is None else f"{part['recall']:.4f}")
            cells += [f"{part[key]:,.0f}" for key in ("queries_per_second", "exact_queries_per_second")]
        row(kind, *cells, "")


def write(folder: str, n: str) -> None:
    """Write a folder of codes with names."""
    import numpy as np

    from deephash_cli.retrieval.codes import CodeSet
    from deephash_cli.retrieval.codes_folder import save_database

    names = [f"images/{i // 1000:06}/{i:010}.jpg" for i in range(int(n))]
    save_database(Path(folder), CodeSet(make(int(n), True, 1), BITS, np.zeros((int(n), 0), np.uint8), names), {})


def search(folder: str) -> None:
    """Open a folder of codes and search it; print the peak memory of this process after each step, and the seconds."""
    from deephash_cli.retrieval import ranking
    from deephash_cli.retrieval.codes_folder import open_side

    queries = make(QUERIES, True, 2)
    ranking.nearest(queries[:1], queries, BITS, 1)  # compiled
    steps = {"imports": peak()}
    times = [time.perf_counter()]
    side = open_side(Path(folder))
    steps["opened"], times = peak(), [*times, time.perf_counter()]
    _, positions = ranking.nearest(queries, side.packed, side.bits, TOP)
    steps["searched"], times = peak(), [*times, time.perf_counter()]
    names = [side.ids[int(position)] for position in positions.ravel()]
    steps["named"] = peak()
    print(json.dumps({**steps, "open": times[1] - times[0], "search": times[2] - times[1], "names": len(names)}))


def memory(n: int, threads: int) -> None:
    """Measure the memory of a fresh process that searches codes on disk."""
    print(f"\n### {n:,} codes of {BITS} bits on disk, names included: {QUERIES} queries, the {TOP} nearest, exactly\n")
    with tempfile.TemporaryDirectory() as folder:
        child("--write", folder, str(n), threads=threads, capture=True)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(f"The files have {size / 1e6:,.0f} MB.\n")
        result = json.loads(child("--search", folder, threads=threads, capture=True))
    head("step", "peak MB", "seconds", f"at most {LIMIT / 1e6:,.0f}")
    for name, seconds in (("imports", None), ("opened", "open"), ("searched", "search"), ("named", None)):
        taken = f"{result[seconds]:.2f}" if seconds else "-"
        row(name, f"{result[name] / 1e6:,.0f}", taken, "yes" if result[name] <= LIMIT else "no")


def child(*arguments: str, threads: int, capture: bool = False) -> str:
    """Run this script with other arguments, and return its output if ``capture``, otherwise None."""
    command = [sys.executable, "-u", __file__, *arguments]
    stdout = subprocess.PIPE if capture else None
    return subprocess.run(command, check=True, stdout=stdout, text=True, env=environment(threads)).stdout


def main() -> None:
    """Measure what the arguments select."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated; default: speed and memory")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: the usable cores")
    parser.add_argument("--repeat", type=int, default=15, help="timed runs per engine")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--speed", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs=1, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--search", nargs=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(*options.write)
    elif options.search:
        search(*options.search)
    elif options.speed:
        for clustered in (False, True):
            speed(int(options.speed[0]), int(options.speed[1]), clustered)
    elif options.kinds:
        for clustered in (True, False):
            kinds(int(options.kinds[0]), clustered)
    else:
        parts = options.part or ["speed", "memory"]
        print(machine(options.threads), flush=True)
        million, repeat = (20_000, 2) if options.quick else (1_000_000, options.repeat)
        if "speed" in parts:
            child("--speed", str(million), str(repeat), threads=options.threads)
        if "kinds" in parts:
            child("--kinds", str(million), threads=options.threads)
        if "memory" in parts:
            memory(10 * million, options.threads)


if __name__ == "__main__":
    main()
