"""``deephash data split``: make a division, save it as split.json or as list files, read either, verify its digest."""

import re
from pathlib import Path

from omegaconf import DictConfig

from deephash_cli.commands.data import reading
from deephash_cli.console import say, warn
from deephash_cli.data.changes import Changes, in_words
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.identity import missing_images_kept
from deephash_cli.data.image_list import paths_in
from deephash_cli.data.leniency import faults_kept
from deephash_cli.data.list_files import write_lists
from deephash_cli.data.protocol import Split, make_split, read_split, save_split, split_of_ids
from deephash_cli.errors import ConfigError, DataError, short
from deephash_cli.files import atomic_folder, is_device, write_json, write_text
from deephash_cli.runs.outputs import EXPORTED, seal_exported, settle, settle_folder
from deephash_cli.training.targets import build

_VERB = "data split"
_README = """\
A division of {dataset} ({name}) as list files: on each line an id, and a 0 or 1 for each class.

train.txt      training images
test.txt       queries
database.txt   images that are searched
classes.txt    the names of the columns, one per line

The ids of each part have the SHA-256 {sha256}. To check it, with this folder as <folder>:

    deephash data split {dataset} lists=<folder> sha256={sha256}
"""
_LEAST = 12  # digits of a digest, as many as tables show


def run(config: DictConfig, dataset: DictConfig | None, against: DictConfig | None) -> None:  # noqa: ARG001
    """Run ``deephash data split``.

    Args:
        config: The configuration of ``deephash data``.
        dataset: The node ``dataset`` of the data set to divide; None if list files or a split.json are given alone.
        against: Always None: only ``deephash data audit`` compares.

    Raises:
        ConfigError: If there is nothing to divide, the digest cannot be one, or the output must not be written.
        DataError: If the data or lists are missing or malformed, or the digest differs.
        ArtifactError: If the output cannot be written.
    """
    wanted = _wanted(config.sha256)
    folder = config.lists if config.input is None else config.input
    if (config.lists and config.input) or (dataset is not None and config.input) or (dataset is None and not folder):
        raise ConfigError(
            "deephash data split needs a data set, with lists=<folder> if lists divide it; or a folder of lists, or a "
            "split.json, alone"
        )
    inputs = reading.inputs_of(config, dataset)
    is_file = config.output is not None and (Path(config.output).suffix == ".json" or is_device(Path(config.output)))
    output = None
    if config.output is not None and is_file:
        (output,) = settle(_VERB, {"output=": config.output}, inputs, config.overwrite)
    elif config.output is not None:
        output = settle_folder(_VERB, config.output, inputs, config.overwrite)
    if dataset is None and Path(folder).is_file():
        _verify_file(Path(folder), wanted, config.output)
        return
    data, split = _divided(dataset, folder, config.root)
    _require(split.sha256, wanted)
    say(
        f"{data.name}, {reading.name_of(split)}: {len(split.query)} queries, {len(split.train)} training images, "
        f"database of {len(split.database)}, sha256 {split.sha256}"
    )
    if output is None:
        return
    if is_file:
        save_split(output, split, data)
    else:
        if split.changes:
            warn(f"lists do not say that the training part has {' and '.join(in_words(split.changes))}: a .json does")
        with atomic_folder(output, replace=config.overwrite) as made:
            write_lists(made, data, split)
            facts = {"verb": _VERB, "dataset": data.name, "split": {**reading.facts_of(split), **split.flags}}
            name = reading.name_of(split)
            write_text(made / "README.txt", _README.format(dataset=data.name, name=name, sha256=split.sha256))
            write_json(made / EXPORTED, facts)
            seal_exported(made)
    say(f"split: {config.output}")


def _divided(node: DictConfig | None, folder: str | None, root: str | None) -> tuple[RetrievalDataset, Split]:
    """Return a data set and its division, by its own settings or by a folder of lists."""
    if node is None:
        with faults_kept() as faults, missing_images_kept():  # the images of lists need not exist
            dataset = reading.read_lists(Path(str(folder)).expanduser(), root)
        if faults:
            raise DataError(faults[0])
        return dataset, make_split("official", dataset, 0)
    ignored = [*(["dataset.split_file"] if node.split_file else []), *Changes.of(node).typed]
    if folder is not None and ignored:
        raise ConfigError(
            f"lists={folder} is the whole division, so {' and '.join(ignored)} would have no effect: "
            "leave one of them out"
        )
    dataset = build(node.source)
    if folder is None:
        return dataset, reading.division_of(dataset, node)
    lists = Path(folder).expanduser()
    start = reading.dataset_root(lists, root)
    ids = {role: paths_in(path, start) for role, path in reading.list_paths(lists).items()}
    return dataset, split_of_ids(lists, dataset, "lists", 1, None, {"database": ids["train"], **ids})


def _verify_file(path: Path, wanted: str | None, output: str | None) -> None:
    """Verify the digest of a split.json without the data set that it divides."""
    if output is not None:
        raise ConfigError(
            f"{path} alone has no labels to write: name its data set, and set dataset.split_file to this file"
        )
    content = read_split(path)
    _require(content["sha256"], wanted)
    counts = ", ".join(f"{len(content[role])} {role}" for role in ("query", "train", "database"))
    say(f"{path}: {short(content['dataset'])}, {short(content['name'])}: {counts}, sha256 {content['sha256']}")


def _wanted(sha256: str | None) -> str | None:
    """Return the digest that the user gives, in small letters; it may be the first digits of one.

    Raises:
        ConfigError: If it is no digest.
    """
    if sha256 is None:
        return None
    wanted = str(sha256).strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST},64}}", wanted):
        raise ConfigError(
            f"sha256 must be 64 hexadecimal digits, or at least the first {_LEAST} of them, got {short(str(sha256))}"
        )
    return wanted


def _require(sha256: str, wanted: str | None) -> None:
    if wanted is not None and not sha256.startswith(wanted):
        raise DataError(
            f"the division has the SHA-256 {sha256}, not {wanted}: it is of other data, of another protocol, or of "
            "another seed"
        )
