"""Digests in the record of a run: written when a file is done, kept when it is not, and never of what was damaged."""

import json
import os
from pathlib import Path

import pytest

from deephash_cli import runs
from deephash_cli.errors import ArtifactError
from deephash_cli.files import is_sealed, sha256_file
from deephash_cli.runs import sealing

OLD = {"status": "finished", "started": "x", "fingerprint": "f", "overrides": []}


def begun(folder: Path) -> runs.Run:
    folder.mkdir(exist_ok=True)
    run = runs.Run(folder)
    run.start("seed: 0\n", "f", ["seed=0"])
    return run


def written(folder: Path, **files: str) -> Path:
    """A finished run with these files, whose names have an underscore in the place of a point."""
    run = begun(folder)
    names = {name.replace("_", "."): text for name, text in files.items()}
    run.unseal(*names)
    for name, text in names.items():
        (folder / name).write_text(text)
    run.end("finished")
    run.close()
    return folder


def digests(folder: Path) -> dict[str, str]:
    return sealing.digests(runs.read_record(folder))


def test_the_record_has_the_digest_of_every_file_that_was_written(tmp_path):
    folder = written(tmp_path / "run", metrics_json="{}", split_json="[]")
    assert is_sealed(folder / runs.RECORD)
    names = ("config.yaml", "metrics.json", "split.json")
    assert digests(folder) == {name: sha256_file(folder / name) for name in names}
    runs.require_intact(folder, *runs.DIGESTED)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("metrics.json", "deephash eval run={0} output={0}/metrics.json writes it again"),
        ("split.json", "copy it from a backup, or delete it and deephash train resume={0} makes it again"),
        ("retrieval.json", "deephash train resume={0} makes it again"),
        ("config.yaml", "copy it from a backup, or remove the folder and train again"),
    ],
)
@pytest.mark.parametrize("damage", ["flip", "missing", "pipe"])
def test_a_damaged_file_is_one_sentence_with_what_gets_it_back(tmp_path, name, remedy, damage):
    folder = written(tmp_path / "run", metrics_json="{}", split_json="[]", retrieval_json="{}")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    reason = "is missing"
    if damage == "flip":
        (folder / name).write_bytes(bytes([content[0] ^ 4]) + content[1:])
        reason = "does not match its SHA-256 in run.json: it was damaged or edited by hand"
    elif damage == "pipe":
        os.mkfifo(folder / name)
        reason = "is not a plain file, although run.json has its SHA-256"
    with pytest.raises(ArtifactError) as caught:
        runs.require_intact(folder, name)
    assert str(caught.value) == f"{folder / name} {reason}; {remedy.format(folder)}"


def test_a_record_of_an_earlier_version_accepts_everything(tmp_path):
    (tmp_path / runs.RECORD).write_text(json.dumps(OLD))
    (tmp_path / "metrics.json").write_text("anything")
    runs.require_intact(tmp_path, "metrics.json", "missing.json")
    runs.require_intact(tmp_path / "no folder", "metrics.json")


@pytest.mark.parametrize("files", [None, [], "x", {"metrics.json": 1}, {"metrics.json": "x"}, {"metrics.json": None}])
def test_digests_that_are_none_are_left_out(files):
    assert sealing.digests({"files": files}) == {}


def test_a_damaged_record_is_refused(tmp_path):
    folder = written(tmp_path / "run")
    file = folder / runs.RECORD
    file.write_text(file.read_text().replace('"seed=0"', '"seed=1"'))
    with pytest.raises(ArtifactError, match=r"run.json does not match its own SHA-256.*; copy it from a backup, or "):
        runs.read_record(folder)


def test_a_kill_while_files_are_written_leaves_none_that_looks_damaged(tmp_path):
    """Between ``unseal`` and ``seal`` the record has no digest of the file, whatever is in it."""
    folder = written(tmp_path / "run", metrics_json="{}")
    run = begun(folder)
    run.unseal("metrics.json")
    (folder / "metrics.json").write_text("half")
    run.close()
    assert "metrics.json" not in digests(folder)
    runs.require_intact(folder, *runs.DIGESTED)


def test_a_new_configuration_never_stands_beside_the_digest_of_the_old_one(tmp_path, monkeypatch):
    folder = written(tmp_path / "run")

    def killed(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.folder, "write_text", killed)
    run = runs.Run(folder)
    with pytest.raises(KeyboardInterrupt):
        run.start("seed: 1\n", "f", ["seed=1"])
    run.close()
    assert digests(folder) == {}


def test_what_a_resumed_run_does_not_write_keeps_its_digest_even_if_it_is_damaged(tmp_path):
    folder = written(tmp_path / "run", metrics_json="{}", retrieval_json="{}", split_json="[]")
    before = digests(folder)
    for name in ("metrics.json", "retrieval.json"):
        (folder / name).write_text("damaged")
    run = begun(folder)
    run.unseal("metrics.json", "split.json")  # to be written, but the run fails before that
    run.end("failed", "why")
    run.close()
    assert digests(folder) == before
    with pytest.raises(ArtifactError, match=r"metrics.json does not match"):
        runs.require_intact(folder, "metrics.json")


def test_what_an_earlier_version_wrote_gets_no_digest_before_it_is_written_again(tmp_path):
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / "split.json").write_text("old")
    (tmp_path / runs.RECORD).write_text(json.dumps(OLD))
    run = runs.Run(tmp_path)
    run.unseal("metrics.json", "split.json")
    (tmp_path / "split.json").write_text("new")
    run.seal()
    run.close()
    assert digests(tmp_path) == {"split.json": sha256_file(tmp_path / "split.json")}
    assert is_sealed(tmp_path / runs.RECORD)


def test_a_file_that_was_deleted_is_forgotten_by_a_resumed_run(tmp_path):
    folder = written(tmp_path / "run", error_txt="why")
    (folder / "error.txt").unlink()
    run = begun(folder)
    run.end("finished")
    run.close()
    assert digests(folder).keys() == {"config.yaml"}
