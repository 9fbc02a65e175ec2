"""Compare everything that deephash wrote below some folders with its digests, and say what is damaged.

Nothing in a folder is trusted: only files whose names deephash itself uses are opened, and only plain files.
Links to folders are not followed. Files are read in blocks, and records have a limit of size.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.errors import ArtifactError, ConfigError, command, first_line, short
from deephash_cli.files import is_sealed, read_sealed, sha256_start
from deephash_cli.retrieval import codes_folder, indexes
from deephash_cli.retrieval.codes_folder import MANIFEST, PLAN, SHARDS
from deephash_cli.runs import sealing
from deephash_cli.runs.outputs import EXPORTED, exporter

# What a verified thing can be, the worst first.
DAMAGED, RUNNING, UNFINISHED, UNVERIFIED, INTACT = STATES = (
    "damaged", "running", "unfinished", "unverified", "intact",
)  # fmt: skip

_SIDECAR_LIMIT = 2**20  # bytes of the record of a checkpoint
_OLD = "an earlier version wrote it without digests"
_CACHE = "delete it: the next run makes it again"
_SHARD = re.compile(r"\d{6,}")
_DRAFT = re.compile(r"\..*\.tmp")  # the name of what a process was writing when it was killed


@dataclass(frozen=True)
class Problem:
    """A damaged or missing file.

    Attributes:
        file: The file.
        what: What is wrong with it, as a sentence that names it.
        remedy: What gets it back.
    """

    file: Path
    what: str
    remedy: str


@dataclass(frozen=True)
class Checked:
    """A run, a set of codes, an index or something else that was compared with its digests.

    Attributes:
        path: Folder or file.
        kind: ``run``, ``codes``, ``index``, ``export``, ``features``, ``images`` or ``checkpoint``.
        state: One of ``STATES``.
        problems: Damaged files; empty unless the state is ``damaged``.
        note: Why the state is neither ``intact`` nor ``damaged``; empty otherwise.
    """

    path: Path
    kind: str
    state: str
    problems: list[Problem] = field(default_factory=list)
    note: str = ""


def verify(paths: Iterable[Path]) -> Iterator[Checked]:
    """Verify everything at or below some paths, one after another, each once.

    Args:
        paths: Folders, or files that have a record beside them: an index, a checkpoint, cached images.

    Raises:
        ConfigError: If a path does not exist, or is a file without a record.
    """
    seen = set()
    for path in paths:
        for thing, check in _things(path):
            if (real := os.path.realpath(thing)) not in seen:
                seen.add(real)
                yield _checked(thing, check)


def _checked(path: Path, check: Callable[[Path], Checked]) -> Checked:
    """Verify a thing whose files may be unreadable, or change at the same time."""
    try:
        return check(path)
    except (ArtifactError, OSError, ValueError) as error:
        kind = check.__name__.removeprefix("check_")
        return Checked(path, kind, DAMAGED, [Problem(path, f"{path}: {first_line(error)}", "verify it again")])


def _things(path: Path) -> Iterator[tuple[Path, Callable[[Path], Checked]]]:
    """Yield everything at or below a path that can be verified, with the function that does it."""
    if _is_file(path):
        check = _check_of_file(path)
        if check is None:
            beside = "an index, a checkpoint or cached images with the record that deephash wrote beside it"
            raise ConfigError(f"{short(str(path))} is a file without digests: give a folder, or {beside}")
        yield path, check
        return
    if not os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises an error if a name is too long
        raise ConfigError(f"{short(str(path))} does not exist: give run folders, folders of codes, or folders of these")
    for parent, below, files in os.walk(path):
        folder = Path(parent)
        check = _check_of_folder(folder, below, files, is_given=folder == path)
        if check is not None:
            yield folder, check
        if check is check_run:
            below[:] = [name for name in below if name == runs.CODES]
        elif check is not None:
            below.clear()
        below[:] = sorted(name for name in below if not _DRAFT.fullmatch(name))
        if check in (check_export, check_features):
            continue
        for name in sorted(files):
            if (of_file := _check_of_file(folder / name)) is not None:
                yield folder / name, of_file


def _check_of_folder(
    folder: Path, below: Sequence[str], files: Sequence[str], is_given: bool
) -> Callable[[Path], Checked] | None:
    """Return what verifies a folder; None if deephash did not make it, or a run that has it as a part is verified."""
    if runs.RECORD in files or ({runs.CONFIG, runs.SPLIT} <= {*files} and runs.CHECKPOINTS in below):
        return check_run
    if not is_given and folder.name == runs.CODES and _is_file(folder.parent / runs.RECORD):
        return None
    if PLAN in files or SHARDS in below or (MANIFEST in files and "database.npy" in files):
        return check_codes
    if EXPORTED in files and "README.txt" in files:
        return check_export
    return check_features if {"features.npy", "partial.npy"} & {*files} else None


def _check_of_file(file: Path) -> Callable[[Path], Checked] | None:
    """Return what verifies a file; None if it has no record of its own."""
    record = file.with_name(f"{file.name}.json")
    if file.suffix == ".faiss" and _is_file(record):
        return check_index
    if file.suffix == ".ckpt" and _is_file(record):
        return check_checkpoint
    if file.suffix == ".npy" and re.fullmatch(r"[0-9a-f]{64}", file.stem) and _is_file(file.with_suffix(".json")):
        return check_images
    return None


def check_run(folder: Path) -> Checked:
    """Verify a run folder with its codes and its checkpoints. Nothing is compared while a process is writing to it."""
    problems, known, status, sealed = [], {}, "finished", True
    try:
        record = runs.read_record(folder)
        status, known = runs.status(folder, record), sealing.digests(record)
        sealed = is_sealed(folder / runs.RECORD, sealing.LIMIT)
    except ArtifactError as error:
        problems = [_problem(folder / runs.RECORD, error, sealing.remedy(folder, runs.RECORD))]
    if status == "running":
        return Checked(folder, "run", RUNNING, note="a process is writing to it: verify it again when it has ended")
    problems += [*damaged_results(folder, known), *_damaged_checkpoints(folder)]
    if problems:
        return Checked(folder, "run", DAMAGED, problems)
    if status != "finished":
        return Checked(folder, "run", UNFINISHED, note=f"{status}; everything that has a digest is intact")
    lacking = [name for name in runs.DIGESTED if name not in known and (folder / name).exists()]
    manifest = folder / runs.CODES_MANIFEST
    if lacking or not sealed or (_is_file(manifest) and not is_sealed(manifest, sealing.LIMIT)):
        return Checked(folder, "run", UNVERIFIED, note=_OLD + (f" of {', '.join(lacking)}" if lacking else ""))
    return Checked(folder, "run", INTACT)


def damaged_results(folder: Path, known: Mapping[str, str]) -> list[Problem]:
    """Compare the files of a run with their digests, and the files of its codes with their manifest.

    Args:
        folder: Run folder.
        known: Digests in the record of the run.
    """
    problems = {
        folder / name: Problem(folder / name, f"{folder / name} {reason}", sealing.remedy(folder, name))
        for name in runs.DIGESTED
        if name in known and (reason := sealing.difference(folder, name, known[name]))
    }
    if _is_file(folder / runs.CODES_MANIFEST):
        remedy = sealing.remedy(folder, runs.CODES)
        for file, what in codes_folder.damages(folder / runs.CODES):
            problems.setdefault(file, Problem(file, what, remedy))
    return list(problems.values())


def _damaged_checkpoints(folder: Path) -> list[Problem]:
    """Compare the checkpoints of a run with their records, and look for the one that made its codes."""
    place, maker = folder / runs.CHECKPOINTS, _maker_of_codes(folder)
    files = sorted(place.glob("*.ckpt")) if place.is_dir() else []
    lost = "copy it from a backup, or train again; until then the codes can be evaluated, but no image encoded"
    other = "delete it: a resumed run continues from the other checkpoint, or begins again"
    problems = [
        Problem(file, reason, lost if file.name == maker else other)
        for file in files
        if (reason := _checkpoint_damage(file))
    ]
    if maker is not None and place / maker not in files:
        problems.append(Problem(place / maker, f"{place / maker} is missing", lost))
    return problems


def _maker_of_codes(folder: Path) -> str | None:
    """Return the name of the checkpoint that made the codes of a run; None if it is not known."""
    try:
        provenance = codes_folder.read_manifest(folder / runs.CODES, ()).get("provenance") or {}
        return Path(provenance["checkpoint"]["file"]).name
    except (ArtifactError, KeyError, TypeError, ValueError):
        return None


def _checkpoint_damage(file: Path) -> str | None:
    """Return what is wrong with a checkpoint or its record, as a sentence; None if they agree."""
    sidecar = file.with_name(f"{file.name}.json")
    if not _is_file(sidecar):
        return f"{file} has no {sidecar.name} beside it, which has its SHA-256"
    try:
        record = read_sealed(sidecar, _SIDECAR_LIMIT)
    except ArtifactError as error:
        return str(error)
    return _difference(file, record.get("sha256"), record.get("bytes"), sidecar.name)


def check_checkpoint(file: Path) -> Checked:
    """Verify a checkpoint that is not inside a run folder."""
    reason = _checkpoint_damage(file)
    problems = [Problem(file, reason, "copy it from a backup, or train again")] if reason else []
    return Checked(file, "checkpoint", DAMAGED if problems else INTACT, problems)


def check_codes(folder: Path) -> Checked:
    """Verify a folder of codes: those of ``deephash encode`` with their shards, too, and copies of a run's codes."""
    problems: list[Problem] = []
    plan, shards = folder / PLAN, folder / SHARDS
    encoded = os.path.lexists(plan)
    again = "the same deephash encode command makes it again" if encoded else "copy it from a backup, or encode again"
    records = [file for file in (plan, folder / MANIFEST) if _is_file(file)]
    if encoded:
        try:
            read_sealed(plan, sealing.LIMIT)
        except ArtifactError as error:
            problems.append(_problem(plan, error, "delete the folder and encode again"))
    if os.path.lexists(folder / MANIFEST):
        problems += [Problem(file, what, again) for file, what in codes_folder.damages(folder)]
    done = 0
    for shard in sorted(shards.iterdir()) if shards.is_dir() else ():
        if _SHARD.fullmatch(shard.name) and shard.is_dir() and not shard.is_symlink():
            done += 1
            records.append(shard / MANIFEST)
            problems += [Problem(file, what, again) for file, what in codes_folder.damages(shard)]
    if problems:
        return Checked(folder, "codes", DAMAGED, problems)
    if not _is_file(folder / MANIFEST):
        note = f"not all shards are done: {done} are there and intact; the same deephash encode command continues"
        return Checked(folder, "codes", UNFINISHED, note=note)
    return _by_seals(folder, "codes", records)


