"""``deephash train``: data, network, training, codes, metrics, in the order of this page."""

import contextlib
import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import Logger
from torch import Tensor

from deephash_cli import console, processes, runs
from deephash_cli.commands import eval as evaluate
from deephash_cli.console import say
from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.protocol import Split, hold_out_validation, load_split, make_split
from deephash_cli.errors import ArtifactError, ConfigError, DataError, DeephashError, Stopped, first_line
from deephash_cli.files import read_json, sha256_file, write_json, write_text
from deephash_cli.models import HashingNetwork, NoBackbone
from deephash_cli.retrieval.codes import save_codes
from deephash_cli.retrieval.scoring import CLASSES
from deephash_cli.training import checkpoints, gallery, resuming
from deephash_cli.training import loggers as tracking
from deephash_cli.training.inputs import Loading, Source
from deephash_cli.training.instantiate import build, build_module, is_learned, require_trusted, target_of

# What the first of several processes starts the others with.
FOLLOW = (sys.executable, "-P", "-c", "from deephash_cli.commands.train import follow; follow()")


@dataclass(frozen=True)
class Job:
    """What a run is made of before it has a folder."""

    config: DictConfig
    settings: dict[str, Any]  # the same, resolved, secrets hidden: what is written down
    dataset: RetrievalDataset
    split: Split
    network: HashingNetwork


