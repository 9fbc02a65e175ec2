"""Decide where a command may write: an output never replaces an input, a file of a run, or somebody else's file."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import is_device, is_temporary, read_json, remove_leftovers, sha256_file, write_sealed
from deephash_cli.retrieval import codes_folder
from deephash_cli.runs.folder import (
    CHECKPOINTS,
    CODES,
    ERROR,
    HEAD_STEPS,
    METRICS,
    RECORD,
    RETRIEVAL,
    RETRIEVAL_IMAGE,
    SKIPPED,
    SPLIT,
    STEPS,
    WANDB,
    check_unused,
    check_writable,
    is_abandoned,
)
from deephash_cli.runs.settings import CONFIG

SOFTWARE = "deephash"  # the name in the metadata of a picture
# File of an exported folder. Its entry ``files`` names all files of the folder. Its entry ``verb`` names the verb that
# made it, which is ``export`` if there is none.
EXPORTED = "source.json"
MARKS = {  # first lines of the tables whose format allows a comment
    "markdown": "<!-- written by deephash compare, which replaces this file when it runs again -->\n",
    "latex": "% written by deephash compare, which replaces this file when it runs again\n",
}

_HEAD = 2**14  # bytes at the start of a file that tell who made it
# The start of the text files of each verb, as regular expressions.
_STARTS = {
    "eval": (rb'\{\n  "map": .*,\n  "map_stable": ', rb'\{\n  "bit_balance": \{\n    "mean_deviation": '),
    "search": (rb'\{\n  "run": .*,\n  "codes": .*,\n  "index": .*,\n  "k": ',),
    "index": (rb'\{\n  "kind": .*,\n  "settings": ', rb'\{\n  "format": \d+,\n  "kind": .*,\n  "settings": '),
    "compare": (
        rb'\[\n  \{\n    "dataset": .*,\n    "split": .*,\n    "split_sha256": ',
        rb"dataset,split,split_sha256,method,",
        *(re.escape(mark.encode()) for mark in MARKS.values()),
    ),
    "data audit": (rb'\{\n  "audit": ',),
    "data split": (rb'\{\n  "format": "deephash-split",\n',),
    "report": (rb'\s*<!DOCTYPE html>\n(?s:.*)<meta name="generator" content="deephash ',),
}
# Names in a run folder and in a codes folder that only the commands that make these folders may write.
_OF_A_RUN = {RECORD, METRICS, STEPS, HEAD_STEPS, SPLIT, SKIPPED, RETRIEVAL, RETRIEVAL_IMAGE, CONFIG, ERROR, ".lock"}
_FOLDERS_OF_A_RUN = {CHECKPOINTS, WANDB}
# Settings that may name a folder of images: a file in it would be taken for one of the images.
_IMAGES = ("query=", "input=")

Paths = Mapping[str, str | Path | None]


def settle(
    verb: str, outputs: Paths, inputs: Paths, overwrite: bool = False, own: Path | None = None
) -> list[Path | None]:
    """Check the files that a command is to write, before it computes anything.

    What a killed process left unfinished beside them is removed.

    Args:
        verb: The verb, whose own earlier outputs may be replaced.
        outputs: Path of each output, under what is typed before it, ``output=`` or ``--output ``; None for no output.
        inputs: Path of each input, under what is typed before it; None for no input. Paths that do not exist are left
            out.
        overwrite: Whether the user allows that a file that the verb did not make is replaced.
        own: File of a run that the command may nevertheless write; None for no such file.

    Returns:
        The paths to write to, in order; a symbolic link is followed to the file that it names.

    Raises:
        ConfigError: If an output names an input or another output, lies inside a folder of input images, is a file of
            a run folder or codes folder, is a file that this verb did not make, or cannot be written.
    """
    settled: dict[str, Path] = {}
    for name, given in outputs.items():
        if given is None or is_device(Path(given)):
            continue
        with _usable(said := f"{name}{given}"):
            target = _require_apart(said, Path(given), inputs)
            for other, place in settled.items():
                if place == target or _same(place, target):
                    raise ConfigError(f"{said} names the same file as {other}{outputs[other]}: choose another name")
            if own is None or target != own.resolve():
                _require_not_a_part(said, Path(given), verb)
                _require_free_file(said, target, verb, overwrite, "--overwrite" if name[0] == "-" else "overwrite=true")
            remove_leftovers(target.parent, target.name)
            settled[name] = target
    return [settled.get(name, None if given is None else Path(given)) for name, given in outputs.items()]


def settle_folder(verb: str, output: str, inputs: Paths, overwrite: bool | None = None, name: str = "output=") -> Path:
    """Check the folder that a command is to make, before it computes anything.

    What a killed process left unfinished beside it is removed.

    Args:
        verb: The verb.
        output: Path of the folder. If it exists, it must be empty or an earlier output of the same verb.
        inputs: Path of each input, as for ``settle``.
        overwrite: Whether the user allows that an earlier output of the verb is replaced; None if the verb continues
            its earlier output.
        name: What is typed before the path.

    Returns:
        The path of the folder; symbolic links are followed.

    Raises:
        ConfigError: If the folder is an input, lies inside a folder of input images, is a part of a run folder, holds
            something else, or cannot be made.
    """
    with _usable(said := f"{name}{output}"):
        if is_device(Path(output)):
            raise ConfigError(f"{said} is not a folder: choose a folder")
        target = _require_apart(said, Path(output), inputs)
        _require_not_a_part(said, Path(output), verb)
        _require_free_folder(said, target, verb, overwrite)
        remove_leftovers(target.parent, target.name)
    return target


def require_room(root: str, run_dir: str | None, data: str | None) -> None:
    """Check that a new run can have a folder, before anything is loaded.

    Args:
        root: Folder of all runs.
        run_dir: The run folder itself; None for a new one in ``root``.
        data: Folder of the data set; None if it has none.

    Raises:
        ConfigError: If the folder cannot be made, holds files, or is a part of another run folder.
    """
    check_writable(Path(run_dir or root))
    if run_dir:
        check_unused(Path(run_dir))
        settle_folder("train", run_dir, {"dataset.root=": data}, name="run_dir=")


def seal_exported(folder: Path) -> str:
    """Name the files of an exported folder in its ``source.json``, with their digests, and return their size.

    A later export with ``overwrite`` replaces a folder only if it holds no other files.

    Args:
        folder: Folder that is complete, except that ``source.json`` does not name its files yet.

    Returns:
        The size of all files, for the user.
    """
    files = sorted(file.name for file in folder.iterdir())
    if (source := folder / EXPORTED).is_file():
        digests = {name: sha256_file(folder / name) for name in files if name != EXPORTED}
        write_sealed(source, {**read_json(source), "files": files, "sha256": digests})
    count = sum(file.stat().st_size for file in folder.iterdir())
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def exporter(folder: Path) -> str:
    """Return the verb that made an exported folder, by its ``source.json``."""
    verb = _entry(folder / EXPORTED, "verb")
    return verb if verb in ("features", "data split") else "export"


def unused(path: Path) -> Path:
    """Return a path at which nothing exists: ``path`` itself, or else with ``-2``, ``-3``, ... before its ending."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def made_by(path: Path) -> str | None:
    """Return the verb whose output a file or folder is, judged by its content; None if deephash did not make it."""
    if path.is_dir():
        if is_abandoned(path):
            return "train"
        return "encode" if _is_encoded(path) else exporter(path) if _is_exported(path) else None
    record = path.with_name(f"{path.name}.json")
    if path.suffix == ".faiss":
        known = record.is_file() and made_by(record) == "index"
        return "index" if known and _entry(record, "bytes") == path.stat().st_size else None
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for verb, starts in _STARTS.items():
        if any(re.match(start, head) for start in starts):
            return verb
    return "search" if _is_contact_sheet(path, head) else None


