"""Encode images in shards: the task, the batches on one device, and the folder in which the shards are joined."""

import errno
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from deephash_cli import processes
from deephash_cli.console import warn
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, Vectors
from deephash_cli.data.decoding import ImageError, decode
from deephash_cli.data.image_input import images_at
from deephash_cli.data.inspection import COLUMNS, record, refusal, write_list
from deephash_cli.data.loaders import Loader, lost_workers_explained, worker_count
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.data.vectors import vectors
from deephash_cli.errors import ArtifactError, ConfigError, DataError
from deephash_cli.failures import explained
from deephash_cli.files import (
    alone,
    atomic_folder,
    csv_text,
    read_json,
    read_sealed,
    reason,
    remove_leftovers,
    write_json,
    write_sealed,
    write_text,
)
from deephash_cli.inference.encoder import load_encoder, prepare
from deephash_cli.models import packed_codes
from deephash_cli.retrieval import codes, codes_folder, similarity
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.codes_folder import PLAN, SHARDS, SKIPPED
from deephash_cli.retrieval.scoring import CLASSES
from deephash_cli.training.devices import first_device, require_accelerator
from deephash_cli.training.targets import build

_PLAN_LIMIT = 2**20  # bytes


@dataclass(frozen=True)
class Task:
    """Description of what to encode and how. It is the same in every process that takes part.

    Attributes:
        run: Run folder whose network encodes.
        input: Folder of images, text file with one image path per line, or .npy file of vectors; None if there is a
            ``source``.
        source: Node of the configuration that builds a data set to encode, as YAML; None if there is an ``input``.
        root: Folder that the paths in a text file are relative to; None for the folder of the text file.
        output: Folder of codes to write.
        shard_size: Number of images in a shard.
        batch_size: Number of images that pass through the network at once.
        num_workers: Number of worker processes that decode image files, or ``auto`` for ``loaders.worker_count``.
        bad_images: What to do about a file that cannot be read: ``stop``, or ``skip`` it and list it.
        allowed_targets: Names of further packages whose classes the run may build.
        allow_unverified: Whether a checkpoint without a sidecar is used, too.
    """

    run: str
    input: str | None
    source: str | None
    root: str | None
    output: str
    shard_size: int
    batch_size: int
    num_workers: int | str
    bad_images: str
    allowed_targets: list[str]
    allow_unverified: bool = False


class Batch(NamedTuple):
    """Images of one shard that pass through the network together. Images of the same size share a tensor."""

    shard: int  # number of the shard
    last: bool  # whether this is the last batch of its shard
    rows: list[int]  # rows of the images that can be read, in order
    places: list[list[int]]  # for each tensor, the positions of its images in ``rows``
    inputs: list[Tensor]  # (n, 3, h, w) uint8 images, or a single tensor (n, d) of vectors
    bad: list[tuple[int, str]]  # rows of the images that cannot be read, each with the reason


