"""ImageNet-100 from folders of classes and from the usual lists: labels, counts, divisions, and what is refused."""

import re
import shutil

import pytest
import refusals
from PIL import Image

from deephash_cli.data import imagenet100 as module
from deephash_cli.data.imagenet100 import CLASSES, imagenet100
from deephash_cli.data.protocol import make_split
from deephash_cli.errors import DataError

NAMES = ["n01440764", "n02096585"]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes of the list, and one of the others; the list is in no order."""
    monkeypatch.setattr(module, "PER_CLASS", {"train": (3, 150), "val": (2, 2)})
    (tmp_path / "classes.txt").write_text("n02096585 Boston bull\nn01440764 tench\n\n")
    for name in (*NAMES, "n09999999"):
        for number in range(3):
            picture(tmp_path / f"imagenet/train/{name}/{name}_{number}.JPEG")
        for number in range(2):
            picture(tmp_path / f"imagenet/val/{name}/ILSVRC2012_val_{number}{name[-1]}.JPEG")
        (tmp_path / f"imagenet/train/{name}/.DS_Store").touch()
    return tmp_path / "imagenet"


def load(root, lists=None, classes=None, incomplete=False):
    return imagenet100(root, classes or root.parent / "classes.txt", lists, incomplete)


def refused(root, *parts, **settings):
    refusals.refused(load, root, parts=parts, **settings)


def test_the_usual_classes():
    names = CLASSES.read_text().split()
    assert len(set(names)) == 100
    assert names == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)


def test_folders_of_classes(root):
    data = load(root)
    assert data.class_names == NAMES
    assert data.ids[:4] == [*(f"train/n01440764/n01440764_{number}.JPEG" for number in range(3)),
                            "train/n02096585/n02096585_0.JPEG"]  # fmt: skip
    assert data.ids[6:8] == ["val/n01440764/ILSVRC2012_val_04.JPEG", "val/n01440764/ILSVRC2012_val_14.JPEG"]
    assert data.labels.argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert (data.usual, data.reading) == ("imagenet100", ("",))
    with pytest.raises(
        DataError, match="class 'n01440764' has 3 images to train on but protocol imagenet100 takes 130"
    ):
        make_split("auto", data, 0)


def test_the_validation_images_search_the_training_part(root):
    for name in NAMES:
        for number in range(3, 103):
            (root / f"train/{name}/{name}_{number:03}.JPEG").hardlink_to(root / f"train/{name}/{name}_0.JPEG")
    data = load(root)
    split = make_split("imagenet100_10k", data, 0)
    assert (len(split.query), len(split.train), len(split.database)) == (4, 200, 206)
    assert all(data.ids[row].startswith("val/") for row in split.query)
    assert all(data.ids[row].startswith("train/") for row in split.database)
    assert split.flags["database_contains_train"]


def test_fewer_images_than_published(root):
    (root / "val/n01440764/ILSVRC2012_val_04.JPEG").unlink()
    refused(
        root,
        f"ImageNet-100 in {root}, where val/n01440764 has 1 images, is not complete: found 1 classes with 2 images in "
        "val of 2; get the missing files",
    )
    data = load(root, incomplete=True)
    assert data.reading == ("not complete: 1 classes with 2 images in val of 2",)


def test_an_image_in_the_folder_of_another_class(root):
    """The number of all images is right."""
    (root / "val/n01440764/ILSVRC2012_val_04.JPEG").rename(root / "val/n02096585/ILSVRC2012_val_04.JPEG")
    refused(root, "where val/n01440764 has 1 images, is not complete: found 0 classes with 2 images in val of 2")


def test_too_few_training_images(root):
    """They would be missing in the database, and numbers would look better."""
    (root / "train/n02096585/n02096585_1.JPEG").unlink()
    refused(root, "where train/n02096585 has 2 images, is not complete: found 1 classes with 3 to 150 images in train")
    shutil.rmtree(root / "train/n02096585")
    (root / "train/n02096585").touch()
    refused(root, "where train/n02096585 has 0 images")


def test_missing_folders(root):
    (root / "val/n01440764").rename(root / "val/elsewhere")
    refused(
        root, "val/n01440764 (about 6 MB) of ImageNet-100 is not in", "sorted into folders of classes, put it there"
    )
    none, classes = root / "none", root.parent / "classes.txt"
    refused(
        none,
        "train/n01440764 (about 130 MB) of ImageNet-100 and 3 more of its 4 files and folders are not in",
        classes=classes,
    )


@pytest.mark.parametrize(("text", "got"), [("tench\n", "'tench'"), ("n01440764\nn01440764\n", "the same one twice"),
                                           ("\n", "an empty file")])  # fmt: skip
def test_a_wrong_list_of_classes(root, text, got):
    (root.parent / "classes.txt").write_text(text)
    refused(root, "classes.txt must have the identifier of a class of ImageNet, such as n01440764, on each line", got)
    refused(root, "dataset.classes=", "none.txt does not exist", classes=root / "none.txt")


def test_lists_get_the_names_of_their_classes_from_the_files(root, monkeypatch):
    monkeypatch.setattr(module, "LISTED", {"train": (3, 2), "query": (2,)})
    for name in ("n01440764_9", "n02096585_8", "n02096585_7"):
        picture(root / f"image/{name}.JPEG")
    for number in (5, 6):
        picture(root / f"val_image/ILSVRC2012_val_0000000{number}.JPEG")
    train = ["image/n02096585_8.JPEG 1 0", "image/n01440764_9.JPEG 0 1"]
    rows = {
        "train": train,
        "test": ["val_image/ILSVRC2012_val_00000005.JPEG 0 1", "val_image/ILSVRC2012_val_00000006.JPEG 1 0"],
        "database": [*train, "image/n02096585_7.JPEG 1 0"],
    }
    lists = root.parent / "lists"
    lists.mkdir()
    for part, lines in rows.items():
        (lists / f"{part}.txt").write_text("".join(f"/home/me/imagenet/{line}\n" for line in lines))
    data = load(root, lists)
    assert data.class_names == ["n02096585", "n01440764"]
    assert data.labels.argmax(axis=1).tolist() == [0, 1, 1, 0, 0]
    split = make_split("auto", data, 0)
    assert (split.query.tolist(), split.train.tolist(), split.database.tolist()) == ([2, 3], [0, 1], [0, 1, 4])
    monkeypatch.setattr(module, "LISTED", {"train": (4,)})
    refused(root, "found 2 training images of 4", lists=lists)
    (root.parent / "classes.txt").write_text("n02096585\n")
    refused(root, "have 2 columns of labels, but ImageNet-100 has 1 classes", lists=lists)
