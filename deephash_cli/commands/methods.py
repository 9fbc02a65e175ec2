"""``deephash methods``: list the methods, read from the configuration folder and from sources that are not imported."""

import argparse
import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.markup import escape
from rich.table import Table

from deephash_cli.choices import CONF_DIR, PACKAGE, choices
from deephash_cli.console import console, say, show
from deephash_cli.errors import ConfigError, first_line, hint
from deephash_cli.training.method_facts import UNKNOWN, facts_of, source_of

_HEADING = re.compile(r"\S+: (?P<title>.+) \((?P<authors>.+), (?P<venue>.+) (?P<year>\d{4})\)\.")
_INTRODUCTION = """\
# Methods

There is one page for each method.
`make docs` makes it from the docstring of the method's file and from the method's settings.
`deephash methods <method>` prints one page.

Notation:

- n is the number of training images, and K is the number of bits.
- y_i are the labels of image i, 0 or 1 for each class.
- u_i is the continuous code of image i.
- b_i = sgn(u_i) is its binary code of +1 and -1, with sgn(0) = +1.
- s_ij is 1 if images i and j share a label, and 0 if they do not.
- X are the features, one row per image.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("names", nargs="*", metavar="method")
    parser.add_argument("--config-dir", type=Path)
    for name in _FILTERS:
        parser.add_argument(f"--{name}", action="store_true")


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash methods``."""
    if len(parsed.names) > 1:
        raise ConfigError(f"deephash methods takes the name of one method, got {' '.join(parsed.names)}")
    if parsed.config_dir is not None and not parsed.config_dir.is_dir():
        raise ConfigError(f"--config-dir {parsed.config_dir} is not a folder")
    chosen = [name for name in _FILTERS if getattr(parsed, name.replace("-", "_"))]
    if chosen and parsed.names:
        raise ConfigError(f"--{chosen[0]} chooses rows of the table: leave it out, or leave out {parsed.names[0]}")
    if parsed.names:
        show_page(parsed.config_dir, parsed.names[0])
    else:
        show_table(parsed.config_dir, chosen)


@dataclass(frozen=True)
class Entry:
    """A method in the table.

    Attributes:
        name: Name that is typed after ``method=``.
        paper: Title of the paper.
        authors: Authors of the paper.
        venue: Conference or journal of the paper.
        year: Year of the paper.
        supervision: Information that the method learns from: ``none``, ``pairs``, ``triplets``, ``labels``.
        inputs: Kind of training data: ``images`` if it trains a network, on images or on features; ``features`` if it
            is fitted on the features of a frozen backbone.
        multi_label: Whether its paper covers several labels; methods that use no labels do.
        transductive: Whether it trains on the whole database with its labels.
        file: Path of the source file, or a note that there is none.
        text: Docstring of that file below the title: equation, how it is optimised, what differs from the paper.
        settings: YAML text of the method, and of its loss if that has a file, by file name.
    """

    name: str
    paper: str
    authors: str
    venue: str
    year: str
    supervision: str
    inputs: str
    multi_label: bool
    transductive: bool
    file: str
    text: str
    settings: dict[str, str]


_FILTERS = {
    "unsupervised": lambda entry: entry.supervision == "none",
    "multi-label": lambda entry: entry.multi_label,
    "on-features": lambda entry: entry.inputs == "features",
}


def catalogue(config_dir: Path | None) -> list[Entry]:
    """Return an entry for each method of deephash, then for each method in the user's own folder.

    Args:
        config_dir: The user's own configuration folder; None if there is none.

    Raises:
        ConfigError: If a method's YAML does not name a class.
    """
    files = [CONF_DIR / "method" / f"{name}.yaml" for name in choices("method")]
    if config_dir is not None:
        files += sorted((config_dir / "method").glob("[!_]*.yaml"))
    return [_entry(file) for file in files]


