"""The digests of the files of a run folder. They are in its record, ``run.json``, under ``files``.

A digest is removed from the record before its file is written again, and recorded after that. A process that is killed
in between therefore leaves no file that looks damaged. A digest of a file that was not written again stays as it is, so
that no damage is ever recorded as the right content.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deephash_cli.errors import ArtifactError, command
from deephash_cli.files import read_sealed, sha256_file

RECORD = "run.json"
FILES = "files"  # the entry of the record

LIMIT = 2**21  # bytes of the record
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read(folder: Path) -> dict[str, Any]:
    """Read the record of a run folder without checking its entries.

    Raises:
        ArtifactError: If the record is missing, too large, not a JSON object, or not as it was written.
    """
    try:
        return read_sealed(folder / RECORD, LIMIT)
    except ArtifactError as error:
        if not (folder / RECORD).exists():
            raise
        raise ArtifactError(f"{error}; {remedy(folder, RECORD)}") from error


def digests(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests in a record by the names of the files; empty if an earlier version wrote the record."""
    known = record.get(FILES)
    if not isinstance(known, Mapping):
        return {}
    return {name: value for name, value in known.items() if isinstance(value, str) and _DIGEST.fullmatch(value)}


def measured(file: Path) -> str:
    """Compute the digest of a file.

    Raises:
        ArtifactError: If the file cannot be read.
    """
    try:
        return sha256_file(file)
    except OSError as error:
        raise ArtifactError(f"could not read {file}: {error.strerror or error}") from error


def state(file: Path) -> tuple[int, ...] | None:
    """Return numbers that change when a file is written again; None if it is no plain file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def require_intact(folder: Path, *names: str) -> None:
    """Compare files of a run folder with their digests in its record. A file without a digest is accepted.

    Args:
        folder: Run folder, which may come from another person. If it has no record, nothing is compared.
        *names: Names of the files, relative to the folder.

    Raises:
        ArtifactError: If the record is damaged, or if a file is missing or not as it was written.
    """
    if not os.path.lexists(folder / RECORD):
        return
    known = digests(read(folder))
    for name in names:
        if name in known and (reason := difference(folder, name, known[name])):
            raise ArtifactError(f"{folder / name} {reason}; {remedy(folder, name)}")


def difference(folder: Path, name: str, digest: str) -> str | None:
    """Return how a file of a run folder differs from its digest, as the end of a sentence; None if it does not."""
    file = folder / name
    try:
        if not file.is_file():  # reading a pipe or a device could block forever
            return f"is not a plain file, although {RECORD} has its SHA-256" if file.exists() else "is missing"
        if sha256_file(file) == digest:
            return None
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return f"does not match its SHA-256 in {RECORD}: it was damaged or edited by hand"


def remedy(folder: Path, name: str) -> str:
    """Return what gets back a damaged or missing file of a run folder, as the second half of a sentence."""
    again = command("deephash", "train", f"resume={folder}")
    if name in (RECORD, "config.yaml"):
        return "copy it from a backup, or remove the folder and train again"
    if name == "split.json":
        return f"copy it from a backup, or delete it and {again} makes it again"
    if name in ("metrics.jsonl", "head.jsonl"):
        return f"copy it from a backup, or delete it and run {again}: only the training curves so far are lost"
    if name == "metrics.json":
        return f"{command('deephash', 'eval', f'run={folder}', f'output={folder / name}')} writes it again"
    return f"{again} makes it again"
