"""Files are whole or absent and only plain ones are read; sealed JSON notices any change; full disks are explained."""

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from faults import Fault

from deephash_cli import files
from deephash_cli.errors import ArtifactError
from deephash_cli.files import (
    alone,
    atomic_folder,
    atomic_write,
    is_sealed,
    read_json,
    read_sealed,
    remove_leftovers,
    write_bytes,
    write_json,
    write_sealed,
)

CONTENT = {"name": "çode", "rate": 1e-05, "inner": {"list": [1, 2, {}]}, "nothing": None}


def test_what_is_sealed_is_read_back(tmp_path: Path):
    file = tmp_path / "record.json"
    write_sealed(file, CONTENT)
    assert read_sealed(file) == CONTENT
    assert is_sealed(file)
    assert list(read_json(file)) == [*CONTENT, "sealed", "seal"]  # any reader of JSON can read it


def test_every_flipped_bit_is_noticed(tmp_path: Path):
    file = tmp_path / "record.json"
    write_sealed(file, CONTENT)
    whole = file.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(ArtifactError):
                read_sealed(file)


def test_what_was_cut_or_added_is_noticed(tmp_path: Path):
    file = tmp_path / "record.json"
    write_sealed(file, CONTENT)
    text = file.read_text()
    otherwise = text.replace('"name"', '"name "'), text.replace('  "seal"', ' "seal"')
    for changed in (text[:-1], f"{text}\n", *otherwise, "{"):
        file.write_text(changed)
        with pytest.raises(ArtifactError):
            read_sealed(file)


def test_a_file_without_a_seal_is_read(tmp_path: Path):
    file = tmp_path / "record.json"
    write_json(file, CONTENT)
    assert read_sealed(file) == CONTENT
    assert not is_sealed(file)
    file.write_text(json.dumps([1]))
    with pytest.raises(ArtifactError, match="must be a JSON object"):
        read_sealed(file)


# Leftovers and locks


def test_leftovers_of_dead_processes_are_removed_and_nothing_else(tmp_path: Path):
    (tmp_path / ".a.json.abcdefgh.tmp").write_text("half")
    (tmp_path / ".b.json.abcdefgh.tmp").mkdir()
    (tmp_path / ".b.json.abcdefgh.tmp" / "part").write_text("half")
    for name in (".notes.tmp", "x.tmp", ".a.json.ABCDEFGH.tmp", ".a.json.abcdefgh.tmp.bak"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".link.abcdefgh.tmp").symlink_to(tmp_path / "x.tmp")
    kept = {".notes.tmp", "x.tmp", ".a.json.ABCDEFGH.tmp", ".a.json.abcdefgh.tmp.bak", ".link.abcdefgh.tmp"}
    with atomic_write(tmp_path / "a.json") as file, atomic_folder(tmp_path / "b.json") as folder:
        file.write(b"whole")
        (folder / "part").write_text("whole")
        remove_leftovers(tmp_path, "b.json")
        assert (tmp_path / ".a.json.abcdefgh.tmp").exists(), "of another file"
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == len(kept) + 2
        assert folder.is_dir(), "what is being written stays"
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.json", "b.json"}
    assert ((tmp_path / "a.json").read_text(), (tmp_path / "b.json" / "part").read_text()) == ("whole", "whole")


def test_a_temporary_file_that_was_taken_for_a_leftover_is_made_again(tmp_path: Path, monkeypatch):
    real, removed = files.lock, []

    def lose_the_first(file, **options):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        return real(file, **options)

    monkeypatch.setattr(files, "lock", lose_the_first)
    write_json(tmp_path / "a.json", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_says_how_much_is_needed_and_free(tmp_path: Path):
    with Fault("write", tmp_path, 1).armed(), pytest.raises(ArtifactError) as raised:
        write_bytes(tmp_path / "big", b"x" * 2_500_000)
    expected = rf"could not write {tmp_path}/big: No space left on device \(2\.5 MB are needed, \d+\.\d MB are free\); "
    assert re.match(expected, str(raised.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [1, 2])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, at: int):
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("old")
    with (
        Fault("replace", tmp_path, at).armed(),
        pytest.raises(ArtifactError),
        atomic_folder(tmp_path / "a", replace=True) as folder,
    ):
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "old"


def test_a_lock_on_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"could not open .* for writing: Is a directory"), alone(tmp_path):
        pass


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠"])  # noqa: RUF001
def test_a_cell_of_csv_is_no_formula(sign):
    text = files.csv_text(["name"], [{"name": f"{sign}cmd()"}])
    assert next(csv.DictReader(io.StringIO(text, newline="")))["name"] == f"'{sign}cmd()"


def test_text_for_the_terminal_has_no_commands():
    record = {"name": "a\x1b[31mb\x9bc", "more": "é"}
    for text in (files.csv_text(["name", "more"], [record]), files.json_text(record)):
        assert "é" in text
        assert not {"\x1b", "\x9b"} & {*text}
    assert json.loads(files.json_text(record)) == record


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nothing"])
def test_only_plain_files_are_opened(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="does not exist" if kind == "nothing" else "is not a plain file"):
        files.read_json(path)