def check_index(file: Path) -> Checked:
    """Verify an index that ``deephash index`` wrote."""
    try:
        indexes.verify(file)
    except ArtifactError as error:
        again = f"deephash index {command(f'output={file}')} builds it again"
        return Checked(file, "index", DAMAGED, [_problem(file, error, f"delete it: {again}")])
    return _by_seals(file, "index", [indexes.record_path(file)])


def check_export(folder: Path) -> Checked:
    """Verify a folder that ``deephash export`` or ``deephash features`` wrote."""
    again = f"deephash {exporter(folder)} with overwrite=true writes it again"
    source = folder / EXPORTED
    try:
        record = read_sealed(source, sealing.LIMIT)
    except ArtifactError as error:
        return Checked(folder, "export", DAMAGED, [_problem(source, error, again)])
    known = record.get("sha256")
    if not isinstance(known, dict):
        return Checked(folder, "export", UNVERIFIED, note=_OLD)
    problems = []
    for name, digest in known.items():
        if name in ("", ".", "..") or Path(name).name != name:
            problems.append(Problem(source, f"{source} names a file outside the folder: it was edited by hand", again))
        elif reason := _difference(folder / name, digest, None, EXPORTED):
            problems.append(Problem(folder / name, reason, again))
    return Checked(folder, "export", DAMAGED, problems) if problems else _by_seals(folder, "export", [source])


