"""``deephash compare``: which runs share a row, a column or a table; which are left out and why; the formats."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from conftest import QUICK
from synthetic import write_run

from deephash_cli import runs
from deephash_cli.runs import results


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_sweep_is_a_table_of_methods_by_lengths_with_means_over_seeds(deephash):
    sweep = ("model=small_cnn", "module.pairs=batch", "bits=8,12", "seed=1,2", "runs=runs")
    assert deephash("train", "-m", *QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=4", *sweep).code == 0
    result = deephash("compare", "runs")
    assert (result.code, result.err) == (0, "")
    found, left_out = results.collect([Path("runs")])
    assert (len(found), left_out) == (4, [])
    for bits in (8, 12):
        values = [run.metrics["map"] for run in found if run.metrics["bits"] == bits]
        assert len(values) == 2
        assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} (2)" in result.out
    assert "fashion_mini, split s1 " in result.out
    assert "8 bits" in result.out
    assert "12 bits" in result.out


def test_seeds_share_a_cell_lengths_a_row_and_other_settings_do_not():
    write_run("runs/a", seed=1, value=0.4)
    write_run("runs/b", seed=2, value=0.6)
    write_run("runs/c", bits=24, value=0.7)
    write_run("runs/d", value=0.8, changes={"trainer": {"max_epochs": 9}})
    write_run("runs/e", method="itq", value=0.1)
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert section.lengths == [12, 24]
    assert [row.label for row in section.rows] == ["dpsh (trainer.max_epochs=3)", "dpsh (trainer.max_epochs=9)", "itq"]
    mean = results.cell(section.rows[0].cells[12], "map")
    assert (mean.mean, mean.seeds) == (0.5, 2)
    assert mean.deviation == pytest.approx(statistics.stdev([0.4, 0.6]))
    assert results.cell(section.rows[0].cells[24], "map") == results.Cell(0.7, None, 1)
    assert 24 not in section.rows[2].cells


def test_where_and_how_a_run_was_computed_makes_no_difference():
    write_run(
        "runs/a", seed=1, changes={"logger": None, "run_dir": "x", "dataset": {"root": "/home/a", "name": "toys"}}
    )
    write_run(
        "runs/b", seed=2, changes={"logger": {"level": 1}, "run_dir": "z", "dataset": {"root": None, "name": "toys"}}
    )
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert [row.label for row in section.rows] == ["dpsh"]


def test_a_label_names_choices_by_their_class_and_settings_once():
    shift = {"_target_": "deephash_cli.data.augment.ShiftFlip", "shift": 0.1, "flip": 0.5}
    colour = {"_target_": "deephash_cli.data.augment.CropColour", "area": 0.5, "flip": 0.5}
    for name, augment, size in (("a", shift, 32), ("b", colour, 32), ("c", {**colour, "area": 0.7}, 64)):
        write_run(f"runs/{name}", changes={"augment": augment, "model": {"size": size, "network": {"size": size}}})
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert [row.label for row in section.rows] == [
        "dpsh (augment=CropColour, augment.area=0.5, model.size=32)",
        "dpsh (augment=CropColour, augment.area=0.7, model.size=64)",
        "dpsh (augment=ShiftFlip, model.size=32)",
    ]


def test_the_model_is_named_once_if_all_have_the_same():
    for name, model in (("a", "resnet18"), ("b", "resnet18"), ("c", "alexnet")):
        write_run(f"runs/{name}", method=name, changes={"model": {"name": model}})
    found, _ = results.collect([Path("runs/a"), Path("runs/b")])
    assert results.sections(found)[0].title.endswith("100 queries, 900 database items, model resnet18")
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert section.title.endswith("100 queries, 900 database items")
    write_run("runs/d", method="a", changes={"model": {"name": "alexnet"}})
    (section,) = results.sections(results.collect([Path("runs")])[0])
    names = ["a (model=alexnet)", "a (model=resnet18)", "b (model=resnet18)", "c (model=alexnet)"]
    assert [row.label for row in section.rows] == names


def test_a_setting_that_only_some_have_is_named_where_it_is():
    write_run("runs/a", changes={"ema": {"decay": None}})
    write_run("runs/b", changes={"ema": {"decay": 0.9}})
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert [row.label for row in section.rows] == ["dpsh", "dpsh (ema.decay=0.9)"]


@pytest.mark.parametrize(
    "other",
    [
        {"split": "b" * 64},
        {"metrics": {"dataset": "tools"}},
        {"metrics": {"policies": {"ties": "by accident"}}},
    ],
)
def test_what_cannot_be_compared_is_in_another_table(deephash, other):
    write_run("runs/a")
    write_run("runs/b", seed=1, **other)
    result = deephash("compare", "runs")
    assert result.out.count("12 bits") == 2
    assert "2 tables: runs on different splits, or measured by different rules, cannot be compared" in result.out


def test_what_is_left_out_is_named_with_its_reason(deephash):
    write_run("runs/good")
    write_run("runs/failed", record={"status": "failed", "error": "no space left"})
    Path("runs/failed/metrics.json").unlink()
    write_run("runs/killed", record={"status": "running"})
    Path("runs/killed/metrics.json").unlink()
    write_run("runs/old", metrics={"policies": None})
    content = json.loads(Path("runs/old/metrics.json").read_text())
    del content["policies"]
    Path("runs/old/metrics.json").write_text(json.dumps(content))
    write_run("runs/odd", metrics={"split": {"name": 3}, "bits": "12"})
    write_run("runs/list", metrics={"split": [], "validation": 1})
    write_run("runs/torn")
    Path("runs/torn/metrics.json").write_text('{"map": 0.')
    write_run("runs/again", record={"started": "2025-01-01T00:00:00+00:00"})
    result = deephash("compare", "runs")
    assert result.code == 0
    for line in (
        "runs/failed: failed: no space left",
        "runs/killed: interrupted",
        "runs/old: metrics.json has no policies: deephash eval run=runs/old output=runs/old/metrics.json writes it",
        "runs/odd: metrics.json has no bits, split.name, split.sha256",
        "runs/list: metrics.json has no split",
        "runs/torn: runs/torn/metrics.json is not valid JSON",
        "runs/again: replaced by a newer run of the same settings: runs/good",
    ):
        assert f"warning: left out {line}" in result.err
    assert result.err.count("warning") == 7
    assert "0.5000 (1)" in result.out


def test_a_run_that_is_being_written_to_is_running(deephash):
    folder = write_run("runs/a", record={"status": "running"})
    (folder / "metrics.json").unlink()
    run = runs.Run(folder)
    assert runs.status(folder, runs.read_record(folder)) == "running"
    run.close()
    assert runs.status(folder, runs.read_record(folder)) == "interrupted"
    (folder / ".lock").unlink()
    assert runs.status(folder, runs.read_record(folder)) == "interrupted"
    result = deephash("compare", "runs")
    assert result.code == 2
    assert result.err == "error: no finished run in runs (runs/a: interrupted)\n"


def test_any_number_of_the_metrics(deephash):
    write_run("runs/a", value=0.25, metrics={"validation": {"queries": 5, "map": 0.75}})
    for metric, value in (
        ("map_stable", 0.125),
        ("precision_at_10", 0.25),
        ("validation_map", 0.75),
    ):
        assert f"{value:.4f} (1)" in deephash("compare", "runs", "--metric", metric).out
    assert "none of 1 runs has mapp; did you mean 'map'?" in deephash("compare", "runs", "--metric", "mapp").err
    result = deephash("compare", "runs", "--metric", "accuracy")
    assert result.code == 2
    assert "none of 1 runs has accuracy: choose one of map, map_stable, empty_ball_rate, validation_map" in result.err


def test_numbers_of_another_shape_are_not_numbers(deephash):
    write_run("runs/a", metrics={"validation": 1, "precision_at_k": [0.5], "map_stable": "0.5"})
    (found,), _ = results.collect([Path("runs")])
    assert found.numbers() == {"map": 0.5, "empty_ball_rate": 0.5}


def test_the_best_of_a_column_is_marked_unless_more_is_not_better(deephash):
    write_run("runs/a", value=0.25)
    write_run("runs/b", method="itq", value=0.75)
    write_run("runs/c", method="itq", bits=24, value=0.5)
    text = deephash("compare", "runs", "--format", "markdown").out
    assert "| dpsh | 0.2500 (1) |  |" in text
    assert "| itq | **0.7500 (1)** | **0.5000 (1)** |" in text
    assert "**0." not in deephash("compare", "runs", "--format", "markdown", "--metric", "empty_ball_rate").out


def test_csv_has_a_line_for_each_method_and_length_and_no_formulas(deephash):
    write_run("runs/a", method="=cmd()", value=0.25)
    write_run("runs/b", method="=cmd()", value=0.5, seed=1)
    write_run("runs/c", method="itq", bits=24, metrics={"dataset": '@toys, "new"\n'})
    assert deephash("compare", "runs", "--output", "table.csv").out == "3 runs in table.csv\n"
    first, second = sorted(read_csv(Path("table.csv").read_text()), key=lambda line: line["bits"])
    assert first == {
        "dataset": "toys", "split": "holdout", "split_sha256": "a" * 64, "method": "'=cmd()", "settings": "",
        "bits": "12", "metric": "map", "mean": "0.375", "sd": repr(statistics.stdev([0.25, 0.5])), "seeds": "2",
    }  # fmt: skip
    assert (second["dataset"], second["sd"], second["seeds"]) == ('\'@toys, "new"\n', "", "1")


def test_json_has_the_same_records(deephash):
    write_run("runs/a", value=0.25, changes={"trainer": {"max_epochs": 4}})
    write_run("runs/b", value=0.5)
    records = json.loads(deephash("compare", "runs", "--format", "json").out)
    assert [(record["settings"], record["mean"], record["sd"]) for record in records] == [
        ({"trainer.max_epochs": 3}, 0.5, None),
        ({"trainer.max_epochs": 4}, 0.25, None),
    ]


def test_latex_and_markdown_escape_what_would_be_read_as_their_own(deephash):
    write_run("runs/a", method="a_b & 50%\n <script>|x", metrics={"dataset": "toys\n\\input{x}"})
    write_run("runs/b", method="z", bits=24, metrics={"dataset": "toys\n\\input{x}"})
    latex = deephash("compare", "runs", "--format", "latex").out
    assert r"a\_b \& 50\% <script>|x & \textbf{0.5000 (1)} &  \\" in latex
    assert r"% map: toys \input{x}, split" in latex
    assert r"\begin{tabular}{lrr}" in latex
    assert r"\toprule" in latex
    assert (
        r"| a_b &amp; 50% &lt;script&gt;\|x | **0.5000 (1)** |  |"
        in deephash("compare", "runs", "--format", "markdown").out
    )


def test_names_with_square_brackets_are_printed_as_they_are(deephash):
    write_run("runs/a", method="[red]x[/]")
    assert "[red]x[/]" in deephash("compare", "runs").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: run folder; see deephash compare --help"),
        (("nothing",), "nothing is not a folder: give run folders, or folders of runs"),
        (("runs", "--format", "word"), "--format must be one of table, csv, json, latex, markdown, got word"),
        (("runs", "--output", "table.doc"), "--output table.doc must end in .csv, .json, .tex, .md, or add --format"),
        (("runs", "--met", "map"), "unrecognized arguments: --met"),
        (("empty",), "no finished run in empty"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(deephash, arguments, message):
    write_run("runs/a")
    Path("empty").mkdir()
    result = deephash("compare", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1


def test_folders_of_folders_are_searched_and_each_run_counts_once(deephash):
    run = write_run("all/first/a")
    write_run("all/second/b", bits=24)
    found, _ = results.collect([Path("all"), run, Path("all/first")])
    assert [result.folder for result in found] == [run, Path("all/second/b")]
