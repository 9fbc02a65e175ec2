"""Time the evaluation of codes against the loop of published code, two libraries and a lower bound. See README.md here.

Everything is printed as Markdown, each row as soon as it is measured. The parent process only starts other processes:
each case is timed in one worker process, and the memory of each engine is the peak of a fresh process.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

# An engine's imports are inside its function: a process starts with the peak memory of the process that started it.
import numpy as np
import yaml

MEASURED = yaml.safe_load((Path(__file__).parent.parent / "conf" / "metrics" / "default.yaml").read_text())
KS, RADIUS = MEASURED["ks"], MEASURED["radius"]  # the same as in a run
WHOLE = 10**8  # pairs; in larger cases the slow engines process only the first SAMPLE queries
SAMPLE = 20
LONGEST = 15.0  # seconds that an engine is timed; no run begins later
TOP = 100
ROWS = 2**14  # codes generated at a time
FLIPPED = 0.2  # share of the bits of a class centre that are flipped in clustered codes
OURS = "ours: the whole report"


@dataclass(frozen=True)
class Case:
    """A problem: the numbers of queries and items, and the properties of their codes and labels."""

    name: str
    queries: int
    database: int
    bits: int
    classes: int
    labels: int  # labels drawn per image, with repetition
    map_at: int
    folder: str = ""  # a codes folder with the codes, for learned codes

    def __str__(self) -> str:
        labels = f"{self.classes} classes" if self.labels == 1 else f"{self.classes} labels, up to {self.labels} each"
        return f"{self.queries:,} queries x {self.database:,} x {self.bits} bits, {labels}"


CASES = (
    Case("cifar10", 1_000, 59_000, bits=48, classes=10, labels=1, map_at=1_000),
    Case("many", 10_000, 50_000, bits=48, classes=10, labels=1, map_at=1_000),
    Case("coco", 5_000, 117_218, bits=64, classes=80, labels=3, map_at=5_000),
    Case("million", 1_000, 1_000_000, bits=64, classes=10, labels=1, map_at=1_000),
)
COMMANDS = (
    replace(CASES[0], name="command"),
    Case("big", 100, 10_000_000, bits=64, classes=10, labels=1, map_at=1_000),
)


# Codes


@dataclass(frozen=True, eq=False)
class Side:
    """Packed codes with multi-hot labels."""

    packed: np.ndarray
    labels: np.ndarray

    def signs(self, bits: int) -> np.ndarray:
        """Convert codes to the matrix of -1 and 1 that published code works on."""
        return np.unpackbits(self.packed, axis=1, count=bits, bitorder="little").astype(np.float32) * 2 - 1

    def words(self) -> np.ndarray:
        """Convert codes to machine words, one per code."""
        wide = np.zeros((len(self.packed), 8), np.uint8)
        wide[:, : self.packed.shape[1]] = self.packed
        return wide.view(np.uint64)[:, 0]

    def label_words(self) -> np.ndarray:
        """Convert labels to two rows of machine words, enough for 128 labels."""
        packed = np.packbits(self.labels, axis=1)
        wide = np.zeros((len(packed), 16), np.uint8)
        wide[:, : packed.shape[1]] = packed
        return np.ascontiguousarray(wide.view(np.uint64).T)


@dataclass(frozen=True, eq=False)
class Data:
    """Queries and database of a case."""

    case: Case
    query: Side
    database: Side


def blocks(case: Case, n: int, codes: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield packed codes and the numbers of their labels, some thousand images at a time."""
    centres = np.random.default_rng(0).random((case.classes, case.bits)) < 0.5
    rng = np.random.default_rng(seed)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        drawn = rng.integers(0, case.classes, (rows, case.labels))
        if codes == "random":
            bits = rng.integers(0, 2, (rows, case.bits), dtype=np.uint8)
        else:
            bits = centres[drawn[:, 0]] ^ (rng.random((rows, case.bits)) < FLIPPED)
        yield np.packbits(bits, axis=1, bitorder="little"), drawn


