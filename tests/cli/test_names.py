"""Names of files on the command line: any name works in quotes for the shell alone."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from deephash_cli import runs
from deephash_cli.cli import arguments, checking, sweep
from deephash_cli.cli.limits import PATHS
from deephash_cli.errors import command

ODD = (
    "IMG (1).jpg", " leading", "trailing ", "a,b", "a=b", "it's", 'say "x"', "'a', 'b'", "[x]", "{y}", "#1", "a&b",
    "$HOME", "100%", "back\\slash", "end\\", "a:b", "*", "what?", "!", "~", "~x9/y", "é", "e\u0301", "日本", "😀",
    "2024", "1e5", "0x10", "1_000", "true", "NaN", "inf", "???", "./null", "${x}", "${", "\\${x}", "-x", "--check",
    "choice(a,b)", "two\nlines", "tab\t",
)  # fmt: skip


def read(override: str, verb: str = "search"):
    """Return the value of the setting in the composed and resolved configuration."""
    return checking.check(verb, [override], None, multirun=False)[override.split("=")[0]]


@pytest.mark.parametrize("name", [name for name in ODD if "/" not in name])
def test_a_file_of_any_name_is_found(name):
    Path(name).write_text("")
    value = read(arguments.normalize(f"query={name}"))
    assert Path(value).samefile(name)
    assert value == name or name in ("~", "???")


@pytest.mark.parametrize("name", [name for name in ODD if "${" not in name])
def test_a_name_that_does_not_exist_reaches_the_verb(name):
    meant = {"~": os.environ["HOME"], "~x9/y": str(Path("~x9/y").absolute()), "???": "./???"}.get(name, name)
    assert read(arguments.normalize(f"query={name}")) == meant


@settings(max_examples=100, deadline=None)
@given(st.text("ab1 '\"\\(){}[],=:$#~\n\té日/.+-", min_size=1, max_size=8))
def test_text_that_is_neither_quoted_nor_an_interpolation_is_taken_as_it_is(text):
    if text[0] not in "'\"~" and "\\" not in text and "${" not in text:
        assert arguments.value_of(arguments.normalize(f"output={text}")) == text


@pytest.mark.parametrize("key", PATHS)
def test_every_path_of_every_verb_is_quoted(key):
    quoted = "=" + "'a (1), b'"
    assert arguments.normalize(f"{key}=a (1), b") == key + quoted
    assert arguments.normalize(f"+{key}=a (1), b") == f"+{key}{quoted}"
    assert arguments.normalize(f"{key}=a/plain-1.jpg") == f"{key}=a/plain-1.jpg"


def test_null_quotes_escapes_home_and_interpolations_keep_their_meaning(monkeypatch):
    monkeypatch.setenv("PLACE", "some where")
    assert read("query=null") is None
    assert arguments.normalize("query=null") == "query=null"
    for typed, meant in {
        "'a b'": "a b",
        '"a (1)"': "a (1)",
        "a\\ \\(1\\)": "a (1)",
        "~/a b": f"{os.environ['HOME']}/a b",
        "${oc.env:PLACE}/a (1)": "some where/a (1)",
    }.items():
        assert read(arguments.normalize(f"query={typed}")) == meant
    Path("'a b'").write_text("")
    assert read(arguments.normalize("query='a b'")) == "'a b'"  # the file of this very name
    Path("${oc.env:PLACE}").mkdir()
    assert read(arguments.normalize("query=${oc.env:PLACE}/new (1)")) == "${oc.env:PLACE}/new (1)"


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("a,b", ["a", "b"]),
        ("a (1), é", ["a (1)", "é"]),
        ("it's,that's", ["it's", "that's"]),
        ("'a,b',c", ["a,b", "c"]),
        ("choice(a,b)", ["a", "b"]),
        ("here, it is", ["here, it is"]),  # it exists
        ("2024", ["2024"]),
    ],
)
def test_a_comma_separates_the_values_of_a_sweep_unless_the_whole_exists(typed, values):
    Path("here, it is").mkdir()
    (override,) = [arguments.normalize(f"dataset.root={typed}", "train", multirun=True)]
    swept = [override]
    if len(values) > 1:
        swept = [checking.first_job([override])[0]]
    assert sweep.plain(swept[0]) == f"dataset.root={values[0]}"
    found = [typed] if override.count("=") == 1 and len(values) == 1 else None
    assert found is None or sweep.plain(override) == f"dataset.root={typed}"


def test_bytes_that_are_not_text_are_refused(deephash):
    result = deephash("search", "query=\udcff.jpg")
    assert result.code == 2
    assert "is not UTF-8 text: rename the file or folder" in result.err


@pytest.mark.parametrize("name", sampled(['my "photos" (2024), it\'s été', "${x}"]))
def test_a_run_and_a_sweep_on_a_folder_of_any_name(deephash, name):
    data = Path(name)
    data.mkdir()
    kinds = np.arange(40) % 2
    np.save(data / "x.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    np.save(data / "y.npy", kinds)
    vectors = (
        "dataset=vectors", f"dataset.vectors={name}/x.npy", f"dataset.labels={name}/y.npy", "method=itq", "bits=4",
        "gallery=false", *[setting for setting in QUICK if not setting.startswith("model")],
    )  # fmt: skip
    run = f"{name}/run (1)"
    first = deephash("train", *vectors, f"run_dir={run}")
    assert first.code == 0, first
    remedy = first.out.splitlines()[-2].split("from the codes: ")[1]
    assert shlex.split(remedy) == ["deephash", "eval", f"run={run}"]
    assert deephash(*shlex.split(remedy)[1:]).code == 0
    again = deephash("train", f"resume={run}")
    assert f"already done: {run}" in again.out
    assert f"already done: {run}" in deephash("train", *vectors, f"run_dir={run}", "resume=auto").out

    swept = deephash("train", "-m", "seed=1,2", *vectors, f"runs={name}/runs")
    assert swept.code == 0, swept
    assert f"dataset.vectors={name}/x.npy" in swept.out
    (job, *_) = sorted(Path(f"{name}/runs/.sweeps").glob("*/jobs-*/job-*.json"))
    assert f"dataset.vectors={name}/x.npy" in json.loads(job.read_text())["overrides"]
    record, *_ = [path for path, _ in runs.scan(Path(f"{name}/runs"))]
    assert f"already done: {record}" in deephash("train", f"resume={record}").out
    assert name in deephash("runs", "--", name).out


def test_an_old_run_folder_with_settings_in_hydras_quotes_is_taken_up(tmp_path):
    from deephash_cli.cli.launch import _settings_of

    old = ["dataset.root='a b'", 'dataset.file="x (1)"', "dataset.labels=a\\ b", "bits='8'"]
    assert _settings_of(tmp_path, old) == old


def test_a_folder_of_ones_own_choices_may_have_any_name(deephash):
    folder = Path("my conf (1), ${é}")
    (folder / "bits").mkdir(parents=True)
    (folder / "bits" / "20.yaml").write_text("# @package _global_\nbits: 20\nseed: 7\n")
    result = deephash("train", "--config-dir", str(folder), "bits=20", "--cfg", "job")
    assert result.code == 0, result
    assert "seed: 7\n" in result.out


@pytest.mark.parametrize(
    "words", [("deephash", "eval", "run=my runs/it's (1)"), ("resume=a&b;$c",), ("plain=1",), ("run=it's\n\\two\xa0é",)]
)
def test_a_command_in_a_message_can_be_typed_into_bash(words):
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command(*words)}"], capture_output=True, text=True, check=True
    )
    assert tuple(printed.stdout.split("\0")[:-1]) == words
    assert command("deephash", "report", Path("-x")) == "deephash report ./-x"


@pytest.mark.parametrize(
    "typed",
    ["logger.tags=[a (1)]", "model.name=it's (1)", 'x="a" (1)', "x=a\nb (1)", "x=\\ (", "seed={", "a (1)", "x=é'"],
)
def test_the_quotes_that_a_message_advises_are_accepted_by_bash_and_by_hydra(deephash, typed):
    message = deephash("train", typed).err
    assert "quote a value with special characters twice, such as " in message
    advised = message.rstrip("\n").split("such as ")[1]
    printed = subprocess.run(["bash", "-c", f"printf '%s' {advised}"], capture_output=True, text=True, check=True)
    assert "could not read" not in deephash("train", printed.stdout, "--cfg", "job").err


@pytest.mark.parametrize(("verb", "typed"), [("train", "seed=${foo"), ("search", "query=${foo")])
def test_an_interpolation_that_is_not_closed_is_not_advised_to_use_quotes(deephash, verb, typed):
    message = deephash(verb, typed).err
    assert "a closing brace is missing" in message
    assert "quote" not in message


def test_completion_behind_a_name_with_spaces(deephash, monkeypatch):
    line = "deephash train dataset=image_folder dataset.root='my photos (1)' optimizer.l"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    result = deephash("-sc", "query=bash")
    assert (result.code, result.out.split()) == (0, ["optimizer.lr="])
