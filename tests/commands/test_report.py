"""``deephash report``: content of the file, no markup from runs, nothing loaded, and its behaviour in a browser."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import backbone, curves, write_gallery, write_run, write_steps

from deephash_cli.commands import report as report_of
from deephash_cli.commands.report import galleries, published
from deephash_cli.commands.report.curves import POINTS, SEEDS
from deephash_cli.retrieval.similarity import ALL, SIMILAR
from deephash_cli.runs import results

NASTY = "<script>alert(1)</script>"
CIFAR = {"dataset": "cifar10", "split": {"name": "s1", "sha256": "c" * 64}}


class Reader(HTMLParser):
    """The text of a page, its elements, and the rows of its tables by caption."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.tables, self.words = [], [], {}, []
        self._rows, self._caption, self._cell, self._in = [], None, None, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._in.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in self._in:
            while self._in.pop() != tag:
                pass
        if tag == "table":
            self.tables[" ".join(self._caption.split())] = self._rows
        elif tag in ("td", "th"):
            self._rows[-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        if {"script", "style"} & set(self._in):
            return
        self.words.append(data)
        if "caption" in self._in:
            self._caption += data
        if self._cell is not None:
            self._cell += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def table(self, start):
        """Return the rows of the only table whose caption begins with ``start``."""
        (rows,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return rows


def write_sweep(root="runs"):
    """Write runs of three methods, two code lengths and two seeds, as the current version writes them."""
    for i, method in enumerate(("dpsh", "itq", "lsh")):
        for bits in (12, 24):
            for seed in (1, 2):
                value = 0.7 - i / 5 + seed / 100
                folder = f"{root}/{method}-{bits}-{seed}"
                ended = {"ended": "2026-01-01T00:01:05+00:00"}
                write_run(folder, method, bits, seed, value, metrics=curves(bits, value), record=ended)
    for seed in (1, 2):
        write_steps(f"{root}/dpsh-24-{seed}")


@pytest.fixture
def make(deephash):
    """Write a report and read it; return the command's result, the text of the file and its elements."""

    def run(*arguments):
        Path("report.html").unlink(missing_ok=True)
        result = deephash("report", *(arguments or ("runs",)))
        assert result.code == 0, result
        text = Path("report.html").read_text(encoding="utf-8")
        return result, text, Reader(text)

    return run


def test_a_data_set_with_many_classes_has_a_table_of_classes(make):
    """NUS-WIDE has 21 classes, MS-COCO 80."""
    write_run("runs/a", metrics={"per_class": {"map": [n / 80 for n in range(80)], "queries": [5] * 80}})
    _, _, page = make("runs")
    (names, values) = page.table("mAP of each class")
    assert (len(names), names[2:4], values[2:4]) == (82, ["class 79 (5)", "class 78 (5)"], ["0.9875", "0.9750"])


def data_of(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_table_has_methods_by_lengths_with_means_over_seeds(make):
    write_sweep()
    result, _, page = make("runs")
    assert re.fullmatch(r"12 runs in report.html \(0\.\d MB\)\n", result.out)
    assert result.err == ""
    head, dpsh, itq, _ = page.table("map: mean and standard deviation over seeds, the number of seeds in brackets; ★")
    assert head == ["method", "12 bits", "24 bits"]
    assert dpsh == ["dpsh", "★best0.7150± 0.0071(2)", "★best0.7150± 0.0071(2)"]
    assert itq[1] == "0.5150± 0.0071(2)"
    assert page.table("Precision at k")[1] == ["dpsh", "12"] + ["0.7150± 0.0071"] * 4
    assert page.table("Codes of the database")[1][2:4] == ["0.5000± 0.0000", "0.1000± 0.0000"]
    classes = page.table("mAP of each class: mean over seeds, the number of queries in brackets")
    assert classes[0][2:] == ["class 0 (50)", "class 2 (50)", "class 1 (0)"]
    assert classes[1][2:] == ["0.7150", "0.3575", ""]
    runs = page.table("12 runs")
    assert runs[0] == ["method", "bits", "seed", "map", "P@100", "started (UTC)", "seconds", "folder"]
    assert runs[1] == ["dpsh", "12", "1", "0.7100", "0.7100", "2026-01-01 00:00", "65", "dpsh-12-1"]


def test_nested_lengths_are_columns_and_a_run_is_listed_once(make):
    parts = {"12": {**curves(12, 0.5), "map": 0.5}}
    folder = write_run("runs/a", bits=24, changes={"nested": [12]}, metrics={**curves(24, 0.6), "nested": parts})
    write_steps(folder)
    _, text, page = make("runs")
    assert page.table("map: mean")[1] == ["dpsh (nested=[12])", "0.5000(1)", "0.5000(1)"]
    assert [row[1] for row in page.table("Precision at k")[1:]] == ["12", "24"]
    assert [row[2] for row in page.table("1 run")[1:]] == ["24"]
    groups = data_of(text)["sections"][0]["groups"]
    assert [(group["bits"], "loss" in group) for group in groups] == [(12, False), (24, True)]


def test_any_number_can_be_the_headline(make):
    write_sweep()
    _, text, page = make("runs", "--metric", "map_stable")
    assert page.table("map_stable: mean")[1][1] == "★best0.3575± 0.0035(2)"
    assert page.table("12 runs")[0][3:6] == ["map_stable", "map", "P@100"]
    assert "ties are in database order" in page.text
    assert data_of(text)["metric"] == "map_stable"


def test_runs_on_different_splits_are_in_different_sections(make):
    write_sweep()
    write_run("runs/x", split="b" * 64)
    write_run("runs/y", seed=1, split="b" * 64, metrics={"policies": {"ties": "by accident"}})
    _, text, page = make("runs")
    assert "3 sections: runs on different splits, or measured by different rules, cannot be compared" in page.text
    assert page.text.count("Measured by different rules than another section of this split: ties.") == 2
    assert [len(section["rows"]) for section in data_of(text)["sections"]] == [3, 1, 1]
    assert "ties by accident" in page.text


def test_the_charts_get_means_over_seeds_with_four_digits(make):
    write_sweep()
    _, text, _ = make("runs")
    (section,) = data_of(text)["sections"]
    assert section["lengths"] == [12, 24]
    first = section["groups"][0]
    assert (first["row"], first["bits"], first["seeds"], first["value"]) == (0, 12, 2, [0.715, 0.007071])
    assert first["precision"] == [[1, 10, 100, 1000], [0.715] * 4]
    assert first["rank"] == [[0.1, 0.5, 1.0], [0.715, 0.3575, 0.1]]
    assert first["classes"] == [0.715, None, 0.3575]
    assert first["ones"] == [0.3] + [0.5] * 11
    assert [round(sum(side), 2) for side in first["distances"]] == [1, 1]
    assert "loss" not in first
    trained = section["groups"][1]
    assert trained["loss"] == [[seed, [1, 2, 3], [3.0, 2.0, 1.0]] for seed in (1, 2)]
    assert trained["validation"][0] == [1, [1, 2, 3], [0.25, 0.5, 0.75]]


def test_training_curves_are_thinned_and_of_few_seeds(make):
    for seed in range(SEEDS + 2):
        write_steps(write_run(f"runs/{seed}", seed=seed), [1 / step for step in range(1, 1000)])
    _, text, _ = make("runs")
    lines = data_of(text)["sections"][0]["groups"][0]["loss"]
    assert [seed for seed, *_ in lines] == list(range(SEEDS))
    steps = lines[0][1]
    assert len(steps) <= POINTS
    assert steps[-1] == 999


def test_older_and_odd_runs_have_the_charts_that_they_can(make):
    write_sweep()
    write_run("runs/old", "sdh", 12)
    write_run(
        "runs/odd", "ksh", 12,
        metrics={
            "precision_at_k": [1], "pr_by_rank": {"recall": [0.5], "precision": ["x"]}, "pr_by_radius": None,
            "distances": {"relevant": [0, 0], "other": "many"}, "per_class": {"map": [True, "a"]}, "bit_balance": 3,
            "bit_correlation": [], "unique_code_ratio": "x", "map_stable": [], "database": 10**18,
        },
    )  # fmt: skip
    write_run("runs/no-number", "ksh", 24, metrics={"map": float("nan")})
    write_run("runs/long", "lfh", 12, metrics={"precision_at_k": {"9" * 5000: 0.5, "²": 0.5, "-1": 0.5}})
    Path("runs/odd/metrics.jsonl").write_text('[]\n{"step": NaN, "train/loss": 1}\n{"step": 1, "train/loss": "x"}\n')
    write_run("runs/unlabelled", "pcah", 12, metrics={"map": None, "map_stable": None})
    _, text, page = make("runs")
    (section,) = data_of(text)["sections"]
    by_row = {group["row"]: set(group) for group in section["groups"]}
    rows = [row["label"] for row in section["rows"]]
    assert [row[0] for row in page.table("1 folder is not in any table")[1:]] == ["no-number"]
    assert by_row[rows.index("ksh")] == {"row", "bits", "seeds", "value"}
    assert by_row[rows.index("sdh")] == {"row", "bits", "seeds", "value", "precision"}
    assert "distances of pairs (distances) in 4 of 10 lines" in page.text


def test_what_is_left_out_is_listed_with_its_reason(make):
    write_run("runs/good")
    write_run("runs/failed", record={"status": "failed", "error": f"no {NASTY} left"})
    Path("runs/failed/metrics.json").unlink()
    write_run("runs/torn")
    Path("runs/torn/metrics.json").write_text('{"map": 0.')
    write_run("runs/again", record={"started": "2025-01-01T00:00:00+00:00"})
    result, _, page = make("runs")
    assert result.err == "warning: left out 3 of 4 folders; report.html lists them with the reasons\n"
    rows = page.table("3 folders are not in any table")
    assert ["failed", f"failed: no {NASTY} left"] in rows
    assert ["again", "replaced by a newer run of the same settings: runs/good"] in rows
    assert any(folder == "torn" and "is not valid JSON" in reason for folder, reason in rows)


def test_real_values_have_a_table(make):
    write_run("runs/old", method="lsh")
    for seed in (0, 1):
        ceiling = {"map_outputs": 0.75 + seed / 4, "lost_by_binarizing": 0.25, "queries": 100}
        write_run(f"runs/{seed}", seed=seed, metrics={"map_asymmetric": 0.625, "ceiling": ceiling})
    _, _, page = make("runs")
    head, *rows = page.table("mAP without binarizing")
    assert head[-3:] == ["asymmetric", "cosine of outputs", "lost by binarizing"]
    (row,) = rows
    assert row[-3:] == ["0.6250± 0.0000", "0.8750± 0.1768", "0.2500± 0.0000"]


def test_the_records_say_what_is_in_the_division(make):
    split = {
        "name": "s1", "sha256": "b" * 64, "unlabelled_rows": {"query": 3, "train": 0, "database": "odd"},
        "database_contains_train": True, "query_in_database": 0, "duplicate_images": None, "label_kind": "multi",
    }  # fmt: skip
    folder = write_run("runs/one", metrics={"split": split})
    (folder / "split.json").write_text(json.dumps({"counts": {"query": 100, "train": 50, "database": 900}}, indent=2))
    _, text, _ = make("runs")
    facts = dict(re.findall("<dt>([^<]*)</dt><dd>([^<]*)</dd>", text.split("<h3>Data</h3>")[1].split("</dl>")[0]))
    assert facts == {
        "queries": "100 images, 3 without a label", "training images": "50 images, 0 without a label",
        "database": "900 images", "labels": "several for some images", "training images in the database": "yes",
        "queries in the database": "0", "SHA-256 of the division": "b" * 64,
    }  # fmt: skip
    write_run("older/one")
    _, text, _ = make("older")
    assert "<dt>training images</dt>" not in text


def test_codes_that_look_collapsed_are_marked(make):
    balance = {"mean_deviation": 0.3, "max_deviation": 0.5}
    write_run("runs/a", metrics={"bit_balance": balance})
    write_run("runs/b", seed=1, metrics={"unique_code_ratio": 3 / 900})
    write_run("runs/c", seed=2, metrics=curves(12, 0.5))
    _, _, page = make("runs")
    head, *rows = page.table("3 runs")
    assert [row[head.index("codes")] for row in rows] == [
        "⚠ a bit is the same in every code",
        "⚠ only 3 different codes",
        "",
    ]


# Published numbers


def test_published_numbers_stand_where_data_set_and_protocol_agree(make):
    write_run("runs/a", "dtsh", 48, metrics=CIFAR)
    write_run("runs/b", "dtsh", 20, metrics=CIFAR)
    write_run("runs/c", "ksh", 48, metrics=CIFAR)
    _, _, page = make("runs")
    rows = page.table("map: ")
    assert rows[1][0] == "dtsh"
    assert rows[2] == ["published VGG-F [1]", "", "0.7740"]
    assert rows[3][0] == "ksh"
    assert len(rows) == 4
    assert "the paper of DTSH, as a journal article's table quotes it (secondary)" in page.text
    assert published.NOTE in page.text


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "toys"},
        {"split": {"name": "s2", "sha256": "d" * 64}},
        {"split": {"name": "s1", "sha256": "d" * 64, "changes": {"labelled": 500}}},
        {"policies": {"similar": SIMILAR[ALL]}},
    ],
)
def test_and_nowhere_else(make, other):
    write_run("runs/a", "dtsh", 48, metrics={**CIFAR, **other})
    _, _, page = make("runs")
    assert len(page.table("map: ")) == 2
    assert published.NOTE not in page.text


