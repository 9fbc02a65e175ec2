"""Loggers of a run. ``metrics.jsonl`` in the run folder is the record of its numbers; dashboards get copies."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from deephash_cli import console
from deephash_cli.data.loaders import DirectLoader, EpochSampler, Loader
from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.files import append_text, reason, write_text
from deephash_cli.retrieval import scoring
from deephash_cli.runs.wandb import Session


class RecordLogger(Logger):
    """Append every logged step to ``metrics.jsonl`` as it happens.

    Args:
        file: File of the record. If it exists, the lines after ``step`` and damaged lines are removed, and the rest is
            continued: an interrupted run repeats the steps after its last checkpoint.
        step: Number of optimizer steps done so far.

    Raises:
        ArtifactError: If the file cannot be written.
    """

    def __init__(self, file: Path, step: int):
        super().__init__()
        self.file = file
        kept = _lines(file) if file.exists() else []
        write_text(file, "".join(f"{line}\n" for line in kept if _step(line) <= step))

    @property
    def name(self) -> str:
        """Name of the logger, which Lightning's interface requires."""
        return "record"

    @property
    def version(self) -> int:
        """Version of the logger, which Lightning's interface requires."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the configuration already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line with the step, the time and the metrics.

        Args:
            metrics: Values by name.
            step: Index of the optimizer step, from 0; it is written counting from 1. None counts as 0.

        Raises:
            ArtifactError: If the file cannot be written, or the disk is full.
        """
        line = {"step": (step or 0) + 1, "time": round(time.time(), 3), **{k: float(v) for k, v in metrics.items()}}
        append_text(self.file, json.dumps(line) + "\n")


