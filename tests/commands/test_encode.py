"""``deephash encode``: the same codes as in the run, for any order of shards, interruptions and processes."""

import csv
import errno
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import digests
import numpy as np
import pytest
import yaml
from conftest import QUICK, write_photos
from PIL import Image

from deephash_cli import runs
from deephash_cli.data.decoding import MAX_PIXELS
from deephash_cli.files import read_json, sha256_file
from deephash_cli.retrieval import similarity
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.codes_folder import join_databases, open_side, save_database

FAST = ("num_workers=0", "accelerator=cpu")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder, including hidden files."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def codes_of_run(run: Path) -> dict[str, bytes]:
    sides = [open_side(run / runs.CODES, side) for side in ("query", "database")]
    return {name: side.packed[i].tobytes() for side in sides for i, name in enumerate(side.ids)}


def codes_in(folder: Path) -> dict[str, bytes]:
    side = open_side(folder)
    return {name: side.packed[i].tobytes() for i, name in enumerate(side.ids)}


def write_bad(folder: Path, kind: str) -> None:
    """Write an image file that is unusual or broken in one way."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    image, file = Image.fromarray(pixels), folder / f"{kind}.jpg"
    if kind == "truncated":
        image.save(file)
        file.write_bytes(file.read_bytes()[:400])
    elif kind == "html":
        file.write_text("<html>404</html>")
    elif kind == "empty":
        file.touch()
    elif kind == "cmyk":
        image.convert("CMYK").save(file)
    elif kind == "sixteen":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "sixteen.png")
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(file, exif=exif)
    else:
        assert kind == "bomb"
        Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(folder / "bomb.png")


UNREADABLE, READABLE = ("truncated", "html", "empty", "bomb"), ("cmyk", "sixteen", "rotated")


@pytest.fixture
def encode(deephash, hashed):
    def call(*arguments):
        return deephash("encode", f"run={hashed.run}", *FAST, *arguments)

    return call


def test_the_codes_of_a_run_come_out_again(encode, hashed):
    result = encode(f"input={hashed.photos}", "output=codes", "shard_size=25", "batch_size=7")
    assert (result.code, result.err) == (0, "")
    assert "codes of 60 images, 12 bits: codes" in result.out
    made, expected = open_side(Path("codes")), codes_of_run(hashed.run)
    assert list(made.ids) == sorted(expected)
    assert [code.tobytes() for code in made.packed] == [expected[name] for name in made.ids]
    assert made.manifest["provenance"]["method"] == "itq"
    assert {file.name for file in Path("codes").iterdir()} == {
        "encode.json", "database.npy", "database_labels.npy", "database_ids.txt", "manifest.json", "skipped.csv"
    }  # fmt: skip


def test_the_codes_of_a_run_with_features_in_bf16_come_out_again(deephash, tmp_path):
    photos = write_photos(tmp_path / "photos")
    data = ("dataset=image_folder", f"dataset.root={photos}")
    for precision in ("fp32", "bf16"):
        settings = (f"features.precision={precision}", f"run_dir={tmp_path / precision}")
        assert deephash("train", "method=lsh", "bits=512", *QUICK, *data, *settings).code == 0
    result = deephash("encode", "run=" + str(tmp_path / "bf16"), *FAST, f"input={photos}", "output=codes")
    assert (result.code, result.err) == (0, "")
    expected = codes_of_run(tmp_path / "bf16")
    assert codes_in(Path("codes")) == expected
    assert codes_of_run(tmp_path / "fp32") != expected


def test_what_makes_images_similar_is_that_of_the_run(deephash, tmp_path):
    """`search` and `index` mark and count relevant images by it."""
    data = ("dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}")
    assert deephash("train", "method=lsh", *QUICK, *data, "metrics.similar=all", "run_dir=run").code == 0
    assert deephash("encode", "run=run", *FAST, *data, "output=codes").code == 0
    assert similarity.of_manifest(open_side(Path("codes")).manifest) == "all"


def test_a_second_time_nothing_is_made(encode, hashed):
    settings = (f"input={hashed.photos}", "output=codes")
    assert encode(*settings).code == 0
    before = {file: file.stat().st_mtime_ns for file in Path("codes").iterdir()}
    assert encode(*settings).code == 0
    assert {file: file.stat().st_mtime_ns for file in Path("codes").iterdir()} == before


def test_a_complete_output_that_became_read_only_needs_nothing(encode, hashed, monkeypatch):
    command = (f"input={hashed.photos}", "output=codes")
    assert encode(*command).code == 0
    real = Path.open

    def read_only(self, mode="r", *arguments, **options):
        if set(mode) & set("wax+") and "codes" in self.parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", read_only)
        assert encode(*command).code == 0
    codes = bytearray(Path("codes/database.npy").read_bytes())
    codes[-1] ^= 1
    Path("codes/database.npy").write_bytes(codes)
    monkeypatch.setattr(Path, "unlink", lambda self, **_: read_only(self, "w"))
    result = encode(*command)
    assert result.code == 4
    assert "could not remove codes/manifest.json, which is damaged: Read-only file system" in " ".join(
        result.err.replace(str(Path.cwd()) + "/", "").split()
    )


def test_a_folder_that_was_only_begun_is_continued(encode, hashed):
    Path("codes/shards").mkdir(parents=True)
    Path("codes/.encode.json.abcdefgh.tmp").write_text("{")
    assert encode(f"input={hashed.photos}", "output=codes").code == 0
    assert open_side(Path("codes"), "database").n == 60
    assert not list(Path("codes").glob(".*"))
    Path("mine/shards").mkdir(parents=True)
    Path("mine/shards-of-glass.txt").write_text("mine")
    result = encode(f"input={hashed.photos}", "output=mine")
    assert (result.code, Path("mine/shards-of-glass.txt").read_text()) == (2, "mine")


def test_shards_in_any_order_give_the_same_bytes(encode, hashed):
    settings = (f"input={hashed.photos}", "shard_size=25")
    assert encode(*settings, "output=whole").code == 0
    result = encode(*settings, "output=parts", "shards=[2]")
    assert "1 of 3 shards are in parts, 2 are missing" in result.out
    assert encode(*settings, "output=parts", "shards=[0]").code == 0
    assert not Path("parts/manifest.json").exists()
    assert "codes of 60 images" in encode(*settings, "output=parts", "shards=[1]").out
    assert contents(Path("parts")) == contents(Path("whole"))


def test_a_damaged_shard_is_made_again(encode, hashed):
    settings = (f"input={hashed.photos}", "shard_size=25")
    encode(*settings, "output=whole")
    encode(*settings, "output=parts", "shards=[0,1]")
    file = Path("parts/shards/000001/database.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = encode(*settings, "output=parts")
    assert result.err.startswith("warning: damaged codes are made again:")
    assert contents(Path("parts")) == contents(Path("whole"))
    joined = Path("parts/database_ids.txt")
    joined.write_text(joined.read_text().replace("bag/000.jpg", "bag/00x.jpg"))
    assert "made again" in encode(*settings, "output=parts").err
    assert contents(Path("parts")) == contents(Path("whole"))


def test_images_that_cannot_be_read_are_left_out_and_listed(encode, hashed, tmp_path):
    photos = shutil.copytree(hashed.photos, tmp_path / "all")
    for kind in UNREADABLE + READABLE:
        write_bad(photos / "bag", kind)
    result = encode(f"input={photos}", "output=codes", "shard_size=25", "bad_images=skip")
    assert result.code == 0
    assert result.err == "warning: 4 images could not be read and are left out: codes/skipped.csv says why\n"
    made = open_side(Path("codes"))
    names = {f"bag/{kind}.{'png' if kind in ('bomb', 'sixteen') else 'jpg'}" for kind in UNREADABLE + READABLE}
    left_out = {row["id"]: row["reason"] for row in csv.DictReader(io.StringIO(Path("codes/skipped.csv").read_text()))}
    assert left_out.keys() == {name for name in names if name[4:-4] in UNREADABLE}
    assert "pixels, more than" in left_out["bag/bomb.png"]
    assert set(made.ids) == {*codes_of_run(hashed.run), *names} - left_out.keys()
    expected = codes_of_run(hashed.run)
    for name, code in zip(made.ids, made.packed, strict=True):
        assert code.tobytes() == expected.get(name, code.tobytes())  # no code has moved to another id


def test_or_it_stops_at_the_first(encode, hashed, tmp_path):
    photos = shutil.copytree(hashed.photos, tmp_path / "all")
    write_bad(photos / "coat", "html")
    settings = (f"input={photos}", "output=codes", "shard_size=20")
    result = encode(*settings)
    assert result.code == 3
    assert result.err.count("\n") == 1
    assert "coat/html.jpg cannot be read" in result.err
    assert "or set bad_images=skip to leave out such files" in result.err
    assert len(list(Path("codes/shards").iterdir())) >= 2  # finished shards are kept
    (photos / "coat" / "html.jpg").unlink()
    write_photos(tmp_path / "more", classes=("coat",), each=1)
    shutil.copy(tmp_path / "more/coat/000.jpg", photos / "coat" / "html.jpg")
    assert encode(*settings).code == 0


def test_it_names_all_and_skip_continues_where_it_stopped(encode, hashed, tmp_path):
    photos = shutil.copytree(hashed.photos, tmp_path / "all")
    write_bad(photos / "bag", "html")
    write_bad(photos / "coat", "empty")
    (photos / "coat" / "link.jpg").symlink_to("gone")
    (photos / "coat" / "drawing.svg").touch()
    settings = (f"input={photos}", "shard_size=10", "batch_size=4")
    stopped = encode(*settings, "output=codes")
    assert stopped.code == 3
    left_out = "warning: left out 1 file: 1 .svg; codes/skipped.csv names it"
    first, second = stopped.err.splitlines()
    assert first == left_out
    assert second.startswith("error: 3 of the 63 images cannot be read: bag/html.jpg (it is none of JPEG")
    assert "coat/empty.jpg (it is empty), coat/link.jpg (it is a broken link to gone); replace or remove them" in second
    assert "coat/drawing.svg,has the ending" in Path("codes/skipped.csv").read_text().replace('"', "")
    kept = {place: place.stat().st_mtime_ns for place in Path("codes/shards").glob("[0-9]?????")}
    assert len(kept) == 5  # of seven: a bad file in the third, and two in the last
    again = encode(*settings, "output=codes", "shards=[0,1]")
    assert (again.code, again.err) == (0, left_out + "\n")
    skipped = encode(*settings, "output=codes", "shards=[2]", "bad_images=skip")
    assert skipped.code == 0
    assert {place: place.stat().st_mtime_ns for place in kept} == kept
    assert encode(*settings, "output=codes", "bad_images=skip").code == 0
    assert encode(*settings, "output=whole", "bad_images=skip").code == 0
    assert contents(Path("codes")) == contents(Path("whole"))
    rows = list(csv.DictReader(io.StringIO(Path("codes/skipped.csv").read_text())))
    assert [row["id"] for row in rows] == ["coat/drawing.svg", "bag/html.jpg", "coat/empty.jpg", "coat/link.jpg"]


def test_a_long_list_is_in_the_output(encode, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(7):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    result = encode(f"input={tmp_path / 'photos'}", "output=codes")
    assert result.code == 3
    assert f"4.jpg (it is empty) and 2 more, which {Path.cwd() / 'codes/skipped.csv'} lists" in result.err
    assert Path("codes/skipped.csv").read_text().count("it is empty") == 7


def test_a_folder_without_an_image(encode, tmp_path):
    (tmp_path / "notes.txt").touch()
    result = encode(f"input={tmp_path}", "output=codes")
    assert result.code == 3
    assert f"input={tmp_path} holds no image (1 other files)" in result.err


def test_few_of_16_bits_are_said(encode, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((80, 90), 4095, np.uint16)).save(tmp_path / "photos" / "x.png")
    result = encode(f"input={tmp_path / 'photos'}", "output=codes")
    assert result.code == 0
    assert result.err.startswith("warning: 1 of 1 images looked at are images with 16 bits per value")
    assert "x.png has no value above 15 of 255" in result.err
    assert result.err.count("\n") == 1


def test_none_can_be_read(encode, tmp_path):
    (tmp_path / "photos").mkdir()
    write_bad(tmp_path / "photos", "html")
    result = encode(f"input={tmp_path / 'photos'}", "output=codes", "bad_images=skip")
    assert result.code == 3
    assert "none of the 1 images can be read; the first one is html.jpg" in result.err


def test_a_list_and_a_data_set(encode, hashed):
    Path("list.txt").write_text("coat/003.jpg\nbag/000.jpg\n")
    assert encode("input=list.txt", f"root={hashed.photos}", "output=listed").code == 0
    assert list(open_side(Path("listed")).ids) == ["coat/003.jpg", "bag/000.jpg"]
    Path("list.txt").write_text(f"coat/003.jpg\n./bag/000.jpg\n{hashed.photos}/coat/003.jpg\n")
    result = encode("input=list.txt", f"root={hashed.photos}", "output=twice")
    assert result.code == 3
    assert (
        f"list.txt:3: {hashed.photos}/coat/003.jpg is already in line 1, where it is called coat/003.jpg" in result.err
    )
    result = encode("dataset=image_folder", f"dataset.root={hashed.photos}", "output=labelled")
    assert result.code == 0
    labelled = open_side(Path("labelled"))
    assert labelled.manifest["provenance"]["class_names"] == ["bag", "boot", "coat"]
    assert labelled.labels.sum(axis=0).tolist() == [20, 20, 20]


def test_vectors(deephash, tmp_path):
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.standard_normal((80, 16)).astype(np.float32))
    data = ("dataset=vectors", "dataset.vectors=x.npy")
    assert deephash("train", "method=lsh", "bits=12", *data, "logger=none", "run_dir=run").code == 0
    Path("x.npy").rename("y.npy")  # the training data need not stay where they were
    result = deephash("encode", "run=run", "input=y.npy", "output=codes")
    assert (result.code, result.err) == (0, "")
    made, expected = open_side(Path("codes")), codes_of_run(Path("run"))
    assert [code.tobytes() for code in made.packed] == [expected[name] for name in made.ids]
    np.save("z.npy", rng.standard_normal((8, 9)).astype(np.float32))
    assert "does not fit z.npy" in deephash("encode", "run=run", "input=z.npy", "output=other").err.replace(
        f"{Path.cwd()}/", ""
    )


def test_there_can_be_more_shards_than_open_files(tmp_path):
    rng = np.random.default_rng(0)
    parts = [tmp_path / f"{number}" for number in range(60)]
    for number, part in enumerate(parts):
        side = CodeSet(
            rng.integers(0, 256, (2, 2)).astype(np.uint8), 16, np.zeros((2, 0), np.uint8), [f"{number}a", f"{number}b"]
        )
        save_database(part, side, {})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as next_file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_file.fileno() + 20, before[1]))
    try:
        join_databases(tmp_path / "all", parts, {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    joined = open_side(tmp_path / "all")
    assert list(joined.ids) == [f"{number}{letter}" for number in range(60) for letter in "ab"]
    assert joined.packed.tolist() == [row for part in parts for row in open_side(part).packed.tolist()]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["output=c"], 2, "needs input=<folder, list or vectors.npy>, or dataset=<name>, got neither"),
        (["input=x"], 2, "needs output=<folder>"),
        (["input=nowhere", "output=c"], 3, "it does not exist (to encode a data set by its name, use dataset=<name>)"),
        (["input={photos}", "output={photos}"], 2, "output={photos} is input={photos} itself, which is read"),
        (["input={photos}", "output=c", "shards=[9]"], 2, "shards must be between 0 and 0, got 9"),
        (["input={photos}", "output=c", "shards=[x]"], 2, "shards must be a list of whole numbers"),
        (["input={photos}", "output=c", "bad_images=ask"], 2, "bad_images must be stop or skip, got ask"),
        (["input=x.npy", "output=c"], 2, "encodes images but the input holds vectors"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(encode, hashed, arguments, code, sentence):
    np.save("x.npy", np.zeros((3, 4), np.float32))
    result = encode(*(argument.format(photos=hashed.photos) for argument in arguments))
    assert result.code == code
    assert sentence.format(photos=hashed.photos) in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_another_input_does_not_get_into_the_same_folder(encode, hashed):
    assert encode(f"input={hashed.photos}", "output=codes").code == 0
    result = encode(f"input={hashed.photos / 'bag'}", "output=codes")
    assert result.code == 2
    assert "started with different settings or a different input (images, ids differ)" in result.err


def test_a_run_that_was_changed_after_its_codes_is_refused(deephash, hashed, tmp_path):
    run = shutil.copytree(hashed.run, tmp_path / "run")
    manifest = run / "codes" / "manifest.json"
    provenance = read_json(manifest)["provenance"]
    checkpoint = {**provenance["checkpoint"], "sha256": "0" * 64}
    digests.edit(manifest, provenance={**provenance, "checkpoint": checkpoint})
    digests.renew(run)
    result = deephash("encode", f"run={run}", f"input={hashed.photos}", "output=codes", *FAST)
    assert result.code == 4
    assert "is not the checkpoint that the codes" in result.err
    manifest.unlink()
    assert "has no codes yet" in deephash("encode", f"run={run}", f"input={hashed.photos}", "output=c").err


def test_a_checkpoint_without_its_sidecar_needs_the_users_word(deephash, hashed, tmp_path):
    run = shutil.copytree(hashed.run, tmp_path / "run")
    (run / "checkpoints" / "last.ckpt.json").unlink()
    call = ("encode", f"run={run}", f"input={hashed.photos}", "output=codes", *FAST)
    result = deephash(*call)
    assert result.code == 4
    assert "last.ckpt.json does not exist, so last.ckpt cannot be verified: put it back; encode" in result.err
    assert "allow_unverified=true" in result.err
    assert result.err.count("\n") == 1
    result = deephash(*call, "allow_unverified=true")
    assert result.code == 0
    assert f"warning: {run / 'checkpoints' / 'last.ckpt'} is used without its .json: it is the checkpoint" in result.err
    assert codes_in(Path("codes")) == codes_of_run(hashed.run)
    assert "unverified" not in str(read_json(Path("codes/manifest.json"))["provenance"])


def test_a_foreign_checkpoint_is_used_with_the_users_word(deephash, hashed, tmp_path):
    """Its codes say that they are not those of the run, and only the same checkpoint searches them."""
    import torch

    run = shutil.copytree(hashed.run, tmp_path / "run")
    checkpoint = run / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    other = {name: -value if value.ndim == 2 else value for name, value in state.items()}
    torch.save({"state_dict": other}, checkpoint)
    call = ("encode", f"run={run}", f"input={hashed.photos}", "output=codes", *FAST)
    assert "is damaged: its SHA-256" in deephash(*call, "allow_unverified=true").err
    (run / "checkpoints" / "last.ckpt.json").unlink()
    result = deephash(*call, "allow_unverified=true")
    assert result.code == 0, result
    assert "is used without verification, and is not the checkpoint that made the codes of" in result.err
    assert codes_in(Path("codes")) != codes_of_run(hashed.run)
    provenance = read_json(Path("codes/manifest.json"))["provenance"]
    entry = {"file": "checkpoints/last.ckpt", "sha256": sha256_file(checkpoint), "unverified": True}
    assert provenance["checkpoint"] == entry
    assert not {"seed", "epochs", "dataset"} & provenance.keys()
    query = ("search", f"query={hashed.photos / 'bag' / '000.jpg'}", "allow_unverified=true", "picture=null")
    assert deephash(*query, f"run={run}", "codes=codes").code == 0
    for others in ((f"run={run}",), (f"run={hashed.run}", "codes=codes")):
        result = deephash(*query, *others)
        assert result.code == 4
        assert "were made by a different network" in result.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("image_size: 16", "image_size: 24", "settings with the digest"), ("bits: 12", "bits: 16", "bits=12, got bits=16"),
     ("seed: 0", "seed: 1", "seed=0, got seed=1")],
)  # fmt: skip
def test_settings_edited_after_the_training_are_refused(deephash, hashed, tmp_path, old, new, said):
    run = shutil.copytree(hashed.run, tmp_path / "run")
    config = run / "config.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    digests.renew(run)
    calls = {"encode": (f"input={hashed.photos}", "output=codes"), "search": (f"query={hashed.photos}/bag/000.jpg",)}
    for verb, settings in calls.items():
        result = deephash(verb, f"run={run}", *settings)
        assert result.code == 4, result
        assert f"{config} was edited or damaged after the training: expected the settings of" in result.err
        assert said in result.err
    for name in ("runs: ", "gallery: ", "group: "):  # settings that decide nothing may be other ones
        assert name in text
    config.write_text(text.replace("gallery: true", "gallery: false").replace("group: null", "group: x"))
    digests.renew(run)
    assert deephash("search", f"run={run}", *calls["search"], "picture=null").code == 0


def test_a_run_of_a_version_without_some_settings_still_encodes_and_is_resumed(deephash, hashed, tmp_path):
    run = shutil.copytree(hashed.run, tmp_path / "run")
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    del settings["features"], settings["dataset"]["classes_known_to"]
    config.write_text(yaml.safe_dump(settings))
    digests.renew(run)
    assert deephash("encode", f"run={run}", f"input={hashed.photos}", "output=codes", *FAST).code == 0
    assert codes_in(Path("codes")) == codes_of_run(hashed.run)
    assert deephash("train", f"resume={run}").out.startswith("already done: ")
    result = deephash("train", f"resume={run}", "features.precision=bf16")
    assert result.code == 2
    assert "features.precision" in result.err


def test_a_run_folder_cannot_have_code_executed(deephash, hashed, tmp_path):
    run = shutil.copytree(hashed.run, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("deephash_cli.models.small_cnn", "os.getcwd"))
    digests.renew(run)
    result = deephash("encode", f"run={run}", f"input={hashed.photos}", "output=codes", *FAST)
    assert result.code == 2
    assert "which deephash does not trust by default" in result.err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from deephash_cli.cli.main import main; main()", "encode", *arguments]


@pytest.mark.slow
def test_killed_five_times_it_gives_the_same_bytes(encode, hashed, tmp_path):
    photos = write_photos(tmp_path / "photos", each=200)
    for number, kind in enumerate(4 * (UNREADABLE[:2] + READABLE)):
        (photos / f"more{number}").mkdir()
        write_bad(photos / f"more{number}", kind)
    settings = (f"input={photos}", "shard_size=20", "batch_size=5", "bad_images=skip", "num_workers=1")
    assert encode(*settings, "output=whole").code == 0
    call = command(f"run={hashed.run}", "accelerator=cpu", *settings, "output=killed")
    random.seed(0)
    kills = 0
    while kills < 5:
        process = subprocess.Popen(call, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done = len(list(Path("killed").glob("shards/0*")))
        while process.poll() is None and len(list(Path("killed").glob("shards/0*"))) < done + random.randint(1, 4):
            time.sleep(0.002)
        assert process.poll() is None, "it was to be killed in the middle"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert not Path("killed/manifest.json").exists()
    subprocess.run(call, check=True, timeout=100, capture_output=True)
    assert contents(Path("killed")) == contents(Path("whole"))


@pytest.mark.slow
def test_ray_and_several_processes_give_the_same_bytes(encode, hashed):
    settings = (f"input={hashed.photos}", "shard_size=8")
    assert encode(*settings, "output=plain").code == 0
    # in a separate process: warnings of Ray would be errors here
    call = command(f"run={hashed.run}", *FAST, *settings, "output=ray", "launcher=ray", "workers=2")
    done = subprocess.run(call, timeout=250, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(Path("ray")) == contents(Path("plain"))
    assert encode(*settings, "output=two", "devices=2").code == 0
    assert contents(Path("two")) == contents(Path("plain"))
