"""Sealed JSON notices any change of a byte; only plain files are read; text for terminals and CSV is harmless."""

import csv
import io
import json
import os
from pathlib import Path

import pytest

from deephash_cli import files
from deephash_cli.errors import ArtifactError
from deephash_cli.files import is_sealed, read_json, read_sealed, write_json, write_sealed

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
