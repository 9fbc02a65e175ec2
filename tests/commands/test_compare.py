"""``deephash compare``: which runs share a row, a column or a table; which are left out and why; the formats."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from conftest import QUICK
from synthetic import backbone, write_run

from deephash_cli import runs
from deephash_cli.console import console
from deephash_cli.retrieval import similarity
from deephash_cli.runs import results


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
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


def test_runs_with_and_without_continuous_codes_share_a_table(deephash):
    """Runs of earlier versions have no policy of the asymmetric distance; their other numbers are the same ones."""
    rules = {"ties": "exact", "asymmetric": "by inner product", "ceiling": "by cosine", "wap": "by ACG"}
    rules["similar"] = similarity.SIMILAR["one"]
    more = {"map_asymmetric": 0.75, "ceiling": {"map_outputs": 0.875, "lost_by_binarizing": 0.375, "queries": 9}}
    write_run("runs/old")
    write_run("runs/new", method="dsdh", metrics={"policies": rules, **more})
    result = deephash("compare", "runs", "--metric", "map,map_asymmetric,map_outputs,lost_by_binarizing")
    assert result.out.count("map, map_asymmetric") == 1
    assert "0.7500 (1)" in result.out
    assert "0.8750 (1)" in result.out
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert section.has_best("map_asymmetric")
    assert not section.has_best("lost_by_binarizing")


@pytest.mark.parametrize(
    "other",
    [
        {"split": "b" * 64},
        {"metrics": {"dataset": "tools"}},
        {"metrics": {"policies": {"ties": "by accident"}}},
        {"metrics": {"policies": {"ties": "exact", "similar": similarity.SIMILAR["all"]}}},
    ],
)
def test_what_cannot_be_compared_is_in_another_table(deephash, other):
    write_run("runs/a")
    write_run("runs/b", seed=1, **other)
    result = deephash("compare", "runs")
    assert result.out.count("12 bits") == 2
    assert "2 tables: runs on different splits, or measured by different rules, cannot be compared" in result.out


def test_a_table_says_if_all_labels_must_agree(deephash):
    write_run("runs/a")
    write_run("runs/b", seed=1, metrics={"policies": {"ties": "exact", "similar": similarity.SIMILAR["all"]}})
    assert deephash("compare", "runs").out.count("database items, all labels must agree") == 1
    rows = read_csv(deephash("compare", "runs", "--format", "csv").out)
    assert sorted(row["similar"] for row in rows) == ["all", "one"]
    assert deephash("report", "runs", "-o", "it.html").code == 0
    assert "Measured by different rules than another section of this split: similar." in Path("it.html").read_text()


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


A_FEW = (results.Cell(0.70, 0.02, 3), results.Cell(0.69, 0.05, 3), results.Cell(0.60, 0.01, 3))


@pytest.mark.parametrize(
    ("column", "marks"),
    [
        (A_FEW, [True, True, False]),  # within the deviation of the best: alike
        ((*A_FEW, results.Cell(0.65, None, 1)), [True, True, False, False]),
        ((*A_FEW, results.Cell(0.69, None, 1)), [False] * 4),  # one seed may be as good
        ((*A_FEW, results.Cell(0.95, None, 1)), [False] * 4),
        ((*A_FEW, None), [True, True, False, False]),
        ((results.Cell(0.5, None, 1), results.Cell(0.6, None, 1), None), [False, True, False]),
        ((results.Cell(0.5, 0.0, 2), results.Cell(0.5, 0.0, 2)), [True, True]),
        ((None, None), [False, False]),
    ],
)
def test_what_is_best_respects_seeds(column, marks):
    assert results.best(column) == marks


def test_one_lucky_seed_is_not_bold_beside_means(deephash):
    for seed, value in ((1, 0.80), (2, 0.84)):
        write_run(f"runs/itq{seed}", method="itq", seed=seed, value=value)
    write_run("runs/lucky", method="dpsh", value=0.83)
    for form, bold in (("latex", r"\textbf{"), ("markdown", "**0")):
        assert bold not in deephash("compare", "runs", "--format", form).out
    write_run("runs/again", method="dpsh", seed=1, value=0.73)
    latex = deephash("compare", "runs", "--format", "latex").out
    assert r"itq & \textbf{0.8200 $\pm$ 0.0283 (2)} \\" in latex
    assert "dpsh & 0.7800 $" in latex
    assert results.MARKED in latex


def test_csv_has_a_line_for_each_method_and_length_and_no_formulas(deephash):
    write_run("runs/a", method="=cmd()", value=0.25)
    write_run("runs/b", method="=cmd()", value=0.5, seed=1)
    write_run("runs/c", method="itq", bits=24, metrics={"dataset": '@toys, "new"\n'})
    assert deephash("compare", "runs", "--output", "table.csv").out == "3 runs in table.csv\n"
    first, second = sorted(read_csv(Path("table.csv").read_text()), key=lambda line: line["bits"])
    assert first == {
        "dataset": "toys", "split": "holdout", "split_sha256": "a" * 64, "method": "'=cmd()", "settings": "",
        "bits": "12", "metric": "map", "mean": "0.375", "sd": repr(statistics.stdev([0.25, 0.5])), "seeds": "2",
        "backbone": "", "parameters": "", "pretraining": "", "licence": "", "pretrained_on_classes": "",
        "transductive": "False", "similar": "one", "training": "",
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


def write_papers(root="runs"):
    """Write runs of methods whose classes are spelled as papers do, with settings that differ."""
    for method, name in (("fasthash", "FastHash"), ("lfh_deep", "LFHDeep"), ("itq_mine", "ITQ")):
        for epochs in (5, 30):
            changes = {
                "module": {"_target_": f"deephash_cli.methods.{method}.{name}"}, "trainer": {"max_epochs": epochs},
                "optimizer": {"lr": epochs / 1e3}, "scheduler": {"lr": epochs / 10},
            }  # fmt: skip
            for bits in (12, 24, 32, 48, 64):
                for seed in (1, 2):
                    folder = f"{root}/{method}-{epochs}-{bits}-{seed}"
                    write_run(folder, method, bits, seed, value=0.7 + seed / 100, changes=changes)


def test_latex_has_names_and_settings_as_in_papers(deephash):
    write_papers()
    latex = deephash("compare", "runs", "bits=12", "--format", "latex").out
    assert "\nFastHash (optimizer lr=0.005, scheduler lr=0.5, max epochs=5) & " in latex
    assert "\nLFHDeep (" in latex
    assert "\nitq\\_mine (" in latex, "a method of another name than its class keeps its own"
    assert "begin{table}" not in latex


def test_latex_with_caption_label_percent_and_several_metrics(deephash):
    write_run("runs/a", value=0.25)
    write_run("runs/b", bits=24, value=0.5)
    write_run("runs/c", bits=24, split="b" * 64)
    options = ("--percent", "--digits", "1", "--caption", "Mean $\\pm$ deviation", "--label", "tab:one")
    latex = deephash(
        "compare", "runs", "--metric", "map,precision_at_10", "--metric", "map", "--format", "latex", *options
    ).out
    assert latex.count("\\begin{table}\n\\centering\n\\caption{Mean $\\pm$ deviation}\n\\label{tab:one") == 2
    assert latex.count("\\end{tabular}\n\\end{table}\n") == 2
    assert "\\label{tab:one}" in latex
    assert "\\label{tab:one-2}" in latex
    assert "\n& \\multicolumn{2}{c}{mAP (\\%)} & \\multicolumn{2}{c}{P@10 (\\%)} \\\\\n" in latex
    assert "\\cmidrule(lr){2-3}\\cmidrule(lr){4-5}\nMethod & 12 bits & 24 bits & 12 bits & 24 bits \\\\\n" in latex
    assert "\ndpsh & 25.0 (1) & 50.0 (1) & 25.0 (1) & 50.0 (1) \\\\\n" in latex


def test_several_metrics_are_columns_and_records(deephash):
    write_run("runs/a", value=0.25)
    several = ("--metric", "map,map_stable")
    markdown = deephash("compare", "runs", *several, "--format", "markdown").out
    assert (
        "| method | map, 12 bits | map_stable, 12 bits |\n| --- | --- | --- |\n| dpsh | 0.2500 (1) | 0.1250 (1) |"
        in markdown
    )
    records = json.loads(deephash("compare", "runs", *several, "--format", "json").out)
    assert [(record["metric"], record["mean"]) for record in records] == [("map", 0.25), ("map_stable", 0.125)]
    assert "none of 1 runs has mapp; did you mean 'map'?" in deephash("compare", "runs", "--metric", "map,mapp").err
    assert "map, map_stable in %: toys" in deephash("compare", "runs", *several, "--percent").out


def test_at_80_columns_no_word_is_broken(deephash, monkeypatch):
    write_papers()
    monkeypatch.setattr(console, "width", 80)
    text = deephash("compare", "runs", "--metric", "map,precision_at_10").out
    assert max(map(len, text.splitlines())) <= 80
    words = set(text.replace("│", " ").replace("┃", " ").split())
    labels = [row.label for row in results.sections(results.collect([Path("runs")])[0])[0].rows]
    assert {*" ".join([*labels, "map, precision_at_10, 12 64 bits 0.7150 0.0071 (2)"]).split()} <= words


@pytest.mark.parametrize(
    ("wanted", "methods"),
    [
        (("method=itq",), {"itq"}),
        (("bits=24", "max_epochs=9"), {"ksh"}),
        (("status=finished",), {"dpsh", "itq", "ksh"}),
    ],
)
def test_filters_are_those_of_the_list_of_runs(deephash, wanted, methods):
    write_run("runs/a")
    write_run("runs/b", method="itq")
    write_run("runs/c", method="ksh", bits=24, changes={"trainer": {"max_epochs": 9}})
    write_run("runs/d", method="lsh", record={"status": "failed", "error": "no space left"})
    Path("runs/d/metrics.json").unlink()
    result = deephash("compare", *wanted, "--format", "json")
    assert (result.code, result.err) == (0, "")
    assert {record["method"] for record in json.loads(result.out)} == methods
    assert deephash("report", "runs", *wanted).out.startswith(f"{len(methods)} runs in report.html")


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_a_filter_that_cannot_work_is_said_in_a_sentence(deephash, verb):
    write_run("runs/a")
    for words, message in (
        (("runs", "methd=itq"), "no run has the setting methd; did you mean 'method'?"),
        (("runs", "method=itq", "bits=12"), "no finished run in runs has method=itq bits=12"),
        (("runs/a=b",), "runs/a=b is not a folder: give run folders, or folders of runs"),
    ):
        result = deephash(verb, *words)
        assert (result.code, result.out, result.err) == (2, "", f"error: {message}\n")


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
        (("runs", "--digits", "0"), "--digits must be a whole number from 1 to 15, got 0"),
        (
            ("runs", "--digits", "3", "--format", "csv"),
            "--digits is for tables that people read; csv has shares of one",
        ),
        (("runs", "--percent", "--output", "t.json"), "--percent is for tables that people read; json has shares"),
        (("runs", "--caption", "x"), "--caption needs --format latex, got table"),
        (("runs", "--label", "x", "--output", "t.md"), "--label needs --format latex, got markdown"),
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


def test_backbones_are_named_below_a_table_and_rows_of_those_that_know_the_classes_are_marked(deephash, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    write_run("runs/a", changes={"model": {"name": "toy_net"}}, metrics=backbone(on_classes=True))
    write_run(
        "runs/b", changes={"model": {"name": "other"}},
        metrics=backbone("other", False, licence=None, pretraining=None, parameters=86_000_000),
    )  # fmt: skip
    write_run("runs/c", changes={"model": {"name": "small"}}, metrics=backbone("small", False, weights="none"))
    write_run("runs/d", method="itq", changes={"model": {"name": "old"}})  # of an earlier version
    lines = deephash("compare", "runs").out.splitlines()
    marked = [line for line in lines if "†" in line]
    assert len(marked) == 2
    assert "dpsh (model=toy_net) †" in marked[0]
    assert marked[1].endswith("; † pretrained with labels of the classes searched")
    assert [line for line in lines if line.startswith("backbone ")] == [
        "backbone other: 86.0 M parameters, pretraining not known, licence not known",
        "backbone small: 5.3 M parameters, random weights",
        "backbone toy_net: 5.3 M parameters, pretraining ImageNet-1k, licence mit",
    ]
    rows = read_csv(deephash("compare", "runs", "--format", "csv").out)
    names = ("backbone", "parameters", "pretraining", "licence", "pretrained_on_classes")
    assert {tuple(row[name] for name in names) for row in rows} == {
        ("toy_net", "5300000", "ImageNet-1k", "mit", "True"), ("other", "86000000", "", "", "False"),
        ("small", "5300000", "ImageNet-1k", "mit", "False"), ("", "", "", "", ""),
    }  # fmt: skip
    markdown = deephash("compare", "runs", "--format", "markdown").out
    assert "| dpsh (model=toy_net) † |" in markdown
    assert "Backbone toy_net: 5.3 M parameters, pretraining ImageNet-1k, licence mit.\n" in markdown
    latex = deephash("compare", "runs", "--format", "latex").out
    assert r"toy\_net) \textdagger{}" in latex
    assert "\n% backbone toy_net: 5.3 M parameters" in latex


def test_no_text_of_a_backbone_breaks_a_line(deephash):
    write_run("runs/a", metrics=backbone("a\nb", licence="x\ny\\input{z}", pretraining="|<b>"))
    for form in ("table", "markdown", "latex"):
        (line,) = [line for line in deephash("compare", "runs", "--format", form).out.splitlines() if "5.3 M" in line]
        assert r"a\nb" in line
        assert form != "latex" or line.startswith("% backbone")
        assert form != "markdown" or r"\|&lt;b&gt;" in line


def nested(folder, method="dpsh", seed=1, values=(0.3, 0.4), **more):
    """A run of 24 bits with nested lengths 8 and 12."""
    parts = {
        str(bits): {"map": value, "bits": bits, "policies": {"ties": "exact"}}
        for bits, value in zip((8, 12), values, strict=True)
    }
    return write_run(
        folder, method, bits=24, seed=seed, value=0.6, changes={"nested": [8, 12]}, metrics={"nested": parts, **more}
    )


def test_nested_lengths_are_columns_of_a_row_of_their_own(deephash):
    nested("runs/a")
    nested("runs/b", seed=2, values=(0.5, 0.6))
    write_run("runs/c", bits=12, value=0.7)
    nested("runs/d", method="dtsh")
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert section.lengths == [8, 12, 24]
    marked = [row.label for row in section.rows]
    assert marked == ["dpsh", "dpsh (nested=[8, 12])", "dtsh (nested=[8, 12])"]  # the last has no row of its own beside
    means = [[cell and round(cell.mean, 9) for cell in row] for row in section.cells("map")]
    assert means == [[None, 0.7, None], [0.4, 0.5, 0.6], [0.3, 0.4, 0.6]]
    assert [[cell and cell.seeds for cell in row] for row in section.cells("map")][1] == [2, 2, 2]
    table = read_csv(deephash("compare", "runs", "--format", "csv").out)
    assert [(entry["bits"], entry["settings"]) for entry in table][:2] == [("12", ""), ("8", "nested=[8, 12]")]


@pytest.mark.parametrize("odd", [3, [1], {"x": {}, "-1": {}, "8": 4, "99": {"map": 1.0}, "9" * 5000: {}, "0": {}}])
def test_nested_metrics_that_were_edited_are_left_out(odd):
    nested("runs/a", nested=odd)
    (section,) = results.sections(results.collect([Path("runs")])[0])
    assert section.lengths == [24]