def test_a_page_says_that_all_labels_must_agree(make):
    write_run("runs/a")
    write_run("runs/b", metrics={"policies": {"similar": SIMILAR[ALL]}})
    _, _, page = make("runs")
    assert page.text.count("900 database items, all labels must agree;") == 1


def test_published_numbers_are_of_map_alone(make):
    write_run("runs/a", "dtsh", 48, metrics=CIFAR)
    _, _, page = make("runs", "--metric", "map_stable")
    assert len(page.table("map_stable: ")) == 2


def test_the_experiment_shows_the_numbers_of_the_report():
    """Its README was printed by its script, which reads the report's file."""
    folder = Path(__file__).parents[2] / "experiments" / "canon-cifar10"
    specification = importlib.util.spec_from_file_location("canon_table", folder / "table.py")
    table = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(table)
    readme = (folder / "README.md").read_text()
    for method in table.COMPARED:
        shown = [table.show(table.published_map(method).get(bits)) for bits in table.LENGTHS]
        (row,) = re.findall(rf"^\| {method} \|((?: \.\d+ \| *\S* *\|){{4}})$", readme, re.MULTILINE)
        assert [cell.strip() for cell in row.split("|")[1:-1:2]] == shown


def test_published_numbers_are_of_methods_and_protocols_that_exist():
    from deephash_cli.choices import choices
    from deephash_cli.data import protocol

    for entry in published.published():
        assert entry.method in choices("method")
        assert entry.dataset in choices("dataset")
        assert entry.protocol in protocol._PROTOCOLS
        assert entry.source
        assert entry.computed_with
        assert entry.map
        assert all(type(bits) is int and 0 < value < 1 for bits, value in entry.map.items())