def make_side(case: Case, n: int, codes: str, seed: int) -> Side:
    """Generate one side in memory."""
    packed, labels = np.empty((n, -(-case.bits // 8)), np.uint8), np.zeros((n, case.classes), np.uint8)
    start = 0
    for block, drawn in blocks(case, n, codes, seed):
        packed[start : start + len(block)] = block
        labels[start + np.arange(len(block))[:, None], drawn] = 1
        start += len(block)
    return Side(packed, labels)


def learned_case(run: Path) -> Case:
    """Make a case of the codes of a finished run, from its folder or its codes folder."""
    folder = run / "codes" if (run / "codes").is_dir() else run
    query, database, manifest = read(str(folder))
    sides = [learned_side(side) for side in (query, database)]
    return Case(
        manifest["provenance"]["dataset"],
        query.n,
        database.n,
        query.bits,
        classes=sides[0].labels.shape[1],
        labels=max(int(side.labels.sum(axis=1).max()) for side in sides),
        map_at=1_000,
        folder=str(folder),
    )


@cache
def read(folder: str) -> tuple[Any, Any, dict[str, Any]]:
    """Read a codes folder."""
    from deephash_cli.retrieval.codes_folder import load_codes

    return load_codes(Path(folder))


def learned_side(side: Any, rows: int | None = None) -> Side:
    """Take the first codes and labels of a `CodeSet`."""
    labels = side.labels[:rows]
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(side.labels.max() + 1)
    return Side(np.array(side.packed[:rows]), np.array(labels, np.uint8))


def repeats(data: Data) -> str:
    """Say how many queries and items differ."""
    query, database = (
        len(np.unique(np.concatenate(arrays, axis=1), axis=0))
        for arrays in ((data.query.packed, data.query.labels), (data.database.packed, data.database.labels))
    )
    case = data.case
    return f"{query:,} of {case.queries:,} queries differ in code or labels, {database:,} of {case.database:,} items"


def make(case: Case, codes: str) -> Data:
    """Generate both sides in memory, or read them if they are learned."""
    if codes == "learned":
        query, database, _ = read(case.folder)
        return Data(case, learned_side(query, case.queries), learned_side(database, case.database))
    return Data(case, make_side(case, case.queries, codes, seed=1), make_side(case, case.database, codes, seed=2))


# Engines. Each is a function that converts the data to the engine's own form, which is not timed, and returns the
# function that is timed; its argument is the number of queries to process.

Run = Callable[[int], Any]


def naive(data: Data, _threads: int, order: str = "quicksort") -> Run:
    """The loop of published code: one query at a time, float codes, a full sort, average precision and precision@k."""
    query, database = data.query.signs(data.case.bits), data.database.signs(data.case.bits)
    query_labels, database_labels = data.query.labels.astype(np.float32), data.database.labels.astype(np.float32)

    def run(queries: int) -> tuple[np.ndarray, np.ndarray]:
        ap, precision = np.zeros(queries), np.zeros((queries, len(KS)))
        for i in range(queries):
            relevant = query_labels[i] @ database_labels.T > 0
            distance = 0.5 * (data.case.bits - query[i] @ database.T)
            relevant = relevant[np.argsort(distance, kind=order)]
            precision[i] = [relevant[:k].sum() / k for k in KS]
            ranks = np.flatnonzero(relevant) + 1.0
            if len(ranks):
                ap[i] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        return ap, precision

    return run


def torchmetrics(data: Data, threads: int) -> Run:
    """Average precision only, with ties in whatever order the sort leaves them."""
    import torch
    from torchmetrics.functional.retrieval import retrieval_average_precision

    torch.set_num_threads(threads)
    query, database = (torch.from_numpy(side.signs(data.case.bits)) for side in (data.query, data.database))
    query_labels, database_labels = (torch.from_numpy(side.labels).float() for side in (data.query, data.database))

    def run(queries: int) -> np.ndarray:
        ap = np.zeros(queries)
        for i in range(queries):
            # It treats items without a positive score as irrelevant.
            score = database @ query[i] + (data.case.bits + 1)
            ap[i] = retrieval_average_precision(score, database_labels @ query_labels[i] > 0)
        return ap

    return run


def popcount_and_count(data: Data, threads: int) -> Run:
    """The bound: a histogram of the distances, labels ignored."""
    query, database, width = data.query.words(), data.database.words(), data.case.bits + 1
    count = kernels()["all"]

    def run(queries: int) -> np.ndarray:
        h = np.zeros((queries, width), np.int32)
        spread(lambda part: count(query[part], database, h[part]), queries, threads)
        return h

    return run


def popcount_and_count_relevant(data: Data, threads: int) -> Run:
    """The bound with labels: histograms of all items and of the relevant ones, in one pass over the pairs."""
    query, database, width = data.query.words(), data.database.words(), data.case.bits + 1
    if data.case.labels == 1:
        query_keys, database_keys = (
            side.labels.argmax(axis=1).astype(np.uint8) for side in (data.query, data.database)
        )
        count = kernels()["class"]
    else:
        query_keys, database_keys = data.query.label_words(), data.database.label_words()
        count = kernels()["labels"]

    def run(queries: int) -> tuple[np.ndarray, np.ndarray]:
        h = np.zeros((queries, 2 * width), np.int32)
        spread(
            lambda part: count(query[part], database, query_keys[..., part], database_keys, h[part]), queries, threads
        )
        return h[:, ::2] + h[:, 1::2], h[:, 1::2]

    return run


def faiss_hammings(data: Data, threads: int) -> Run:
    """Distances of all pairs, not counted: each block of distances is written to the same memory."""
    query, database = data.query.words(), data.database.words()
    rows = max(1, 2**20 // len(database))  # a few MB of distances, near the processor

    def work(part: slice) -> None:
        out = np.empty((rows, len(database)), np.int32)
        for start in range(part.start, part.stop, rows):
            block = query[start : min(start + rows, part.stop)]
            faiss_distances(block, database, out[: len(block)])

    return lambda queries: spread(work, queries, threads)


def faiss_distances(query: np.ndarray, database: np.ndarray, out: np.ndarray) -> None:
    """Compute distances (q, n) of codes of one word each; faiss itself uses one thread for this."""
    import faiss

    faiss.hammings(
        *(faiss.swig_ptr(side.view(np.uint8)) for side in (query, database)),
        len(query),
        len(database),
        8,
        faiss.swig_ptr(out),
    )


def faiss_flat(data: Data, threads: int) -> Run:
    """The hundred nearest items of each query."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(8 * data.database.packed.shape[1])
    index.add(data.database.packed)
    return lambda queries: index.search(data.query.packed[:queries], TOP)


def ours(data: Data, _threads: int) -> Run:
    """Every metric of `deephash eval`."""
    from deephash_cli.retrieval.codes import CodeSet
    from deephash_cli.retrieval.scoring import evaluate

    query, database = (CodeSet(side.packed, data.case.bits, side.labels, None) for side in (data.query, data.database))
    return lambda _queries: evaluate(query, database, ks=KS, map_at=[data.case.map_at], radius=RADIUS)


def ours_counts(data: Data, threads: int) -> Run:
    """Only the pass over all pairs: histograms by distance and shared labels, sums in stable order."""
    from deephash_cli.retrieval import ranking

    query, database, case = data.query, data.database, data.case
    sides = (query.packed, database.packed, case.bits, query.labels, database.labels)
    return lambda _queries: list(ranking.count(*sides, cuts=[case.map_at], threads=threads))


ENGINES: dict[str, Callable[[Data, int], Run]] = {
    OURS: ours,
    "ours: the counts alone": ours_counts,
    "popcount and count": popcount_and_count,
    "popcount and count, all and relevant": popcount_and_count_relevant,
    "faiss.hammings": faiss_hammings,
    f"faiss.IndexBinaryFlat, top {TOP}": faiss_flat,
    "naive loop": naive,
    "torchmetrics, AP alone": torchmetrics,
}
SAMPLED = {"naive loop", "torchmetrics, AP alone"}
BOUNDS = ("ours: the counts alone", "popcount and count", "popcount and count, all and relevant", "faiss.hammings")


def spread(work: Callable[[slice], None], queries: int, threads: int) -> None:
    """Split the queries over threads, in a few parts each, so that a delayed thread leaves parts to the others."""
    edges = np.linspace(0, queries, min(queries, 4 * threads) + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, (slice(*edge) for edge in pairwise(edges))))


@cache
def kernels() -> dict[str, Callable[..., None]]:
    """Compile the loops, and return them by what they count."""
    import numba
    from numba.extending import intrinsic

    @intrinsic
    def popcount(_typing, _value):
        return numba.uint64(numba.uint64), lambda _context, builder, _signature, args: builder.ctpop(args[0])

    @numba.njit(nogil=True)
    def count(query, database, counts):
        for i in range(len(query)):
            x, row = query[i], counts[i]
            for j in range(len(database)):
                row[popcount(x ^ database[j])] += 1

    # One counter per pair, with those of irrelevant and relevant items side by side, is faster than two counters.

    @numba.njit(nogil=True)
    def count_class(query, database, query_class, database_class, counts):
        for i in range(len(query)):
            x, own, row = query[i], query_class[i], counts[i]
            for j in range(len(database)):
                row[2 * popcount(x ^ database[j]) + numba.uint64(database_class[j] == own)] += 1

    @numba.njit(nogil=True)
    def count_labels(query, database, query_labels, database_labels, counts):
        first, second = database_labels[0], database_labels[1]
        for i in range(len(query)):
            x, a, b, row = query[i], query_labels[0, i], query_labels[1, i], counts[i]
            for j in range(len(database)):
                shared = (a & first[j]) | (b & second[j])
                row[2 * popcount(x ^ database[j]) + numba.uint64(shared != 0)] += 1

    return {"all": count, "class": count_class, "labels": count_labels}


# Agreement


def check(case: Case, codes: str, threads: int) -> str:
    """Compare the engines where their definitions coincide, and return what was compared, in words.

    Raises:
        ArithmeticError: If two of them differ.
    """
    small = make(replace(case, queries=30, database=2_000), codes)
    report = ours(small, threads)(30)
    done = []

    def agree(what: str, a, b, tolerance: float = 1e-9) -> None:
        error = float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float))))
        if not error <= tolerance:
            raise ArithmeticError(f"{what} differs by {error}: engines that disagree are not timed")
        done.append(what)

    ap, _ = naive(small, threads, order="stable")(30)
    agree("map_stable of the naive loop", ap.mean(), report["map_stable"])

    total, relevant = popcount_and_count_relevant(small, threads)(30)
    agree("total of both histograms", popcount_and_count(small, threads)(30), total)
    hits, items = np.cumsum(relevant, axis=1), np.cumsum(total, axis=1)
    agree("recall by radius", (hits / np.maximum(hits[:, -1:], 1)).mean(axis=0), report["pr_by_radius"]["recall"])
    precision = (hits / np.maximum(items, 1)).mean(axis=0)
    agree("precision by radius", precision, report["pr_by_radius"]["precision"])

    # A database with one item at each distance has one order only.
    steps = np.packbits(np.tri(case.bits + 1, case.bits, -1, dtype=np.uint8), axis=1, bitorder="little")
    order = np.random.default_rng(0).permutation(len(steps))
    zero = Side(np.zeros((30, steps.shape[1]), np.uint8), small.query.labels)
    clear = Data(case, zero, Side(steps[order], small.database.labels[: len(steps)]))
    report, (ap, precision) = ours(clear, threads)(30), naive(clear, threads)(30)
    agree("map without ties", ap.mean(), report["map"])
    agree("precision at k without ties", precision.mean(axis=0), [report["precision_at_k"][str(k)] for k in KS])

    with contextlib.suppress(ImportError):
        agree("torchmetrics without ties (single precision: 1e-6)", torchmetrics(clear, threads)(30), ap, 1e-6)
    with contextlib.suppress(ImportError):
        out = np.empty((30, 2_000), np.int32)
        faiss_distances(small.query.words(), small.database.words(), out)
        counts = [np.bincount(row, minlength=case.bits + 1) for row in out]
        agree("distances of faiss", counts, total)
        agree("nearest of faiss", faiss_flat(small, threads)(30)[0], np.sort(out, axis=1)[:, :TOP])
    return ", ".join(done)


# Workers


def serve(spec: dict[str, Any]) -> None:
    """Read requests from the standard input, and answer each with a line of JSON."""
    case, codes, threads = Case(**spec["case"]), spec["codes"], spec["threads"]
    data = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["engine"] == "check":
                answer = {"checked": check(case, codes, threads), "repeats": repeats(make(case, codes))}
            else:
                data = data or make(case, codes)
                answer = measure(data, request["engine"], request["repeat"], threads)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), flush=True)


def measure(data: Data, engine: str, repeat: int, threads: int) -> dict[str, Any]:
    """Run once untimed, for compilation and caches, then timed. The seconds are scaled to all queries."""
    case = data.case
    sampled = engine in SAMPLED and case.queries * case.database > WHOLE
    queries = min(SAMPLE, case.queries) if sampled else case.queries
    run = ENGINES[engine](data, threads)
    ready = peak()
    timed(run, queries)
    seconds: list[float] = []
    while len(seconds) < repeat and sum(seconds) < LONGEST:
        seconds.append(timed(run, queries))
    seconds = [once * case.queries / queries for once in seconds]
    note = f"{queries} queries, scaled" if sampled else ""
    return {"seconds": seconds, "ready": ready, "peak": peak(), "note": note}


def timed(run: Run, queries: int) -> float:
    """Measure the seconds of one run, whose result is dropped."""
    start = time.perf_counter()
    run(queries)
    return time.perf_counter() - start


def peak() -> int:
    """Return the peak memory of this process in bytes."""
    return maxrss(resource.getrusage(resource.RUSAGE_SELF))


def maxrss(usage: resource.struct_rusage) -> int:
    """Return peak memory in bytes; macOS reports bytes, Linux kilobytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Worker:
    """A process that measures engines on one case, on request."""

    def __init__(self, case: Case, codes: str, threads: int):
        spec = json.dumps({"case": asdict(case), "codes": codes, "threads": threads})
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads),
        )

    def ask(self, engine: str, repeat: int) -> dict[str, Any]:
        """Measure an engine. The answer is an error if the process was killed, most likely for its memory."""
        try:
            self.process.stdin.write(json.dumps({"engine": engine, "repeat": repeat}) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return {"error": f"the process ended with code {self.process.wait()}"}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def environment(threads: int) -> dict[str, str]:
    """Environment that gives every library the same number of threads, from before it is imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


# Tables


def row(*cells: object) -> None:
    """Print one row of a table."""
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells: str) -> None:
    """Print the head of a table with words in the first and last columns and numbers in the others."""
    row(*cells)
    row("---", *["---:"] * (len(cells) - 2), "---")


def megabytes(size: int) -> str:
    """Format bytes as MB."""
    return f"{size / 1e6:,.0f}"


def compare(case: Case, codes: str, threads: int, repeat: int, memory: Collection[str]) -> str:
    """Measure and print every engine on a case, and return its row in the table of ratios."""
    print(f"\n### {case.name}: {case}, {codes} codes\n")
    best: dict[str, float] = {}
    with Worker(case, codes, threads) as worker:
        checked = worker.ask("check", 0)
        if "error" in checked:
            raise SystemExit(f"nothing was timed, because the check failed: {checked['error']}")
        print(f"Checked on a small case to 1e-9 before timing: {checked['checked']}.")
        print(f"Of these codes, {checked['repeats']}.\n")
        head(
            "engine",
            "seconds, minimum",
            "median",
            "runs",
            "ns per pair",
            "times ours",
            "peak MB",
            "before it ran",
            "note",
        )
        for engine in ENGINES:
            answer = worker.ask(engine, repeat)
            if "error" in answer:
                row(engine, *["-"] * 7, answer["error"])
                continue
            sizes = ["-", "-"]
            if engine in memory:
                with Worker(case, codes, threads) as fresh:
                    once = fresh.ask(engine, 0)
                sizes = [megabytes(once[key]) if key in once else "-" for key in ("peak", "ready")]
            seconds = answer["seconds"]
            best[engine] = min(seconds)
            row(
                engine,
                f"{best[engine]:.4g}",
                f"{statistics.median(seconds):.4g}",
                len(seconds),
                f"{best[engine] / case.queries / case.database * 1e9:.3g}",
                ratio(best, engine, OURS),
                *sizes,
                answer["note"],
            )
    ratios = [ratio(best, "naive loop", OURS), *(ratio(best, OURS, bound) for bound in BOUNDS)]
    return "| " + " | ".join([f"{case.name}: {case}", *ratios, ""]) + " |"


def ratio(best: dict[str, float], a: str, b: str) -> str:
    """Return how many times as long ``a`` takes as ``b``."""
    return f"{best[a] / best[b]:.3g}" if a in best and b in best else "-"


def command(case: Case, codes: str, threads: int, repeat: int) -> None:
    """Time ``deephash eval`` as a whole process on files of codes and class numbers."""
    print(f"\n### {case.name}: `deephash eval` on .npy files, {case}, {codes} codes\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, side, n in ((1, "q", case.queries), (2, "d", case.database)):
            write(folder / f"{side}.npy", (n, -(-case.bits // 8)), np.uint8, partial(packed_of, case, n, codes, seed))
            write(folder / f"{side}l.npy", (n,), np.int64, partial(classes_of, case, n, codes, seed))
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"The files have {size / 1e6:,.1f} MB.\n")
        head("numba's cache", "seconds, minimum", "median", "runs", "peak MB", "note")
        for state, runs in (("empty", 1), ("filled", repeat)):
            results = []
            for _ in range(runs):
                results.append(run_command(folder, case, threads))
                if results[-1][2]:
                    break
            seconds, peaks, reasons = zip(*results, strict=True)
            if reasons[-1]:
                row(state, *["-"] * 4, f"failed: {reasons[-1]}")
            else:
                middle = statistics.median(seconds)
                row(state, f"{min(seconds):.4g}", f"{middle:.4g}", runs, megabytes(max(peaks)), "")


def run_command(folder: Path, case: Case, threads: int) -> tuple[float, int, str]:
    """Run the command, and return its seconds, its peak memory in bytes and, if it failed, the reason."""
    output = folder / "m.json"
    output.unlink(missing_ok=True)
    files = {"query": "q", "database": "d", "query_labels": "ql", "database_labels": "dl"}
    arguments = [f"{key}={folder / file}.npy" for key, file in files.items()]
    tool = Path(sys.executable).with_name("deephash")
    with (folder / "log.txt").open("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [tool, "eval", *arguments, f"bits={case.bits}", f"output={output}"],
            stdout=log,
            stderr=log,
            env={**environment(threads), "NUMBA_CACHE_DIR": str(folder / "numba")},
            cwd=folder,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    if process.returncode:
        return seconds, maxrss(usage), f"exit code {process.returncode}: {' '.join(said)[:200]}"
    report = json.loads(output.read_text())
    if (report["queries"], report["database"]) != (case.queries, case.database):
        return seconds, maxrss(usage), "it reports other numbers of images"
    return seconds, maxrss(usage), ""


def packed_of(case: Case, n: int, codes: str, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of packed codes."""
    return (packed for packed, _ in blocks(case, n, codes, seed))


def classes_of(case: Case, n: int, codes: str, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of the class numbers of the same images."""
    return (drawn[:, 0] for _, drawn in blocks(case, n, codes, seed))


def write(path: Path, shape: tuple[int, ...], dtype: type, parts: Callable[[], Iterator[np.ndarray]]) -> None:
    """Write an array in parts, to keep this process small: its children report at least its own peak memory."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts():
            file.write(part.astype(dtype).tobytes())


def machine(threads: int) -> str:
    """Describe the machine, its load and the versions of the libraries."""
    model = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    facts = [model, f"{usable_cores()} usable cores with a load of {os.getloadavg()[0]:.1f}", f"{threads} threads"]
    facts.append(f"Python {platform.python_version()}")
    for name in ("numpy", "numba", "faiss-cpu", "torch", "torchmetrics"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts.append(f"{name} {metadata.version(name)}")
    return ", ".join(facts)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Measure what the arguments select."""
    names = [case.name for case in (*CASES, *COMMANDS)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=names, help="may be repeated; default: all but big")
    parser.add_argument("--big", action="store_true", help="add the case with ten million items, through the command")
    parser.add_argument("--codes", choices=("random", "clustered", "learned"), default="random")
    parser.add_argument(
        "--run", action="append", type=Path, help="run or codes folder of learned codes; may be repeated"
    )
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: the usable cores")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs per engine; fewer if it is slow")
    parser.add_argument("--quick", action="store_true", help="a few tiny cases, to see that everything works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(json.loads(options.worker))
        return

    if (options.codes == "learned") != bool(options.run):
        parser.error(
            "--codes learned needs --run=FOLDER, the folder of a finished run of `deephash train`, and vice versa"
        )

    sys.stdout.reconfigure(line_buffering=True)  # an interruption loses nothing, even if the output goes to a file
    usual = {"cifar10", "coco", "command"} if options.quick else set(names) - {"big"}
    wanted = set(options.case or usual) | ({"big"} if options.big else set())
    repeat, cases, commands = options.repeat, CASES, COMMANDS
    if options.quick:
        repeat = 2
        cases, commands = ([replace(case, queries=20, database=3_000) for case in group] for group in (cases, commands))
    if options.run:
        cases, commands = [learned_case(run) for run in options.run], []
        wanted = {case.name for case in cases}
    print(machine(options.threads))
    ratios = [
        compare(case, options.codes, options.threads, repeat, memory=[OURS] if options.quick else ENGINES)
        for case in cases
        if case.name in wanted
    ]
    for case in commands:
        if case.name in wanted:
            command(case, options.codes, options.threads, repeat)
    if ratios:
        print("\n### Ratios of the minima\n")
        head("case", "naive loop / ours", *(f"ours / {bound}" for bound in BOUNDS), "")
        print("\n".join(ratios))


if __name__ == "__main__":
    main()