def check_features(folder: Path) -> Checked:
    """Verify the cached features of a backbone, and the part of them that is done."""
    file, manifest = folder / "features.npy", folder / MANIFEST
    partial, progress = folder / "partial.npy", folder / "partial.json"
    problems = []
    for data, record, size in ((file, manifest, None), (partial, progress, "bytes")):
        if os.path.lexists(data) and os.path.lexists(record):
            problems += _cached(data, record, size)
    if problems:
        return Checked(folder, "features", DAMAGED, problems)
    if _is_file(file) and _is_file(manifest):
        return _by_seals(folder, "features", [manifest])
    note = "not all features are computed: the next run that needs them continues"
    return Checked(folder, "features", UNFINISHED, note=note)


def check_images(file: Path) -> Checked:
    """Verify cached pixels of small images."""
    record = file.with_suffix(".json")
    problems = _cached(file, record, None)
    return Checked(file, "images", DAMAGED, problems) if problems else _by_seals(file, "images", [record])


def _cached(file: Path, record: Path, size: str | None) -> list[Problem]:
    """Compare a file of a cache, or as many of its bytes as the entry ``size`` says, with the digest in its record."""
    try:
        content = read_sealed(record, sealing.LIMIT)
    except ArtifactError as error:
        return [_problem(record, error, _CACHE)]
    if size is not None and "sha256" not in content:  # the part that an earlier version did is done again
        return []
    length = content.get(size) if size else None
    reason = _difference(file, content.get("sha256"), None, record.name, length if type(length) is int else None)
    return [Problem(file, reason, _CACHE)] if reason else []


