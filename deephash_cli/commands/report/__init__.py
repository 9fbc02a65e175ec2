"""``deephash report``: write the tables, charts and galleries of runs to one HTML file that needs no network."""

import argparse
import base64
import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deephash_cli import __version__
from deephash_cli.commands.report import curves, galleries, published, tables
from deephash_cli.console import say, warn
from deephash_cli.errors import ConfigError
from deephash_cli.files import is_device, write_text
from deephash_cli.retrieval import similarity
from deephash_cli.runs import listing, results
from deephash_cli.runs.outputs import settle, unused
from deephash_cli.runs.results import LeftOut, Result, Section

DEFAULT = Path("report.html")
_HERE = Path(__file__).parent
_CHARTS = {
    "value": "mean over seeds at each code length; whiskers are one standard deviation",
    "precision": "share of relevant items among the first k",
    "rank": "at cut-offs along the ranking, from its first item to its last",
    "radius": "within each Hamming radius, from 0 to the code length",
    "classes": "mean over the queries that have the class",
    "distances": "share of the pairs of a query and a database item at each Hamming distance",
    "ones": "share of ones of each bit, in ascending order; a balanced bit has ½",
    "loss": f"one line per seed, at most {curves.SEEDS}; losses of different methods have different scales",
    "validation": f"one line per seed, at most {curves.SEEDS}",
}
_TITLES = {
    "precision": "Precision at k",
    "rank": "Precision and recall, by rank",
    "radius": "Precision and recall, by radius",
    "classes": "mAP of each class",
    "distances": "Hamming distances",
    "ones": "Bit balance",
    "loss": "Training loss",
    "validation": "mAP of the validation queries",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which arguments the verb has."""
    parser.add_argument("words", nargs="+", metavar="run folder")
    parser.add_argument("--metric", default="map")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--overwrite", action="store_true")


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash report``."""
    paths, wanted = listing.paths_and_filters(parsed.words)
    output = parsed.output or unused(DEFAULT)
    report(paths, wanted, parsed.metric, output, parsed.command, parsed.overwrite)


def report(
    paths: Sequence[Path],
    wanted: Mapping[str, str],
    metric: str,
    output: Path,
    command: str,
    overwrite: bool = False,
) -> None:
    """Write the report of all runs in the given folders.

    Args:
        paths: Run folders, or folders of runs.
        wanted: Values that runs must have, as for `listing.choose`.
        metric: Name of the headline metric, such as ``map``, ``map_stable`` or ``precision_at_100``.
        output: Path of the file to write; it must end in .html or .htm, and its folder must exist.
        command: Command line as it was typed, shown at the foot of the page.
        overwrite: Whether ``output`` may be a file that ``deephash report`` did not make, and replace it.

    Raises:
        ConfigError: If there is no finished run with the wanted values, no run has the metric, or ``output`` cannot be
            written to or must not be replaced.
        ArtifactError: If the file cannot be written.
    """
    if output.suffix not in (".html", ".htm") and not is_device(output):
        raise ConfigError(f"--output {output} must end in .html; deephash compare writes tables in other formats")
    file = settle("report", {"--output ": output}, {}, overwrite)[0] or output
    found, left_out = results.gather(paths, [metric], wanted)
    text = render(found, left_out, paths, metric, command)
    write_text(file, text)
    say(f"{len(found)} runs in {output} ({len(text.encode()) / 1e6:.1f} MB)")
    if left_out:
        warn(f"left out {len(left_out)} of {len(found) + len(left_out)} folders; {output} lists them with the reasons")


def render(
    found: Sequence[Result], left_out: Sequence[LeftOut], paths: Sequence[Path], metric: str, command: str
) -> str:
    """Return the HTML of the page. Whatever comes from a run becomes text in it, never markup or script.

    Args:
        found: Runs to show, at least one.
        left_out: Folders that are not shown, with reasons.
        paths: Paths that the user gave; if there is only one, folders are named relative to it.
        metric: Name of the headline metric.
        command: Command line, shown at the foot of the page.
    """
    sections = results.sections(found)
    chosen, without = galleries.choose(sections, metric)
    drawn = [curves.groups(section, metric) for section in sections]
    charts = [_charts(groups, metric) for groups in drawn]
    data = {
        "metric": metric,
        "sections": [
            {
                "rows": [{"label": row.title, "method": row.method} for row in section.rows],
                "lengths": section.lengths,
                "classes": curves.class_names(section),
                "groups": groups,
            }
            for section, groups in zip(sections, drawn, strict=True)
        ],
    }
    shown = [entry for entries in chosen for entry in entries]
    style = [_read("page.css"), "".join(galleries.style(number, entry) for number, entry in enumerate(shown))]
    script = [re.sub(r"\n//# sourceMappingURL=.*", "", _read("chart.umd.min.js")), _read("page.js")]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html").render(
        policy=f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hashes(style)}; script-src {_hashes(script)}",
        styles=[Markup(part) for part in style],
        scripts=[Markup(part) for part in script],
        data=Markup(_json(data)),
        metric=metric,
        values=["P@100" if name == "precision_at_100" else name for name in tables.shown_values(metric)],
        caption=results.CAPTION,
        marked=results.MARKED,
        tie_rule=results.tie_rule(metric),
        published_note=published.NOTE,
        made=datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="minutes").replace("+00:00", " UTC"),
        version=__version__,
        versions=", ".join(_versions(found).get("deephash", ["unknown"])),
        runs=len(found),
        methods=sorted({row.method for section in sections for row in section.rows}),
        lengths=sorted({bits for section in sections for bits in section.lengths}),
        datasets=sorted({section.dataset for section in sections}),
        sections=[
            {
                **_section(section, sections, metric, paths),
                "charts": charts[number],
                "lacking": curves.lacking(drawn[number]),
                "groups": len(drawn[number]),
                "galleries": [(shown.index(entry), entry) for entry in chosen[number]],
                "without": without[number],
            }
            for number, section in enumerate(sections)
        ],
        left_out=[(tables.name_of(entry.folder, paths), entry.reason) for entry in left_out],
        few=tables.FEW,
        command=command,
    )
    return text.encode("utf-8", "replace").decode()  # file names and JSON can hold lone surrogates


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hashes(parts: Sequence[str]) -> str:
    """Return the digests by which the page's policy allows its own scripts and styles, and no others."""
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _json(content: Any) -> str:
    """Return JSON in ASCII that cannot close the HTML element that contains it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _charts(groups: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, str]]:
    """Return the charts that have data: name, title and description of each."""
    titles = {"value": f"{metric} against bits", **_TITLES}
    return [
        {"name": name, "title": titles[name], "about": about}
        for name, about in _CHARTS.items()
        if any(group.get(name) for group in groups)
    ]


def _section(section: Section, others: Sequence[Section], metric: str, paths: Sequence[Path]) -> dict[str, Any]:
    """Return all that the page shows of a section except charts and galleries."""
    members = [result for row in section.rows for result in row.results]
    rows, sources = tables.rows(section, metric)
    whole = [(row, result) for row in section.rows for result in row.results if not result.is_prefix]
    listed = [tables.run(row, result, metric, paths) for row, result in whole]
    return {
        "title": section.title,
        "dataset": section.dataset,
        "split": {name: value for name, value in section.split.items() if name != "changes"},
        "changes": section.changes,
        "similar": similarity.in_words(section.similar),
        "queries": section.queries,
        "database": section.database,
        "model": section.model,
        "lengths": section.lengths,
        "otherwise": _otherwise(section, others),
        "policies": {name: str(rule) for name, rule in members[0].metrics["policies"].items()},
        "versions": {name: ", ".join(known) for name, known in _versions(members).items()},
        "rows": rows,
        "sources": sources,
        "alone": all(cell is None or cell.deviation is None for cells in section.cells(metric) for cell in cells),
        "marked": section.has_best(metric),
        "backbones": section.backbones,
        "legend": section.legend,
        "runs": listed,
        "settings": any(run["settings"] for run in listed),
        "doubts": any(run["doubt"] for run in listed),
        "precision": tables.of_precision(section),
        "real_values": tables.of_real_values(section),
        "seen_classes": tables.of_seen_classes(section),
        "codes": tables.of_codes(section),
        "classes": tables.of_classes(section),
        "data": tables.of_data(section),
    }


def _versions(found: Sequence[Result]) -> dict[str, list[str]]:
    """Return, for each library, the versions that the runs were made with."""
    known: dict[str, set[str]] = {}
    for result in found:
        for name, version in result.metrics["versions"].items():
            known.setdefault(name, set()).add(str(version))
    return {name: sorted(versions) for name, versions in known.items()}


def _otherwise(section: Section, others: Sequence[Section]) -> list[str]:
    """Return the evaluation rules that distinguish a section from others of the same data set and split."""
    rules = [
        other.rows[0].results[0].rules
        for other in (section, *others)
        if (other.dataset, other.split["sha256"]) == (section.dataset, section.split["sha256"])
    ]
    return sorted(
        name for name in set().union(*rules) if any(rule.get(name) != rules[0].get(name) for rule in rules[1:])
    )