class Work:
    """The work of a task: the input, the network, and the shards of codes that the network makes of the input.

    Args:
        task: Description of what to encode and how.

    Attributes:
        task: Description of what to encode and how.
        folder: Folder of codes to write.
        encoder: Network that encodes.
        dataset: Images or vectors to encode.
        unit: Kind of input: ``images`` or ``vectors``.
        shards: Number of shards.

    Raises:
        ArtifactError: If the run is not finished or is damaged.
        ConfigError: If the run encodes images but the input holds vectors, or the other way round, or if the run would
            build something that is not trusted.
        DataError: If the input does not exist or cannot be read.
    """

    def __init__(self, task: Task):
        self.task = task
        self.folder = Path(task.output)
        file = Path(task.input) if task.input and task.input.endswith(".npy") else None
        self.encoder = load_encoder(Path(task.run), task.allowed_targets, file, task.allow_unverified)
        self.dataset = _read_input(task)
        holds = "vectors" if isinstance(self.dataset.images, Vectors) else "images"
        self.unit = holds
        if holds != self.encoder.takes:
            raise ConfigError(f"{task.run} encodes {self.encoder.takes} but the input holds {holds}")
        self.shards = -(-len(self.dataset) // task.shard_size)

    def begin(self) -> None:
        """Record what the folder will hold, or compare it with the record of an earlier start.

        Raises:
            ConfigError: If the folder was started with different settings or a different input, or if it cannot be
                created.
            ArtifactError: If the disk is full.
        """
        provenance = self.encoder.provenance
        plan = {
            "run": provenance["run"],
            "checkpoint": provenance["checkpoint"]["sha256"],
            "images": len(self.dataset),
            "ids": _digest(self.dataset.ids),
            "shard_size": self.task.shard_size,
            "batch_size": self.task.batch_size,
        }
        file = self.folder / PLAN
        remove_leftovers(self.folder, PLAN)
        if file.exists():
            before = self._earlier_plan(file)
            changed = [name for name in plan if before.get(name) != plan[name]]
            if changed:
                raise ConfigError(
                    f"{self.folder} was started with different settings or a different input ({', '.join(changed)} "
                    "differ): choose another output, or remove that folder"
                )
            return
        try:
            (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            kind = ArtifactError if error.errno == errno.ENOSPC else ConfigError
            raise kind(f"cannot make output={self.folder}: {reason(error, self.folder)}") from error
        write_sealed(file, {**plan, "run_folder": self.task.run})

    def _earlier_plan(self, file: Path) -> dict[str, Any]:
        try:
            return read_sealed(file, _PLAN_LIMIT)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; choose another output, or remove that folder") from error

    def rows(self, shard: int) -> range:
        """Return the rows of the images in a shard."""
        start = shard * self.task.shard_size
        return range(start, min(start + self.task.shard_size, len(self.dataset)))

    def size(self, shard: int) -> int:
        """Return the number of images in a shard."""
        return len(self.rows(shard))

    def place(self, shard: int) -> Path:
        """Return the folder in which a shard is or will be."""
        return self.folder / SHARDS / f"{shard:06d}"

    def has(self, shard: int) -> bool:
        """Whether a shard exists and is undamaged. A damaged shard is removed, because it can be made again."""
        if not self.place(shard).exists():
            return False
        try:
            _require_intact(self.place(shard))
            return True
        except ArtifactError as error:
            warn(f"damaged codes are made again: {error}")
            _remove(self.place(shard))
            return False

    def is_complete(self) -> bool:
        """Whether the joined codes exist and are undamaged. The manifest of damaged codes is removed."""
        if not (self.folder / codes_folder.MANIFEST).exists():
            return False
        try:
            _require_intact(self.folder)
            return True
        except ArtifactError as error:
            warn(f"damaged codes are made again: {error}")
            _remove(self.folder / codes_folder.MANIFEST)
            return False

    def encode(self, shards: Sequence[int], accelerator: str, devices: int, show: Callable[[int], None]) -> None:
        """Encode shards and write them. With several devices, a process for each encodes a part of the shards.

        Args:
            shards: Numbers of the shards to encode.
            accelerator: Accelerator as Lightning names it: ``auto``, ``cpu`` or ``gpu``.
            devices: Number of devices.
            show: Function that is called with the number of images encoded so far.

        Raises:
            ArtifactError: If a shard cannot be written.
            ConfigError: If the devices are not available, or a worker process is killed.
            DivergedError: If the output of the network is NaN.
        """
        device = first_device(accelerator) if devices == 1 else None
        with lost_workers_explained("num_workers"), explained(f"batch_size={self.task.batch_size}"):
            if device is not None:
                self._encode_on(device, shards, show)
                return
            from deephash_cli.inference import several_devices  # imports Lightning, which takes seconds

            several_devices.encode(self, shards, accelerator, devices, show)

    def _encode_on(self, device: torch.device, shards: Sequence[int], show: Callable[[int], None]) -> None:
        """Encode shards on one device."""
        self.encoder.to(device)
        collecting = Collecting(self, show)
        with torch.inference_mode():
            for batch in self.batches(shards):
                collecting.take(batch, self.packed(batch, device))

    def packed(self, batch: "Batch", device: torch.device) -> UInt8[np.ndarray, "n bytes"]:
        """Compute the packed codes of the images of a batch that can be read, in order.

        Args:
            batch: Batch of images or vectors.
            device: Device that the encoder is on.

        Raises:
            DivergedError: If the output of the network is NaN.
        """
        packed = np.empty((len(batch.rows), codes.packed_width(self.encoder.bits)), np.uint8)
        for places, images in zip(batch.places, batch.inputs, strict=True):
            ids = [self.dataset.ids[batch.rows[place]] for place in places]
            packed[places] = packed_codes(self.encoder(images.to(device, non_blocking=True)).cpu(), ids)
        return packed

    def batches(self, shards: Sequence[int]) -> Loader:
        """Make a loader of the batches of some shards, in order."""
        slices = [
            (shard, rows[start : start + self.task.batch_size], start + self.task.batch_size >= len(rows))
            for shard in shards
            for rows in [self.rows(shard)]
            for start in range(0, len(rows), self.task.batch_size)
        ]
        batches = _Batches(self.dataset, self.encoder.network.preprocessing, slices)
        workers = 0 if self.dataset.images.in_memory else worker_count(self.task.num_workers)
        size = self.task.batch_size * 3 * self.encoder.image_size**2
        return Loader(batches, range(len(batches)), workers, "num_workers", size, pin_memory=False)

    def write(self, shard: int, packed: UInt8[np.ndarray, "n bytes"], rows: list[int], bad: list[tuple[int, str]]):
        """Write a shard as a folder that appears complete or not at all.

        If another process has already written the shard, nothing is done: it made the same codes.

        Args:
            shard: Number of the shard.
            packed: Packed codes of the images that can be read.
            rows: Rows of these images, in the order of ``packed``.
            bad: Rows of the images that cannot be read, each with the reason. With ``bad_images=stop``, a shard that
                has such images is not written; they are noted beside the shards instead.

        Raises:
            ArtifactError: If the folder cannot be written.
        """
        unreadable = [(self.dataset.ids[row], reason) for row, reason in bad]
        note = self._note(shard)
        if unreadable and self.task.bad_images == "stop":
            write_json(note, unreadable)
            return
        note.unlink(missing_ok=True)
        ids = [self.dataset.ids[row] for row in rows]
        part = CodeSet(packed, self.encoder.bits, self.dataset.labels[rows], ids)
        place = self.place(shard)
        try:
            if not place.exists():
                with atomic_folder(place) as draft:
                    write_list(draft / SKIPPED, unreadable)
                    codes_folder.save_database(draft, part, {"skipped": len(bad)}, [SKIPPED])
        except ArtifactError:
            if not place.exists():
                raise

    def _note(self, shard: int) -> Path:
        """Return the file that names the unreadable images of a shard that is not written for their sake."""
        return self.folder / SHARDS / f"{shard:06d}.unreadable.json"

    def require_readable(self, shards: Sequence[int]) -> None:
        """Raise an error that names all unreadable images of shards that are not written for their sake.

        Raises:
            DataError: If there are such images.
        """
        notes = [self._note(shard) for shard in shards]
        bad = [entry for note in notes if note.exists() for entry in _read_note(note)]
        if bad:
            count = sum(self.size(shard) for shard in shards)
            raise refusal(bad, count, self.folder / SKIPPED, self.dataset.left_out)

    def conclude(self) -> int:
        """Join the shards into one folder of codes if none is missing.

        Returns:
            Number of missing shards.

        Raises:
            ArtifactError: If the codes cannot be written.
            DataError: If no image could be read.
        """
        if not (self.folder / SHARDS).exists() and self.is_complete():
            return 0  # nothing is written, so the folder may be read-only
        with alone(self.folder / PLAN):  # other processes wait here and then find the codes joined
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
        for place, manifest in zip(places, manifests, strict=True):
            codes_folder.require_entries(place, manifest, ["skipped"])
        skipped = sum(manifest["skipped"] for manifest in manifests)
        if not any(manifest["database"]["count"] for manifest in manifests):
            first = (places[0] / SKIPPED).read_text().splitlines()[1]
            raise DataError(f"none of the {skipped} images can be read; the first one is {first}")
        remove_leftovers(self.folder)  # files of a process that was killed while it joined the shards
        records = [line for place in places for line in (place / SKIPPED).read_text().splitlines(keepends=True)[1:]]
        other = csv_text(COLUMNS, [record(*entry) for entry in self.dataset.left_out])
        write_text(self.folder / SKIPPED, other + "".join(records))
        names = self.dataset.class_names
        origin = {**self.encoder.provenance, "encoded": self.dataset.name}
        if 0 < len(names) <= CLASSES:
            origin["class_names"] = names
        codes_folder.join_databases(
            self.folder,
            places,
            {
                "provenance": origin,
                "evaluation": {"similar": similarity.setting(self.encoder.settings["metrics"])},
                "run_folder": self.task.run,
                "source": self._source(),
                "skipped": skipped,
            },
            [SKIPPED],
        )

    def _source(self) -> dict[str, Any]:
        """Describe where the images are, so that they can be shown later: see ``searcher.Pictures``."""
        if self.task.source is not None:
            return {"dataset": OmegaConf.to_container(OmegaConf.create(self.task.source), resolve=True)}
        images = self.dataset.images
        return {"root": str(images.root)} if isinstance(images, ImageFiles) else {}


def _require_intact(folder: Path) -> None:
    """Check the codes in a folder and its list of skipped images.

    Raises:
        ArtifactError: If one of the files is missing or damaged.
    """
    codes_folder.require_skipped_intact(folder, codes_folder.open_side(folder).manifest)


class _Batches(Dataset[Batch]):
    """Batches by number. Files that cannot be read are listed in the batch and do not end a worker process."""

    def __init__(self, dataset: RetrievalDataset, form: Preprocessing, slices: list[tuple[int, range, bool]]):
        self.images = dataset.images
        self.form = form
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, number: int) -> Batch:
        shard, rows, last = self.slices[number]
        if not isinstance(self.images, ImageFiles):
            return Batch(
                shard,
                last,
                list(rows),
                [list(range(len(rows)))],
                [torch.from_numpy(self.images.batch(np.array(rows)))],
                [],
            )
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        sizes: dict[tuple[int, ...], tuple[list[int], list[Tensor]]] = {}
        for row in rows:
            try:
                image = prepare(decode(self.images.source(row), at_least=self.form.resized), self.form)
            except ImageError as error:
                bad.append((row, error.reason))
                continue
            places, tensors = sizes.setdefault(tuple(image.shape), ([], []))
            places.append(len(good))
            tensors.append(image)
            good.append(row)
        groups = sizes.values()
        return Batch(shard, last, good, [places for places, _ in groups], [torch.stack(t) for _, t in groups], bad)


class Collecting:
    """Collect the codes of batches, and write each shard when its last batch is done.

    Args:
        work: Work that the shards belong to.
        show: Function that is called with the number of images encoded so far, by all processes together.
    """

    def __init__(self, work: Work, show: Callable[[int], None]):
        self.work = work
        self.show = show
        self.done = 0
        self.parts: list[np.ndarray] = []
        self.rows: list[int] = []
        self.bad: list[tuple[int, str]] = []

    def take(self, batch: Batch, packed: UInt8[np.ndarray, "n bytes"]) -> None:
        """Take the codes of a batch, and write its shard if the batch is the last one.

        Raises:
            ArtifactError: If the shard cannot be written.
        """
        self.parts.append(packed)
        self.rows += batch.rows
        self.bad += batch.bad
        self.done += len(batch.rows) + len(batch.bad)
        if batch.last:
            self.work.write(batch.shard, np.concatenate(self.parts), self.rows, self.bad)
            self.parts, self.rows, self.bad = [], [], []
        self.show(self.done * processes.count())  # the other processes have done about as many


def require_devices(accelerator: str, devices: int) -> torch.device:
    """Check that this machine has the devices to encode on, before anything is read or written.

    Returns:
        The first of the devices.

    Raises:
        ConfigError: If it does not have them.
    """
    require_accelerator(accelerator, "accelerator")
    device = first_device(accelerator) if devices == 1 else None
    if device is not None:
        return device
    from deephash_cli.inference import several_devices

    return several_devices.require_devices(accelerator, devices)


def _read_note(file: Path) -> list[tuple[str, str]]:
    """Read the names and reasons of unreadable images."""
    found = read_json(file)
    if not isinstance(found, list) or not all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry) for entry in found
    ):
        raise ArtifactError(f"{file} does not list unreadable images: it was damaged or edited by hand; remove it")
    return [(name, reason) for name, reason in found]


def _read_input(task: Task) -> RetrievalDataset:
    """Load the images or vectors to encode.

    Raises:
        DataError: If the input does not exist or cannot be read.
        ConfigError: If the node of a data set cannot be built.
    """
    if task.source is not None:
        return build(OmegaConf.create(task.source))
    place = Path(str(task.input))
    if place.suffix == ".npy":
        return vectors(str(place), labels=None, ids=None)
    return images_at(place, None if task.root is None else Path(task.root))


def _remove(path: Path) -> None:
    """Remove a damaged file or folder.

    Raises:
        ArtifactError: If it cannot be removed.
    """
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"could not remove {path}, which is damaged: {reason(error, path)}") from error


def _digest(ids: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()
