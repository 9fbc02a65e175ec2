"""Train a network and encode with it: `train` does a whole run step by step, and `fit` is its longest step."""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from torch import Tensor

from deephash_cli import console, processes, runs
from deephash_cli.cache import cache_folder
from deephash_cli.console import say
from deephash_cli.data import inspection
from deephash_cli.data.changes import unseen_classes
from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.features import Features
from deephash_cli.data.image_folder import describe_left_out
from deephash_cli.data.loaders import DirectLoader, EpochSampler, Loader, lost_workers_explained
from deephash_cli.data.protocol import Split, fitting_sample, hold_out_validation
from deephash_cli.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DeephashError,
    Stopped,
    command,
    first_line,
    print_error,
)
from deephash_cli.failures import explain, explained
from deephash_cli.files import sha256_file, write_json, write_text
from deephash_cli.hiding import hide
from deephash_cli.methods.base import Hasher, HashingModule
from deephash_cli.models import HashingNetwork, readable
from deephash_cli.phases import phase, seconds
from deephash_cli.retrieval import scoring, similarity
from deephash_cli.retrieval.caveats import caveats
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.codes_folder import save_codes
from deephash_cli.retrieval.scoring import CLASSES
from deephash_cli.runs import outputs, records
from deephash_cli.training import checkpoints, gallery, loggers, pretraining, resuming, saving
from deephash_cli.training.averaging import Averaging
from deephash_cli.training.datasets import prepare_data, require_whole_training_part
from deephash_cli.training.inputs import Computing, Loading, Source
from deephash_cli.training.instantiate import build_module, is_learned, is_transductive
from deephash_cli.training.rebuilding import network_without_weights
from deephash_cli.training.targets import as_yaml, build
from deephash_cli.training.trainer import check_trainer, make_trainer, run_trainer
from deephash_cli.training.trust import paths_in, require_no_download, require_trusted
from deephash_cli.training.validation import Validation
from deephash_cli.training.variables import watch_variables

# The command with which the first of several processes starts the others.
FOLLOW = (sys.executable, "-P", "-c", "from deephash_cli.training.fit import follow; follow()")

_MOST_CONTINUOUS = 2**28  # bytes of the continuous codes of a database; those of queries are always kept


@dataclass(frozen=True)
class Job:
    """Everything that a run needs before it gets a folder.

    Attributes:
        config: Composed configuration.
        settings: The configuration as plain values, resolved and with secrets hidden, as it is written to files.
        dataset: Data set that the run uses.
        split: Division of the data set into training set, queries and database.
        network: Network to train.
        is_blank: Whether the network has random weights for now, because a checkpoint has its weights.
    """

    config: DictConfig
    settings: dict[str, Any]
    dataset: RetrievalDataset
    split: Split
    network: HashingNetwork
    is_blank: bool = False