def train(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, encode, evaluate.

    Args:
        config: The composed configuration.
        overrides: What was typed, kept in the run folder so that the run can be taken up again.

    Returns:
        The metrics, and the run folder under ``run_dir``.
    """
    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = runs.redact(settings)
    if config.resume not in ("auto", "none"):
        require_trusted(settings, also=config.allowed_targets)
    processes.require_alone("train")
    if not is_learned(config):  # fitted in one step by one process, whatever the other methods of a sweep have
        for name, value in {"max_epochs": 1, "devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
            OmegaConf.update(config.trainer, name, value, force_add=True)  # a trainer of the user's may not name it
            settings["trainer"][name] = value
    earlier = resuming.earlier_run(settings)
    if earlier and resuming.is_done(earlier, config.trainer.max_epochs):
        say(f"already done: {earlier}")
        return {**read_json(earlier / runs.METRICS), "run_dir": str(earlier)}
    runs.check_writable(earlier or Path(config.run_dir or config.runs))

    job = _prepare(config, settings)
    name = f"{config.dataset.name}-{config.method}-{config.bits}-s{config.seed}".replace("/", "_")
    run = runs.Run(earlier) if earlier else runs.create(Path(config.runs), name, config.run_dir)
    try:
        metrics = _run(run, job, overrides)
    except (ConfigError, DataError):
        if not earlier:
            run.discard()  # the command could not work, so there was no run
        raise
    except ArtifactError:
        if not (run.path / runs.RECORD).exists():
            run.discard()  # its record could not be written, so nothing in it can be resumed
        raise
    finally:
        run.close()
    return {**metrics, "run_dir": str(run.path)}


def follow() -> None:
    """Train and encode beside the process that has started this one, and leave the talking and the writing to it."""
    console.be_silent()
    task = json.loads(processes.task_of_this_process() or "null")
    if task is None:
        return
    config = cast(DictConfig, OmegaConf.create(task["config"]))
    try:
        with console.quiet_lightning():
            _train_and_encode(Path(task["folder"]), _prepare(config, {}), None)
    except DeephashError as error:  # which the first process has as well
        sys.exit(error.exit_code)


def _prepare(config: DictConfig, settings: dict[str, Any]) -> Job:
    seed_everything(config.seed, verbose=False)
    dataset = load_dataset(OmegaConf.to_yaml(config.dataset.source, resolve=True))
    _require_fitting(config, dataset)
    if config.dataset.split_file:
        split = load_split(Path(config.dataset.split_file), dataset)
    else:
        split = make_split(config.dataset.protocol, dataset, config.dataset.split_seed)
    return Job(config, settings, dataset, split, build(config.model.network, bits=config.bits))


@functools.lru_cache(maxsize=1)
def load_dataset(source: str) -> RetrievalDataset:
    """The data set of a node of the configuration, as YAML. The last one is kept: the runs of a sweep share it."""
    return build(OmegaConf.create(source))


def _run(run: runs.Run, job: Job, overrides: Sequence[str]) -> dict[str, Any]:
    """Do the job in its folder and write down how it ended."""
    identity = run.start(OmegaConf.to_yaml(OmegaConf.create(job.settings)), runs.fingerprint(job.settings), overrides)
    try:
        resuming.keep_split(run.path, job.split, job.dataset)
        metrics = _train_and_evaluate(run.path, identity, job)
        run.end("finished")
        return metrics
    except Stopped:
        with _second_to_the_cause():
            run.end("interrupted")
        say(f"interrupted: resume={run.path} continues after the last finished epoch")
        raise
    except BaseException as error:
        with _second_to_the_cause():
            run.end("failed", first_line(error))
            if not isinstance(error, DeephashError):
                write_text(run.path / "error.txt", traceback.format_exc())
        raise


@contextlib.contextmanager
def _second_to_the_cause() -> Iterator[None]:
    """Warn if the end of a run cannot be written down: the error that ended the run is the one to be shown."""
    try:
        yield
    except ArtifactError as error:
        console.warn(str(error))


def _train_and_evaluate(folder: Path, identity: str, job: Job) -> dict[str, Any]:
    dashboard = tracking.copies_to(
        build(job.config.logger), run_dir=folder, identity=identity, group=job.config.group, config=job.settings
    )
    try:
        with console.quiet_lightning():
            _train_and_encode(folder, job, dashboard)
        metrics = evaluate.score(folder / runs.CODES, {})
        if job.config.gallery:
            gallery.write(folder, job.dataset, [entry["query"] for entry in metrics.get("hardest_queries", ())])
        write_json(folder / runs.METRICS, metrics)
    except BaseException as error:
        tracking.conclude(dashboard, None, runs.EXIT_CODES["interrupted" if isinstance(error, Stopped) else "failed"])
        raise
    tracking.conclude(dashboard, metrics, 0)
    return metrics


def _train_and_encode(folder: Path, job: Job, dashboard: Logger | None) -> None:
    config, split = job.config, job.split
    train_rows, validation_rows = split.train, np.empty(0, np.int64)
    if config.validation.queries:
        train_rows, validation_rows = hold_out_validation(split, job.dataset, config.validation.queries, config.seed)
    checkpoint = checkpoints.newest_valid(folder / runs.CHECKPOINTS, console.warn)
    steps_done = checkpoints.read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    keeping = checkpoints.EpochCheckpoints(
        folder / runs.CHECKPOINTS,
        config.checkpoint.every_n_epochs,
        config.checkpoint.every_seconds,
        monitor="validation/map" if len(validation_rows) else None,
    )
    trainer = _trainer(
        config,
        folder,
        lambda: [tracking.RecordLogger(folder / runs.STEPS, steps_done), *([dashboard] if dashboard else [])],
        [
            tracking.EpochReport(len(train_rows)),
            keeping,
            *([EMAWeightAveraging(decay=config.ema.decay)] if config.ema.decay else []),
        ],
    )
    fewest = min(len(rows) for rows in (split.query, split.database, validation_rows) if len(rows))
    if fewest < trainer.world_size:
        raise ConfigError(
            f"each of {trainer.world_size} devices needs an image of every part to encode, got a part of {fewest}: "
            "lower trainer.devices"
        )
    task = json.dumps({"folder": str(folder.absolute()), "config": OmegaConf.to_yaml(config, resolve=True)})
    with processes.team(trainer.world_size, trainer.strategy.root_device, FOLLOW, task):
        if config.compile:
            job.network.backbone.compile()
        source = Source(job.dataset, job.network, trainer.strategy.root_device, Loading(**config.loader))
        module = build_module(config, job.network, source.labels[train_rows])
        if config.head.epochs and not job.network.frozen and not checkpoint:
            module.load_state_dict(_learn_head(folder, job, source, train_rows))
        training = source.shuffled(train_rows, config.seed) if is_learned(config) else source.at_once(train_rows)
        validation = None
        if len(validation_rows):
            validation = [source.in_order(processes.own_share(rows)) for rows in (validation_rows, train_rows)]
        trainer.fit(module, training, validation, ckpt_path=checkpoint)

        chosen, best = (folder / runs.CHECKPOINTS / name for name in (checkpoints.LAST, checkpoints.BEST))
        if best.exists():
            chosen = best
        elif validation:
            console.warn("the training ended before its first validation: the result is that of the last epoch")
        module.load_state_dict(checkpoints.read_checkpoint(chosen)["state_dict"])
        precision = trainer.precision_plugin.forward_context
        query, database = (source.codes(rows, precision) for rows in (split.query, split.database))
        if trainer.is_global_zero:
            save_codes(
                folder / runs.CODES, query, database, _provenance(job, trainer.current_epoch, chosen, keeping.best)
            )


def _learn_head(folder: Path, job: Job, source: Source, rows: Int[np.ndarray, "n"]) -> dict[str, Tensor]:
    """Train what is above the backbone, on the backbone's features, before the backbone is fine-tuned.

    Gradients of a head that knows nothing spoil pretrained features (Kumar et al., Fine-Tuning can Distort Pretrained
    Features and Underperform Out-of-Distribution, ICLR 2022).

    Returns:
        The state that the method goes on with: network, buffers.
    """
    head = job.config.head
    config = cast(DictConfig, OmegaConf.merge(job.config, {"optimizer": {"lr": head.lr}}))
    changes = {"strategy": "ddp_find_unused_parameters_true"} if processes.count() > 1 else {}  # those of the backbone
    trainer = _trainer(
        config,
        folder,
        lambda: [tracking.RecordLogger(folder / runs.HEAD_STEPS, 0)],
        [tracking.EpochReport(len(rows), "head: ")],
        max_epochs=head.epochs,
        max_time=None,
        **changes,
    )
    module = build_module(config, job.network, source.labels[rows])
    trainer.fit(module, source.shuffled_features(rows, head.batch_size, config.seed))
    return module.state_dict()


def _provenance(job: Job, epochs: int, checkpoint: Path, best: float) -> dict[str, Any]:
    """Where the codes come from and how they are to be measured: all that ``deephash eval`` has to know."""
    config, split = job.config, job.split
    validated = checkpoint.name == checkpoints.BEST
    names = job.dataset.class_names
    return {
        "provenance": {
            "method": config.method,
            "module": job.settings["module"],
            "model": config.model.name,
            "dataset": config.dataset.name,
            "split": {
                "name": split.name,
                "version": split.version,
                "seed": split.seed,
                "sha256": split.sha256,
                **split.flags,
            },
            "seed": config.seed,
            "epochs": epochs,
            **({"class_names": names} if 0 < len(names) <= CLASSES else {}),
            "selection": "best on validation queries" if validated else "last epoch",
            "validation": {"queries": config.validation.queries, "map": best} if validated else None,
            **_inputs(job),
            "checkpoint": {"file": f"{runs.CHECKPOINTS}/{checkpoint.name}", "sha256": sha256_file(checkpoint)},
            "versions": runs.versions(),
        },
        "evaluation": {
            "ks": list(config.metrics.ks),
            "map_at": list(config.dataset.map_at),
            "radius": config.metrics.radius,
            "zero_hits": config.metrics.zero_hits,
        },
    }


def _inputs(job: Job) -> dict[str, Any]:
    """What codes were made from."""
    images = job.dataset.images
    if isinstance(images, Vectors):
        return {"views": "none: vectors as they are", "vectors": {"sha256": images.digest()}}
    views = "two, features averaged: the image and its mirror image" if job.network.mirrored else "one"
    return {"views": f"{views}; shorter side resized, centre crop"}


def _require_fitting(config: DictConfig, dataset: RetrievalDataset) -> None:
    """Compare what the data set has with what the model and the method take, before anything is computed.

    Raises:
        ConfigError: If the model takes images and the data set holds vectors, or the other way round; if a head is to
            be learned first where nothing else is.
        DataError: If the method learns from labels and there are none.
    """
    backbone = target_of(OmegaConf.select(config, "model.network.backbone"))
    holds = "vectors" if isinstance(dataset.images, Vectors) else "images"
    takes = "vectors" if backbone is NoBackbone else "images"
    if holds != takes:
        raise ConfigError(
            f"dataset={config.dataset.name} holds {holds}, model={config.model.name} takes {takes}: leave out model="
        )
    if config.head.epochs and config.model.frozen:
        raise ConfigError(
            f"head.epochs={config.head.epochs} goes with model.frozen=false, got model.frozen=true: leave it out and "
            "set trainer.max_epochs"
        )
    if not dataset.class_names and getattr(target_of(config.module), "supervision", "none") != "none":
        raise DataError(
            f"method={config.method} learns from labels, and data set {dataset.name} has none: give it labels, with "
            "vectors dataset.labels=<file.npy>, or choose a method that needs none, such as method=itq"
        )


def _trainer(
    config: DictConfig,
    folder: Path,
    loggers: Callable[[], list[Logger]],
    callbacks: list[Callback],
    **changes: Any,
) -> Trainer:
    """The trainer of a configuration, ``changes`` made. Only the process that the user started has its loggers."""
    create = build(config.trainer, _partial_=True)
    try:
        return create(
            logger=loggers() if processes.is_first() else False,
            callbacks=callbacks,
            default_root_dir=folder,
            # processes.team is the environment, whatever cluster this is
            plugins=[checkpoints.VerifiedCheckpointIO(), LightningEnvironment()],
            check_val_every_n_epoch=config.validation.every_n_epochs,
            **changes,
            enable_checkpointing=False,  # EpochCheckpoints does it
            enable_progress_bar=False,  # EpochReport does it
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the order of an epoch is EpochSampler's
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {first_line(error)}") from error
