"""Published data sets in their official layout, with a few tiny images."""

import pickle

import numpy as np
from PIL import Image


def photo(path, value=0):
    """Write a grey image; JPEG keeps its value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def cifar100(root, train=6, test=2):
    """Images whose first value is their number; the fine class is the number, and the group is a fifth of it."""
    top = root / "cifar-100-python"
    top.mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        content = {
            "data": np.full((count, 3072), np.arange(count)[:, None], np.uint8),
            "fine_labels": list(range(count)),
            "coarse_labels": [number // 5 for number in range(count)],
            "filenames": [f"{number}.png" for number in range(count)],
            "batch_label": part,
        }
        (top / part).write_bytes(pickle.dumps(content, protocol=2))
    names = {
        "fine_label_names": [f"kind_{n}" for n in range(100)],
        "coarse_label_names": [f"of_{n}" for n in range(20)],
    }
    (top / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def cub200(root):
    """Six images of three classes, two of them for the test."""
    top = root / "CUB_200_2011"
    paths = [f"{number:03}.Kind_of_{number}/Kind_{image}.jpg" for number in (1, 2, 200) for image in (1, 2)]
    for value, path in enumerate(paths):
        photo(top / "images" / path, value)
    text(top / "classes.txt", *(f"{number} {number:03}.Kind_of_{number}" for number in range(1, 201)))
    text(top / "images.txt", *(f"{number} {path}" for number, path in enumerate(paths, start=1)))
    text(top / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2", "5 200", "6 200")
    text(top / "train_test_split.txt", "1 1", "2 0", "3 1", "4 1", "5 0", "6 1")
    return root


def food101(root):
    """Three training images and two test images of two classes."""
    top = root / "food-101"
    train, test = ["dish_0/11", "dish_0/12", "dish_100/7"], ["dish_100/8", "dish_0/13"]
    for value, path in enumerate(train + test):
        photo(top / "images" / f"{path}.jpg", value)
    text(top / "meta" / "classes.txt", *(f"dish_{number}" for number in range(101)))
    text(top / "meta" / "train.txt", *train)
    text(top / "meta" / "test.txt", *test)
    return root


# The numbers of the images that have each concept; the sixth image has the others.
CONCEPTS = {"sky": (1, 2, 6), "tree": (2, 3), "people": (4,), "people_r1": (4,)}


def mirflickr(root, names, annotations="annotations", count=6):
    """Six images, the fifth without a label."""
    for number in range(1, count + 1):
        photo(root / "mirflickr" / f"im{number}.jpg", number)
    for name in names:
        text(root / annotations / f"{name}.txt", *CONCEPTS.get(name, (6,)))
    text(root / annotations / "README.txt", "about")
    return root


# The objects of each image: a class, and whether it is difficult.
OBJECTS = {
    "2008_000001": [("cat", False), ("cat", True)],
    "2008_000002": [("person", True), ("dog", False)],
    "2011_000003": [("person", True)],
    "2011_000004": [("aeroplane", False), ("person", False)],
}


def voc2012(root, class_names):
    """Four images with objects, and one that is for another task."""
    top = root / "VOCdevkit" / "VOC2012"
    lists = top / "ImageSets" / "Main"
    text(lists / "trainval.txt", *OBJECTS)
    for name in class_names:
        values = [
            max((0 if difficult else 1 for kind, difficult in found if kind == name), default=-1)
            for found in OBJECTS.values()
        ]
        text(
            lists / f"{name}_trainval.txt",
            *(f"{image} {value:>2}" for image, value in zip(OBJECTS, values, strict=True)),
        )
    for value, (image, found) in enumerate([*OBJECTS.items(), ("2007_000009", [("sofa", False)])]):
        photo(top / "JPEGImages" / f"{image}.jpg", value)
        objects = "".join(
            f"<object><name>{name}</name><difficult>{difficult:d}</difficult><part><name>head</name></part></object>"
            for name, difficult in found
        )
        text(top / "Annotations" / f"{image}.xml", f"<annotation><folder>VOC2012</folder>{objects}</annotation>")
    return root
