"""``deephash methods``: list the methods, read from the configuration folder and from sources that are not imported."""

import argparse
import ast
import re
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


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash methods``."""
    if len(parsed.names) > 1:
        raise ConfigError(f"deephash methods takes the name of one method, got {' '.join(parsed.names)}")
    if parsed.config_dir is not None and not parsed.config_dir.is_dir():
        raise ConfigError(f"--config-dir {parsed.config_dir} is not a folder")
    show_methods(parsed.config_dir, *(parsed.names or [None]))


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
    file: str
    text: str
    settings: dict[str, str]


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
    supervision, inputs = facts_of(module_name, class_name)[:2]
    if source is None:
        shown = f"there is no module {module_name}"
    else:
        shown = (source.relative_to(PACKAGE.parent) if source.is_relative_to(PACKAGE.parent) else source).as_posix()
    return Entry(file.stem, title, authors, venue, year, supervision, inputs, shown, body.strip("\n"), settings)


def page(entry: Entry) -> str:
    """Return the page of a method in Markdown: paper, equation, deviations, settings."""
    blocks = [f"`conf/{name}`:\n\n```yaml\n{text.strip()}\n```" for name, text in entry.settings.items()]
    learns = "without labels" if entry.supervision == "none" else f"from {entry.supervision}"
    facts = f"Learns {learns}, trained on {_words(entry.inputs)}. Written in `{entry.file}`."
    return "\n\n".join((f"## {entry.name}", _citation(entry), facts, entry.text, *blocks)) + "\n"


def document() -> str:
    """Return the text of ``docs/methods.md``: the pages of all methods."""
    entries = catalogue(None)
    contents = "\n".join(f"- [{entry.name}](#{entry.name}): {_citation(entry)}" for entry in entries)
    return "\n".join((f"{_INTRODUCTION}\n{contents}\n", *map(page, entries)))


def show_methods(config_dir: Path | None, name: str | None) -> None:
    """Print the table of methods, or the page of one method.

    Args:
        config_dir: The user's own configuration folder; None if there is none.
        name: Name of the method whose page is printed; None prints the table.

    Raises:
        ConfigError: If there is no method of this name.
    """
    entries = catalogue(config_dir)
    if name is not None:
        names = [entry.name for entry in entries]
        if name not in names:
            raise ConfigError(f"there is no method {name!r}{hint(name, names)}; the methods are: {', '.join(names)}")
        console.print(page(entries[names.index(name)]), markup=False, soft_wrap=True, end="")
        return
    table = Table("method", "learns from", "trained on", "venue", "paper")
    for entry in entries:
        facts = (_words(entry.supervision), _words(entry.inputs))
        venue = UNKNOWN if entry.venue == UNKNOWN else f"{entry.venue} {entry.year}"
        table.add_row(*map(escape, (entry.name, *facts, venue, entry.paper or entry.file)))
    show(table)
    say("features are computed by a frozen model, or are your own vectors: dataset=vectors")
    say("deephash methods <method> prints its authors, file, equation, settings, and what differs from the paper")


def _citation(entry: Entry) -> str:
    if entry.authors == UNKNOWN:
        return entry.paper
    return f"{entry.paper} ({entry.authors}, {entry.venue} {entry.year})"


def _words(fact: str) -> str:
    return {"none": "no labels", "images": "images or features"}.get(fact, fact)
