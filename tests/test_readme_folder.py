"""Run the commands of the README, as they are typed, in a folder and on images with names that people really have."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_readme import README, ROOT, commands

FOLDER = "my photos (2024), été"
CLASSES = ("bags & boots", "été #2", "c's (old), [x]=1")
EACH = 12

# Commands that are not run here: what a line contains, and the reason.
NOT_RUN = {
    "make ": "makes an environment, or runs these tests",
    "cifar10": "downloads CIFAR-10",
}
# Training at the size of a test; the rest of each command is as it is typed.
SMALL = "trainer.max_epochs=1 trainer.limit_train_batches=4"
FROM_SCRATCH = "model=small_cnn model.image_size=16"  # instead of minutes for the features of 10,000 images

Run = Callable[..., subprocess.CompletedProcess]


def image_names(each: int) -> list[str]:
    """Return names of photos as phones, cameras and people give them."""
    kinds = ("IMG ({}), é.jpg", "a=b & c's #{}.png", "100% [{}]; {{x}}.jpg", "日本 e\u0301 {}.png")
    return [kinds[i % len(kinds)].format(i) for i in range(each)]


def write_images(root: Path) -> None:
    """A sub-folder of small images for each class, each class with a colour of its own."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for image in image_names(EACH):
            pixels = rng.integers(0, 120, (40, 40, 3))
            pixels[..., number] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / image)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images under ``photos`` and the command ``deephash`` on the path."""
    place = tmp_path / FOLDER
    write_images(place / "photos")
    Image.open(place / "photos" / CLASSES[0] / image_names(1)[0]).save(place / "photo.jpg")
    command = tmp_path / "bin" / "deephash"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable} -P\nfrom deephash_cli.cli.main import main\n\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.chdir(place)
    return place


def bash(line: str, code: int = 0) -> subprocess.CompletedProcess:
    """Run a line in bash, and check its exit code."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=280)
    assert done.returncode == code, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, f"{line}\n{done.stderr[-3000:]}"
    return done


