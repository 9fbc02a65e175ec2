"""Sealed JSON: any change of a byte is noticed, and files of earlier versions are still read."""

import json
from pathlib import Path

import pytest

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