@explained()
def train(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Do a whole run, from its configuration to its metrics. The steps happen in the order in which they stand here.

    Args:
        config: Composed configuration.
        overrides: Settings as the user typed them; they are kept in the run folder so that the run can be resumed.

    Returns:
        The metrics, and the path of the run folder under ``run_dir``.

    Raises:
        ConfigError: If the settings do not fit each other, or differ from those of the run to be resumed.
        DataError: If the data are missing, damaged, or do not fit the method.
        ArtifactError: If a file of the run is damaged or cannot be written.
        DivergedError: If the loss, the weights or the codes are not finite.
        Stopped: If the user or the system interrupts the run.
    """
    settings = _settings(config)
    places = {name: config[name] for name in ("resume", "run_dir", "runs")}
    found_by = {**settings, **places}  # paths as they are, even if they are hidden
    earlier = resuming.earlier_run(found_by)
    if earlier and resuming.is_done(earlier, config.trainer.max_epochs):
        return _already_done(earlier)
    if earlier:
        runs.check_writable(earlier)
        if runs.is_in_use(earlier):
            raise runs.InUseError(earlier)
    else:
        outputs.require_room(config.runs, config.run_dir, config.dataset.get("root"))
    check_trainer(config)
    # A checkpoint has the weights: what the settings say of them is not read
    read = {"dataset": settings["dataset"]} if earlier and _has_weights(earlier, config) else settings
    if config.resume not in ("auto", "none") and (paths := paths_in(read)):
        say(f"reading {', '.join(paths)}, as {config.resume} says")
    job = prepare(config, settings, earlier=earlier)
    if config.trial:
        console.warn(
            f"trial={config.trial} uses at most so many queries, training images and database items: the numbers "
            "of this run mean nothing"
        )
    for sentence in pretraining.cautions(
        pretraining.record_of(job.network), pretraining.known_to(config), config.dataset.name
    ):
        console.warn(sentence)
    with contextlib.ExitStack() as held:
        with resuming.only_one(found_by):
            earlier = resuming.earlier_run(found_by)  # another process may have begun it since
            if earlier and resuming.is_done(earlier, config.trainer.max_epochs):
                return _already_done(earlier)
            run = held.enter_context(_run_folder(config, earlier))
            identity = _started(run, job, overrides)
        held.enter_context(_recorded(run))
        held.enter_context(explained())
        run.unseal(runs.SPLIT, runs.SKIPPED)
        resuming.keep_split(run.path, job.split, job.dataset)
        _list_left_out(run.path, job.dataset)
        run.seal()
        run.unseal(runs.STEPS, runs.HEAD_STEPS, runs.CODES_MANIFEST, runs.METRICS)
        with _dashboard(run.path, identity, job) as dashboard:
            with console.quiet_lightning(), inspection.all_unreadable_named(job.dataset, cache_folder() / runs.SKIPPED):
                fit(run.path, job, dashboard)
            held.enter_context(phase("metrics"))
            metrics = scoring.score(run.path / runs.CODES, {})
            for sentence in caveats(metrics):
                console.warn(sentence)
            if config.gallery:
                run.unseal(runs.RETRIEVAL, runs.RETRIEVAL_IMAGE)
                gallery.write(run.path, job.dataset, [entry["query"] for entry in metrics.get("hardest_queries", ())])
            write_json(run.path / runs.METRICS, metrics)
        loggers.conclude(dashboard, metrics, 0)
    return {**metrics, "run_dir": str(run.path)}


def _already_done(folder: Path) -> dict[str, Any]:
    """Return the metrics of a finished run, which is not done again."""
    say(f"already done: {folder}")
    return {**records.metrics(folder), "run_dir": str(folder)}


def prepare(
    config: DictConfig,
    settings: dict[str, Any] | None = None,
    unreadable: tuple[tuple[str, str], ...] | None = None,
    earlier: Path | None = None,
) -> Job:
    """Load the data set, divide it and build the network: all that can fail before a run gets a folder.

    Args:
        config: Composed configuration.
        settings: The same configuration as plain values, with secrets hidden; None if no run folder is written.
        unreadable: Ids of the images that ``bad_images=skip`` takes out of the data set, each with a reason; None to
            find them.
        earlier: Run folder that is continued. If it has a checkpoint, the network gets its weights from that, and
            published weights are neither read nor fetched. None for a new run.

    Raises:
        ConfigError: If the settings do not fit each other.
        DataError: If the data are missing, damaged, or do not fit the method.
        ArtifactError: If weights are missing or damaged.
    """
    seed_everything(config.seed, verbose=False)
    dataset, split = prepare_data(config, unreadable)
    if is_transductive(config):  # the source of a class does not always say it, such as one that a package re-exports
        require_whole_training_part(config, split)
    if earlier is None or not _has_weights(earlier, config):
        return Job(config, settings or {}, dataset, split, build(config.model.network, bits=config.bits))
    node = cast(dict[str, Any], OmegaConf.to_container(config.model.network, resolve=True))
    network = network_without_weights(node, config.bits, runs.read_record(earlier).get("backbone"))
    return Job(config, settings or {}, dataset, split, network, is_blank=True)


def _has_weights(folder: Path, config: DictConfig) -> bool:
    """Whether a run folder has a checkpoint, for a backbone that this package can build without weights."""
    target = str(OmegaConf.select(config, "model.network.backbone._target_"))
    return target.startswith("deephash_cli.models.") and any((folder / runs.CHECKPOINTS).glob("*.ckpt"))


def fit(folder: Path, job: Job, dashboard: Logger | None) -> None:
    """Train the network of a job and write the codes of its queries and database.

    Args:
        folder: Run folder. Training continues from its newest valid checkpoint, if it has one.
        job: Network to train, its data and its configuration.
        dashboard: Logger that gets every number in addition to the record in the folder; None for the record alone.

    Raises:
        ConfigError: If the settings do not fit each other, such as more devices than images.
        DataError: If the training set cannot spare the validation queries, or an image cannot be read.
        ArtifactError: If a checkpoint is damaged, or a file cannot be written.
        DivergedError: If the loss, the weights or the codes are not finite.
        Stopped: If the user or the system interrupts the run; while a method learns, the current step is saved first.
    """
    config, split = job.config, job.split
    train_rows, validation_rows = split.train, np.empty(0, np.int64)
    if config.validation.queries:
        train_rows, validation_rows = hold_out_validation(split, job.dataset, config.validation.queries, config.seed)
    if is_transductive(config):
        train_rows = np.setdiff1d(split.database, validation_rows)
    owner = _owner(folder, job)
    start = _start(folder, config, owner)
    if job.is_blank:
        job = _with_weights(job, start.checkpoint, owner)
    keeping = saving.EpochCheckpoints(
        folder / runs.CHECKPOINTS,
        config.checkpoint.every_n_epochs,
        config.checkpoint.every_seconds,
        monitor="validation/map" if len(validation_rows) else None,
    )
    trainer = make_trainer(
        config,
        folder,
        lambda: [loggers.RecordLogger(folder / runs.STEPS, start.steps), *([dashboard] if dashboard else [])],
        [
            *([Validation(similarity.setting(config.metrics))] if len(validation_rows) else []),
            loggers.EpochReport(),
            *([Averaging(config.ema.decay)] if config.ema.decay else []),
            keeping,
        ],
        owner,
    )
    _require_images(trainer.world_size, split.query, split.database, validation_rows)
    _require_batches(config, len(train_rows), trainer.world_size)
    unreadable = list(job.dataset.unreadable)
    task = json.dumps({"folder": str(folder.absolute()), "config": _shared(config), "unreadable": unreadable})
    with (
        processes.team(trainer.world_size, trainer.strategy.root_device, FOLLOW, task),
        lost_workers_explained("loader.num_workers"),
    ):
        if config.compile:
            job.network.backbone.compile()
        fit_rows = train_rows if is_learned(config) else _fitting_rows(job, train_rows)
        # Built before the source computes features, because a method may refuse its settings
        module = build_module(config, job.network, torch.from_numpy(job.dataset.labels[fit_rows]).float())
        loading, computing = Loading(**config.loader), Computing(**config.features)
        source = Source(job.dataset, job.network, trainer.strategy.root_device, loading, computing)
        if config.head.epochs and not job.network.frozen and not start.checkpoint:
            module.load_state_dict(_learn_head(folder, job, source, train_rows))
        training = _batches(source, module, fit_rows, config.seed, start.done)
        validation = None
        if len(validation_rows):
            validation = [source.in_order(processes.own_share(rows)) for rows in (validation_rows, train_rows)]
        lower = f"loader.batch_size={config.loader.batch_size}" if is_learned(config) else f"fit_rows={len(fit_rows)}"
        run_trainer(trainer, module, training, validation, start.checkpoint, lower)

        with phase("codes"):
            chosen = _chosen(folder, is_validated=validation is not None)
            checkpoints.load_into(module, chosen, owner)
            precision = trainer.precision_plugin.forward_context
            query = source.codes(split.query, precision)
            database = source.codes(split.database, precision, most_continuous=_MOST_CONTINUOUS)
            if isinstance(module, HashingModule) and module.transductive:
                database = _learned(module, database, split.database, train_rows)
            if trainer.is_global_zero:
                provenance = _provenance(job, trainer.current_epoch, chosen, keeping.best)
                _write_codes(folder / runs.CODES, query, database, provenance, source, split)


def _chosen(folder: Path, is_validated: bool) -> Path:
    """Return the checkpoint that makes the codes: the best one by validation queries, if there are any, or the last.

    Raises:
        ConfigError: If there is none.
    """
    last, best = (folder / runs.CHECKPOINTS / name for name in (checkpoints.LAST, checkpoints.BEST))
    if best.exists():
        return best
    if not last.exists():
        raise ConfigError("nothing was trained: raise trainer.max_time or another limit of the trainer")
    if is_validated:
        console.warn("training ended before the first validation: the codes are those of the last epoch")
    return last


def _batches(
    source: Source, module: Hasher, rows: Int[np.ndarray, "n"], seed: int, done: tuple[int, int]
) -> Loader | DirectLoader:
    """Return the batches that a method trains on: shuffled ones, or all rows at once if it is fitted in one step."""
    if isinstance(module, HashingModule):
        return source.shuffled(rows, seed, done, module.epoch_sample)
    return source.at_once(rows)


def _learned(
    module: HashingModule, database: CodeSet, rows: Int[np.ndarray, "n"], train_rows: Int[np.ndarray, "m"]
) -> CodeSet:
    """Replace the codes of the network by those that a method has learned, for the rows that it was trained on."""
    known = np.isin(rows, train_rows)
    codes = module.learned_codes().cpu().numpy()[np.searchsorted(train_rows, rows[known])]
    packed, u = np.array(database.packed), database.u
    packed[known] = pack(codes > 0)
    if u is not None:
        u[known] = codes
    return replace(database, packed=packed, u=u)


def _write_codes(
    folder: Path, query: CodeSet, database: CodeSet, provenance: dict[str, Any], source: Source, split: Split
) -> None:
    """Write the codes with their provenance, and where the features are that they were made from, if they are kept."""
    if database.u is None:
        say(
            f"the continuous codes of {database.n} database items take more than {_MOST_CONTINUOUS / 1e6:.0f} MB, so "
            "they are not kept, and deephash eval cannot say what binarizing them lost"
        )
    rows = None
    if isinstance(source.inputs, Features):
        provenance["provenance"]["features"] = {"key": source.inputs.key}
        rows = split.query, split.database
    save_codes(folder, query, database, provenance, rows)


def _shared(config: DictConfig) -> str:
    """Return the configuration for the processes that follow the first one, resolved, as YAML.

    If lengths are nested, the method and its loss keep what refers to ``bits``, because they are built for each length.
    """
    shared = OmegaConf.create(as_yaml(config))
    if config.get("nested"):
        shared.module, shared.loss = config.module, config.loss
    return OmegaConf.to_yaml(shared)


def _owner(folder: Path, job: Job) -> checkpoints.Owner | None:
    """Return whose the checkpoints of a job are; None in a process that follows the first one, which checks them."""
    if not job.settings:
        return None
    identity = runs.read_record(folder)["id"]
    return checkpoints.Owner.of(identity, job.settings, classes=job.dataset.labels.shape[1])


class _Start(NamedTuple):
    """Where training starts: at the beginning, or where a checkpoint was saved."""

    checkpoint: Path | None = None
    steps: int = 0  # optimizer steps done
    done: tuple[int, int] = (0, 0)  # an epoch, counted from 0, and the number of its batches that are done


def _start(folder: Path, config: DictConfig, owner: checkpoints.Owner | None) -> _Start:
    """Find the checkpoint in a run folder that training continues from.

    Raises:
        ArtifactError: If the checkpoint belongs to another run, or has a newer format.
        ConfigError: If fewer epochs are asked for than the run has begun.
    """
    checkpoint = checkpoints.newest_valid(folder / runs.CHECKPOINTS, console.warn, owner)
    if checkpoint is None:
        return _Start()
    saved = checkpoints.read_checkpoint(checkpoint, owner)
    begun, steps_done = checkpoints.epochs_and_steps(checkpoint, saved)
    steps, epochs = (OmegaConf.select(config, f"trainer.{name}", default=-1) for name in ("max_steps", "max_epochs"))
    limited = epochs not in (None, -1)
    if limited and epochs < begun:
        raise ConfigError(
            f"trainer.max_epochs={epochs} is less than the {begun} epochs that the run in {folder} has begun: raise "
            "it, or start a new run"
        )
    if steps_done < steps and not (limited and epochs <= begun):
        console.warn("training starts again at its first step, because Lightning does not continue trainer.max_steps")
        return _Start()
    return _Start(checkpoint, steps_done, (begun - 1, checkpoints.batches_done(saved)))


def _with_weights(job: Job, checkpoint: Path | None, owner: checkpoints.Owner | None) -> Job:
    """Give the backbone of a job its weights before its features are computed, which is before Lightning restores them.

    Args:
        job: Job whose network has random weights.
        checkpoint: Checkpoint that training continues from; None if it begins again, from published weights.
        owner: Run that the checkpoint must belong to; None for any run.

    Raises:
        ArtifactError: If the checkpoint does not fit the network, or if the published weights are missing.
    """
    if checkpoint is None:
        seed_everything(job.config.seed, verbose=False)  # as if no checkpoint had ever been there
        return replace(job, network=build(job.config.model.network, bits=job.config.bits), is_blank=False)
    prefix = "network.backbone."
    state = checkpoints.read_checkpoint(checkpoint, owner)["state_dict"]
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    checkpoints.require_fitting(checkpoint, own, job.network.backbone)
    job.network.backbone.load_state_dict(own)
    return replace(job, is_blank=False)


def _fitting_rows(job: Job, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Return the training rows that a method without gradients is fitted on, and say so if they are a sample."""
    most = job.config.fit_rows
    chosen = fitting_sample(rows, most, job.config.seed, job.split.version)
    if len(chosen) < len(rows):
        say(f"fitting on {len(chosen)} of {len(rows)} training rows, drawn at random (fit_rows={most})")
    return chosen


def follow() -> None:
    """Train and encode as one of several processes. Only the process that started this one prints and writes files."""
    console.be_silent()
    task = json.loads(processes.task_of_this_process() or "null")
    if task is None:
        return
    config = cast(DictConfig, OmegaConf.create(task["config"]))
    try:
        with console.quiet_lightning():
            unreadable = tuple((name, reason) for name, reason in task["unreadable"])
            fit(Path(task["folder"]), prepare(config, unreadable=unreadable, earlier=Path(task["folder"])), None)
    except (DeephashError, Stopped) as error:  # the first process gets the same error and prints it
        sys.exit(error.exit_code)
    except Exception as error:
        if (known := explain(error)) is None:
            raise
        print_error(known)  # the first process may have enough memory
        sys.exit(known.exit_code)


def _settings(config: DictConfig) -> dict[str, Any]:
    """Check what the run may build, and return the configuration as plain values with secrets hidden.

    Raises:
        ConfigError: If a run folder to be resumed would build something that is not trusted, or if another program
            started this process as one of several.
    """
    watch_variables()  # a job of a sweep may be another process
    config.model.name = readable(config.model.name)
    settings = runs.redact(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)))
    if config.resume not in ("auto", "none"):
        require_trusted(settings, also=config.allowed_targets)
        require_no_download(settings)
    processes.require_alone("train")
    if not is_learned(config):  # fitted in one step by one process, even if other methods of a sweep use several
        one_step = {"max_epochs": 1, "limit_train_batches": None, "devices": 1, "num_nodes": 1, "strategy": "auto"}
        for name, value in one_step.items():
            OmegaConf.update(config.trainer, name, value, force_add=True)  # the user's own trainer may lack the setting
            settings["trainer"][name] = value
    return settings


