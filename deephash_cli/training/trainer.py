"""Build Lightning's trainer, run it, and say in one sentence what it refuses."""

import contextlib
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PassThroughProfiler

from deephash_cli import console, processes
from deephash_cli.cores import usable_cores
from deephash_cli.errors import ConfigError, first_line, hint
from deephash_cli.failures import explained
from deephash_cli.methods.base import Hasher
from deephash_cli.phases import phase
from deephash_cli.training import checkpoints, saving
from deephash_cli.training.devices import no_device
from deephash_cli.training.step_loop import use_step_loop
from deephash_cli.training.targets import build, target_of

NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch looks for GPUs with NVIDIA's management library; Lightning sets it

# So many processes may train on any CPU, to try training on several devices without having them.
_CPU_DEVICES = 8


def make_trainer(
    config: DictConfig,
    folder: Path,
    make_loggers: Callable[[], list[Logger]],
    callbacks: list[Callback],
    owner: checkpoints.Owner | None = None,
    **changes: Any,
) -> Trainer:
    """Build the trainer of a configuration. Only the process that the user started gets loggers.

    Args:
        config: Composed configuration.
        folder: Run folder.
        make_loggers: Function that creates the loggers; it is called in the first process only.
        callbacks: Callbacks of the trainer.
        owner: Run that the checkpoints belong to; None if none are written.
        **changes: Arguments of the trainer that replace those of the configuration.

    Raises:
        ConfigError: If the trainer refuses its settings.
    """
    create = build(config.trainer, _partial_=True)
    try:
        trainer = create(
            logger=make_loggers() if processes.is_first() else False,
            callbacks=[*callbacks, _OwnSignals()],
            default_root_dir=folder,
            # processes.team starts the processes on every kind of cluster, so Lightning must not detect one
            plugins=[saving.VerifiedCheckpointIO(owner), LightningEnvironment()],
            check_val_every_n_epoch=config.validation.every_n_epochs,
            **({} if config.trainer.get("profiler") else {"profiler": _NoProfiler()}),
            **changes,
            enable_checkpointing=False,  # EpochCheckpoints saves them
            enable_progress_bar=False,  # EpochReport shows one
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # EpochSampler decides the order of an epoch
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        asked, count = (
            f"trainer.{name}={OmegaConf.select(config.trainer, name)}" for name in ("accelerator", "devices")
        )
        raise ConfigError(explain_trainer(error, asked, count, "trainer")) from error
    use_step_loop(trainer)
    return trainer


def check_trainer(config: DictConfig) -> None:
    """Build the trainer of a configuration once, before any data is read, to see whether it can be built here.

    Raises:
        ConfigError: If the trainer refuses its settings, or this machine does not have the devices.
    """
    known = inspect.signature(target_of(config.trainer)).parameters
    for name in map(str, config.trainer):
        if name not in known and not name.startswith("_"):
            raise ConfigError(
                f"unknown key 'trainer.{name}'{hint(name, known)}; Lightning's Trainer has no such argument"
            )
    if OmegaConf.select(config, "trainer.num_nodes", default=1) > 1 and not processes.is_launched():
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes} needs torchrun on every machine: start deephash with it, or "
            "leave out trainer.num_nodes"
        )
    with console.quiet_lightning():
        trainer = make_trainer(config, Path(), list, [])
    require_cores(trainer, "trainer.devices")


@phase("training")
def run_trainer(
    trainer: Trainer, module: Hasher, training: Any, validation: Any = None, checkpoint: Any = None, lower: str = ""
) -> None:
    """Let Lightning train a method.

    Args:
        trainer: Trainer that ``make_trainer`` built.
        module: Method to train.
        training: Loader of the training batches.
        validation: Loaders of the validation batches; None for no validation.
        checkpoint: File of the checkpoint to continue from; None to start from the beginning.
        lower: Setting to lower if memory runs out, with its value; "" if there is none.

    Raises:
        ConfigError: If Lightning refuses a setting, such as a share of the batches that is less than one batch, or if
            memory runs out.
        ArtifactError: If the tensors of the checkpoint do not fit the method.
    """
    if checkpoint:
        checkpoints.require_fitting(checkpoint, checkpoints.read_checkpoint(checkpoint)["state_dict"], module)
    with explained(lower), _without_nvml(trainer.strategy.root_device):
        trainer.fit(module, training, validation, ckpt_path=checkpoint)


class _NoProfiler(PassThroughProfiler):
    """Measure nothing: Lightning's own profiler for that makes a generator 30 times in a step."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> contextlib.nullcontext[None]:  # type: ignore[override]
        """Return a context manager that does nothing."""
        return self._nothing


@contextlib.contextmanager
def _without_nvml(device: torch.device) -> Iterator[None]:
    """Train on a CPU without looking for NVIDIA's management library in every step.

    An optimizer asks in each step whether there is a GPU. Lightning has torch answer that by loading this library,
    without which the question costs a hundredth of the time.
    """
    before = os.environ.pop(NVML, None) if device.type == "cpu" else None
    try:
        yield
    finally:
        if before is not None:
            os.environ[NVML] = before


class _OwnSignals(Callback):
    """Keep Lightning from handling SIGTERM: its handler waits for the other processes in the middle of a step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the handler from before Lightning's."""
        self._before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore that handler. Lightning installs one in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)


def require_cores(trainer: Trainer, setting: str) -> None:
    """Refuse more processes on the CPU than are of use.

    Args:
        trainer: A trainer that was built for this machine.
        setting: Setting that gives the number of processes.

    Raises:
        ConfigError: If there are too many.
    """
    cores = usable_cores()
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(_CPU_DEVICES, cores):
        raise ConfigError(f"{setting}={trainer.num_devices} is more than the {cores} cores of this machine: lower it")


def explain_trainer(error: Exception, accelerator: str, devices: str, start: str) -> str:
    """Return one sentence about settings that Lightning's trainer refuses.

    Args:
        error: Lightning's error.
        accelerator: Setting of the kind of device, with its value.
        devices: Setting of the number of devices, with its value.
        start: Start of a sentence that repeats Lightning's words: the settings that it is about.
    """
    message = str(error)
    if "No supported gpu backend" in message or "can not run on your system" in message:
        return no_device(accelerator)
    if "your machine only has" in message:
        return f"{devices} is more than this machine has, which is {torch.cuda.device_count()}: lower it"
    return f"{start}: {first_line(error)}"
