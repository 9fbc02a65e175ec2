"""Where a run's numbers go. ``metrics.jsonl`` in the run folder is the record; dashboards are copies of it."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from deephash_cli import console
from deephash_cli.errors import first_line
from deephash_cli.files import write_text


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
        import wandb

        folder = run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        for variable, name in (
            ("WANDB_DATA_DIR", "data"),
            ("WANDB_CACHE_DIR", "cache"),
            ("WANDB_CONFIG_DIR", "config"),
        ):
            os.environ[variable] = str((folder / name).absolute())
        settings = {
            "project": project, "entity": entity, "tags": list(tags), "group": group, "config": config, "id": identity,
            "name": run_dir.name, "job_type": "train", "resume": "allow", "dir": str(run_dir),
        }  # fmt: skip
        quiet = wandb.Settings(silent=True, console="off", init_timeout=30, x_disable_meta=True, save_code=False)
        mode = os.environ.get("WANDB_MODE") or (("online" if _has_key() else "offline") if mode == "auto" else mode)
        try:
            run = wandb.init(mode=mode, settings=quiet, **settings)  # type: ignore[arg-type]
        except Exception as error:  # no key, no network, a server that does not answer: the run goes on
            console.warn(f"W&B cannot be used online ({first_line(error)}): logging offline into {folder}")
            run = wandb.init(mode="offline", settings=quiet, **settings)
        run.define_metric("eval/k")
        for name in ("precision_at_k", "recall_at_k"):
            run.define_metric(f"eval/{name}", step_metric="eval/k")
        super().__init__(experiment=run)

    def log_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Log the final metrics: single numbers into the summary, the sweeps over k as curves."""
        run = self.experiment
        for name, value in metrics.items():
            if isinstance(value, int | float):
                run.summary[f"eval/{name}"] = value
        for k, precision in metrics.get("precision_at_k", {}).items():  # none without labels
            run.log({"eval/k": int(k), "eval/precision_at_k": precision, "eval/recall_at_k": metrics["recall_at_k"][k]})

    def finish(self, exit_code: int) -> None:
        """End the W&B run, marked failed unless ``exit_code`` is 0, so that the next job of a sweep gets its own."""
        self.experiment.finish(exit_code=exit_code)


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
    try:
        if isinstance(logger, WandbRun):
            if metrics is not None:
                logger.log_evaluation(metrics)
            logger.finish(exit_code)
        else:
            if metrics is not None:
                logger.log_metrics({f"eval/{k}": v for k, v in metrics.items() if isinstance(v, int | float)})
                logger.save()
            logger.finalize("success" if exit_code == 0 else "failed")
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


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlsplit

    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _step(line: str) -> float:
    """The step that a line tells of; infinity if it was not written to its end."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