def _difference(file: Path, digest: Any, size: Any, record: str, length: int | None = None) -> str | None:
    """Return how a file differs from its record, as a sentence; None if it does not.

    Args:
        file: The file.
        digest: Its SHA-256, as it stands in the record.
        size: Its number of bytes; None if the record does not give it.
        record: Name of the record, for the sentence.
        length: Number of bytes at the start of the file that have the digest; None for all.
    """
    try:
        if not _is_file(file):
            return f"{file} is not a plain file" if os.path.lexists(file) else f"{file} is missing"
        if size is not None and size != file.stat().st_size:
            return f"{file} has {file.stat().st_size} bytes, not as many as {record} says: it was damaged or replaced"
        if digest == sha256_start(file, length).hexdigest():
            return None
    except (OSError, ValueError) as error:
        return f"{file} cannot be read ({first_line(error)})"
    return f"{file} does not match its SHA-256 in {record}: it was damaged or replaced"


def _by_seals(path: Path, kind: str, records: Iterable[Path]) -> Checked:
    """Return the result for a thing without damage: it is unverified if a record has no SHA-256 of its own."""
    old = [record.name for record in records if not is_sealed(record, sealing.LIMIT)]
    if not old:
        return Checked(path, kind, INTACT)
    return Checked(path, kind, UNVERIFIED, note=f"{_OLD} of {', '.join(dict.fromkeys(old))}")


def _problem(file: Path, error: ArtifactError, remedy: str) -> Problem:
    said = first_line(error).removesuffix(f"; {remedy}")
    return Problem(file, said, remedy)


def _is_file(path: Path) -> bool:
    """Return whether a path is a plain file: reading a pipe or a device could block forever."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises an error if a name is too long