@contextlib.contextmanager
def _run_folder(config: DictConfig, earlier: Path | None) -> Iterator[runs.Run]:
    """Open the folder of an earlier run, or make a new one, which is removed again if it holds nothing to resume."""
    name = f"{config.dataset.name}-{config.method}-{config.bits}-s{config.seed}".replace("/", "_")
    run = runs.Run(earlier) if earlier else runs.create(Path(config.runs), name, config.run_dir)
    try:
        yield run
    except (ConfigError, DataError):
        if any((run.path / runs.CHECKPOINTS).glob("*.ckpt")):
            say(f"the run folder is kept: {command(f'resume={run.path}')} continues after its last checkpoint")
        elif not earlier:
            run.discard()  # the command could not work, so there was no run
        raise
    except ArtifactError:
        if not (run.path / runs.RECORD).exists():
            run.discard()  # the record could not be written, so nothing in the folder can be resumed
        raise
    finally:
        run.close()


def _started(run: runs.Run, job: Job, overrides: Sequence[str]) -> str:
    """Record that a run has started, and return its id."""
    yaml = OmegaConf.to_yaml(OmegaConf.create(runs.escape(job.settings)))
    facts = {"backbone": job.network.origin.record(), **({"changes": job.split.changes} if job.split.changes else {})}
    return run.start(yaml, runs.fingerprint(job.settings), overrides, **facts)