# Nothing from a run becomes markup


def test_names_are_text(make):
    names = [
        NASTY,
        "=cmd()",
        "\"quoted\" 'twice'",
        "</script><img src=x onerror=alert(2)>",
        "ü\n\u2028é",
        "{{ 7 * 7 }}",
    ]
    for i, name in enumerate(names):
        odd = {
            "dataset": f"toys {NASTY}", "policies": {NASTY: NASTY}, "versions": {"deephash": NASTY, NASTY: "1"},
            "split": {"name": NASTY, "sha256": NASTY, "version": NASTY, NASTY: NASTY},
            "class_names": [NASTY, "=cmd()", "ü"],
        }  # fmt: skip
        folder = write_run(
            f"runs/<b>{i}", name, metrics={**curves(12, 0.1 * i), **odd}, changes={"x": f"{NASTY}{i % 2}"}
        )
        write_gallery(folder, name=NASTY, changes={"ties": NASTY})
    write_run("runs/half", "\ud800")
    _, text, page = make("runs")
    assert text.count("<script") == 3, "the data, Chart.js and our own"
    assert "alert(1)</script>" not in text
    assert set(page.elements) & {"img", "b", "iframe", "object", "link", "base"} <= {"b"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    listed = [row[0] for row in page.table("6 runs")]
    assert "{{ 7 * 7 }}" in listed
    assert NASTY in listed
    data = data_of(text)
    assert {row["method"] for section in data["sections"] for row in section["rows"]} >= set(names)
    assert data["sections"][0]["classes"] == [NASTY, "=cmd()", "ü"]
    classes = page.table("mAP of each class: mean over seeds")[0]
    assert classes == ["method", "bits", f"{NASTY} (50)", "ü (50)", "=cmd() (0)"]
    (inside,) = re.findall(r'id="data">(.*?)</script>', text, re.S)
    assert not set("<>&\u2028") & set(inside)
    assert inside.isascii()


def test_nothing_is_loaded_and_only_our_scripts_run(make):
    write_sweep()
    write_gallery("runs/dpsh-12-1")
    _, text, page = make("runs")
    (policy,) = [
        v for tag, name, v in page.attributes if tag == "meta" and name == "content" and v.startswith("default")
    ]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    outside = text.split('id="data"')[0]
    assert "http" not in re.sub(r"http-equiv", "", outside)
    assert "sourceMappingURL" not in text
    addresses = [value for _, name, value in page.attributes if name in ("href", "src")]
    assert all(address.startswith("#") for address in addresses)


def test_the_library_is_what_was_published():
    folder = Path(report_of.__file__).parent
    digest = hashlib.sha256((folder / "chart.umd.min.js").read_bytes()).hexdigest()
    assert f"sha256 {digest}\n" in (folder / "chart.origin.txt").read_text()


def test_the_command_is_at_the_foot(make):
    write_run("runs/a b")
    _, _, page = make("runs/a b", "--metric", "map", "-o", "report.html")
    assert "deephash report 'runs/a b' --metric map -o report.html" in page.text
    assert page.table("1 run")[1][-1] == "runs/a b"


# Galleries


def test_galleries_are_of_the_best_run_of_each_method(make):
    write_sweep()
    for folder in ("dpsh-12-1", "dpsh-12-2", "itq-24-1"):
        write_gallery(f"runs/{folder}")
    _, text, page = make("runs")
    assert text.count("data:image/webp;base64,") == 2
    assert "dpsh, 12 bits, seed 2" in page.text
    assert "itq, 24 bits, seed 1" in page.text
    assert "✓ 0" in page.text
    assert "✗ 1" in page.text
    titles = [value for _, name, value in page.attributes if name == "title"]
    assert "bag (bag/r1), distance 1" in titles
    assert ".g0.x3{background-position-x:-192px}" in text, "images of 16 pixels are enlarged"


def test_without_labels_nothing_is_right_or_wrong(make):
    found = [{"id": "b", "labels": [], "distance": 0, "relevant": None}]
    asked = {"id": "a", "labels": [], "average_precision": None, "kind": "drawn", "results": found}
    write_gallery(write_run("runs/a"), queries=1, changes={"queries": [asked]})
    _, text, page = make("runs")
    assert "no label a; drawn " in page.text
    assert '<li class="unknown"' in text
    assert not re.search('<li class="(right|wrong)"', text)


def test_what_has_no_room_is_named(make, monkeypatch):
    write_sweep()
    for folder in ("dpsh-12-1", "itq-12-1", "lsh-12-1"):
        write_gallery(f"runs/{folder}")
    monkeypatch.setattr(galleries, "PER_SECTION", 1)
    _, text, page = make("runs")
    assert text.count("data:image/webp") == 1
    assert "Not shown: itq, 12 bits: no more than 1 are shown; lsh, 12 bits: no more than 1 are shown." in page.text
    size = Path("runs/dpsh-12-1/retrieval.webp").stat().st_size
    monkeypatch.setattr(galleries, "PER_SECTION", 4)
    monkeypatch.setattr(galleries, "BUDGET", 2 * size)
    _, text, page = make("runs")
    assert text.count("data:image/webp") == 1
    assert "itq, 12 bits: this file would become too large" in page.text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: write_gallery(run, changes={"k": 4}), "must have 80 x 32 pixels"),
        (lambda run: write_gallery(run, changes={"k": "3"}), "is not the record of a gallery"),
        (lambda run: write_gallery(run, changes={"queries": [{"id": 3}]}), "is not the record of a gallery"),
        (lambda run: (run / "retrieval.json").write_text("{"), "is not valid JSON"),
        (lambda run: (run / "retrieval.webp").write_bytes(b"GIF89a"), "is not a WebP image that can be read"),
    ],
)
def test_a_damaged_gallery_is_left_out(make, damage, reason):
    run = write_run("runs/a")
    write_gallery(run)
    damage(run)
    _, text, page = make("runs")
    assert "data:image/webp" not in text
    assert "Not shown: dpsh, 12 bits: " in page.text
    assert reason in page.text


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: run folder; see deephash report --help"),
        (("nothing",), "nothing is not a folder: give run folders, or folders of runs"),
        (("runs", "-o", "table.csv"), "--output table.csv must end in .html; deephash compare writes tables"),
        (
            ("runs", "-o", "no/report.html"),
            "--output no/report.html is in a folder that does not exist: make the folder",
        ),
        (("runs", "--metric", "mapp"), "none of 1 runs has mapp; did you mean"),
        (("empty",), "no finished run in empty"),
        (("broken",), "no finished run in broken (broken/a: interrupted)"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(deephash, arguments, message):
    write_run("runs/a")
    write_run("broken/a", record={"status": "running"})
    Path("broken/a/metrics.json").unlink()
    Path("empty").mkdir()
    result = deephash("report", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1
    assert not list(Path().glob("*.html"))


def test_a_report_needs_no_torch():
    write_run("runs/a")
    code = (
        "import sys; from deephash_cli.cli import main as cli; code = cli.run(['report', 'runs']); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'hydra', 'wandb', 'numba')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_hundreds_of_runs_are_a_small_file(count):
    for number in range(count):
        method, bits, seed = f"m{number % 10}", (12, 24, 48, 64)[number // 10 % 4], number
        folder = write_run(f"runs/{number:03}", method, bits, seed, 0.5, metrics=curves(bits, 0.5))
        if number % 20 == 0:
            (folder / "metrics.json").unlink()
    found, left_out = results.collect([Path("runs")])
    text = report_of.render(found, left_out, [Path("runs")], "map", "deephash report runs")
    assert (len(found), len(left_out)) == (count * 19 // 20, count // 20)
    assert len(text) < 10_000 * count


# In a browser


@pytest.fixture
def written(make):
    write_sweep()
    write_gallery("runs/dpsh-12-1")
    write_run("runs/nasty", NASTY, 24, metrics=curves(24, 0.4))
    for method in ("dpsh", "dtsh"):
        write_run(f"runs/cifar-{method}", method, 48, metrics={**curves(48, 0.6), **CIFAR})
    write_run("runs/failed", seed=9)
    Path("runs/failed/metrics.json").unlink()
    make("runs")
    return Path("report.html").absolute()


def test_a_browser_draws_it_without_a_complaint(page, written):
    page.open(written, height=6000)
    page.until("document.body.dataset.drawn === '16'")  # nine charts, and seven if nothing was trained
    assert page.evaluate("[...document.querySelectorAll('canvas')].every(c => c.hidden || c.width > 100)")
    assert page.problems == []
    assert {address for address in page.requests if not address.startswith("data:image/")} == {written.as_uri()}
    # Nothing is wider than the page.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Pixels of the first line's colour are on the first chart.
    drawn = "(() => { const c = document.querySelector('[data-chart=value] canvas'); const d = c.getContext('2d')"
    drawn += ".getImageData(0, 0, c.width, c.height).data; return d.some((v, i) => i % 4 === 3 && v > 0); })()"
    assert page.evaluate(drawn)


def test_a_point_under_the_mouse_tells_its_numbers(page, written):
    page.open(written, height=6000)
    page.until("document.body.dataset.drawn === '16'")
    chart = "Chart.getChart(document.querySelector('[data-dataset=toys] [data-chart=value] canvas'))"
    point = f"(() => {{ const p = {chart}.getDatasetMeta(1).data[0], r = {chart}.canvas.getBoundingClientRect();"
    x, y = page.evaluate(f"{point} return [p.x + r.x, p.y + r.y]; }})()")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.until(f"{chart}.tooltip.opacity === 1")
    assert page.evaluate(f"{chart}.tooltip.title") == ["bits 12"]
    assert page.evaluate(f"{chart}.tooltip.body[0].lines[0].trim()").startswith("dpsh: 0.7")


def test_all_charts_are_drawn_and_all_runs_shown_in_a_small_window(page, written):
    page.open(written, height=700)
    assert page.evaluate("document.body.dataset.drawn") == "16"
    assert page.evaluate("[...document.querySelectorAll('canvas')].every(c => c.hidden || c.width > 100)")
    shown = "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility())"
    cut = f"{shown}.filter(e => e.scrollHeight > e.clientHeight + 1)"
    assert page.evaluate(f"{cut}.length") == 0
    assert page.problems == []


def test_choices_are_in_the_address_and_come_back(page, written):
    page.open(written)
    page.evaluate("document.querySelector('#filters [name=method][value=lsh]').click()")
    page.evaluate("document.querySelector('#filters [name=bits][value=\"12\"]').click()")
    page.evaluate("document.querySelector('[data-dataset=toys] .legend button').click()")
    state = (
        "[location.hash, document.querySelector('#filters [name=method][value=lsh]').checked, "
        "document.querySelector('#filters [name=bits][value=\"12\"]').checked, "
        "document.querySelector('[data-dataset=toys] .legend button').getAttribute('aria-pressed')]"
    )
    before = page.evaluate(state)
    assert before[1:] == [False, False, "false"]
    page.evaluate("document.querySelector('a[href=\"#left-out\"]').click()")  # a link within the page keeps them
    page.until("location.hash.includes('method=')")
    page.open("about:blank")
    page.open(written.as_uri() + before[0])
    assert page.evaluate(state) == before
    assert page.problems == []


def test_filters_hide_rows_columns_lines_and_sections(page, written):
    page.open(written, height=6000)
    page.until("document.body.dataset.drawn === '16'")

    def shown(selector):
        return page.evaluate(f"[...document.querySelectorAll({selector!r})].filter(e => e.checkVisibility()).length")

    toys = (
        "#section-1"
        if page.evaluate("document.querySelector('#section-1 h2').textContent").startswith("toys")
        else "#section-0"
    )
    assert shown(f"{toys} .main tbody tr") == 4
    page.evaluate("document.querySelector('#filters [name=method][value=dpsh]').click()")
    assert shown(f"{toys} .main tbody tr") == 3
    assert shown(f"{toys} .runs tbody tr[data-method=dpsh]") == 0
    assert shown(f"{toys} .legend button") == 3
    page.evaluate("document.querySelector('#filters [name=bits][value=\"12\"]').click()")
    assert shown(f"{toys} .main thead th") == 2
    page.evaluate("document.querySelector('#filters [name=dataset][value=cifar10]').click()")
    assert shown("main > section[data-dataset]") == 1
    assert page.problems == []


def test_headings_sort_and_numbers_open(page, written):
    page.open(written, height=6000)
    page.until("document.body.dataset.drawn === '16'")
    table = "document.querySelector('section[data-dataset=toys] table.runs')"
    first = f"[...{table}.tBodies[0].rows].map(row => row.cells[3].textContent)"
    press = f"{table}.querySelectorAll('th button')[3].click()"
    page.evaluate(press)
    values = page.evaluate(first)
    assert values == sorted(values, reverse=True)
    page.evaluate(press)
    assert page.evaluate(first) == sorted(values)
    page.evaluate("document.querySelector('[data-chart=value] .numbers').open = true")
    page.until("document.querySelector('[data-chart=value] .numbers td') !== null")
    assert page.problems == []


def test_light_dark_and_a_phone(page, written):
    page.open(written, width=390, dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert page.evaluate("document.getElementById('theme').textContent") == "Light"
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    shown = "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility())"
    wide = f"{shown}.filter(e => e.scrollWidth > e.clientWidth + 1)"
    page.until(f"{wide}.length > 0 && {wide}.every(e => e.classList.contains('cue'))")
    assert "scroll for more" in page.evaluate(f"getComputedStyle({wide}[0], '::before').content")
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(background) != dark
    assert page.problems == []


def test_without_scripts_every_table_is_there(page, written):
    page.open(written, scripts=False)
    visible = "[...document.querySelectorAll('table')].filter(t => t.checkVisibility()).length"
    assert page.evaluate(visible) == 5, "two main tables, two lists of runs, one of what was left out"
    assert page.evaluate("document.querySelector('#filters').checkVisibility()") is False
    assert "Charts, filters and sorting need JavaScript" in page.evaluate("document.body.textContent")
    assert page.evaluate("getComputedStyle(document.querySelector('.g0')).backgroundImage").startswith(
        'url("data:image/webp'
    )
    assert page.problems == []


def test_backbones_have_a_table_and_rows_of_those_that_know_the_classes_are_marked(deephash):
    write_run("runs/a", changes={"model": {"name": "toy"}}, metrics=backbone("toy", True, licence=NASTY))
    write_run("runs/b", changes={"model": {"name": "raw"}}, metrics=backbone("raw", weights="none"))
    assert deephash("report", "runs", "-o", "page.html").code == 0
    text = Path("page.html").read_text()
    page = Reader(text)
    (table,) = [rows for caption, rows in page.tables.items() if caption.startswith("The networks below")]
    assert table[1:] == [
        ["raw", "5.3 M", "none", "none", "not known"], ["toy", "5.3 M", "ImageNet-1k", NASTY, "yes"],
    ]  # fmt: skip
    assert NASTY not in text
    assert "† pretrained with labels of the classes searched" in page.words
    (main,) = [rows for caption, rows in page.tables.items() if caption.startswith("map: ")]
    assert [row[0] for row in main[1:]] == ["dpsh (model=raw)", "dpsh (model=toy) †"]


def test_without_records_of_backbones_there_is_no_table_of_them(deephash):
    write_run("runs/a")
    assert deephash("report", "runs", "-o", "page.html").code == 0
    text = Path("page.html").read_text()
    assert "Backbones" not in text
    assert "†" not in text
