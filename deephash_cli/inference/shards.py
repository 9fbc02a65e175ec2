"""Encode images in shards: the task, the loop over batches, and the folder in which the shards are joined."""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deephash_cli import console, processes
from deephash_cli.console import warn
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, Vectors, decode
from deephash_cli.data.image_folder import images_below
from deephash_cli.data.image_list import lines
from deephash_cli.data.vectors import vectors
from deephash_cli.errors import ArtifactError, ConfigError, DataError, DeephashError, first_line
from deephash_cli.files import alone, atomic_folder, csv_text, read_json, write_json, write_text
from deephash_cli.inference.encoder import load_encoder, prepare
from deephash_cli.models import packed_codes
from deephash_cli.retrieval import codes, codes_folder
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.scoring import CLASSES
from deephash_cli.training.instantiate import build

PLAN = "encode.json"
SHARDS = "shards"
SKIPPED = "skipped.csv"
_COLUMNS = ("id", "reason")
# What the first of several processes starts the others with.
FOLLOW = (sys.executable, "-P", "-c", "from deephash_cli.commands.encode import follow; follow()")


@dataclass(frozen=True)
class Task:
    """What is to be encoded, and how: the same in every process that takes part.

    Attributes:
        run: The run folder whose network encodes.
        input: A folder of images, a list of image files, or a .npy file of vectors.
        source: Instead of ``input`` the node that builds a data set, as YAML.
        root: The folder that the paths in a list start from; ``None``: the list's own.
        output: The folder of codes to be made.
        shard_size: Images in a shard.
        batch_size: Images that go through the network at once.
        num_workers: Processes that decode image files.
        bad_images: ``stop`` at the first file that cannot be read, or ``skip`` them and list them.
        allowed_targets: Packages whose classes the run may build, besides deephash's own.
    """

    run: str
    input: str | None
    source: str | None
    root: str | None
    output: str
    shard_size: int
    batch_size: int
    num_workers: int
    bad_images: str
    allowed_targets: list[str]


def follow() -> None:
    """Encode beside the process that has started this one."""
    console.be_silent()
    given = json.loads(processes.task_of_this_process())
    try:
        work = Work(Task(**given["task"]))
        work.encode(given["shards"], given["accelerator"], given["devices"], lambda _: None)
    except DeephashError as error:  # which the first process tells of
        sys.exit(error.exit_code)


class Batch(NamedTuple):
    """Images of one shard that go through the network together; images of one size are one tensor."""

    shard: int
    last: bool  # of its shard
    rows: list[int]  # of those that can be read, in their order
    places: list[list[int]]  # for each tensor, where its images are among these rows
    inputs: list[Tensor]
    bad: list[tuple[int, str]]  # rows of the others, and why