@contextlib.contextmanager
def _recorded(run: runs.Run) -> Iterator[None]:
    """Record how a run ended that was recorded as started."""
    try:
        yield
        run.end("finished", phases=seconds())
    except Stopped as stopped:
        with _second_to_the_cause():
            run.end("interrupted", phases=seconds())
        unit = "step" if stopped.saved else "epoch"
        say(f"interrupted: {command(f'resume={run.path}')} continues after the last finished {unit}")
        raise
    except BaseException as error:
        with _second_to_the_cause():
            run.end("failed", first_line(error), seconds())
            if not isinstance(error, DeephashError):
                run.unseal(runs.ERROR)
                write_text(run.path / runs.ERROR, hide(traceback.format_exc()))
                run.seal()
        raise


@contextlib.contextmanager
def _second_to_the_cause() -> Iterator[None]:
    """Only warn if the end of a run cannot be recorded, so that the error that ended the run is the one shown."""
    try:
        yield
    except ArtifactError as error:
        console.warn(str(error))


@contextlib.contextmanager
def _dashboard(folder: Path, identity: str, job: Job) -> Iterator[Logger | None]:
    """Open the logger that a job's configuration names, and close it if the run fails or is stopped.

    Yields the logger; None if there is none or it cannot be opened.
    """
    dashboard = loggers.copies_to(
        build(job.config.logger), run_dir=folder, identity=identity, group=job.config.group, config=job.settings
    )
    try:
        yield dashboard
    except BaseException as error:
        loggers.conclude(dashboard, None, runs.EXIT_CODES["interrupted" if isinstance(error, Stopped) else "failed"])
        raise


