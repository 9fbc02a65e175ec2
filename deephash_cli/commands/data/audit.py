"""``deephash data audit``: say what is in a division, and what in it distorts results."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from deephash_cli import console
from deephash_cli.commands.data import reading
from deephash_cli.console import progress, say
from deephash_cli.data import audit
from deephash_cli.data.fingerprints import Fingerprints, fingerprints
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.files import is_device, write_json
from deephash_cli.runs.outputs import settle

_HISTOGRAM = 12  # numbers of labels an image that the table lists
_COLOURS = {"fault": "red", "fact": "cyan"}


def run(config: DictConfig, dataset: DictConfig | None, against: DictConfig | None) -> dict[str, Any]:
    """Run ``deephash data audit``.

    Args:
        config: The configuration of ``deephash data``.
        dataset: The node ``dataset`` of the data set to look at; None if ``config.input`` is given.
        against: The same of the data set to compare with; None if none is given.

    Returns:
        What was found, as it is written to ``config.output``.

    Raises:
        ConfigError: If there is nothing to look at, or the output must not be written.
        DataError: If the data cannot be read, or a fault is found.
        ArtifactError: If codes are damaged, or the output cannot be written.
    """
    if (dataset is None) == (config.input is None):
        got = "neither" if dataset is None else "both"
        raise ConfigError(f"deephash data audit needs a data set or a folder or file to look at, got {got}")
    inputs = reading.inputs_of(config, dataset)
    (output,) = settle("data audit", {"output=": config.output}, inputs, config.overwrite)
    source = reading.read(dataset, config.input, config.root)
    described = audit.examine(source.division, _prints(source, config.near_duplicates))
    if config.against is not None or against is not None:
        other = reading.read(against, config.against, config.root).division
        described["differences"] = audit.differences(source.division, other)
    _show(described, config.classes)
    if output is not None:
        write_json(output, described)
        if not is_device(output):
            say(f"audit: {config.output}")
    if found := audit.faults(described):
        raise DataError(f"{len(found)} {'fault' if len(found) == 1 else 'faults'} in {described['audit']}: see above")
    return described


def _prints(source: reading.Source, near: bool) -> Fingerprints | None:
    """Digest the contents of the images; None if there are none."""
    if source.dataset is None:
        return None
    rows = source.division.used
    with progress("comparing contents, images", len(rows)) as show:
        return fingerprints(source.dataset.images, rows, near, show)


def _show(described: Mapping[str, Any], classes: bool) -> None:
    """Print the tables and the findings."""
    split = described["split"]
    digest = f"\nsplit sha256 {split['sha256']}" if "sha256" in split else ""
    parts = described["parts"]
    table = Table()
    table.add_column("")
    for role in parts:
        table.add_column(role, justify="right")
    for title, cells in _lines(described):
        table.add_row(title, *cells)
    kind = "" if described["classes"] is None else f", {described['classes']} classes"
    console.show(table, f"{described['audit']}: {described['images']} images{kind}{digest}")
    if classes:
        _show_classes(described["per_class"], list(parts))
    if "differences" in described:
        _show_differences(described["differences"])
    for finding in described["findings"]:
        line = Text(f"{finding['grade']}: {console.visible(audit.named(finding))}")
        line.stylize(_COLOURS[finding["grade"]], 0, len(finding["grade"]))
        console.console.print(line, soft_wrap=True)
    if "duplicates" not in described:
        say("contents were not compared: there are no images here")


def _lines(described: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows of the main table: a title, and a cell for each part."""
    parts = described["parts"]
    numbers = {
        int(number) for part in parts.values() for number in part.get("labels_per_image", {}).get("histogram", ())
    }
    columns = [_cells(part, sorted(numbers)[:_HISTOGRAM] if len(numbers) > 1 else []) for part in parts.values()]
    for role, column in zip(parts, columns, strict=True):
        if "duplicates" in described:
            column["repeated contents"] = str(described["duplicates"]["within"][role])
        if "codes" in described:
            column["different codes"] = str(described["codes"][role])
    titles = dict.fromkeys(title for column in columns for title in column)
    return [(title, [column.get(title, "") for column in columns]) for title in titles]


def _cells(part: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, str]:
    """Return the cells of a part by their titles; ``numbers`` are the numbers of labels that have a line."""
    cells = {"images": str(part["images"])}
    if "labels_per_image" not in part:
        return cells
    labels = part["labels_per_image"]
    cells["without a label"] = str(part["without_label"])
    cells["labels: min / mean / max"] = f"{labels['min']} / {labels['mean']:.2f} / {labels['max']}"
    cells |= {
        f"with {number} label{'s' * (number != 1)}": str(labels["histogram"].get(str(number), 0)) for number in numbers
    }
    for title in ("smallest class", "largest class"):
        extreme = part[title.replace(" ", "_")]
        cells[title] = f"{extreme['images']} ({extreme['name']})"
    cells["class ratio"] = "" if part["class_ratio"] is None else f"{part['class_ratio']:.2f}"
    return cells


def _show_classes(per_class: Mapping[str, Mapping[str, int]], roles: list[str]) -> None:
    table = Table()
    table.add_column("class")
    for role in roles:
        table.add_column(role, justify="right")
    for name, counts in per_class.items():
        table.add_row(name, *(str(counts[role]) for role in roles))
    console.show(table)


def _show_differences(found: Mapping[str, Any]) -> None:
    table = Table()
    for title in ("", "in both", "only in the first", "only in the second"):
        table.add_column(title, justify="right" if title else "left")
    for role, counts in found["parts"].items():
        table.add_row(role, *(str(counts[name]) for name in ("common", "only_in_first", "only_in_second")))
    same = {True: "the same digest", False: "another digest", None: "a digest that is not known"}
    console.show(table, f"beside {found['second']}, which has {same[found['same_digest']]}")
    labels = (
        found["labels"]
        if found["different_labels"] is None
        else f"{found['different_labels']} have other labels ({found['labels']})"
    )
    say(
        f"{found['only_in_first']} images are only in the first and {found['only_in_second']} only in the second; of "
        f"those in both, {found['moved']} are in other parts; {labels}"
    )
    for name, examples in found["examples"].items():
        if examples:
            say(f"  {name.replace('_', ' ')}: {', '.join(examples)}")