@contextlib.contextmanager
def _usable(said: str) -> Iterator[None]:
    """Explain the errors that a path itself causes: a loop of links, or a name that no file can have."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{said} cannot be used ({reason}): choose another output") from error


def _require_apart(said: str, path: Path, inputs: Paths) -> Path:
    """Return the file that an output names, unless it is an input or lies inside a folder of input images."""
    target = path.resolve()
    for name, given in inputs.items():
        if given is None or not (source := Path(given).expanduser()).exists():
            continue
        if _same(target, source):
            raise ConfigError(f"{said} is {name}{given} itself, which is read: choose another output")
        if name in _IMAGES and source.is_dir() and any(_same(above, source) for above in _both(path, target)):
            raise ConfigError(f"{said} is inside {name}{given}, whose images are read: choose a place outside it")
    return target


def _both(path: Path, target: Path) -> list[Path]:
    """Return the folders above a path and above the file that it names, which differ for a symbolic link."""
    return [*(path.parent.resolve() / path.name).parents, *target.parents]


def _require_not_a_part(said: str, path: Path, verb: str) -> None:
    """Refuse the files of a run folder or codes folder, those that are still to be written among them.

    A new file of another name is allowed there, and so is an earlier output of the same verb.
    """
    target = path.resolve()
    is_foreign = target.is_file() and made_by(target) != verb
    for place in {path.parent.resolve() / path.name, target}:
        for above in place.parents:
            kind = "run" if (above / RECORD).is_file() else "codes" if _is_codes_folder(above) else None
            if kind and (is_foreign or _is_reserved(kind, place.relative_to(above).parts)):
                raise ConfigError(f"{said} is one of the files of the {kind} folder {above}: choose another output")


def _is_reserved(kind: str, parts: Sequence[str]) -> bool:
    """Return whether only the commands that make a run folder or codes folder may write to a path below it."""
    first, *rest = parts
    if kind == "codes":
        return first in codes_folder.FILES
    if first == CODES:
        return not rest or rest[0] in codes_folder.FILES
    return first in _FOLDERS_OF_A_RUN or (first in _OF_A_RUN and not rest)


def _require_free_file(said: str, target: Path, verb: str, overwrite: bool, allow: str) -> None:
    """Refuse a path that is a folder, cannot be written, or is a file that the verb did not make."""
    if target.is_dir():
        raise ConfigError(f"{said} is a folder: give the name of a file")
    if not target.parent.is_dir():
        raise ConfigError(f"{said} is in a folder that does not exist: make the folder, or choose another output")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{said} is in a folder that cannot be written to: choose another output")
    if not target.is_file() or overwrite:
        return
    maker = made_by(target)
    if maker != verb:
        reason = f"deephash {verb} did not make it" if maker is None else f"deephash {maker} made it"
        raise ConfigError(f"{said} exists, and {reason}: choose another output, or add {allow} to replace it")


def _require_free_folder(said: str, target: Path, verb: str, overwrite: bool | None) -> None:
    """Refuse a file, a folder that cannot be made, and one that holds anything other than an output of the verb."""
    if not target.exists():
        above = next(parent for parent in target.parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            reason = "cannot be written to" if above.is_dir() else "is not a folder"
            raise ConfigError(f"{said} cannot be made, because {above} {reason}: choose another folder")
    elif not target.is_dir():
        raise ConfigError(f"{said} is a file: choose a folder")
    elif any(entry.name != ".lock" for entry in target.iterdir()):
        if made_by(target) != verb:
            raise ConfigError(f"{said} is not empty, and deephash {verb} did not make it: choose another folder")
        if overwrite is False:
            raise ConfigError(f"{said} already exists: choose another folder, or add overwrite=true to replace it")


def _is_codes_folder(folder: Path) -> bool:
    manifest = (folder / codes_folder.MANIFEST).is_file()  # the manifests of other programs have the same name
    return (folder / codes_folder.PLAN).is_file() or (manifest and (folder / "database.npy").is_file())


def _is_encoded(folder: Path) -> bool:
    """Return whether ``deephash encode`` made a folder, or began to: it may have been killed, or be running now."""
    shards = folder / codes_folder.SHARDS
    return (folder / codes_folder.PLAN).is_file() or (
        all(entry == shards or is_temporary(entry.name, codes_folder.PLAN) for entry in folder.iterdir())
        and not any(shards.glob("*"))
    )


def _is_exported(folder: Path) -> bool:
    files: Any = _entry(folder / EXPORTED, "files")
    return isinstance(files, list) and {entry.name for entry in folder.iterdir()} <= {EXPORTED, *map(str, files)}


def _is_contact_sheet(path: Path, head: bytes) -> bool:
    """Return whether the metadata of a picture name deephash."""
    if not head.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
        return False
    from PIL import ExifTags, Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            return image.getexif().get(ExifTags.Base.Software) == SOFTWARE
    except Exception:  # damaged files make Pillow fail in many ways
        return False


def _entry(file: Path, name: str) -> Any:
    try:
        content = read_json(file, limit=2**20)
    except ArtifactError:
        return None
    return content.get(name) if isinstance(content, dict) else None


def _same(one: Path, other: Path) -> bool:
    """Return whether two paths name the same file or folder; links of both kinds are followed."""
    try:
        return one.samefile(other)
    except OSError:
        return False
