"""Edit records of runs and codes as somebody does who makes the digests fit: only later checks can find the edit."""

import json
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.files import read_sealed, sha256_file
from deephash_cli.runs import sealing


def put(file: Path | str, content: Any) -> None:
    """Write a record without a digest of its own, as earlier versions did."""
    Path(file).write_text(json.dumps(content))


def edit(file: Path | str, **changes: Any) -> None:
    """Change entries of a record; None removes one."""
    content = {**read_sealed(Path(file)), **changes}
    put(file, {name: value for name, value in content.items() if value is not None})


def renew(run: Path | str) -> None:
    """Make the digests in the record of a run those of its present files."""
    file = Path(run) / runs.RECORD
    known = sealing.digests(read_sealed(file))
    edit(file, files={name: sha256_file(Path(run) / name) for name in known if (Path(run) / name).is_file()})


def forget(run: Path | str, name: str) -> None:
    """Remove the digest of a file from the record of a run."""
    file = Path(run) / runs.RECORD
    edit(file, files={other: digest for other, digest in read_sealed(file)["files"].items() if other != name})