def _entry(file: Path) -> Entry:
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        module_name, _, class_name = content["module"]["_target_"].rpartition(".")
        overrides = [entry for entry in content.get("defaults", ()) if isinstance(entry, dict)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} must name a class under module._target_: {first_line(error)}") from error
    settings = {f"method/{file.name}": text}
    for loss in (entry["override /loss"] for entry in overrides if "override /loss" in entry):
        beside = file.parent.parent / "loss" / f"{loss}.yaml"
        if beside.exists():
            settings[f"loss/{loss}.yaml"] = beside.read_text(encoding="utf-8")
    source = source_of(module_name)
    tree = ast.parse("" if source is None else source.read_bytes())
    heading, _, body = (ast.get_docstring(tree) or "").partition("\n\n")
    heading = " ".join(heading.split())
    cited = _HEADING.fullmatch(heading)
    title, authors, venue, year = cited.groups() if cited else (heading, UNKNOWN, UNKNOWN, UNKNOWN)
    facts = facts_of(module_name, class_name)
    if source is None:
        shown = f"there is no module {module_name}"
    else:
        shown = (source.relative_to(PACKAGE.parent) if source.is_relative_to(PACKAGE.parent) else source).as_posix()
    known = (facts.supervision, facts.inputs, facts.multi_label, facts.transductive)
    return Entry(file.stem, title, authors, venue, year, *known, shown, body.strip("\n"), settings)


def page(entry: Entry) -> str:
    """Return the page of a method in Markdown: paper, equation, deviations, settings."""
    blocks = [f"`conf/{name}`:\n\n```yaml\n{text.strip()}\n```" for name, text in entry.settings.items()]
    learns = "without labels" if entry.supervision == "none" else f"from {entry.supervision}"
    trained_on = "images or features" if entry.inputs == "images" else entry.inputs
    facts = f"Learns {learns}, trained on {trained_on}. Written in `{entry.file}`."
    if not entry.multi_label:
        facts += " Its paper does not cover images with several labels; below is what is done with them."
    return "\n\n".join((f"## {entry.name}", _citation(entry), facts, entry.text, *blocks)) + "\n"


def document() -> str:
    """Return the text of ``docs/methods.md``: the pages of all methods."""
    entries = catalogue(None)
    contents = "\n".join(f"- [{entry.name}](#{entry.name}): {_citation(entry)}" for entry in entries)
    return "\n".join((f"{_INTRODUCTION}\n{contents}\n", *map(page, entries)))


def show_page(config_dir: Path | None, name: str) -> None:
    """Print the page of a method.

    Args:
        config_dir: The user's own configuration folder; None if there is none.
        name: Name of the method.

    Raises:
        ConfigError: If there is no method of this name.
    """
    entries = {entry.name: entry for entry in catalogue(config_dir)}
    if name not in entries:
        raise ConfigError(
            f"there is no method {name!r}{hint(name, list(entries))}; the methods are: {', '.join(entries)}"
        )
    console.print(page(entries[name]), markup=False, soft_wrap=True, end="")


def show_table(config_dir: Path | None, filters: Sequence[str] = ()) -> None:
    """Print the table of methods, oldest first.

    Args:
        config_dir: The user's own configuration folder; None if there is none.
        filters: Names of filters; a method must pass all of them.
    """
    entries = [entry for entry in catalogue(config_dir) if all(_FILTERS[name](entry) for name in filters)]
    if not entries:
        say(f"no method is {' and '.join(filters)}")
        return
    table = Table("year", "method", "learns from", "trained on", "paper")
    for entry in sorted(entries, key=lambda entry: (entry.year, entry.name)):
        supervision = "no labels" if entry.supervision == "none" else entry.supervision
        trained_on = "both" if entry.inputs == "images" else entry.inputs
        supervision += " ‡" if entry.transductive else ""
        paper = f"{entry.paper or entry.file} ({entry.venue})".removesuffix(f" ({UNKNOWN})")
        table.add_row(*map(escape, (entry.year, entry.name, supervision, trained_on, paper)))
    show(table)
    say("both: on images, or on features: those of a frozen model, or your own vectors with dataset=vectors")
    if any(entry.transductive for entry in entries):
        say("‡: transductive, trained on the whole database with its labels")
    say("deephash methods <method> prints its authors, file, equation, settings, and what differs from the paper")


def _citation(entry: Entry) -> str:
    if entry.authors == UNKNOWN:
        return entry.paper
    return f"{entry.paper} ({entry.authors}, {entry.venue} {entry.year})"
