"""Outputs never harm: what a command may write to, and what it refuses before anything is computed."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, sampled
from synthetic import write_run

from deephash_cli import files
from deephash_cli.runs import outputs

WORK = "years of work"
EVAL = ("eval", "query=q.npy", "database=d.npy", "query_labels=ql.npy", "database_labels=dl.npy")
SEARCH = ("search", "run=run", "query={photo}")
FAST = ("num_workers=0", "accelerator=cpu")
# Each output that is a file: the command, what is typed before the path, and the ending.
FILES = {
    "eval": (EVAL, "output=", ".json"),
    "search": ((*SEARCH, "picture=null"), "output=", ".json"),
    "search, picture": (SEARCH, "picture=", ".png"),
    "search, picture in WebP": (SEARCH, "picture=", ".webp"),
    "search, picture in JPEG": (SEARCH, "picture=", ".jpg"),
    "index": (("index", "run=run", "kind=flat"), "output=", ".faiss"),
    "index, description": (("index", "run=run", "kind=flat", "output=it.faiss"), None, ".faiss.json"),
    "index, check": (("index", "run=run", "kind=flat", "--check"), "check_output=", ".json"),
    "compare, CSV": (("compare", "runs"), "--output ", ".csv"),
    "compare, JSON": (("compare", "runs"), "--output ", ".json"),
    "compare, LaTeX": (("compare", "runs"), "--output ", ".tex"),
    "compare, Markdown": (("compare", "runs"), "--output ", ".md"),
    "report": (("report", "runs"), "-o ", ".html"),
}


def snapshot():
    """Return the SHA-256 of every file below the current folder, by its path."""
    found = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def call(deephash, hashed):
    """Prepare a run, runs, photos and third-party codes; return a function that calls a verb with an output."""
    shutil.copytree(hashed.run, "run")
    shutil.copytree(hashed.photos, "photos")
    write_run("runs/a", metrics={"per_class": None})
    rng = np.random.default_rng(0)
    for name, n in (("q", 5), ("d", 20)):
        np.save(f"{name}.npy", np.sign(rng.normal(size=(n, 16))).astype(np.int8))
        np.save(f"{name}l.npy", rng.integers(0, 3, n))

    def run(command, *more):
        filled = [word.format(photo="photos/bag/000.jpg") for word in (*command, *more)]
        return deephash(*filled)

    return run


def refused(call, command, *more):
    """Check that a command is refused in one sentence and changes nothing; return the sentence."""
    before = snapshot()
    result = call(command, *more)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result
    assert snapshot() == before
    return result.err.removeprefix("error: ").strip()


@pytest.mark.parametrize("case", sampled(FILES))
def test_a_file_of_somebody_else_is_replaced_only_if_asked_to(call, case):
    if case.startswith("index"):
        pytest.importorskip("faiss")
    command, name, ending = FILES[case]
    mine = Path(f"it{ending}" if name is None else f"mine{ending}")
    mine.write_text(WORK)
    typed = f"{name or ''}{mine}".split(" ") if name else []
    option = "--overwrite" if command[0] in ("compare", "report") else "overwrite=true"
    said = refused(call, command, *typed)
    assert f"{mine} exists, and deephash {command[0]} did not make it" in said
    assert said.endswith(f"add {option} to replace it")
    for words in ((*typed, option), tuple(typed)):  # what the verb made itself is replaced without being asked to
        result = call(command, *words)
        assert result.code == 0, result
        assert outputs.made_by(mine) == command[0]
    assert mine.read_bytes() != WORK.encode()


@pytest.mark.parametrize("spelling", ["{0}", "./{0}", "run/../{0}", "{1}/{0}", "link", "hard", "linked/{0}"])
@pytest.mark.parametrize(("name", "option"), [("query", ()), ("database_labels", ("overwrite=true",))])
def test_an_input_is_never_an_output(call, option, name, spelling):
    file = {"query": "q.npy", "database_labels": "dl.npy"}[name]
    Path("link").symlink_to(file)
    Path("hard").hardlink_to(file)
    Path("linked").symlink_to(".")
    path = spelling.format(file, Path.cwd())
    said = refused(call, EVAL, f"output={path}", *option)
    assert said == f"output={path} is {name}={file} itself, which is read: choose another output"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ((*SEARCH, "picture=photos/bag/000.jpg"), "picture=photos/bag/000.jpg is query=photos/bag/000.jpg itself"),
        ((*SEARCH, "picture=null", "output=photos/bag/000.jpg"), "output=photos/bag/000.jpg is query="),
        (("search", "run=run", "query=photos", "picture=photos/x.png"), "is inside query=photos"),
        (("search", "run=run", "query=linked", "picture=photos/bag/x.png"), "is inside query=linked"),
        (("search", "run=run", "query=.",), "picture=search.png is inside query=., whose images are read"),
        (("search", "run=run", "query=x", "index=it.faiss", "output=./it.faiss"), "is index=it.faiss itself"),
        (("encode", "run=run", "input=photos", "output=photos"), "output=photos is input=photos itself"),
        (("encode", "run=run", "input=photos", "output=linked/codes"), "output=linked/codes is inside input=photos"),
        (("encode", "run=run", "dataset=image_folder", "dataset.root=photos", "output=photos"), "is dataset.root="),
        (("export", "codes=run/codes", "to=faiss", "output=run/codes"), "output=run/codes is codes=run/codes itself"),
        ((*SEARCH, "output=x.png", "picture=./x.png"), "picture=./x.png names the same file as output=x.png"),
    ],
)  # fmt: skip
def test_nor_is_a_folder_of_images_or_another_output(call, command, sentence):
    Path("linked").symlink_to("photos")
    Path("it.faiss").write_text("")
    assert sentence in refused(call, command)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (("eval", "run=run"), "output=run/split.json"),
        (("eval", "run=run", "ks=[1]"), "output=run/metrics.json"),
        (("eval", "run=other"), "output=run/metrics.json"),
        (("eval", "codes=run/codes"), "output=run/codes/manifest.json"),
        (("eval", "run=run"), "output=to_run/../run/run.json"),
        (("eval", "run=run"), "output=to_record"),
        (("eval", "run=run"), "output=run/wandb/status.json"),
        (("eval", "run=run"), "output=run/notes.txt"),
        ((*SEARCH, "picture=null"), "output=run/metrics.json"),
        (SEARCH, "picture=run/gallery.webp"),
        (SEARCH, "picture=run/retrieval.webp"),
        (("index", "run=run", "check=true"), "check_output=run/retrieval.json"),
        (("export", "run=run", "to=faiss"), "output=run/checkpoints/out"),
        (("encode", "run=run", "input=photos", *FAST), "output=run/codes"),
        (("features", "input=photos"), "output=run/codes"),
        (("compare", "run"), "--output=run/metrics.json"),
        (("report", "run"), "--output=run/notes.html"),
        (("train", "dataset=image_folder", "dataset.root=photos", *QUICK), "run_dir=run/checkpoints/x"),
    ],
)
def test_the_files_of_a_run_are_never_replaced(call, command, output):
    shutil.copytree("run", "other")
    (Path("run") / "metrics.json").rename("kept.json")  # a name of the run, even if the file is not there now
    for name in ("notes.txt", "notes.html", "gallery.webp"):
        (Path("run") / name).write_text(WORK)
    Path("to_run").symlink_to("other")
    Path("to_record").symlink_to("run/run.json")
    option = {"compare": ["--overwrite"], "report": ["--overwrite"], "train": [], "encode": []}
    said = refused(call, command, output, *option.get(command[0], ["overwrite=true"]))
    assert re.search("is one of the files of the (run|codes) folder", said)


def test_new_files_in_a_run_folder_are_welcome(call):
    assert call(("eval", "run=run"), "output=run/again.json").code == 0
    assert call(("eval", "run=run"), "output=run/again.json").code == 0
    again = files.read_json(Path("run/again.json"))
    again["ceiling"].pop("map_features")  # only eval measures it
    assert again == files.read_json(Path("run/metrics.json"))


def test_the_metrics_of_a_run_can_be_written_again(call):
    before = Path("run/metrics.json").read_bytes()
    Path("run/metrics.json").write_text("{}")
    assert call(("eval", "run=run"), "output=run/metrics.json").code == 0
    assert Path("run/metrics.json").read_bytes() == before


@pytest.mark.parametrize("name", ["eval", "search", "compare, JSON", "report"])
def test_places_where_nothing_can_be_written(call, name):
    command, key, ending = FILES[name]
    Path(f"folder{ending}").mkdir()
    assert f"folder{ending} is a folder: give the name of a file" in refused(
        call, command, *f"{key}folder{ending}".split()
    )
    assert "is in a folder that does not exist" in refused(call, command, *f"{key}no/x{ending}".split())
    Path("round").symlink_to("round")
    if command[0] == "eval":
        assert "output=round cannot be used" in refused(call, command, "output=round")


def test_outputs_of_another_verb_are_kept(call):
    assert call(EVAL, "output=it.json").code == 0
    said = refused(call, (*SEARCH, "picture=null"), "output=it.json")
    assert said.startswith("output=it.json exists, and deephash eval made it: choose another output, or add overwrite=")


def test_names_that_nobody_typed_are_free_names(call):
    pytest.importorskip("faiss")
    Path("search.png").write_text(WORK)
    Path("report.html").write_text(WORK)
    assert "picture: search-2.png\n" in call(SEARCH).out
    assert "picture: search-3.png\n" in call(SEARCH).out
    assert "1 runs in report-2.html" in call(("report", "runs")).out
    for name in ("flat.faiss", "flat-2.faiss"):
        assert f"index: run/codes/{name} (" in call(("index", "run=run", "kind=flat")).out
    assert Path("search.png").read_text() == Path("report.html").read_text() == WORK


@pytest.mark.parametrize("command", [("export", "codes=run/codes", "to=faiss"), ("encode", "run=run", "input=photos")])
def test_a_folder_of_something_else_is_never_replaced(call, command):
    option = ["overwrite=true"] if command[0] == "export" else []
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text(WORK)
    said = f"output=mine is not empty, and deephash {command[0]} did not make it: choose another folder"
    assert refused(call, command, "output=mine", *option) == said
    assert refused(call, command, "output=q.npy", *option) == "output=q.npy is a file: choose a folder"
    assert "because" in refused(call, command, "output=q.npy/below", *option)
    assert refused(call, command, "output=/dev/null", *option) == "output=/dev/null is not a folder: choose a folder"


def test_an_export_replaces_an_export(call):
    pytest.importorskip("faiss")
    command = ("export", "codes=run/codes", "to=faiss", "output=made")
    assert call(command).code == 0
    names = sorted(path.name for path in Path("made").iterdir())
    assert refused(call, command).startswith("output=made already exists: choose another folder, or add overwrite=true")
    assert call(command, "side=query", "overwrite=true").code == 0
    assert sorted(path.name for path in Path("made").iterdir()) == names
    assert json.loads(Path("made/source.json").read_text())["side"] == "query"
    assert not list(Path().glob(".made*"))
    Path("made/notes.txt").write_text(WORK)
    assert "did not make it" in refused(call, command, "overwrite=true")


def test_links_are_kept_and_devices_are_written_to(call):
    Path("other").mkdir()
    Path("link.json").symlink_to("other/real.json")
    for _ in range(2):
        assert call(EVAL, "output=link.json").code == 0
        assert Path("link.json").is_symlink()
        assert "map" in json.loads(Path("other/real.json").read_text())
    for command in (EVAL, (*SEARCH, "picture=/dev/null"), ("compare", "runs", "--format=csv"), ("report", "runs")):
        option = "--output=/dev/null" if command[0] in ("compare", "report") else "output=/dev/null"
        assert call(command, option).code == 0
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(Path("pipe"), "whole")
    assert os.read(reader, 100) == b"whole"
    os.close(reader)


def test_a_stream_that_goes_to_a_file_is_appended_to():
    code = (
        "from pathlib import Path; from deephash_cli.files import write_text; print('before');"
        "write_text(Path('/dev/stdout'), 'whole\\n'); print('after')"
    )
    with Path("log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert Path("log").read_text() == "before\nwhole\nafter\n"


def test_refusals_need_no_torch(call):
    commands = [
        ["search", "run=run", "query=photos", "output=q.npy"],
        ["encode", "run=run", "input=photos", "output=photos"],
        ["features", "input=photos", "output=photos"],
        ["export", "run=run", "to=onnx", "output=q.npy"],
        ["eval", "run=run", "output=q.npy"],
        ["train", "dataset=image_folder", "dataset.root=photos", "run_dir=photos"],
        ["train", "dataset=image_folder", "dataset.root=photos", "runs=q.npy"],
    ]
    code = (
        "import sys; from deephash_cli.cli.main import run;"
        f"codes = [run(command) for command in {commands!r}];"
        "assert codes == [2] * 7, codes; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100)


def test_a_file_that_looks_like_an_output_and_is_none(tmp_path):
    for name, content in {
        "a.json": b'{"map": 1}',
        "b.json": b"\xff" * 100,
        "c.png": b"\x89PNG\r\n\x1a\n broken",
        "d.html": b"<!DOCTYPE html>\n<html>",
        "e.csv": b"dataset,split,mine\n",
        "f.faiss": b"index",
        "g.json": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert outputs.made_by(tmp_path / name) is None