def _list_left_out(folder: Path, dataset: RetrievalDataset) -> None:
    """Write the files that are not in a data set into the run folder, each with the reason, and say how many."""
    file = folder / runs.SKIPPED
    file.unlink(missing_ok=True)  # a resumed run has the list of its last start
    if dataset.left_out or dataset.unreadable:
        inspection.write_list(file, [*dataset.left_out, *dataset.unreadable])
    if dataset.left_out:
        console.warn(describe_left_out(dataset.left_out, f"{runs.SKIPPED} in the run folder"))
    if count := len(dataset.unreadable):
        console.warn(f"{inspection.unreadable_count(count)} left out: {runs.SKIPPED} in the run folder says why")


def _require_images(devices: int, *parts: Int[np.ndarray, "_"]) -> None:
    """Check that each device gets an image of each part that is not empty: queries, database, validation queries.

    Raises:
        ConfigError: If there are fewer images than devices.
    """
    fewest = min(len(rows) for rows in parts if len(rows))
    if fewest < devices:
        raise ConfigError(
            f"each of {devices} devices needs at least one image of the queries, of the database and of the "
            f"validation queries, but the smallest of these has {fewest}: lower trainer.devices"
        )


def _require_batches(config: DictConfig, images: int, devices: int) -> None:
    """Check that ``trainer.limit_train_batches`` leaves at least one batch, if the method learns from batches.

    Raises:
        ConfigError: If nothing would be trained, or a batch is too small for the number of devices.
        DataError: If there are fewer than two training images.
    """
    if not is_learned(config):
        return
    batches = len(EpochSampler(images, config.loader.batch_size, config.seed, parts=devices))
    share = OmegaConf.select(config, "trainer.limit_train_batches")
    if isinstance(share, float) and batches * share < 1:
        raise ConfigError(
            f"trainer.limit_train_batches={share} of {batches} batches is less than one batch, so nothing would be "
            "trained: give a number of batches, such as trainer.limit_train_batches=1, or a larger share"
        )


