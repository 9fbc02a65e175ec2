"""No verb uses a flipped bit in silence: its result is the one of the undamaged file, or the damage is named."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mutations
import pytest

from deephash_cli import runs

FAST = ("num_workers=0", "accelerator=cpu")
CODES = ("manifest.json", "query.npy", "query_labels.npy", "query_ids.txt", "database.npy", "database_labels.npy",
         "database_ids.txt", "query_u.npy", "database_u.npy", "feature_rows.npy")  # fmt: skip
A_RUN = (runs.RECORD, runs.CONFIG, runs.METRICS)
# For each verb, the files of a run that it reads.
READ = {
    "compare": A_RUN,
    "runs": A_RUN,
    "report": (*A_RUN, runs.STEPS, runs.RETRIEVAL, runs.RETRIEVAL_IMAGE),
    "eval": (runs.RECORD, *(f"codes/{name}" for name in CODES)),
    "search": (runs.RECORD, runs.CONFIG, runs.SPLIT, "codes/manifest.json", "codes/database.npy",
               "codes/database_ids.txt", "checkpoints/last.ckpt"),
    "encode": (runs.RECORD, runs.CONFIG, runs.SPLIT, "codes/manifest.json", "checkpoints/last.ckpt"),
    "resume": (*A_RUN, runs.SPLIT, runs.STEPS, "codes/manifest.json", runs.RETRIEVAL),
}  # fmt: skip
# In the default suite, the files that no verb checked before, or that cost little.
FAST_ONES = {
    "compare": A_RUN, "runs": A_RUN, "report": (runs.STEPS, runs.RETRIEVAL), "eval": ("codes/manifest.json",),
    "search": (runs.CONFIG,), "encode": (runs.SPLIT,), "resume": (runs.METRICS, runs.SPLIT),
}  # fmt: skip
# Results that say when they were made.
TIMES = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?( UTC|\+00:00)?")


def pairs() -> list:
    """Each verb with each file that it reads; those outside ``FAST_ONES`` are slow."""
    return [
        pytest.param(verb, name, id=f"{verb}-{name}", marks=() if name in FAST_ONES[verb] else pytest.mark.slow)
        for verb, names in READ.items()
        for name in names
    ]


@pytest.fixture
def results(deephash, hashed) -> dict[str, Callable[[], tuple[int, str, str]]]:
    """For each verb, a function that runs it on ``runs/a`` and returns its exit code, its result and its warnings."""
    shutil.copytree(hashed.run, "runs/a")
    photo = hashed.photos / "bag" / "003.jpg"

    def said(*words: str) -> tuple[int, str, str]:
        result = deephash(*words)
        return result.code, TIMES.sub("", result.out), result.err

    def reported() -> tuple[int, str, str]:
        Path("page.html").unlink(missing_ok=True)
        code, _, err = said("report", "runs", "-o", "page.html")
        return code, TIMES.sub("", Path("page.html").read_text()) if code == 0 else "", err

    def encoded() -> tuple[int, str, str]:
        shutil.rmtree("new", ignore_errors=True)
        code, _, err = said("encode", "run=runs/a", f"input={hashed.photos / 'bag'}", "output=new", *FAST)
        files = sorted(Path("new").glob("database*"))
        return code, "".join(f"{file.name} {file.read_bytes().hex()}\n" for file in files), err

    return {
        "compare": lambda: said("compare", "runs"),
        "runs": lambda: said("runs", "runs"),
        "report": reported,
        "eval": lambda: said("eval", "run=runs/a"),
        "search": lambda: said("search", "run=runs/a", f"query={photo}", "picture=null"),
        "encode": encoded,
        "resume": lambda: said("train", "resume=runs/a"),
    }


@pytest.mark.parametrize(("verb", "name"), pairs())
def test_a_flipped_bit_is_not_used_in_silence(results, verb, name):
    file = Path("runs/a", name)
    shutil.copytree("runs/a", "whole")
    code, right, _ = results[verb]()
    assert code == 0
    for number in range(3):
        mutations.flip(file, number)
        code, found, err = results[verb]()
        is_named = name in err + found  # a report says on its page which pictures are left out
        assert found == right or (is_named and code in (0, 2, 3, 4)), f"flip {number} of {file}: {code} {err}"
        assert "Traceback" not in err
        shutil.rmtree("runs/a")
        shutil.copytree("whole", "runs/a")