class Work:
    """An input, a network, and the shards that one makes of the other.

    Args:
        task: What is to be done.

    Raises:
        DeephashError: If the input or the run cannot be used.
    """

    def __init__(self, task: Task):
        self.task = task
        self.folder = Path(task.output)
        file = Path(task.input) if task.input and task.input.endswith(".npy") else None
        self.encoder = load_encoder(Path(task.run), task.allowed_targets, file)
        self.dataset = _read_input(task)
        holds = "vectors" if isinstance(self.dataset.images, Vectors) else "images"
        self.unit = holds
        if holds != self.encoder.takes:
            raise ConfigError(f"{task.run} encodes {self.encoder.takes}, and the input holds {holds}")
        self.shards = -(-len(self.dataset) // task.shard_size)

    def begin(self) -> None:
        """Write down what the folder is to hold, or compare with what was written down before.

        Raises:
            ConfigError: If codes of something else are there.
        """
        provenance = self.encoder.provenance
        plan = {
            "run": provenance["run"],
            "checkpoint": provenance["checkpoint"]["sha256"],
            "images": len(self.dataset),
            "ids": _digest(self.dataset.ids),
            "shard_size": self.task.shard_size,
            "batch_size": self.task.batch_size,
            "bad_images": self.task.bad_images,
        }
        file = self.folder / PLAN
        if file.exists():
            before = read_json(file)
            changed = [name for name in plan if not isinstance(before, dict) or before.get(name) != plan[name]]
            if changed:
                raise ConfigError(
                    f"{self.folder} was begun with other settings or another input ({', '.join(changed)} differ): "
                    "choose another output, or remove that folder"
                )
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(f"output={self.folder} is not empty and holds no {PLAN}: choose another folder")
        try:
            (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make output={self.folder}: {error.strerror or error}") from error
        write_json(file, plan)

    def rows(self, shard: int) -> range:
        """Which images a shard has."""
        start = shard * self.task.shard_size
        return range(start, min(start + self.task.shard_size, len(self.dataset)))

    def size(self, shard: int) -> int:
        """How many images a shard has."""
        return len(self.rows(shard))

    def place(self, shard: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / SHARDS / f"{shard:06d}"

    def has(self, shard: int) -> bool:
        """Whether a shard is there and undamaged. A damaged one is removed: it can always be made again."""
        if not self.place(shard).exists():
            return False
        try:
            codes_folder.open_side(self.place(shard))
            return True
        except ArtifactError as error:
            warn(f"made again: {error}")
            shutil.rmtree(self.place(shard))
            return False

    def is_complete(self) -> bool:
        """Whether the joined codes are there and undamaged."""
        if not (self.folder / codes_folder.MANIFEST).exists():
            return False
        try:
            codes_folder.open_side(self.folder)
            return True
        except ArtifactError as error:
            warn(f"made again: {error}")
            (self.folder / codes_folder.MANIFEST).unlink()
            return False

    def encode(self, shards: Sequence[int], accelerator: str, devices: int, show: Callable[[int], None]) -> None:
        """Make shards; several processes make a part of them each.

        Args:
            shards: Which are missing.
            accelerator: Of Lightning: ``auto``, ``cpu``, ``gpu``.
            devices: How many.
            show: Told the number of images that are done.

        Raises:
            DataError: If a file cannot be read and these are not to be skipped.
        """
        with console.quiet_lightning():
            trainer = _trainer(accelerator, devices, "auto" if devices == 1 else "ddp")
            given = {"task": dataclasses.asdict(self.task), "shards": list(shards)}
            task = json.dumps({**given, "accelerator": accelerator, "devices": devices})
            with processes.team(trainer.world_size, trainer.strategy.root_device, FOLLOW, task):
                own = list(shards)[processes.rank() :: processes.count()]
                trainer.callbacks.append(_Writer(self, show))  # type: ignore[attr-defined]
                trainer.predict(_Predicting(self.encoder), self._batches(own), return_predictions=False)

    def _batches(self, shards: Sequence[int]) -> "DataLoader[Batch]":
        slices = [
            (shard, rows[start : start + self.task.batch_size], start + self.task.batch_size >= len(rows))
            for shard in shards
            for rows in [self.rows(shard)]
            for start in range(0, len(rows), self.task.batch_size)
        ]
        workers = 0 if self.dataset.images.in_memory else self.task.num_workers
        batches = _Batches(self.dataset, self.encoder.image_size, slices)
        return DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=_as_it_is)  # type: ignore[arg-type]

    def write(self, shard: int, packed: UInt8[np.ndarray, "n bytes"], rows: list[int], bad: list[tuple[int, str]]):
        """Let a shard appear, whole; if another process was faster, it made the same."""
        ids = [self.dataset.ids[row] for row in rows]
        part = CodeSet(packed, self.encoder.bits, self.dataset.labels[rows], ids)
        skipped = [{"id": self.dataset.ids[row], "reason": reason} for row, reason in bad]
        place = self.place(shard)
        try:
            if not place.exists():
                with atomic_folder(place) as draft:
                    write_text(draft / SKIPPED, csv_text(_COLUMNS, skipped))
                    codes_folder.save_database(draft, part, {"skipped": len(bad)})
        except ArtifactError:
            if not place.exists():
                raise

    def conclude(self) -> int:
        """Join the shards when all are there.

        Returns:
            How many are missing.

        Raises:
            DataError: If no image could be read.
        """
        with alone(self.folder / PLAN):  # the others wait, and find it done
            if not self.is_complete():
                missing = sum(not self.has(number) for number in range(self.shards))
                if missing:
                    return missing
                self._join()
            shutil.rmtree(self.folder / SHARDS, ignore_errors=True)
        return 0

    def _join(self) -> None:
        places = [self.place(number) for number in range(self.shards)]
        manifests = [codes_folder.read_manifest(place, ("database",)) for place in places]
        skipped = sum(manifest["skipped"] for manifest in manifests)
        if not any(manifest["database"]["count"] for manifest in manifests):
            first = (places[0] / SKIPPED).read_text().splitlines()[1]
            raise DataError(f"none of the {skipped} images can be read; the first: {first}")
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while it joined them
            leftover.unlink(missing_ok=True)
        records = [line for place in places for line in (place / SKIPPED).read_text().splitlines(keepends=True)[1:]]
        write_text(self.folder / SKIPPED, csv_text(_COLUMNS, []) + "".join(records))
        names = self.dataset.class_names
        origin = {**self.encoder.provenance, "encoded": self.dataset.name}
        if 0 < len(names) <= CLASSES:
            origin["class_names"] = names
        codes_folder.join_databases(
            self.folder, places, {"provenance": origin, "source": self._source(), "skipped": skipped}
        )

    def _source(self) -> dict[str, Any]:
        """Where the images are, for whoever wants to show them."""
        if self.task.source is not None:
            return {"dataset": OmegaConf.to_container(OmegaConf.create(self.task.source))}
        images = self.dataset.images
        return {"root": str(images.root)} if isinstance(images, ImageFiles) else {}


class _Batches(Dataset[Batch]):
    """Batches by number. Files that cannot be read are told of, and do not end a worker process."""

    def __init__(self, dataset: RetrievalDataset, size: int, slices: list[tuple[int, range, bool]]):
        self.images = dataset.images
        self.size = size
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, number: int) -> Batch:
        shard, rows, last = self.slices[number]
        if not isinstance(self.images, ImageFiles):
            return Batch(shard, last, list(rows), [list(range(len(rows)))], [self.images.batch(np.array(rows))], [])
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        sizes: dict[tuple[int, ...], tuple[list[int], list[Tensor]]] = {}
        for row in rows:
            try:
                image = prepare(decode(self.images.path(row), at_least=self.size), self.size)
            except DataError as error:
                bad.append((row, str(error)))
                continue
            places, tensors = sizes.setdefault(tuple(image.shape), ([], []))
            places.append(len(good))
            tensors.append(image)
            good.append(row)
        groups = sizes.values()
        return Batch(shard, last, good, [places for places, _ in groups], [torch.stack(t) for _, t in groups], bad)


def _as_it_is(batch: Batch) -> Batch:
    """Torch would take a batch apart."""
    return batch


class _Predicting(LightningModule):
    """Packed codes of batches."""

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        self.encoder = encoder

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the images; the rest is for the CPU."""
        return batch._replace(inputs=[images.to(device, non_blocking=True) for images in batch.inputs])

    def predict_step(self, batch: Batch, batch_idx: int) -> UInt8[np.ndarray, "n bytes"]:
        """Codes of the images that can be read, in their order."""
        packed = np.empty((len(batch.rows), codes.packed_width(self.encoder.bits)), np.uint8)  # type: ignore[arg-type]
        for places, images in zip(batch.places, batch.inputs, strict=True):
            packed[places] = packed_codes(self.encoder(images).cpu())
        return packed


class _Writer(BasePredictionWriter):
    """Write each shard when its last batch is done."""

    def __init__(self, work: Work, show: Callable[[int], None]):
        super().__init__("batch")
        self.work = work
        self.show = show
        self.done = 0
        self.parts: list[np.ndarray] = []
        self.rows: list[int] = []
        self.bad: list[tuple[int, str]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Take the codes of a batch.

        Raises:
            DataError: If a file cannot be read and these are not to be skipped.
        """
        if batch.bad and self.work.task.bad_images == "stop":
            raise DataError(f"{batch.bad[0][1]}, or bad_images=skip leaves out such files and lists them")
        self.parts.append(prediction)
        self.rows += batch.rows
        self.bad += batch.bad
        self.done += len(batch.rows) + len(batch.bad)
        if batch.last:
            self.work.write(batch.shard, np.concatenate(self.parts), self.rows, self.bad)
            self.parts, self.rows, self.bad = [], [], []
        self.show(self.done * processes.count())  # the other processes are as far


def _trainer(accelerator: str, devices: int, strategy: str) -> Trainer:
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            logger=False,
            plugins=[LightningEnvironment()],  # processes.team is the environment, whatever cluster this is
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"accelerator={accelerator} devices={devices}: {first_line(error)}") from error


def _read_input(task: Task) -> RetrievalDataset:
    """The images or vectors to be encoded.

    Raises:
        DataError: If there are none.
    """
    if task.source is not None:
        return build(OmegaConf.create(task.source))
    place = Path(str(task.input))
    if place.suffix == ".npy":
        return vectors(str(place), labels=None, ids=None)
    if place.is_dir():
        found, others = images_below(place)
        if others:
            warn(f"{others} files under {place} are hidden or no images by their ending: left out")
        return _unlabelled(place.name, [path.relative_to(place) for path in found], place)
    if place.is_file():
        names = [line.strip() for line in lines(place) if line.strip()]
        return _unlabelled(place.stem, [Path(name) for name in names], Path(task.root or place.parent))
    raise DataError(
        f"input={place} must be a folder of images, a text file with one path a line, or vectors as .npy; it does not "
        "exist (a data set by its name is dataset=<name>)"
    )


def _unlabelled(name: str, paths: list[Path], root: Path) -> RetrievalDataset:
    ids = [path.as_posix() for path in paths]
    return RetrievalDataset(name, ids, np.zeros((len(ids), 0), np.uint8), [], ImageFiles(paths, root))


def _digest(ids: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()
