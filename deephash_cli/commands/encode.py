"""``deephash encode``: compute binary codes of new images with the network of a run.

The images are divided into shards. Each shard is a folder of codes that appears whole or not at all. An existing shard
is not made again, so any number of processes, or a scheduler, can make any shards in any order, be killed, and
continue. When all shards exist, they are joined into one folder of codes.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from deephash_cli import runs
from deephash_cli.console import progress, say, warn
from deephash_cli.data.image_folder import describe_left_out
from deephash_cli.data.inspection import peculiarities, unreadable_count, write_list
from deephash_cli.errors import ConfigError, DataError, command
from deephash_cli.retrieval import codes_folder
from deephash_cli.runs.outputs import settle_folder
from deephash_cli.training.targets import as_yaml


def run(config: DictConfig, source: DictConfig | None = None) -> dict[str, Any]:
    """Run ``deephash encode``.

    Args:
        config: The configuration of the verb.
        source: Configuration node of a data set to encode; None to encode ``config.input``.

    Returns:
        ``images``, the number of images; ``skipped``, the number of skipped images, None while shards are missing; and
        ``missing_shards``, the number of missing shards.

    Raises:
        ConfigError: If the input or the output is not given, the output must not be replaced, or a shard number is too
            large.
        DataError: If the input does not exist, or has images that cannot be read and ``bad_images`` is ``stop``.
    """
    if (config.input is None) == (source is None):
        got = "neither" if source is None else "both"
        raise ConfigError(f"deephash encode needs input=<folder, list or vectors.npy>, or dataset=<name>, got {got}")
    if config.output is None:
        raise ConfigError("deephash encode needs output=<folder> for the codes")
    if config.input is not None and not Path(config.input).expanduser().exists():
        raise DataError(
            f"input={config.input} must be a folder of images, a text file with one path per line, or a .npy file of "
            "vectors, but it does not exist (to encode a data set by its name, use dataset=<name>)"
        )
    read = {f"{name}=": config[name] for name in ("run", "input")} | {"dataset.root=": (source or {}).get("root")}
    output = settle_folder("encode", config.output, read)
    run_folder = runs.given_or_latest(config.run)
    # Imported here because torch takes seconds; an output that cannot be used is refused before that.
    from deephash_cli.inference.ray_workers import encode_with_ray
    from deephash_cli.inference.shards import Task, Work

    task = Task(
        run=str(run_folder.absolute()),
        input=_absolute(config.input),
        source=None if source is None else as_yaml(source),
        root=_absolute(config.root),
        output=str(output),
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        bad_images=config.bad_images,
        allowed_targets=list(config.allowed_targets),
        allow_unverified=config.allow_unverified,
    )
    _check_machine(config)
    work = Work(task)
    work.begin()
    if work.dataset.left_out:
        warn(describe_left_out(work.dataset.left_out, Path(config.output) / codes_folder.SKIPPED))
    wanted = range(work.shards) if config.shards is None else config.shards
    if beyond := [number for number in wanted if number >= work.shards]:
        raise ConfigError(f"shards must be between 0 and {work.shards - 1}, got {beyond[0]}")
    missing = [] if work.is_complete() else [number for number in wanted if not work.has(number)]
    if missing:
        for sentence in peculiarities(work.dataset):
            warn(sentence)
        if work.dataset.left_out:
            write_list(Path(task.output) / codes_folder.SKIPPED, work.dataset.left_out)
        with progress(f"encoding, {work.unit}", sum(work.size(number) for number in missing)) as show:
            if config.launcher == "ray":
                encode_with_ray(task, missing, config.workers, config.gpus_per_worker, work.size, show)
            else:
                work.encode(missing, config.accelerator, config.devices, show)
        work.require_readable(missing)
    left = work.conclude()
    if left:
        say(f"{work.shards - left} of {work.shards} shards are in {config.output}, {left} are missing")
        return {"images": len(work.dataset), "skipped": None, "missing_shards": left}
    manifest = codes_folder.read_manifest(Path(task.output), ("database",))
    codes_folder.require_entries(Path(task.output), manifest, ["skipped"])
    count, skipped = manifest["database"]["count"], manifest["skipped"]
    say(f"codes of {count} {work.unit}, {manifest['bits']} bits: {config.output}")
    if skipped:
        listed = Path(config.output) / codes_folder.SKIPPED
        warn(f"{unreadable_count(skipped)} left out: {listed} says why")
    say(f"search them: {command('deephash', 'search', f'run={run_folder}', f'codes={config.output}')} query=<image>")
    return {"images": count, "skipped": skipped, "missing_shards": 0}


def _check_machine(config: DictConfig) -> None:
    """Check that this process may start others, and that the machine has the devices, before anything is read.

    Raises:
        ConfigError: If one of these is not so.
    """
    from deephash_cli import processes
    from deephash_cli.inference.shards import require_devices

    processes.require_alone("encode")
    if config.launcher == "local":
        require_devices(config.accelerator, config.devices)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
