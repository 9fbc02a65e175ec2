"""Read what ``deephash data`` looks at: a data set with its division, codes, a split file, or a folder of lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from deephash_cli import runs
from deephash_cli.data.audit import Division
from deephash_cli.data.changes import Changes
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.identity import composed, missing_images_kept
from deephash_cli.data.image_list import image_list
from deephash_cli.data.leniency import faults_kept
from deephash_cli.data.list_files import LISTS
from deephash_cli.data.protocol import Split, make_split, read_split
from deephash_cli.data.training_part import divide
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.retrieval import codes_folder
from deephash_cli.training.targets import build


@dataclass(frozen=True, eq=False)
class Source:
    """What is looked at.

    Attributes:
        division: What is known of the division.
        dataset: The data set with its images; None if there are none, as for codes and split files.
    """

    division: Division
    dataset: RetrievalDataset | None = None


def read(node: DictConfig | None, given: str | None, root: str | None) -> Source:
    """Read a data set, or the input that a path names, and keep what is wrong as sentences.

    Args:
        node: The node ``dataset`` of ``deephash train``; None if a path is given.
        given: Path of a run folder, codes folder, split.json or folder of lists; None if a data set is given.
        root: Folder that the paths of lists start from; None for the folder of the lists.

    Raises:
        ConfigError: If the path is none of these.
        DataError: If the data cannot be read at all.
        ArtifactError: If codes are damaged.
    """
    if node is not None:
        with faults_kept() as faults, missing_images_kept():
            dataset = build(node.source)
            split = division_of(dataset, node)
        return Source(_of_split(dataset, split, faults), dataset)
    path = Path(str(given)).expanduser()
    if path.is_file():
        return Source(_of_file(path))
    for folder in (path / runs.CODES, path):
        if (folder / codes_folder.MANIFEST).is_file():
            return Source(_of_codes(folder))
    if (path / LISTS["train"]).is_file():
        with faults_kept() as faults, missing_images_kept():
            dataset = read_lists(path, root)
            split = make_split("official", dataset, 0)
        has_images = any((dataset_root(path, root) / name).exists() for name in dataset.ids)
        return Source(_of_split(dataset, split, faults), dataset if has_images else None)
    raise ConfigError(
        f"{given} must be a run folder, a codes folder, a split.json, or a folder with {LISTS['train']} and "
        f"{LISTS['query']}, but it is none of them"
    )


def inputs_of(config: DictConfig, node: DictConfig | None) -> dict[str, str | None]:
    """Return the paths that are read, under what is typed before them, so that no output replaces them."""
    given = {"": config.input, **{f"{name}=": config[name] for name in ("against", "lists")}}
    return given | {f"dataset.{name}=": value for name, value in (node or {}).items() if isinstance(value, str)}


def division_of(dataset: RetrievalDataset, node: DictConfig) -> Split:
    """Divide a data set as its node of the configuration says.

    Raises:
        ConfigError: If the changes of the training part do not suit the data set.
        DataError: If the division does not suit the data set.
    """
    return divide(dataset, node.protocol, node.split_seed, node.split_file, Changes.of(node))


def read_lists(folder: Path, root: str | None) -> RetrievalDataset:
    """Read a folder of list files as the data set ``image_list``.

    Args:
        folder: Folder with train.txt, test.txt and, unless the training images are searched, database.txt.
        root: Folder that the paths start from; None for ``folder``.

    Raises:
        DataError: If a list is missing or malformed.
    """
    files = list_paths(folder)
    database = str(files["database"]) if "database" in files else None
    return image_list(dataset_root(folder, root), str(files["train"]), str(files["query"]), database)


def list_paths(folder: Path) -> dict[str, Path]:
    """Return the path of the list of each part; the list of the database is left out if it does not exist."""
    files = {role: folder / name for role, name in LISTS.items()}
    return {role: path for role, path in files.items() if role != "database" or path.is_file()}


def dataset_root(folder: Path, root: str | None) -> Path:
    """Return the folder that the paths of the lists in a folder start from."""
    return folder if root is None else Path(root).expanduser()


def facts_of(split: Split) -> dict[str, Any]:
    """Return what identifies a division."""
    changes = {"changes": split.changes} if split.changes else {}
    return {"name": split.name, "version": split.version, "seed": split.seed, "sha256": split.sha256, **changes}


def _of_split(dataset: RetrievalDataset, split: Split, faults: Sequence[str]) -> Division:
    seed = "" if split.seed is None else f", seed {split.seed}"
    return Division(
        title=f"{dataset.name}, {split.name}{seed}",
        ids=dataset.ids,
        parts={"query": split.query, "train": split.train, "database": split.database},
        labels=dataset.labels,
        class_names=dataset.class_names,
        split=facts_of(split),
        faults=faults,
    )


def _of_file(path: Path) -> Division:
    """Read a split file without the data set that it divides."""
    with faults_kept() as faults:
        content = read_split(path)
    ids: dict[str, int] = {}
    parts = {}
    for role in ("query", "train", "database"):
        rows = [ids.setdefault(composed(name), len(ids)) for name in content[role]]
        parts[role] = np.unique(np.array(rows, np.int64))
        if again := len(rows) - len(parts[role]):
            faults.append(f"{path} names {again} images of {role} twice")
    split = {name: content[name] for name in ("name", "version", "seed", "sha256")}
    return Division(f"{path}: {content['dataset']}, {content['name']}", list(ids), parts, split=split, faults=faults)


def _of_codes(folder: Path) -> Division:
    """Read a folder of codes. An image that is on both sides is one image."""
    manifest = codes_folder.read_manifest(folder, ("database",))
    sides = {side: codes_folder.open_side(folder, side) for side in ("database", "query") if side in manifest}
    rows_of: dict[str, int] = {}
    rows = {side: [rows_of.setdefault(name, len(rows_of)) for name in found.ids] for side, found in sides.items()}
    parts = {side: np.array(own, np.int64) for side, own in rows.items()}
    database = sides["database"]
    width = max(found.labels.shape[1] for found in sides.values())
    labels = np.zeros((len(rows_of), width), np.uint8)
    codes = np.zeros((len(rows_of), database.packed.shape[1]), np.uint8)
    labels[: database.n, : database.labels.shape[1]], codes[: database.n] = database.labels, database.packed
    faults = []
    if (query := sides.get("query")) is not None:
        if query.labels.shape[1] != database.labels.shape[1]:
            widths = query.labels.shape[1], database.labels.shape[1]
            faults.append(f"the queries have {widths[0]} label columns, the database has {widths[1]}")
        if query.bits != database.bits:
            raise ArtifactError(f"{folder} has codes of {query.bits} and {database.bits} bits: they are of two runs")
        both = parts["query"] < database.n
        known = labels[parts["query"], : query.labels.shape[1]]
        if differ := int((known[both] != query.labels[both]).any(axis=1).sum()):
            faults.append(f"{differ} images have other labels among the queries than in the database")
        labels[parts["query"][~both], : query.labels.shape[1]] = query.labels[~both]
        codes[parts["query"][~both]] = query.packed[~both]
    origin = manifest.get("provenance", {})
    split = {name: origin.get("split", {}).get(name) for name in ("name", "version", "seed", "sha256")}
    what = [str(name) for name in (origin.get("dataset"), split["name"]) if name is not None]
    return Division(
        title=f"{folder}: {', '.join(what)}" if what else str(folder),
        ids=list(rows_of),
        parts={side: np.sort(parts[side]) for side in ("query", "database") if side in parts},
        labels=labels,
        class_names=origin.get("class_names", ()),
        split={name: value for name, value in split.items() if value is not None},
        codes=codes,
        faults=faults,
    )
