"""``deephash data``: faults that were planted are found, and divisions survive each format."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deephash_cli.data.fashion_mnist import fashion_mini
from deephash_cli.data.protocol import load_split
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.codes_folder import save_codes, save_database


def smooth(number):
    small = Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 6), np.uint8))
    return small.resize((80, 80), Image.Resampling.BICUBIC).convert("RGB")


@pytest.fixture
def lists(tmp_path):
    """A folder of list files without a fault, and their images, which are too large to be held in memory."""
    folder = tmp_path / "lists"
    (folder / "im").mkdir(parents=True)
    for number in range(14):  # of which two are in no list, as are two copies
        smooth(number).save(folder / "im" / f"{number}.png")
    for number, copy in enumerate(("copy.png", "copy1.png")):
        shutil.copy(folder / "im" / f"{number}.png", folder / "im" / copy)
    line = "im/{}.png 1 0 0\n", "im/{}.png 0 1 1\n", "im/{}.png 0 0 1\n"
    for name, numbers in {"train": range(6), "test": range(6, 9), "database": (*range(6), 9, 10, 11)}.items():
        (folder / f"{name}.txt").write_text("".join(line[number % 3].format(number) for number in numbers))
    return folder


def audited(deephash, tmp_path, *words, code):
    """Run an audit; return its result, and the names of faults and of facts with their counts."""
    file = tmp_path / "audit.json"
    result = deephash("data", "audit", *words, f"output={file}")
    assert result.code == code, result
    content = json.loads(file.read_text())
    grades = {"fault": {}, "fact": {}}
    for finding in content["findings"]:
        own = grades[finding["grade"]]
        own[finding["name"]] = own.get(finding["name"], 0) + finding["count"]
        assert finding["text"] in result.out
    return result, content, grades["fault"], grades["fact"]


def test_lists_without_a_fault(deephash, tmp_path, lists):
    result, content, faults, facts = audited(deephash, tmp_path, str(lists), "near_duplicates=true", code=0)
    assert (faults, facts) == ({}, {"train_in_database": 6})
    assert content["parts"]["query"]["images"] == 3
    assert content["parts"]["train"]["labels_per_image"] == {
        "min": 1, "mean": 8 / 6, "max": 2, "histogram": {"1": 4, "2": 2}
    }  # fmt: skip
    assert content["parts"]["database"]["largest_class"] == {"name": "class 2", "images": 6}
    assert result.err == ""


PLANTED = {
    "a query without a label": (("test", "im/12.png 0 0 0\n"), {"query_without_label": 1}, "no label: im/12.png"),
    "a training image without a label": (
        ("train", "im/13.png 0 0 0\n"), {"train_without_label": 1}, "1 training image has no label: im/13.png",
    ),
    "a query that is trained on": (("test", "im/0.png 1 0 0\n"), {"query_in_train": 1}, "training images: im/0.png"),
    "a line of another width": (
        ("train", "im/7.png 1 0\n"), {"reading": 1}, "train.txt:7: expected 3 label columns, as in most lines, got 2",
    ),
    "an image twice": (("test", "./im/7.png 0 1 1\n"), {"reading": 1}, "test.txt:4: ./im/7.png is already in line 2"),
    "other labels in another list": (
        ("database", "im/8.png 1 0 0\n"), {"reading": 1}, "im/8.png has different labels in",
    ),
    "a missing image": (("train", "im/gone.png 1 0 0\n"), {"unreadable": 1}, "image im/gone.png cannot be read"),
    "the content of a training image": (
        ("test", "im/copy.png 1 0 0\n"), {"duplicates_query_train": 1, "duplicates_query_database": 1}, "im/copy.png",
    ),
    "the content of a training image, with other labels": (
        ("test", "im/copy1.png 1 0 0\n"),
        {"duplicates_query_train": 1, "duplicates_query_database": 1, "conflicting_labels": 1},
        "1 content occurs with different labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_fault_is_found_and_named(deephash, tmp_path, lists, planted):
    (name, line), expected, sentence = PLANTED[planted]
    with (lists / f"{name}.txt").open("a") as file:
        file.write(line)
    result, _, faults, _ = audited(deephash, tmp_path, str(lists), code=3)
    assert faults == expected
    assert sentence in result.out
    assert f"{len([line for line in result.out.splitlines() if line.startswith('fault: ')])} fault" in result.err


def test_all_planted_faults_are_found_together(deephash, tmp_path, lists):
    """The words of a data set do the same as a folder of lists."""
    smooth(5).resize((60, 60)).save(lists / "im" / "near.jpg", quality=60)
    for (name, line), *_ in PLANTED.values():
        with (lists / f"{name}.txt").open("a") as file:
            file.write(line)
    with (lists / "test.txt").open("a") as file:
        file.write("im/near.jpg 0 0 1\n")
    words = ["image_list", f"dataset.root={lists}", "near_duplicates=true"]
    words += [f"dataset.{part}={name}.txt" for part, name in (("train", "train"), ("query", "test"))]
    _, _, faults, facts = audited(deephash, tmp_path, *words, "dataset.database=database.txt", code=3)
    assert faults.keys() == set().union(*(expected for _, expected, _ in PLANTED.values()))
    assert facts["near_duplicates"] == 2
    assert facts["near_query_train"] == 1


@pytest.mark.parametrize("protocol", ["s1", "s1_disjoint", "s1_validation", "holdout"])
def test_our_own_divisions_have_no_fault(deephash, tmp_path, protocol):
    _, content, faults, facts = audited(deephash, tmp_path, "fashion_mini", f"dataset.protocol={protocol}", code=0)
    assert faults == {}
    assert content["duplicates"]["repeated"] == 0
    assert facts.keys() <= {"train_in_database", "unused"}


def test_lists_whose_images_are_elsewhere(deephash, tmp_path, lists):
    shutil.rmtree(lists / "im")
    result, content, faults, _ = audited(deephash, tmp_path, str(lists), code=0)
    assert faults == {}
    assert "duplicates" not in content
    assert "contents were not compared" in result.out


def test_a_split_file_alone_and_one_that_was_edited(deephash, tmp_path):
    file = tmp_path / "split.json"
    assert deephash("data", "split", "fashion_mini", f"output={file}").code == 0
    _, content, faults, _ = audited(deephash, tmp_path, str(file), code=0)
    assert (content["overlap"]["query_in_train"], content["classes"]) == (0, None)
    edited = json.loads(file.read_text())
    edited["query"].append(edited["train"][0])
    file.write_text(json.dumps(edited))
    result, _, faults, _ = audited(deephash, tmp_path, str(file), code=3)
    assert faults == {"reading": 1, "query_in_train": 1}
    assert "was damaged or edited" in result.out
    words = ["fashion_mini", f"dataset.split_file={file}"]
    _, _, faults, _ = audited(deephash, tmp_path, *words, code=3)
    assert faults == {"reading": 1, "query_in_train": 1}


def code_set(ids, labels, bits=8, seed=0):
    codes = pack(np.random.default_rng(seed).integers(0, 2, (len(ids), bits)).astype(bool))
    return CodeSet(codes, bits, np.array(labels, np.uint8), ids)


def test_codes(deephash, tmp_path):
    query = code_set(["a", "b", "c"], [[1, 0], [0, 0], [0, 1]])
    database = code_set(["c", "d", "e", "f"], [[1, 0], [1, 0], [0, 1], [0, 0]])
    save_codes(tmp_path / "codes", query, database, {"provenance": {"class_names": ["cat", "dog"], "dataset": "pets"}})
    _, content, faults, facts = audited(deephash, tmp_path, str(tmp_path / "codes"), code=3)
    assert faults == {"reading": 1, "query_without_label": 1}  # c has other labels
    assert facts["query_in_database"] == 1
    assert facts["database_without_label"] == 1
    assert content["codes"]["query"] <= 3
    assert content["parts"]["query"]["largest_class"]["name"] in ("cat", "dog")
    save_database(tmp_path / "new", database, {"provenance": {"encoded": "photos"}})
    words = [str(tmp_path / "codes"), f"against={tmp_path / 'new'}"]
    _, content, *_ = audited(deephash, tmp_path, *words, code=3)
    assert content["differences"]["parts"] == {"database": {"common": 4, "only_in_first": 0, "only_in_second": 0}}
    assert content["differences"]["different_labels"] == 0


def test_the_classes_of_one_side_of_codes_are_not_those_of_the_other(deephash, tmp_path):
    save_codes(tmp_path / "one", code_set(["a"], [[1]]), code_set(["b"], [[1]]), {})
    save_database(tmp_path / "two", code_set(["b"], [[1, 0]]), {})
    manifest, other = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two"))
    for name in ("database.npy", "database_labels.npy", "database_ids.txt"):
        shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
        manifest["files"][name] = other["files"][name]
    manifest["database"] = other["database"]
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k[:4] != "seal"}))
    result, _, faults, _ = audited(deephash, tmp_path, str(tmp_path / "one"), code=3)
    assert faults == {"reading": 1}
    assert "the queries have 1 label columns, the database has 2" in result.out


def test_differences_of_two_divisions(deephash, tmp_path):
    file = tmp_path / "split.json"
    assert deephash("data", "split", "fashion_mini", "dataset.split_seed=1", f"output={file}").code == 0
    result, content, *_ = audited(deephash, tmp_path, "fashion_mini", f"against={file}", code=0)
    assert content["differences"]["same_digest"] is False
    assert content["differences"]["moved"] > 1000
    assert "one of the two has no labels to compare" in result.out
    result, content, *_ = audited(deephash, tmp_path, "fashion_mini", "against=fashion_mini", code=0)
    assert content["differences"]["same_digest"] is True
    assert content["differences"]["different_labels"] == 0


def test_a_division_survives_each_format(deephash, tmp_path):
    names = [tmp_path / name for name in ("one.json", "two.json", "three.json")]
    lists = tmp_path / "lists"
    first = deephash("data", "split", "fashion_mini", "dataset.protocol=s1_disjoint", f"output={names[0]}")
    assert first.code == 0
    assert deephash("data", "split", "fashion_mini", f"dataset.split_file={names[0]}", f"output={lists}").code == 0
    digest = json.loads(names[0].read_text())["sha256"]
    assert len((lists / "test.txt").read_text().splitlines()) == 1000
    assert (lists / "train.txt").read_text().splitlines()[0].split(" ")[1:].count("1") == 1
    check = f"sha256={digest[:12]}"
    assert deephash("data", "split", "fashion_mini", f"lists={lists}", check, f"output={names[1]}").code == 0
    assert deephash("data", "split", str(lists), f"sha256={digest.upper()}", f"output={names[2]}").code == 0
    assert deephash("data", "split", str(names[2]), check).code == 0
    dataset = fashion_mini()
    one, two = (load_split(name, dataset) for name in names[:2])
    assert (one.sha256, one.flags) == (two.sha256, two.flags)
    assert all(np.array_equal(getattr(one, role), getattr(two, role)) for role in ("query", "train", "database"))
    assert json.loads(names[2].read_text())["sha256"] == digest
    assert deephash("verify", str(lists)).code == 0
    # A folder of its own needs permission; an input is never replaced.
    again = ("data", "split", "fashion_mini", f"dataset.split_file={names[0]}")
    assert "add overwrite=true" in deephash(*again, f"output={lists}").err
    assert deephash(*again, f"output={lists}", "overwrite=true").code == 0
    assert "which is read" in deephash(*again, f"output={names[0]}", "overwrite=true").err


def test_lists_of_a_reduced_training_part_say_so_beside_the_lists(deephash, tmp_path):
    words = ("data", "split", "fashion_mini", "dataset.unseen=[Bag]")
    assert deephash(*words, f"output={tmp_path / 'a.json'}").err == ""
    result = deephash(*words, f"output={tmp_path / 'lists'}")
    assert "fashion_mini, s1, seed 0; 1 unseen class: Bag: 1000 queries, 4500 training images" in result.out
    assert "lists do not say that the training part has 1 unseen class: Bag: a .json does" in result.err
    assert (
        "A division of fashion_mini (s1, seed 0; 1 unseen class: Bag)"
        in (tmp_path / "lists" / "README.txt").read_text()
    )
    facts = json.loads((tmp_path / "lists" / "source.json").read_text())["split"]
    assert facts["changes"] == {"unseen": {"classes": ["Bag"]}}
    again = deephash("data", "split", "fashion_mini", f"lists={tmp_path / 'lists'}", f"sha256={facts['sha256']}")
    assert again.code == 0


def test_a_path_with_spaces_and_labels_of_several_classes(deephash, tmp_path, lists):
    (lists / "im" / "6.png").rename(lists / "im" / "6 of 7.png")
    (lists / "test.txt").write_text("im/6 of 7.png\t1 0 0\nim/7.png\t0 1 1\n")
    assert deephash("data", "split", str(lists), f"output={tmp_path / 'one.json'}").code == 0
    words = ["image_list", f"dataset.root={lists}", "dataset.train=train.txt", "dataset.query=test.txt"]
    words += ["dataset.database=database.txt", f"dataset.split_file={tmp_path / 'one.json'}"]
    assert deephash("data", "split", *words, f"output={tmp_path / 'again'}").code == 0
    assert sorted((tmp_path / "again" / "test.txt").read_text().splitlines()) == [
        "im/6 of 7.png\t1 0 0", "im/7.png 0 1 1"
    ]  # fmt: skip
    digests = [deephash("data", "split", str(folder)).out.split()[-1] for folder in (lists, tmp_path / "again")]
    assert digests[0] == digests[1]


def test_lists_of_a_reduced_training_part_say_so(deephash, tmp_path):
    lists = tmp_path / "lists"
    assert deephash("data", "split", "fashion_mini", "dataset.labelled=500", f"output={lists}").code == 0
    assert len((lists / "train.txt").read_text().splitlines()) == 500
    assert "fashion_mini (s1, seed 0; 500 labelled images)" in (lists / "README.txt").read_text()
    refused = deephash("data", "split", "fashion_mini", f"lists={lists}", "dataset.labelled=100")
    assert (refused.code, "is the whole division, so dataset.labelled would have no" in refused.err) == (2, True)


def test_a_list_of_the_database_that_cannot_be_read_is_not_left_out(deephash, lists):
    (lists / "database.txt").unlink()
    assert deephash("data", "split", str(lists)).code == 0  # the training images are searched
    (lists / "database.txt").symlink_to("gone.txt")
    result = deephash("data", "split", str(lists))
    assert (result.code, " is not a file: found neither " in result.err) == (3, True)


REFUSED = {
    "data": (0, "deephash data audit|split"),
    "data audit --help": (0, "deephash data audit|split"),
    "data adit fashion_mini": (2, "unknown action 'adit'; did you mean 'audit'?"),
    "data output=x.json": (2, "needs its second word"),
    "data audit": (2, "needs a data set or a folder or file"),
    "data audit fashion_min": (2, "is neither a data set nor a file or folder; did you mean 'fashion_mini'?"),
    "data audit fashion_mini csv": (2, "takes one data set or path, got fashion_mini and csv; to compare it"),
    "data audit .": (2, "must be a run folder, a codes folder, a split.json"),
    "data audit dataset.protocol=s2": (2, "dataset.protocol is a setting of a data set: name the data set"),
    "data audit fashion_mini lists=.": (2, "lists= belongs to the action split, not to audit"),
    "data audit fashion_mini near_duplicate=true": (2, "did you mean 'near_duplicates'?"),
    "data audit csv": (3, "a table needs dataset.file=<file.csv>"),
    "data split": (2, "deephash data split needs a data set"),
    "data split fashion_mini classes=true": (2, "classes= belongs to the action audit, not to split"),
    "data split fashion_mini sha256=12e5": (2, "sha256 must be 64 hexadecimal digits"),
    "data split fashion_mini sha256=123456789012": (3, "the division has the SHA-256 23bd5453b6c5"),
    "data split fashion_mini -m": (2, "deephash data has no sweeps"),
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_cannot_work_is_said_in_one_sentence(deephash, typed):
    code, sentence = REFUSED[typed]
    result = deephash(*typed.split())
    assert result.code == code
    assert sentence in (result.err if code else result.out)
    assert result.err.count("\n") == bool(code)


def test_a_division_without_labels_has_no_lists(deephash, tmp_path):
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    assert deephash("data", "audit", "vectors", "dataset.vectors=x.npy").code == 0
    result = deephash("data", "split", "vectors", "dataset.vectors=x.npy", f"output={tmp_path / 'lists'}")
    assert (result.code, "of at least two classes" in result.err) == (3, True)
    assert not (tmp_path / "lists").exists()


def test_it_needs_no_torch():
    code = """
import sys
from deephash_cli.cli import main as cli
print(cli.run(["data", "audit", "fashion_mini", "near_duplicates=true"]))
print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.endswith("0\nFalse\n"), result
