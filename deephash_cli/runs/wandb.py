"""Start and end the W&B run of a run folder, and log a finished run to it. W&B is imported only when it is used.

Everything is read from the run folder, so a run that is logged again later gets the same content as when it ended.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deephash_cli import console, runs
from deephash_cli.errors import ArtifactError, DeephashError, first_line
from deephash_cli.files import read_json, write_json
from deephash_cli.hiding import HIDDEN, has_secret, hide
from deephash_cli.retrieval import scoring
from deephash_cli.retrieval.codes_folder import damages
from deephash_cli.runs import gallery as run_gallery
from deephash_cli.runs import records

FOLDER = runs.WANDB
STATUS = "status.json"  # in that folder: what became of the W&B run
_STATUS_LIMIT = 2**18  # bytes: a reason, and the path of the run folder
OFFLINE, ONLINE, DISABLED, FAILED = "offline", "online", "disabled", "failed"
SECONDS_TO_BEGIN = 30
SECONDS_TO_END = 120  # an upload that takes longer is left to deephash sync; its files stay in the run folder
CODES_LIMIT = 500 * 10**6  # bytes of the largest codes folder that is uploaded

_INSIDE = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}
_MODES = {"run": ONLINE, "dryrun": OFFLINE}  # W&B's older names of two modes
_BY_K = ("precision_at_k", "recall_at_k")
_STEP = "trainer/global_step"
# Green for relevant and red for other results, in shades that colour-blind people can tell apart; grey without labels.
_FRAMES = {True: (0, 158, 115), False: (213, 94, 0), None: (128, 128, 128)}


class Session:
    """A W&B run that this process writes to until ``finish``. All its files are inside the run folder.

    Args:
        folder: The run folder.
        identity: W&B's id of the run.
        group: W&B group of the sweep that the run belongs to; ``None`` if it belongs to none.
        config: The resolved configuration, with secrets hidden.
        mode: ``auto`` (online if there is a key, else offline), ``online``, ``offline`` or ``disabled``. The
            environment variable ``WANDB_MODE`` takes precedence.
        project: W&B project of the run.
        entity: W&B user or team; ``None`` for the default of the key.
        tags: Tags of the run, in addition to data set, method and code length.
        again: Whether the whole run is logged again and replaces the W&B run of this id; otherwise that run is
            continued.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        group: str | None,
        config: Mapping[str, Any],
        mode: str,
        project: str,
        entity: str | None,
        tags: list[str],
        again: bool = False,
    ):
        self._folder = folder
        self._before = {name: os.environ.get(name) for name in _INSIDE}
        (folder / FOLDER).mkdir(exist_ok=True)
        self._is_whole = again or _is_whole(folder)
        self._mode = FAILED
        facts = {
            "project": _shown(project), "entity": _own_entity(entity), "tags": _tags(config, tags),
            "group": None if group is None else _shown(group), "config": runs.redact(config), "id": identity,
            "name": _shown(folder.absolute().name), "job_type": "train", "dir": str(folder.absolute()),
            "resume": None if again else "allow",
        }  # fmt: skip
        try:
            os.environ |= environment(folder)
            self.run = self._begin(OFFLINE if again else _mode(mode), facts)
            self._define()
        except BaseException as error:
            self._note(first_line(error), is_whole=False)
            self._leave()
            raise
        self._note(None, is_whole=False)  # until ``finish``, because the process may be killed

    def _begin(self, mode: str, facts: dict[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", x_disable_meta=True, save_code=False, init_timeout=SECONDS_TO_BEGIN,
            finish_timeout=SECONDS_TO_END, finish_timeout_raises=True,
        )  # fmt: skip
        try:
            run = wandb.init(mode=mode, settings=settings, **facts)  # type: ignore[arg-type]
            self._mode = mode
        except Exception as error:  # no key, no network or no answer from the server: the run continues offline
            console.warn(
                f"W&B cannot be used online ({first_line(error)}): logging offline into {self._folder / FOLDER}"
            )
            run = wandb.init(mode="offline", settings=settings, **facts)
            self._mode = OFFLINE
        return run

    def _define(self) -> None:
        """Define the horizontal axis of each curve.

        A run has a point of ``eval/map_by_bits`` for each of its code lengths, mostly one; the points of a group of
        runs make the curve.
        """
        for step, names, options in (
            (_STEP, ("train/*", "validation/*", "lr/*", "time/*"), {}),
            ("eval/k", tuple(f"eval/{name}" for name in _BY_K), {"summary": "none"}),
            ("eval/bits", ("eval/map_by_bits",), {"summary": "none"}),
        ):
            self.run.define_metric(step)
            for name in names:
                self.run.define_metric(name, step_metric=step, **options)

    def replay(self) -> None:
        """Log the training steps that are recorded in the run folder."""
        file = self._folder / runs.STEPS
        for numbers in records.steps(file) if os.path.lexists(file) else ():
            step = int(numbers.pop("step")) - 1
            numbers.pop("time", None)
            self.run.log({**numbers, _STEP: step})

    def log_results(self) -> None:
        """Log the results in the folder of a finished run: numbers, curves, tables, retrieved images and codes.

        A part that cannot be logged is left out with a warning, and the other parts are logged.
        """
        metrics = records.metrics(self._folder)
        for what, log in (
            ("numbers", lambda: self._log_numbers(metrics)),
            ("curves over k", lambda: self._log_over_k(metrics)),
            ("tables", lambda: self.run.log(_tables(metrics))),
            ("retrieved images", self._log_panels),
            ("codes", self._log_codes),
        ):
            try:
                log()
            except Exception as error:  # files may have been edited, and the service may be gone
                self._is_whole = False
                console.warn(f"W&B did not get the {what}: {first_line(error)}")

    def finish(self, exit_code: int, is_whole: bool = True) -> None:
        """End the W&B run, so that the next job of a sweep gets its own. It is marked failed unless ``exit_code`` is 0.

        Args:
            exit_code: Exit code that W&B records, one of ``runs.EXIT_CODES``.
            is_whole: Whether everything in the run folder was logged.
        """
        try:
            self.run.finish(exit_code=exit_code)
            self._note(None, is_whole=self._is_whole and is_whole)
        except BaseException as error:
            self._note(first_line(error), is_whole=False)
            raise
        finally:
            self._leave()

    def _log_numbers(self, metrics: Mapping[str, Any]) -> None:
        for form, part in scoring.named_parts(metrics).items():
            self.run.summary.update({f"eval/{form.format(name)}": n for name, n in scoring.numbers(part).items()})

    def _log_over_k(self, metrics: Mapping[str, Any]) -> None:
        for k in metrics.get(_BY_K[0], {}):  # empty without labels
            self.run.log({"eval/k": int(k), **{f"eval/{name}": metrics[name][k] for name in _BY_K}})
        for bits, part in {**scoring.nested(metrics), metrics["bits"]: metrics}.items():
            if "map" in part:
                self.run.log({"eval/bits": bits, "eval/map_by_bits": part["map"]})

    def _log_panels(self) -> None:
        import wandb

        panels = [wandb.Image(image, caption=caption) for image, caption in _panels(self._folder)]
        if panels:
            self.run.log({"eval/retrieval": panels})

    def _log_codes(self) -> None:
        import wandb

        runs.require_intact(self._folder, runs.CODES_MANIFEST)
        if (self._folder / runs.CODES_MANIFEST).is_file() and (wrong := damages(self._folder / runs.CODES)):
            raise ArtifactError(wrong[0][1])
        files = sorted(
            file for file in (self._folder / runs.CODES).glob("[!.]*") if file.is_file() and not file.is_symlink()
        )
        size = sum(file.stat().st_size for file in files)
        if size > CODES_LIMIT:
            note = f"the codes stay in the run folder: {size // 10**6} MB exceed the limit of {CODES_LIMIT // 10**6} MB"
            self.run.summary["eval/codes_left_out"] = note
            return
        artifact = wandb.Artifact(f"codes-{self.run.id}", type="codes")
        for file in (*files, self._folder / runs.METRICS):
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)

    def _note(self, reason: str | None, is_whole: bool) -> None:
        """Record the status of the W&B run in the run folder."""
        record = {
            "status": FAILED if reason else self._mode,
            "reason": reason,
            "whole": is_whole and not reason,
            "folder": str(self._folder.resolve()),
        }
        with contextlib.suppress(DeephashError):  # if the disk is full, the run itself fails when it writes its files
            write_json(self._folder / FOLDER / STATUS, runs.redact(record))

    def _leave(self) -> None:
        """Restore the environment and stop W&B's service, which knows this folder, before the next run starts."""
        with contextlib.suppress(Exception, SystemExit):  # SystemExit if the service reports a failure
            import wandb

            wandb.teardown()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables that make W&B keep all its files of a run inside the run folder."""
    return {variable: str((folder / FOLDER / name).absolute()) for variable, name in _INSIDE.items()}


def status(folder: Path) -> dict[str, Any]:
    """Read what was recorded about the W&B run of a run folder.

    Returns:
        A dictionary with ``status`` (``online``, ``offline``, ``disabled`` or ``failed``), ``reason`` (text if it
        failed), ``whole`` (whether W&B's log is complete) and ``folder`` (the run folder at that time). It is empty if
        there was no W&B run.
    """
    try:
        record = read_json(folder / FOLDER / STATUS, limit=_STATUS_LIMIT)
    except ArtifactError:
        return {}
    return record if isinstance(record, dict) else {}


def server() -> str:
    """Return the address of the W&B server, from the environment or else from W&B's own settings."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    import wandb

    url = wandb.setup().settings.base_url
    wandb.teardown()  # otherwise a later run would use the settings of this moment
    return url


def has_key() -> bool:
    """Return whether there is a key for the server in the places where W&B itself looks for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlsplit

    own = os.environ.get("WANDB_BASE_URL")
    hosts = [urlsplit(server()).netloc, *([] if own else ["api.wandb.ai"])]  # the second: keys of an earlier version
    try:
        known = netrc(os.environ.get("NETRC"))
    except (OSError, NetrcParseError):
        return False
    return any(known.authenticators(host) is not None for host in hosts)


def forced_mode() -> str | None:
    """Return the mode that the environment variable ``WANDB_MODE`` demands, or None if it is not set."""
    mode = os.environ.get("WANDB_MODE")
    return _MODES.get(mode, mode) if mode else None


def _mode(wanted: str) -> str:
    """The mode that W&B is started in. The environment takes precedence over the configuration."""
    if forced := forced_mode():
        if wanted not in ("auto", forced):
            console.say(f"W&B is {forced}: WANDB_MODE={forced} is set and takes precedence over logger.mode={wanted}")
        return forced
    if wanted == "auto":
        return ONLINE if has_key() else OFFLINE
    return wanted


def _is_whole(folder: Path) -> bool:
    """Whether W&B's log has everything that was logged so far."""
    steps = folder / runs.STEPS
    return bool(status(folder).get("whole")) or not (steps.exists() and steps.stat().st_size)


def _tags(config: Mapping[str, Any], tags: list[str]) -> list[str]:
    """Tags that every run has, then the user's. W&B takes at most 64 characters per tag, and no tag twice."""
    own = (config["dataset"]["name"], config["method"], f"{config['bits']} bits")
    return list(dict.fromkeys(_shown(str(tag))[:64] for tag in (*own, *tags)))


def _shown(text: str) -> str:
    """Return a text for W&B, with ``hidden`` in place of each secret: its names have no angle brackets."""
    return hide(text).replace(HIDDEN, "hidden")


def _own_entity(entity: str | None) -> str | None:
    """Return the user or team that a run is logged for; None, which is the owner of the key, instead of a secret."""
    if entity is None or not has_secret(entity):
        return entity
    console.warn("logger.entity is taken from an environment variable that may hold a secret: W&B does not get it")
    return None


def _tables(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Tables and charts of tables, by the name that W&B shows."""
    import wandb

    ones = metrics["bit_balance"]["ones"]
    balance = wandb.Table(["bit", "ones"], [[bit, share] for bit, share in enumerate(ones)])
    shown: dict[str, Any] = {
        "eval/bit_balance": wandb.plot.bar(balance, "bit", "ones", title="share of ones of each bit"),
        "eval/results": _results(metrics),
    }
    if "map" not in metrics:  # no labels
        return shown
    by_k = [name for name in scoring.BY_K if name in metrics]
    rows: list[Any] = [[int(k), *(metrics[name][k] for name in by_k)] for k in metrics["precision_at_k"]]
    table = wandb.Table(["k", *(name.removesuffix("_at_k") for name in by_k)], rows)
    shown["eval/at_k"] = wandb.plot.line(table, "k", "precision", title="precision at k")
    for name, step in (("pr_by_rank", "rank"), ("pr_by_radius", "radius")):
        columns: list[Any] = [step, "precision", "recall"]
        rows = [list(row) for row in zip(*(metrics[name][column] for column in columns), strict=True)]
        title = f"precision and recall by {step}"
        shown[f"eval/{name}"] = wandb.plot.line(wandb.Table(columns, rows), "recall", "precision", title=title)
    if distances := metrics.get("distances"):
        shown["eval/distances"] = wandb.plot.line_series(
            list(range(len(distances["relevant"]))),
            [distances["relevant"], distances["other"]],
            keys=["similar", "others"],
            title="pairs at each distance",
            xname="distance",
        )
    if per_class := metrics.get("per_class"):
        names = metrics.get("class_names") or [str(number) for number in range(len(per_class["map"]))]
        rows = [list(row) for row in zip(names, per_class["map"], per_class["queries"], strict=True)]
        shown["eval/per_class"] = wandb.Table(["class", "map", "queries"], rows)
    return shown


def _results(metrics: Mapping[str, Any]) -> Any:
    """A table with one row. W&B joins the rows of all runs of a project into a table of results."""
    import wandb

    row: dict[Any, Any] = {
        "method": metrics["method"],
        "bits": metrics["bits"],
        "dataset": metrics["dataset"],
        "split": metrics["split"]["name"],
        "split_sha256": metrics["split"]["sha256"],
        "seed": metrics["seed"],
        "map": metrics.get("map"),
        "precision_at_100": metrics.get("precision_at_k", {}).get("100"),
    }
    return wandb.Table(list(row), [list(row.values())])


def _panels(folder: Path) -> Iterator[tuple[Any, str]]:
    """Yield an image and a caption for each query of the run's gallery, with relevant results framed green, others red.

    Raises:
        ArtifactError: If the gallery is damaged.
    """
    from PIL import Image, ImageDraw

    if not run_gallery.exists(folder):
        return
    gallery = run_gallery.read(folder)
    tile = gallery.tile
    with Image.open(io.BytesIO(gallery.image), formats=("WEBP",)) as file:
        sheet = file.convert("RGB")
    for row, query in enumerate(gallery.queries):
        panel = sheet.crop((0, row * tile, sheet.width, (row + 1) * tile))
        pen = ImageDraw.Draw(panel)
        for column, result in enumerate(query["results"], start=1):
            box = (column * tile, 0, (column + 1) * tile - 1, tile - 1)
            pen.rectangle(box, outline=_FRAMES[result["relevant"]], width=max(2, tile // 16))
        yield panel, _caption(query)


def _caption(query: Mapping[str, Any]) -> str:
    found = "; ".join(f"{', '.join(result['labels'])} at {result['distance']}" for result in query["results"])
    precision = query["average_precision"]
    facts = [f"average precision {precision:.4f}"] if precision is not None else []  # None without labels
    return f"{query['id']} ({', '.join(query['labels'])}), {query['kind']}: {'; '.join([*facts, f'found: {found}'])}"
