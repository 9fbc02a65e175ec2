"""``deephash train``: data, network, training, codes, metrics, in the order of this page."""

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from deephash_cli import checkpoints, evaluate, runs, tracking
from deephash_cli.cache import cache_folder
from deephash_cli.codes import CodeSet, binarize, pack, save_codes
from deephash_cli.console import progress, say, warn
from deephash_cli.data.dataset import ImageFiles, ImageTensor, RetrievalDataset
from deephash_cli.data.features import Features, cached_features, feature_key
from deephash_cli.data.loaders import Batch, Inputs, Rows, encode_loader, train_loader
from deephash_cli.data.protocol import Split, hold_out_validation, load_split, make_split, save_split
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, DivergedError, Stopped, first_line
from deephash_cli.files import read_json, sha256_file, write_json, write_text
from deephash_cli.methods.base import HashingModule
from deephash_cli.models import Backbone, HashingNetwork

_TRUSTED = ("deephash_cli", "torch", "torchvision", "pytorch_lightning", "timm")


def train(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, encode, evaluate. Returns the metrics, with the run folder under ``run_dir``.

    Args:
        config: The composed configuration.
        overrides: What was typed, kept in the run folder so that the run can be taken up again.
    """
    settings = runs.redact(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    if config.resume not in ("auto", "none"):
        _check_targets(settings, [*_TRUSTED, *config.allowed_targets])
    wanted = runs.fingerprint(settings)
    earlier = _earlier_run(config, settings, wanted)
    if earlier and _is_done(earlier, config):
        say(f"already done: {earlier}")
        metrics = read_json(earlier / runs.METRICS)
        evaluate.show(metrics)
        return {**metrics, "run_dir": str(earlier)}
    runs.check_writable(Path(config.run_dir or config.runs))

    seed_everything(config.seed, verbose=False)
    dataset: RetrievalDataset = _build(config.dataset.source)
    if config.dataset.split_file:
        split = load_split(Path(config.dataset.split_file), dataset)
    else:
        split = make_split(config.dataset.protocol, dataset, config.dataset.split_seed)
    network: HashingNetwork = _build(config.model.network, bits=config.bits)

    name = f"{config.dataset.name}-{config.method}-{config.bits}-s{config.seed}".replace("/", "_")
    run = (
        runs.Run(earlier) if earlier else runs.create(Path(config.runs), name, config.run_dir and Path(config.run_dir))
    )
    record = {"fingerprint": wanted, "overrides": list(overrides), "group": config.group}
    try:
        identity = run.start(OmegaConf.to_yaml(OmegaConf.create(settings)), record)
        _same_split(run.path, split, dataset)
        metrics = _train_in(run.path, identity, config, settings, dataset, split, network)
        run.end("finished")
    except Stopped:
        run.end("interrupted")
        say(f"interrupted: resume={run.path} goes on from the last finished epoch")
        raise
    except BaseException as error:
        run.end("failed", first_line(error))
        if not isinstance(error, DeephashError):
            write_text(run.path / "error.txt", traceback.format_exc())
        raise
    finally:
        run.close()
    evaluate.show(metrics)
    say(f"run folder: {run.path}")
    say(f"again from the codes alone: deephash eval run={run.path}")
    return {**metrics, "run_dir": str(run.path)}


def _train_in(
    folder: Path,
    identity: str,
    config: DictConfig,
    settings: dict[str, Any],
    dataset: RetrievalDataset,
    split: Split,
    network: HashingNetwork,
) -> dict[str, Any]:
    """Everything that happens inside the run folder. Returns the metrics."""
    dashboard = tracking.copies_to(
        _build(config.logger), run_dir=folder, identity=identity, group=config.group, config=settings
    )
    metrics = None
    try:
        with _quiet_lightning():
            _fit_and_encode(folder, config, settings, dataset, split, network, dashboard)
        metrics = evaluate.score(folder / runs.CODES, {})
        write_json(folder / runs.METRICS, metrics)
    finally:
        tracking.conclude(dashboard, metrics, exit_code=0 if metrics else 1)
    return metrics


def _fit_and_encode(
    folder: Path,
    config: DictConfig,
    settings: dict[str, Any],
    dataset: RetrievalDataset,
    split: Split,
    network: HashingNetwork,
    dashboard: Logger | None,
) -> None:
    train_rows, validation_rows = split.train, np.empty(0, np.int64)
    if config.validation.queries:
        train_rows, validation_rows = hold_out_validation(split, dataset, config.validation.queries, config.seed)
    labels = torch.from_numpy(dataset.labels).float()
    module: HashingModule = _build(config.module, _partial_=True)(
        network=network,
        loss=_build(config.loss),
        optimizer=_build(config.optimizer),
        scheduler=_build(config.scheduler),
        backbone_lr=config.backbone_lr,
        augment=_build(config.augment),
        train_labels=labels[torch.from_numpy(train_rows)],
        seed=config.seed,
    )
    checkpoint = checkpoints.newest_valid(folder / runs.CHECKPOINTS, warn)
    step = checkpoints.read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    saving = checkpoints.EpochCheckpoints(
        folder / runs.CHECKPOINTS, config.checkpoint.every_n_epochs, "validation/map" if len(validation_rows) else None
    )
    loggers = [tracking.RecordLogger(folder / runs.STEPS, step), *([dashboard] if dashboard else [])]
    callbacks = [tracking.EpochReport(len(train_rows)), tracking.EncodeReport(), saving]
    trainer = _trainer(config, folder, loggers, callbacks)

    inputs = _inputs(config, dataset, network, trainer.strategy.root_device)
    workers = 0 if isinstance(inputs, Features | ImageTensor) else config.loader.num_workers

    def in_order(rows: np.ndarray) -> "DataLoader[Batch]":
        size = config.loader.eval_batch_size
        return encode_loader(Rows(inputs, labels, rows), size, workers, config.loader.pin_memory)

    shuffled = train_loader(
        Rows(inputs, labels, train_rows), config.loader.batch_size, config.seed, workers, config.loader.pin_memory
    )
    validation = [in_order(validation_rows), in_order(train_rows)] if len(validation_rows) else None
    trainer.fit(module, shuffled, validation, ckpt_path=checkpoint)

    chosen = folder / runs.CHECKPOINTS / (checkpoints.BEST if validation else checkpoints.LAST)
    if validation:
        module.load_state_dict(checkpoints.read_checkpoint(chosen)["state_dict"])
    sides = [_codes(trainer, module, in_order(rows), dataset, rows) for rows in (split.query, split.database)]
    provenance = {
        "method": config.method,
        "module": settings["module"],
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
        "epochs": trainer.current_epoch,
        "selection": "best on validation queries" if validation else "last epoch",
        "views": "one: whole image, shorter side resized, centre crop",
        "checkpoint": {"file": f"{runs.CHECKPOINTS}/{chosen.name}", "sha256": sha256_file(chosen)},
        "versions": runs.versions(),
    }
    evaluation = {
        "ks": list(config.metrics.ks), "map_at": list(config.dataset.map_at), "radius": config.metrics.radius
    }  # fmt: skip
    save_codes(folder / runs.CODES, *sides, {"provenance": provenance, "evaluation": evaluation})


def _inputs(config: DictConfig, dataset: RetrievalDataset, network: HashingNetwork, device: torch.device) -> Inputs:
    """What the network is given: images, or the features of a frozen backbone, computed now unless they are on disk."""
    images = dataset.images
    if isinstance(images, ImageFiles):
        images = images.sized(network.image_size)
    if not network.frozen:
        return images
    n = len(dataset)
    labels = torch.from_numpy(dataset.labels).float()
    workers = 0 if isinstance(images, ImageTensor) else config.loader.num_workers
    network.to(device).eval()

    @torch.inference_mode()
    def compute(start: int, stop: int) -> torch.Tensor:
        rows = Rows(images, labels, np.arange(start, stop))
        parts = []
        for batch in encode_loader(rows, config.loader.eval_batch_size, workers, config.loader.pin_memory):
            parts.append(network.features(batch.inputs.to(device)).float().cpu())
            show(start + sum(map(len, parts)))
        return torch.cat(parts)

    folder = cache_folder() / "features" / feature_key(network.backbone_digest(), images.digest())
    with progress(f"{config.model.name} features, images (once, then kept)", n) as show:
        width = cast(Backbone, network.backbone).num_features
        return cached_features(folder, n, width, compute, show)


def _codes(
    trainer: Trainer, module: HashingModule, loader: "DataLoader[Batch]", dataset: RetrievalDataset, rows: np.ndarray
) -> CodeSet:
    """Binary codes of some rows, in their order."""
    u = torch.cat(cast(list[torch.Tensor], trainer.predict(module, loader))).numpy()
    try:
        codes = binarize(u)
    except ValueError as error:
        raise DivergedError(
            f"the trained network gives no codes: {error}; lower optimizer.lr and backbone_lr"
        ) from error
    return CodeSet(pack(codes), codes.shape[1], dataset.labels[rows], [dataset.ids[row] for row in rows])


def _trainer(config: DictConfig, folder: Path, loggers: list[Logger], callbacks: list[Callback]) -> Trainer:
    create = _build(config.trainer, _partial_=True)
    try:
        return create(
            logger=loggers,
            callbacks=callbacks,
            plugins=[checkpoints.VerifiedCheckpointIO()],
            default_root_dir=folder,
            check_val_every_n_epoch=config.validation.every_n_epochs,
            enable_checkpointing=False,  # EpochCheckpoints does it
            enable_progress_bar=False,  # EpochReport does it
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the order of an epoch is EpochSampler's
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {first_line(error)}") from error


def _build(node: Any, **changes: Any) -> Any:
    """Instantiate a node of the configuration; what its class finds wrong with the settings becomes one sentence."""
    if node is None:
        return None
    try:
        return instantiate(node, _convert_="all", **changes)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, DeephashError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ImportError | AttributeError | OmegaConfBaseException):
            raise ConfigError(f"{node.get('_target_', 'configuration')}: {first_line(cause)}") from error
        raise


def _earlier_run(config: DictConfig, settings: dict[str, Any], wanted: str) -> Path | None:
    """The run folder to go on with, if ``resume`` asks for one and there is one."""
    if config.resume == "none":
        return None
    if config.resume == "auto" and config.run_dir is None:
        return next((path for path, _ in runs.find(Path(config.runs), wanted)), None)
    folder = Path(config.run_dir if config.resume == "auto" else config.resume)
    if config.resume == "auto" and not (folder / runs.RECORD).exists():
        return None
    runs.read_record(folder)
    before = OmegaConf.to_container(OmegaConf.load(folder / runs.CONFIG))
    if changes := runs.forbidden_changes(cast(dict[str, Any], before), settings):
        raise ConfigError(
            f"{folder} was started with other settings, which a resumed run must keep: {'; '.join(changes)}"
        )
    return folder


def _is_done(folder: Path, config: DictConfig) -> bool:
    if runs.read_record(folder)["status"] != "finished":
        return False
    return read_json(folder / runs.METRICS)["epochs"] >= config.trainer.max_epochs


def _same_split(folder: Path, split: Split, dataset: RetrievalDataset) -> None:
    """Keep the split in the run folder; in one that has a split already it must be the same."""
    file = folder / runs.SPLIT
    if file.exists() and load_split(file, dataset).sha256 != split.sha256:
        raise ArtifactError(f"{file} is not the split that the settings give now: the data changed, start a new run")
    save_split(file, split, dataset)


def _check_targets(settings: Mapping[str, Any], trusted: Sequence[str]) -> None:
    """Refuse settings that come from a run folder and would build something from elsewhere.

    Raises:
        ConfigError: If a ``_target_`` is not in a trusted package.
    """
    for name, value in runs.flatten(settings).items():
        if name.endswith("_target_") and str(value).split(".")[0] not in trusted:
            raise ConfigError(
                f"{name}={value} is not part of {', '.join(trusted)}: if you trust the run folder, add "
                f"'allowed_targets=[{str(value).split('.')[0]}]'"
            )


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice for its own command lines from the screen; errors still come as exceptions."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for package in ("pytorch_lightning", "lightning_fabric"):
            warnings.filterwarnings("ignore", module=rf"{package}\.")
        try:
            yield
        finally:
            log.setLevel(level)
