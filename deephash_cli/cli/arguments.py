"""The verbs about runs that are there already. Their arguments are paths and options; Hydra has no part in it."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from deephash_cli.errors import ConfigError
from deephash_cli.stopping import stopping


def parser(verb: str) -> argparse.ArgumentParser:
    """What a verb's arguments can be."""
    made = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    made.error = refuser(verb)  # type: ignore[method-assign]
    if verb == "runs":
        made.add_argument("words", nargs="*")
        made.add_argument("--sort", default="started")
        made.add_argument("--reverse", action="store_true")
        made.add_argument("--format", default="table", choices=("table", "csv", "json"))
        return made
    made.add_argument("paths", nargs="+", type=Path, metavar="run folder")
    if verb == "sync":
        made.add_argument("--project")
        made.add_argument("--entity")
        made.add_argument("--dry-run", action="store_true")
        made.add_argument("--rebuild", action="store_true")
        made.add_argument("--timeout", type=float, default=600)
        return made
    made.add_argument("--metric", default="map")
    if verb == "compare":
        made.add_argument("--format")
        made.add_argument("--output", type=Path)
    else:
        made.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    return made


def refuser(verb: str) -> Callable[[str], NoReturn]:
    """What a parser of a verb calls with its complaint."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; deephash {verb} --help lists what there is")

    return refuse


def _compare(arguments: list[str]) -> None:
    from deephash_cli.commands.compare import ENDINGS, FORMATS, compare

    parsed = parser("compare").parse_intermixed_args(arguments)
    form: str = parsed.format or ("table" if parsed.output is None else ENDINGS.get(parsed.output.suffix, "table"))
    if form not in ("table", *FORMATS):
        raise ConfigError(f"--format must be one of table, {', '.join(FORMATS)}, got {form}")
    if parsed.output is not None and form == "table":
        raise ConfigError(f"--output {parsed.output} must end in {', '.join(ENDINGS)}, or add --format")
    compare(parsed.paths, parsed.metric, form, parsed.output)


def _report(arguments: list[str]) -> None:
    from deephash_cli.commands.report import report

    parsed = parser("report").parse_intermixed_args(arguments)
    report(parsed.paths, parsed.metric, parsed.output, shlex.join(["deephash", "report", *arguments]))


def _runs(arguments: list[str]) -> None:
    from deephash_cli.commands.runs import list_runs
    from deephash_cli.runs import default_root

    parsed = parser("runs").parse_intermixed_args(arguments)
    wanted = [word for word in parsed.words if "=" in word and not Path(word).is_dir()]
    paths = [Path(word) for word in parsed.words if word not in wanted]
    default = default_root()
    if not paths and not default.is_dir():
        raise ConfigError(f"there is no {default} here: give run folders, or folders of runs")
    settings = dict(word.split("=", 1) for word in wanted)
    list_runs(paths or [default], settings, parsed.sort, parsed.reverse, parsed.format)


def _sync(arguments: list[str]) -> None:
    parsed = parser("sync").parse_intermixed_args(arguments)
    if not 0 < parsed.timeout < float("inf"):
        raise ConfigError(f"--timeout must be a number of seconds above 0, got {parsed.timeout:g}")
    from deephash_cli.commands.sync import sync

    with stopping():
        sync(parsed.paths, parsed.project, parsed.entity, parsed.dry_run, parsed.rebuild, parsed.timeout)


RUN: dict[str, Callable[[list[str]], None]] = {"compare": _compare, "report": _report, "runs": _runs, "sync": _sync}
