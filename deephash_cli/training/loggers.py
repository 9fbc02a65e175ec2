"""Where a run's numbers go. ``metrics.jsonl`` in the run folder is the record; dashboards are copies of it."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from deephash_cli import console
from deephash_cli.errors import first_line
from deephash_cli.files import write_text
from deephash_cli.runs.wandb import Session


class RecordLogger(Logger):
    """Append every logged step to ``metrics.jsonl`` as it happens.

    Args:
        file: The record. One of an interrupted run is cut back to ``step``, where its checkpoint is, and continued.
        step: The optimizer steps that have been done.
    """

    def __init__(self, file: Path, step: int):
        super().__init__()
        self.file = file
        kept = file.read_text().splitlines() if file.exists() else []
        write_text(file, "".join(f"{line}\n" for line in kept if _step(line) <= step))

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "record"

    @property
    def version(self) -> int:
        """Lightning asks for one."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the configuration already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line."""
        line = {"step": (step or 0) + 1, "time": round(time.time(), 3), **{k: float(v) for k, v in metrics.items()}}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


class EpochReport(Callback):
    """Show the progress of the training and log what an epoch cost: learning rates, seconds, images per second.

    However the training ends, the bar is closed and leaves the terminal as it was.

    Args:
        images: In an epoch.
        phase: What is shown before it says that it is training.
    """

    def __init__(self, images: int, phase: str = ""):
        super().__init__()
        self.images = images
        self.phase = phase
        self._started = 0.0
        self._bar = contextlib.ExitStack()
        self._update: Any = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the progress bar where it stands."""
        self._bar.__exit__(type(exception), exception, None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the progress bar."""
        total = (trainer.max_epochs or 0) * int(trainer.num_training_batches)
        self._update = self._bar.enter_context(console.progress(f"{self.phase}training, batches", total, quiet=True))
        self._update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it."""
        self._update(trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log and show."""
        seconds = time.perf_counter() - self._started
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
    """One W&B run for one deephash run, everything of it inside the run folder. A failure of W&B never costs a run.

    Args:
        run_dir: The run folder.
        identity: W&B's id of the run: a resumed run goes on under it.
        group: Of the sweep, if any.
        config: The resolved configuration, secrets hidden.
        mode: ``auto`` (online if there is a key, else offline), ``online``, ``offline``, ``disabled``. The
            environment's ``WANDB_MODE`` comes first.
        project: Project that the run is listed in.
        entity: User or team; ``None`` for the key's default.
        tags: To filter by.
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


def copies_to(create: Callable[..., Logger] | None, **facts: Any) -> Logger | None:
    """Make the logger that the configuration names, or warn and go on without: the run matters more."""
    if create is None:
        return None
    try:
        return create(**facts)
    except Exception as error:  # loggers are other people's code
        console.warn(f"this run is logged into its own folder only: {first_line(error)}")
        return None


def conclude(logger: Logger | None, metrics: Mapping[str, Any] | None, exit_code: int) -> None:
    """Copy the final metrics, if there are any, and end the logger, marked failed unless ``exit_code`` is 0."""
    if logger is None:
        return
    steps: list[Callable[[], Any]]
    if isinstance(logger, WandbRun):
        steps = [logger.session.log_results] if metrics is not None else []
        steps.append(lambda: logger.session.finish(exit_code))
    else:
        found = (metrics or {}).items()
        numbers: dict[str, float] = {f"eval/{name}": value for name, value in found if isinstance(value, int | float)}
        steps = [lambda: logger.log_metrics(numbers), logger.save] if numbers else []
        steps.append(lambda: logger.finalize("success" if exit_code == 0 else "failed"))
    for step in steps:  # the last one even if another failed: it ends the logger
        try:
            step()
        except Exception as error:  # as above
            console.warn(f"the dashboard did not get everything: {first_line(error)}")


def csv_logger(run_dir: Path, identity: str, group: str | None, config: dict[str, Any]) -> Logger:
    """Lightning's CSV files under ``csv/`` in the run folder."""
    del identity, group, config
    return CSVLogger(run_dir, name="csv", version="")


def tensorboard_logger(run_dir: Path, identity: str, group: str | None, config: dict[str, Any]) -> Logger:
    """TensorBoard event files under ``tensorboard/`` in the run folder."""
    del identity, group, config
    return TensorBoardLogger(run_dir, name="tensorboard", version="")


def _step(line: str) -> float:
    """The step that a line tells of; infinity if it was not written to its end."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
