"""``deephash features``: write the features of a backbone as .npy files, for ``dataset=vectors`` and other programs.

The features are those that a run with a frozen backbone keeps in the cache. So a run and this verb compute them once
for both, and interrupted work is continued.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf

from deephash_cli import runs
from deephash_cli.cache import cache_folder
from deephash_cli.console import say, warn
from deephash_cli.data import inspection
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, Vectors
from deephash_cli.data.image_folder import describe_left_out
from deephash_cli.data.image_input import images_at
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import ConfigError, Stopped, command
from deephash_cli.files import atomic_folder, write_json, write_text
from deephash_cli.npy import blocks
from deephash_cli.runs.outputs import EXPORTED, seal_exported, settle_folder
from deephash_cli.training.datasets import load_dataset
from deephash_cli.training.targets import as_yaml, build

VECTORS, LABELS, IDS = "vectors.npy", "labels.npy", "ids.txt"
_README = """\
Features of images, made by a pretrained backbone: source.json says which, and how the images were prepared.

vectors.npy   features ({n}, {width}), {dtype}, one row for each image
ids.txt       the ids of the images, one per line, in the same order
{labels}
To hash them with deephash:

    {train}

To read them with NumPy: numpy.load("vectors.npy", mmap_mode="r")
"""
_LABELS_README = (
    "labels.npy    labels ({n}, {classes}), uint8, 1 where an image has the class; source.json names the classes\n"
)


def run(config: DictConfig) -> None:
    """Run ``deephash features``.

    Raises:
        ConfigError: If the images or the output are not given, the output must not be replaced, or the model or the
            data set are vectors.
        DataError: If the images do not exist, or some cannot be read and ``bad_images`` is ``stop``.
        ArtifactError: If weights are missing, or a file cannot be written.
    """
    source: DictConfig | None = config.get("dataset")
    if (config.input is None) == (source is None):
        got = "neither" if source is None else "both"
        raise ConfigError(f"deephash features needs dataset=<name>, or input=<folder or list>, got {got}")
    if config.output is None:
        raise ConfigError("deephash features needs output=<folder>, the folder to make")
    if str(config.model.network.backbone.get("_target_")).endswith(".NoBackbone"):
        raise ConfigError(
            f"model={config.model.name} has no backbone to compute features: choose images and a model for them"
        )
    read = {"input=": config.input, "dataset.root=": (source or {}).get("root")}
    output = settle_folder("features", config.output, read, config.overwrite)
    dataset = _images(config)
    try:
        with inspection.all_unreadable_named(dataset, cache_folder() / runs.SKIPPED):
            array, facts = _computed(config, dataset)
    except Stopped:
        say("interrupted: the same command continues where it stopped")
        raise
    with atomic_folder(output, replace=config.overwrite) as folder:
        _write(folder, array, dataset, config.dtype, _train(config.output, dataset))
        write_json(folder / EXPORTED, {"verb": "features", **facts, **_described(config, dataset, array)})
        size = seal_exported(folder)
    say(f"{config.output}: features of {len(array)} images, {array.shape[1]} numbers each, {size}")
    say(f"to hash them: {_train(config.output, dataset)}")


def _images(config: DictConfig) -> RetrievalDataset:
    """Load the images, and warn of what is left out and of what shows nothing.

    Raises:
        ConfigError: If the data set holds vectors.
        DataError: If the images do not exist or cannot be read.
    """
    if config.input is None:
        dataset = load_dataset(as_yaml(config.dataset.source), None if config.bad_images == "skip" else ())
    else:
        place = Path(config.input).expanduser()
        dataset = images_at(place, None if config.root is None else Path(config.root).expanduser())
        images = in_memory_if_small(cast(ImageFiles, dataset.images))  # as the data sets of training are read
        dataset = dataclasses.replace(dataset, images=images)
        if config.bad_images == "skip":
            dataset = inspection.without(dataset, inspection.unreadable_images(dataset))
        for sentence in inspection.peculiarities(dataset):
            warn(sentence)
    if isinstance(dataset.images, Vectors):
        raise ConfigError(f"dataset={config.dataset.name} holds vectors, which are features already: choose images")
    listed = Path(config.output) / runs.SKIPPED
    if dataset.left_out:
        warn(describe_left_out(dataset.left_out, listed))
    if count := len(dataset.unreadable):
        warn(f"{inspection.unreadable_count(count)} left out: {listed} says why")
    return dataset


def _computed(config: DictConfig, dataset: RetrievalDataset) -> tuple[Float[np.ndarray, "n d"], dict[str, Any]]:
    """Compute the features that are not in the cache; return all of them as float16, and what made them."""
    # Imported here because torch takes seconds; a mistake in the data or the output is reported before that.
    from pytorch_lightning import seed_everything

    from deephash_cli import processes
    from deephash_cli.data.features import Features
    from deephash_cli.data.loaders import lost_workers_explained
    from deephash_cli.inference.shards import require_devices
    from deephash_cli.models import HashingNetwork
    from deephash_cli.training.inputs import Computing, Loading, Source
    from deephash_cli.training.pretraining import record_of

    processes.require_alone("features")
    device = require_devices(config.accelerator, 1)
    seed_everything(config.seed, verbose=False)
    OmegaConf.update(config, "model.frozen", True)  # which makes a source compute features
    network: HashingNetwork = build(config.model.network, bits=1)
    loading = Loading(batch_size=config.loader.eval_batch_size, **config.loader)
    with lost_workers_explained("loader.num_workers"):
        source = Source(dataset, network, device, loading, Computing(**config.features))
    return cast(Features, source.inputs).array, {"backbone": record_of(network)}


def _described(config: DictConfig, dataset: RetrievalDataset, array: Float[np.ndarray, "n d"]) -> dict[str, Any]:
    """Return the entries of ``source.json`` that say what the folder holds."""
    network = runs.redact(cast(dict[str, Any], OmegaConf.to_container(config.model.network, resolve=True)))
    return {
        "model": config.model.name,
        "network": network,
        "precision": config.features.precision,
        "dtype": config.dtype,
        "shape": list(array.shape),
        "dataset": dataset.name,
        "class_names": dataset.class_names,
        "versions": runs.versions(),
    }


def _write(folder: Path, array: Float[np.ndarray, "n d"], dataset: RetrievalDataset, dtype: str, train: str) -> None:
    """Write the files of the folder except its ``source.json``."""
    n, width = array.shape
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (n, width)}
    with (folder / VECTORS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in blocks(array):  # written and not mapped: a full disk is then an error
            file.write(np.ascontiguousarray(array[rows], dtype).data)
    write_text(folder / IDS, "".join(f"{name}\n" for name in dataset.ids))
    labels = ""
    if dataset.class_names:
        np.save(folder / LABELS, dataset.labels)
        labels = _LABELS_README.format(n=n, classes=len(dataset.class_names))
    if left_out := [*dataset.left_out, *dataset.unreadable]:
        inspection.write_list(folder / runs.SKIPPED, left_out)
    write_text(folder / "README.txt", _README.format(n=n, width=width, dtype=dtype, labels=labels, train=train))


def _train(output: str, dataset: RetrievalDataset) -> str:
    """Return the command that hashes the features in a folder."""
    place = Path(output)
    words = ["dataset=vectors", f"dataset.vectors={place / VECTORS}", f"dataset.ids={place / IDS}"]
    if dataset.class_names:
        words.append(f"dataset.labels={place / LABELS}")
    return command("deephash", "train", *words, "method=itq")
