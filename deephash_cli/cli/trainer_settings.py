"""Settings of the trainer: those that would train nothing, and those that deephash decides itself."""

import re
from collections.abc import Mapping
from typing import Any

from deephash_cli.errors import ConfigError, short

# Arguments of Lightning's trainer that deephash gives it, and the setting to use instead.
DECIDED = {
    "logger": "choose one with logger=",
    "callbacks": "leave it out",
    "plugins": "leave it out",
    "default_root_dir": "set the run folder with run_dir=",
    "check_val_every_n_epoch": "use validation.every_n_epochs=",
    "val_check_interval": "use validation.every_n_epochs=",
    "limit_val_batches": "use validation.queries=",
    "num_sanity_val_steps": "leave it out",
    "overfit_batches": "use trainer.limit_train_batches=",
    "limit_test_batches": "leave it out, because evaluation uses every query",
    "limit_predict_batches": "leave it out, because every image is encoded",
    "enable_checkpointing": "use checkpoint.every_n_epochs=",
    "enable_progress_bar": "leave it out",
    "enable_model_summary": "leave it out",
    "use_distributed_sampler": "leave it out",
    "fast_dev_run": "use trainer=debug",
}
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")  # deephash starts the processes itself
_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse settings of the trainer with which nothing would be trained, or that would have no effect.

    Args:
        trainer: The node ``trainer`` of a configuration, resolved, as plain values.

    Raises:
        ConfigError: If a setting is refused.
    """
    for name, remedy in DECIDED.items():
        if name in trainer:
            raise ConfigError(f"trainer.{name} is decided by deephash: {remedy}")
    for name, meaning in (("max_steps", "no limit"), ("devices", "all devices")):
        value = trainer.get(name, -1)
        if type(value) is not int or (value < 1 and value != -1):
            raise ConfigError(
                f"trainer.{name} must be a whole number, at least 1, or -1 for {meaning}, got {short(str(value))}"
            )
    limit = trainer.get("limit_train_batches")
    if limit is not None and not (_is_count(limit) or (isinstance(limit, float) and 0 < limit <= 1)):
        raise ConfigError(
            "trainer.limit_train_batches must be a number of batches, at least 1, or a share above 0 and up to 1.0, "
            f"got {short(str(limit))}{': nothing would be trained' if limit == 0 else ''}"
        )
    if trainer.get("max_time") is not None and not _seconds(trainer["max_time"]):
        raise ConfigError(
            "trainer.max_time must be a time above zero as days:hours:minutes:seconds, such as 00:01:30:00, got "
            f"{short(str(trainer['max_time']))}"
        )
    clip = trainer.get("gradient_clip_val")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not clip >= 0):
        raise ConfigError(
            f"trainer.gradient_clip_val must be a number, at least 0, or null for none, got {short(str(clip))}"
        )
    strategy = trainer.get("strategy", "auto")
    if not isinstance(strategy, Mapping) and strategy not in _STRATEGIES:
        raise ConfigError(f"trainer.strategy must be {' or '.join(_STRATEGIES)}, got {short(str(strategy))}")
    if (deterministic := trainer.get("deterministic")) not in (None, True, False, "warn"):
        raise ConfigError(f"trainer.deterministic must be true, false or warn, got {short(str(deterministic))}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _seconds(time: Any) -> bool:
    """Return whether a time is one that Lightning understands, and longer than zero."""
    if isinstance(time, Mapping):
        known = all(unit in _UNITS and isinstance(number, int | float) for unit, number in time.items())
        return known and sum(time.values()) > 0
    return (
        isinstance(time, str)
        and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time) is not None
        and any(map(int, time.split(":")))
    )