def _learn_head(folder: Path, job: Job, source: Source, rows: Int[np.ndarray, "n"]) -> dict[str, Tensor]:
    """Train the layers above the backbone on the backbone's features, before the backbone is fine-tuned.

    The gradients of an untrained head spoil pretrained features (Kumar et al., Fine-Tuning can Distort Pretrained
    Features and Underperform Out-of-Distribution, ICLR 2022).

    Returns:
        The state that the method continues from: the tensors of the network and the buffers, by name.
    """
    head = job.config.head
    config = cast(DictConfig, OmegaConf.merge(job.config, {"optimizer": {"lr": head.lr}}))
    # DDP must accept that the parameters of the backbone get no gradient here
    changes: dict[str, Any] = {"strategy": "ddp_find_unused_parameters_true"} if processes.count() > 1 else {}
    trainer = make_trainer(
        config,
        folder,
        lambda: [loggers.RecordLogger(folder / runs.HEAD_STEPS, 0)],
        [loggers.EpochReport("head: ")],
        max_epochs=head.epochs,
        max_time=None,
        **changes,
    )
    module = build_module(config, job.network, source.labels[rows].float())
    sample = cast(HashingModule, module).epoch_sample
    batches = source.shuffled_features(rows, head.batch_size, config.seed, sample)
    run_trainer(trainer, module, batches, lower=f"head.batch_size={head.batch_size}")
    return module.state_dict()


