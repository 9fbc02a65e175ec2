"""The three examples of docs/python.md run as they are printed, on the data of the tests."""

import re
import warnings
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(block: str) -> dict:
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")  # advice for training in earnest
        exec(compile(block, "docs/python.md", "exec"), names)
    return names


def test_each_example_is_at_most_ten_lines_besides_its_imports():
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        assert sum(bool(line) and not line.startswith(("import ", "from ")) for line in block.splitlines()) <= 10


def test_codes_are_scored():
    metrics = run(BLOCKS[0])["metrics"]
    assert metrics["map"] == pytest.approx(0.1, abs=0.02)  # ten classes, random codes
    assert {"map_at_1000", "precision_at_k"} <= metrics.keys()


def test_images_are_encoded_as_the_run_encoded_them(deephash, hashed, capsys):
    block = BLOCKS[1].replace('"runs/<folder>"', repr(str(hashed.run))).replace('"photos"', repr(str(hashed.photos)))
    names = run(block)
    assert names["packed"].shape == (60, 2)
    assert "(60, 2)" in capsys.readouterr().out
    assert deephash("encode", f"run={hashed.run}", f"input={hashed.photos}", "output=codes").code == 0
    from deephash_cli.retrieval.codes_folder import open_side

    made = open_side(Path("codes"))
    rows = {name: row for row, name in enumerate(made.ids)}
    files = sorted(hashed.photos.rglob("*.jpg"))
    order = [rows[file.relative_to(hashed.photos).as_posix()] for file in files]
    assert (made.packed[order] == names["packed"]).mean() > 0.99  # values next to zero round by the batch


def test_a_plain_trainer_learns(photos, capsys):
    settings = ", ".join(map(repr, photos))
    names = run(
        BLOCKS[2].replace(
            '"model=small_cnn", "module.pairs=batch", "dataset=fashion_mini"', f'"module.pairs=batch", {settings}'
        )
    )
    assert names["trainer"].current_epoch == 2
    assert names["query"].bits == 48
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) <= 1