def serve(line: str) -> None:
    """Start a server, search with an image as its page does, fetch the picture of a result, and stop it."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = None
        for text in process.stdout:
            if address := re.search(r"http://127\.0\.0\.1:\d+", text):
                break
        assert address, f"{line}\n{process.communicate()[1]}"
        image = Path("photo.jpg").read_bytes()
        body = (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
            + image
            + b"\r\n--x--\r\n"
        )
        request = urllib.request.Request(
            f"{address[0]}/api/search", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )
        found = json.load(urllib.request.urlopen(request, timeout=30))["results"]
        assert found[0]["id"].rpartition("/")[2] in image_names(EACH), found[0]
        picture = urllib.parse.urljoin(address[0], f"/api/image/{found[0]['position']}")
        assert urllib.request.urlopen(picture, timeout=30).headers["Content-Type"].startswith("image/")
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error, error


def typed(command: str) -> str:
    """Return a command of the README without its comment, and with small settings if it trains."""
    line = re.sub(r"\s+#\s.*", "", command).strip()
    if line.startswith("deephash train"):
        own = "dataset=" in line or "experiment=" in line
        line = f"{line} {SMALL}{'' if own else f' {FROM_SCRATCH}'}"
    return f"{line} port=0" if line.startswith("deephash serve") else line


def newest_run() -> str:
    """Return the name of the run that was finished last."""
    return max(Path("runs").glob("*/metrics.json"), key=lambda file: file.stat().st_mtime).parent.name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_command_of_the_readme_in_a_folder_of_an_odd_name(folder):
    lines = commands(README)
    assert all(any(part in line for line in lines) for part in NOT_RUN), "a reason that no command needs"
    for command in lines:
        if any(part in command for part in NOT_RUN):
            continue
        line = typed(command)
        if "<folder>" in line:
            line = line.replace("<folder>", newest_run())
        if line.startswith("deephash serve"):
            serve(line)
        else:
            bash(line)
    records = [json.loads(file.read_text()) for file in Path("runs").glob("*/run.json")]
    assert len(records) == 1 + 9 + 3 + 1  # the sweep that stands twice has each run once
    assert {record["status"] for record in records} == {"finished"}
    assert Path("search.png").stat().st_size > 1000
    assert "Traceback" not in Path("report.html").read_text()
    ids = Path("codes/database_ids.txt").read_text().splitlines()
    assert sorted(ids) == sorted(f"{name}/{image}" for name in CLASSES for image in image_names(EACH))


def image_lists(roles: dict[str, list[tuple[str, int]]]) -> None:
    """Write a list file for each role, named like the images."""
    for role, rows in roles.items():
        text = "".join(
            f"{path}\t{' '.join(str(int(c == number)) for c in range(len(CLASSES)))}\n" for path, number in rows
        )
        Path(f"{role} (1), é.txt").write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_path_may_have_an_odd_name_in_quotes_of_the_shell(folder):
    """Of each verb, with the key for each file that it reads or writes."""
    photos, one = "photos (all), été & co", f"{CLASSES[0]}/{image_names(1)[0]}"
    Path("photos").rename(photos)
    rows = [(f"{name}/{image}", number) for number, name in enumerate(CLASSES) for image in image_names(EACH)]
    Path("table (1), é.csv").write_text(
        "path,labels,split\n"
        + "".join(
            f'"{path}","{CLASSES[number]};",{"query" if i % 6 == 0 else "train;database"}\n'
            for i, (path, number) in enumerate(rows)
        )
    )
    image_lists({"train": [row for i, row in enumerate(rows) if i % 6], "query": rows[::6]})
    np.save("x (1), é.npy", np.random.default_rng(0).normal(size=(36, 16)).astype(np.float32))
    np.save("y #1.npy", np.arange(36) % 3)
    Path("ids=1 & 2.txt").write_text("".join(f"{path}\n" for path, _ in rows))
    (folder / "my conf (1), é" / "optimizer").mkdir(parents=True)
    (folder / "my conf (1), é" / "optimizer" / "mine.yaml").write_text(
        "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.125\nweight_decay: 0.0\n"
    )

    def deephash(*words: str, code: int = 0) -> subprocess.CompletedProcess:
        return bash(shlex.join(["deephash", *words]), code)

    small = ("method=itq", "bits=8", *FROM_SCRATCH.split(), "loader.num_workers=0", "logger=none")
    root = f"dataset.root={photos}"
    deephash("train", "dataset=image_folder", root, *small, "run_dir=run #1, (é)")
    assert json.loads(Path("run #1, (é)/codes/manifest.json").read_text())["provenance"]["class_names"] == sorted(
        CLASSES
    )
    deephash("train", "dataset=csv", "dataset.file=table (1), é.csv", root, *small, "runs=runs, [all]")
    lists = ("dataset.train=train (1), é.txt", "dataset.query=query (1), é.txt")
    deephash("train", "dataset=image_list", root, *lists, *small, "runs=runs, [all]")
    data = ("dataset.vectors=x (1), é.npy", "dataset.labels=y #1.npy", "dataset.ids=ids=1 & 2.txt")
    deephash("train", "dataset=vectors", *data, "method=itq", "bits=8", "logger=none", "runs=runs, [all]")
    split = f"dataset.split_file={folder / 'run #1, (é)' / 'split.json'}"
    deephash("train", "dataset=image_folder", root, split, *small, "seed=1", "run_dir=2024")
    assert (
        json.loads(Path("2024/split.json").read_text())["query"]
        == (json.loads(Path("run #1, (é)/split.json").read_text())["query"])
    )
    mine = ("--config-dir", "my conf (1), é", "optimizer=mine", "method=dpsh", *SMALL.split())
    deephash("train", *mine, "dataset=image_folder", root, *small[1:], "run_dir=a=b & c's")

    run = "run=run #1, (é)"
    deephash("eval", run, "output=metrics (1), é.json")
    assert (
        json.loads(Path("metrics (1), é.json").read_text())["map"]
        == (json.loads(Path("run #1, (é)/metrics.json").read_text())["map"])
    )
    deephash("search", run, f"query={photos}/{one}", "output=found #1, é.json", "picture=sheet (1), é.png", "k=3")
    found = json.loads(Path("found #1, é.json").read_text())["queries"][0]["results"]
    assert [hit["id"].rpartition("/")[0] in CLASSES for hit in found] == [True] * 3
    assert Path("sheet (1), é.png").stat().st_size > 1000
    deephash("search", run, f"query={one}", "picture=null", "output=own.json")  # by its id
    deephash("search", run, f"query={folder / photos}", "picture=null", "output=all, é.json")
    assert len(json.loads(Path("all, é.json").read_text())["queries"]) == EACH * len(CLASSES)
    deephash("encode", run, f"input={photos}", "output=codes (2), é", "num_workers=0")
    listed = ("input=ids=1 & 2.txt", f"root={photos}")
    deephash("encode", run, *listed, "output=codes #3", "num_workers=0")
    for codes in ("codes (2), é", "codes #3"):
        assert sorted(Path(codes, "database_ids.txt").read_text().splitlines()) == sorted(path for path, _ in rows)
    deephash("search", run, "codes=codes (2), é", f"query={photos}/{one}", "picture=null")
    deephash(
        "index", "codes=codes (2), é", "kind=flat", "output=flat (1), é.faiss", "--check", "check_output=check #1.json"
    )
    deephash("search", run, "codes=codes (2), é", "index=flat (1), é.faiss", f"query={photos}/{one}", "picture=null")
    deephash("export", "codes=codes (2), é", "to=postgres", "output=sql (1), é")
    assert Path("sql (1), é").is_dir()
    serve(shlex.join(["deephash", "serve", run, "codes=codes (2), é", "port=0"]))
    deephash("compare", "run #1, (é)", "2024", "a=b & c's", "--output", "comparison (1), é.csv")
    deephash("report", "runs, [all]", "2024", "-o", "report (1), é.html")
    assert "2024" in deephash("runs", "run #1, (é)", "2024", "a=b & c's").stdout
    deephash("sync", "run #1, (é)", "--dry-run")
    resumed = deephash("train", *mine[:2], "resume=a=b & c's", "trainer.max_epochs=2")
    assert "a=b & c's" in resumed.stdout