class EpochReport(Callback):
    """Show the progress of the training, and log learning rates, seconds and images per second of each epoch.

    The progress bar is closed however the training ends, and leaves the terminal as it was.

    Args:
        phase: Prefix of the progress bar's label, such as "head: ".
    """

    def __init__(self, phase: str = ""):
        super().__init__()
        self.images = 0  # training images in an epoch
        self.phase = phase
        self._started: float | None = None  # when the current epoch started, on the clock of `perf_counter`
        self._before = 0.0  # seconds that an interrupted run has spent on the epoch that is continued
        self._bar = contextlib.ExitStack()
        self._update: Any = None

    def state_dict(self) -> dict[str, float]:
        """Return the seconds spent on an unfinished epoch, which Lightning keeps in the checkpoint."""
        return {} if self._started is None else {"seconds": time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the seconds spent on an unfinished epoch from a checkpoint."""
        self._before = state_dict["seconds"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the progress bar at its current position."""
        self._bar.__exit__(type(exception), exception, None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the progress bar, and count the time of an epoch that is continued from here."""
        sampler = cast(Loader | DirectLoader, trainer.train_dataloader).sampler
        self.images = sampler.n if isinstance(sampler, EpochSampler) else sum(map(len, sampler))
        self._started = time.perf_counter() - self._before
        total = (trainer.max_epochs or 0) * int(trainer.num_training_batches)
        self._update = self._bar.enter_context(console.progress(f"{self.phase}training, batches", total, quiet=True))
        self._update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the progress bar to the current step."""
        self._update(trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time at which the epoch starts."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log learning rates and times of the epoch, and show them with its losses and its validation mAP."""
        seconds = time.perf_counter() - cast(float, self._started)
        self._started = None
        for name, rate in {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}.items():
            pl_module.log(f"lr/{name}", rate)
        pl_module.log("time/epoch_seconds", seconds)
        pl_module.log("time/images_per_second", self.images / seconds)
        shown = {
            name.split("/")[1]: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")
        }
        if "validation/map" in trainer.callback_metrics:
            shown["validation map"] = trainer.callback_metrics["validation/map"]
        note = "  ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
        epoch = f"{self.phase}epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        note = f"{epoch}  {note}  {self.images / seconds:.0f} images/s"
        self._update(trainer.global_step, note)
        if not console.console.is_terminal:
            console.say(note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the progress bar."""
        self._bar.close()


class WandbRun(WandbLogger):
    """Log one deephash run as one W&B run whose files are all inside the run folder.

    A failure of W&B never ends a run.

    Args:
        run_dir: Run folder.
        identity: Id of the run in W&B; a resumed run continues under the same id.
        group: Name of the sweep that the run belongs to; None if there is none.
        config: Resolved configuration with secrets hidden.
        mode: One of ``auto`` (online if there is a key, otherwise offline), ``online``, ``offline`` and ``disabled``.
            The environment variable ``WANDB_MODE`` takes precedence.
        project: Name of the W&B project.
        entity: User or team that owns the project; None for the default of the key.
        tags: Tags to filter runs by.
    """

    def __init__(
        self,
        run_dir: Path,
        identity: str,
        group: str | None,
        config: dict[str, Any],
        mode: str,
        project: str,
        entity: str | None,
        tags: list[str],
    ):
        self.session = Session(run_dir, identity, group, config, mode, project, entity, tags)
        super().__init__(experiment=self.session.run)


class Copy(Logger):
    """Pass numbers on to a logger until it fails. Then warn once, and let the run continue without it.

    Args:
        logger: Logger that may fail: it is third-party code, or its disk may be full.
    """

    def __init__(self, logger: Logger):
        super().__init__()
        self.logger = logger
        self._works = True

    @property
    def name(self) -> str | None:
        """Name of the logger."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Version of the logger."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """Folder that the logger writes to."""
        return self.logger.save_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log some values by name at an optimizer step."""
        self._try(lambda: self.logger.log_metrics(dict(metrics), step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log settings."""
        self._try(lambda: self.logger.log_hyperparams(*args, **kwargs))

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Log the network."""
        self._try(lambda: self.logger.log_graph(*args, **kwargs))

    def save(self) -> None:
        """Write what was logged."""
        self._try(self.logger.save)

    def finalize(self, status: str) -> None:
        """End the log of one call of the trainer."""
        self._try(lambda: self.logger.finalize(status))

    def _try(self, step: Callable[[], Any]) -> None:
        if not self._works:
            return
        try:
            step()
        except Exception as error:
            self._works = False
            console.warn(f"the dashboard failed, and the run continues without it: {first_line(error)}")


def copies_to(create: Callable[..., Logger] | None, **facts: Any) -> Logger | None:
    """Create the logger that the configuration names; if that fails, warn and continue without it.

    Args:
        create: Function that creates the logger; None for no logger.
        **facts: Arguments of ``create``.

    Returns:
        The logger; None if there is none or it could not be created.
    """
    if create is None:
        return None
    try:
        return Copy(create(**facts))
    except Exception as error:  # loggers are third-party code, and the run matters more
        console.warn(f"this run is logged into its own folder only: {first_line(error)}")
        return None


def conclude(logger: Logger | None, metrics: Mapping[str, Any] | None, exit_code: int) -> None:
    """Log the final metrics and close the logger. A failure of the logger is only a warning.

    Args:
        logger: Logger to close; None does nothing.
        metrics: Final metrics of the run; None if the run did not finish.
        exit_code: Exit code of the run; the logger is marked as failed unless it is 0.
    """
    if logger is None:
        return
    if isinstance(logger, Copy):
        logger = logger.logger
    steps: list[Callable[[], Any]]
    if isinstance(logger, WandbRun):
        steps = [logger.session.log_results] if metrics is not None else []
        steps.append(lambda: logger.session.finish(exit_code))
    else:
        numbers: dict[str, float] = {
            f"eval/{form.format(name)}": value
            for form, part in scoring.named_parts(metrics or {}).items()
            for name, value in part.items()
            if isinstance(value, int | float)
        }
        steps = [lambda: logger.log_metrics(numbers), logger.save] if numbers else []
        steps.append(lambda: logger.finalize("success" if exit_code == 0 else "failed"))
    for step in steps:  # each one even if another failed, because the last one closes the logger
        try:
            step()
        except Exception as error:  # third-party code, as above
            console.warn(f"the dashboard did not get everything: {first_line(error)}")


def csv_logger(run_dir: Path, identity: str, group: str | None, config: dict[str, Any]) -> Logger:
    """Create Lightning's CSV logger, which writes to ``csv/`` in the run folder.

    Args:
        run_dir: Run folder.
        identity: Unused; only W&B needs an id.
        group: Unused.
        config: Unused.
    """
    del identity, group, config
    return CSVLogger(run_dir, name="csv", version="")


def tensorboard_logger(run_dir: Path, identity: str, group: str | None, config: dict[str, Any]) -> Logger:
    """Create a TensorBoard logger, which writes event files to ``tensorboard/`` in the run folder.

    Args:
        run_dir: Run folder.
        identity: Unused; only W&B needs an id.
        group: Unused.
        config: Unused.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed.
    """
    del identity, group, config
    return TensorBoardLogger(run_dir, name="tensorboard", version="")


def _lines(file: Path) -> list[str]:
    """Return the lines of a record. Bytes that are no text are in lines that count as damaged."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ArtifactError(f"could not read {file}: {reason(error, file)}") from error


def _step(line: str) -> float:
    """Return the optimizer step of a line of the record; infinity if the line is incomplete."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