def _provenance(job: Job, epochs: int, checkpoint: Path, best: float) -> dict[str, Any]:
    """Describe where the codes come from and how to evaluate them: everything that ``deephash eval`` needs to know."""
    config, split = job.config, job.split
    validated = checkpoint.name == checkpoints.BEST
    names, unseen = job.dataset.class_names, unseen_classes(split.changes)
    return {
        "provenance": {
            "method": config.method,
            "module": job.settings["module"],
            "model": config.model.name,
            "backbone": job.network.origin.record(),
            "dataset": config.dataset.name,
            **pretraining.on_classes(pretraining.record_of(job.network), pretraining.known_to(config)),
            "split": {
                "name": split.name,
                "version": split.version,
                "seed": split.seed,
                "sha256": split.sha256,
                **split.flags,
                **({"changes": split.changes} if split.changes else {}),
            },
            "seed": config.seed,
            "epochs": epochs,
            **({"class_names": names} if 0 < len(names) <= CLASSES else {}),
            "selection": "best on validation queries" if validated else "last epoch",
            "validation": {"queries": config.validation.queries, "map": best} if validated else None,
            **({"transductive": True} if is_transductive(config) else {}),
            **_fitted_on(job),
            **({"skipped_images": len(job.dataset.unreadable)} if job.dataset.unreadable else {}),
            **_inputs(job),
            "checkpoint": {"file": f"{runs.CHECKPOINTS}/{checkpoint.name}", "sha256": sha256_file(checkpoint)},
            "versions": runs.versions(),
        },
        "evaluation": {
            "ks": list(config.metrics.ks),
            "map_at": list(config.dataset.map_at),
            "radius": config.metrics.radius,
            "zero_hits": config.metrics.zero_hits,
            "similar": similarity.setting(config.metrics),
            **({"nested": sorted(config.nested)} if config.get("nested") else {}),
            **({"unseen": [names.index(name) for name in unseen]} if unseen else {}),
        },
    }


def _fitted_on(job: Job) -> dict[str, int]:
    """Return the number of training images that the method was fitted on, if they are a sample."""
    most, training = job.config.fit_rows, len(job.split.train) - job.config.validation.queries
    return {"fitted_on": most} if not is_learned(job.config) and most < training else {}


def _inputs(job: Job) -> dict[str, Any]:
    """Describe what the codes were made from: views of images, or a file of vectors."""
    images = job.dataset.images
    if isinstance(images, Vectors):
        return {"views": "none: vectors as they are", "vectors": {"sha256": images.digest()}}
    views = "two, features averaged: the image and its mirror image" if job.network.mirrored else "one"
    resized = "both sides" if job.network.preprocessing.crop_mode == "squash" else "shorter side"
    return {"views": f"{views}; {resized} resized, centre crop"}
