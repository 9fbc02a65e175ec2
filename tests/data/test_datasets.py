"""Loaders: what they accept and what they refuse, with which message. All data are made here or are in the package."""

import gzip
import os
import pickle
import shutil
import struct
import tarfile
import time

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from deephash_cli.data import decoding
from deephash_cli.data import download as download_module
from deephash_cli.data import fashion_mnist as fashion_mnist_module
from deephash_cli.data import image_folder as image_folder_module
from deephash_cli.data.cifar10 import CLASS_NAMES, cifar10
from deephash_cli.data.csv_table import csv_table
from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.fashion_mnist import fashion_mini, fashion_mnist, read_idx
from deephash_cli.data.image_folder import describe_left_out, folder_of_images, image_folder
from deephash_cli.data.image_list import image_list
from deephash_cli.data.protocol import make_split
from deephash_cli.data.restricted_pickle import read_pickle
from deephash_cli.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def no_data_elsewhere(tmp_path_factory, monkeypatch):
    """Keep the machine's own data and cache from deciding a test."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(folder / "cache"))
    monkeypatch.delenv("DEEPHASH_DATA_DIR", raising=False)
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", folder / "debian")
    return folder


def picture(path, value=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, value, value)).save(path)


def one_sentence(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message


# RetrievalDataset


def dataset(ids=("a", "b"), labels=((1,), (0,)), class_names=("c",), images=None, official=None):
    images = images if images is not None else ImageArray(np.zeros((len(ids), 1, 2, 2), np.uint8))
    labels = np.array(labels, dtype=np.uint8)
    return RetrievalDataset("made", list(ids), labels, list(class_names), images, official)


def test_a_proper_dataset():
    assert len(dataset()) == 2
    assert multi_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"ids": (), "labels": np.zeros((0, 1))}, "data set made has no images; at least one is needed"),
        ({"ids": ("a", "a")}, "has the id 'a' twice"),
        ({"ids": ("a", "b\nc")}, "which is empty or spans several lines"),
        ({"ids": ("a", "b\r")}, "which is empty or spans several lines"),
        ({"ids": ("a", "b\u2028c")}, "which is empty or spans several lines"),
        ({"ids": ("a", "")}, "which is empty or spans several lines"),
        ({"ids": ("a", "b\udcff")}, "which is not valid UTF-8"),
        ({"ids": ("\u00e9", "e\u0301")}, "has the id 'e\\u0301' and '\\xe9', which look the same"),
        ({"class_names": ("c", "c "), "labels": ((1, 0), (0, 1))}, "has the classes 'c' and 'c ', which look the same"),
        ({"ids": ("a", "b", "c")}, "has 3 ids, 2 rows of labels and 3 images"),
        ({"images": ImageArray(np.zeros((3, 1, 2, 2), np.uint8))}, "2 rows of labels and 3 images"),
        ({"class_names": ("c", "d")}, "has 1 label columns and 2 class names"),
        ({"labels": ((1,), (2,))}, "has a label 2; labels are 0 or 1"),
        ({"official": {"test": np.array([0])}}, "has a part 'test'"),
        ({"official": {"query": np.array([2])}}, "its query part names a row outside these"),
        ({"official": {"query": np.array([-1])}}, "its query part names a row outside these"),
    ],
)
def test_malformed_datasets(arguments, sentence):
    with pytest.raises(DataError) as caught:
        dataset(**arguments)
    one_sentence(caught, sentence)


# Fashion-MNIST


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, compress=True, train=4, test=3):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.full((count, 28, 28), count, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8))):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))


def test_fashion_mini_is_in_the_package():
    data = fashion_mini()
    assert data.images.images.shape == (10_000, 1, 28, 28)
    assert data.labels.sum(axis=0).tolist() == [1000] * 10
    assert (data.ids[0], data.ids[-1]) == ("test/00000", "test/09999")
    assert data.class_names[int(data.labels[0].argmax())] == "Ankle boot"
    assert data.official is None
    assert data.images.digest() == fashion_mini().images.digest()


def test_fashion_mini_loads_fast():
    fashion_mini()
    start = time.perf_counter()
    fashion_mini()
    assert time.perf_counter() - start < 3  # it takes a tenth of a second on an idle machine


@pytest.mark.parametrize("below", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_layouts(tmp_path, below, compress):
    write_fashion(tmp_path / below, compress)
    data = fashion_mnist(tmp_path, download=False)
    assert data.ids == [f"train/{n:05d}" for n in range(4)] + [f"test/{n:05d}" for n in range(3)]
    assert data.images.images[:, 0, 0, 0].tolist() == [4] * 4 + [3] * 3
    assert data.labels.argmax(axis=1).tolist() == [0, 1, 2, 3, 0, 1, 2]
    split = make_split("official", data, 0)
    assert (split.query.tolist(), split.train.tolist()) == ([4, 5, 6], [0, 1, 2, 3])


def test_order_of_places(tmp_path, monkeypatch, no_data_elsewhere):
    def found():
        return len(fashion_mnist(None, download=False))

    write_fashion(no_data_elsewhere / "cache" / "fashion_mnist", test=1)
    assert found() == 5
    write_fashion(no_data_elsewhere / "debian", test=2)
    assert found() == 6
    write_fashion(no_data_elsewhere / "data" / "fashion_mnist", test=3)
    assert found() == 7
    write_fashion(tmp_path / "fashion_mnist", test=4)
    monkeypatch.setenv("DEEPHASH_DATA_DIR", str(tmp_path))
    assert found() == 8


def test_missing_fashion_mnist(tmp_path):
    with pytest.raises(DataError) as caught:
        fashion_mnist(None, download=False)
    one_sentence(
        caught, "data/fashion_mnist", "debian", "cache/fashion_mnist", "dataset.root=<folder>", "dataset.download=true",
        "apt install dataset-fashion-mnist",
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        fashion_mnist(str(tmp_path / "typo"), download=False)
    one_sentence(caught, f"were not found in {tmp_path / 'typo'};")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not an IDX file of bytes in 3 dimensions"),
        (b"<html>not found</html>", "is not an IDX file"),
        (idx(np.zeros((2, 2), np.uint8)), "is not an IDX file of bytes in 3 dimensions"),
        (idx(np.zeros((2, 2, 2), np.uint8))[:-1], "should hold 2 x 2 x 2 bytes after its header but has 7"),
        (idx(np.zeros((2, 2, 2), np.uint8)) + b"x", "should hold 2 x 2 x 2 bytes after its header but has 9"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"x", "should hold 4294967295 x 4294967295 x 4294967295 bytes"),
        (bytes([0, 0, 8, 3]) + bytes(12), "should hold 0 x 0 x 0 bytes"),
    ],
)
def test_idx_sizes_are_exact(content, sentence):
    with pytest.raises(DataError) as caught:
        read_idx(content, "some-file", 3)
    one_sentence(caught, "some-file", sentence)


def test_idx_round_trip():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert (read_idx(idx(array), "some-file", 3) == array).all()


def test_damaged_fashion_mnist(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-20], b"", b"<html>", whole[:30] + bytes(5) + whole[35:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz .*download it again"):
            fashion_mnist(tmp_path, download=False)
    path.write_bytes(gzip.compress(idx(np.zeros((5, 28, 28), np.uint8))))
    with pytest.raises(DataError, match="expected images of 28 x 28 pixels and one label"):
        fashion_mnist(tmp_path, download=False)


def test_fashion_mnist_download_goes_to_the_root(tmp_path, monkeypatch):
    write_fashion(tmp_path / "server")

    def served(url, path, md5, max_bytes):
        assert len(md5) == 32
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "server" / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(fashion_mnist_module, "fetch", served)
    assert len(fashion_mnist(tmp_path / "root", download=True)) == 7
    assert len(fashion_mnist(tmp_path / "root", download=False)) == 7
    assert len(fashion_mnist(None, download=True)) == 7
    assert len(fashion_mnist(None, download=False)) == 7  # now in the cache


# CIFAR-10


def write_batches(folder, size=3, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        content = {
            "data": np.full((size, 3072), number, dtype=np.uint8),
            "labels": list(range(size)),
            "batch_label": "a batch",
            "filenames": [f"{n}.png" for n in range(size)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))


def write_cifar_folders(root, train=2, test=1):
    for part, count in (("train", train), ("test", test)):
        for number, name in enumerate(CLASS_NAMES):
            for at in range(count):
                picture(root / part / name / f"{at:04d}.png", number, side=32)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("below", [".", "cifar-10-batches-py"])
def test_cifar10_batches(tmp_path, below, protocol):
    write_batches(tmp_path / below, protocol=protocol)
    data = cifar10(tmp_path, download=False)
    assert len(data) == 18
    assert data.ids[:2] == ["train/00000", "train/00001"]
    assert data.ids[-1] == "test/00002"
    assert data.images.images.shape == (18, 3, 32, 32)
    assert data.images.images[::3, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.labels.argmax(axis=1).tolist() == [0, 1, 2] * 6
    assert data.official is not None
    assert {role: len(rows) for role, rows in data.official.items()} == {"train": 15, "query": 3, "database": 15}


def test_batches_written_by_python_2(tmp_path):
    # As in the published files: byte strings, numpy.core, and dtype's flags as integers, of which NumPy would warn.
    write_batches(tmp_path)
    data = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8)

    def text(value):
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"tR(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data.tobytes() + b"tb"
    )
    batch = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x09K\x08eu."
    (tmp_path / "test_batch").write_bytes(batch)
    loaded = cifar10(tmp_path, download=False)
    assert loaded.labels[-2:].argmax(axis=1).tolist() == [9, 8]
    assert (loaded.images.images[-2:].ravel() == data).all()


def test_cifar10_folders(tmp_path):
    write_cifar_folders(tmp_path)
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    data = cifar10(tmp_path, download=False)
    assert isinstance(data.images, ImageArray)
    assert len(data) == 30
    assert data.ids[:3] == ["train/airplane/0000", "train/airplane/0001", "train/automobile/0000"]
    assert data.ids[-1] == "test/truck/0000"
    assert data.images.images[:, 0, 0, 0].tolist() == data.labels.argmax(axis=1).tolist()
    split = make_split("official", data, 0)
    assert (len(split.query), len(split.train), len(split.database)) == (10, 20, 20)
    assert split.flags["duplicate_images"] == 20


def test_cifar10_folders_without_images(tmp_path):
    write_cifar_folders(tmp_path)
    (tmp_path / "test" / "frog" / "0000.png").unlink()
    with pytest.raises(DataError, match=r"test/frog holds no images"):
        cifar10(tmp_path, download=False)


def test_missing_cifar10(tmp_path):
    with pytest.raises(DataError) as caught:
        cifar10(None, download=False)
    one_sentence(
        caught,
        "data/cifar10",
        "cache/cifar10",
        "train/airplane",
        "data_batch_1",
        "dataset.root=",
        "dataset.download=true",
    )
    write_batches(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(DataError, match="neither as batches"):
        cifar10(tmp_path, download=False)


class Evil:
    """An example of what an untrusted pickle can do when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickle_does_nothing(tmp_path, protocol):
    mark = tmp_path / "the code ran"
    write_batches(tmp_path / "data")
    (tmp_path / "data" / "data_batch_2").write_bytes(pickle.dumps({"data": Evil(mark)}, protocol=protocol))
    with pytest.raises(DataError) as caught:
        cifar10(tmp_path / "data", download=False)
    one_sentence(caught, "data_batch_2 cannot be read as pickled arrays", "mkdir, which no array needs")
    assert not mark.exists()


GADGETS = {
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "getattr": b"cbuiltins\ngetattr\n.",
    "numpy_load": b"cnumpy\nload\n.",
    "numpy_dotted": b"\x80\x04\x8c\x05numpy\x8c\x0andarray.tofile\x93.",
    "ndarray_called": b"cnumpy\nndarray\n(I8\ntR.",
    "huge": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999999L\ntS'b'\ntR.",
    "object_dtype": b"cnumpy\ndtype\n(S'O8'\ntR.",
    "codec": b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pthing\n.",
    "cut": b"\x80\x02}",
    "empty": b"",
    "html": b"<html>",
    "number": b"I1\n.",
    "long_string": b"T\xff\xff\xff\x7fabc.",
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_pickles_that_are_no_batches(tmp_path, gadget):
    write_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(GADGETS[gadget])
    with pytest.raises(DataError) as caught:
        cifar10(tmp_path, download=False)
    one_sentence(caught, "test_batch", "get the file from its authors")


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.int16), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]},
        {"data": np.zeros((2, 3072), np.uint8)},
        [],
    ],
)
def test_batches_of_another_shape(tmp_path, content):
    write_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="test_batch is not a batch of CIFAR-10: expected rows of 3072 bytes"):
        cifar10(tmp_path, download=False)


def test_pickle_size_limit(tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps([1] * 100))
    assert read_pickle(tmp_path / "a", 10_000) == [1] * 100
    with pytest.raises(DataError, match="more than the 50 bytes expected"):
        read_pickle(tmp_path / "a", 50)


def test_cifar10_download(tmp_path, monkeypatch):
    write_batches(tmp_path / "server" / "cifar-10-batches-py")
    with tarfile.open(tmp_path / "server.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "server" / "cifar-10-batches-py", "cifar-10-batches-py")

    def served(url, path, md5, max_bytes, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "server.tar.gz").read_bytes())

    monkeypatch.setattr(download_module, "download", served)
    assert len(cifar10(None, download=True)) == 18
    assert len(cifar10(None, download=False)) == 18


# Image folders


def test_image_folder(tmp_path):
    picture(tmp_path / "shoe" / "b.png", 1)
    picture(tmp_path / "shoe" / "deeper" / "a.JPG", 2)
    picture(tmp_path / "bag" / "é x.png", 3)
    picture(tmp_path / ".hidden" / "x.png")
    picture(tmp_path / "bag" / ".hidden.png")
    picture(tmp_path / "bag" / "._é x.png")
    for name in ("bag/notes.txt", "bag/Thumbs.db", "shoe/deeper/drawing.svg", "README"):
        (tmp_path / name).write_text("")
    os.mkfifo(tmp_path / "bag" / "pipe.png")
    data = image_folder(str(tmp_path))
    assert data.ids == ["bag/é x.png", "shoe/b.png", "shoe/deeper/a.JPG"]
    assert data.class_names == ["bag", "shoe"]
    assert data.labels.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert data.images.batch(np.array([0, 1, 2]))[:, 0, 0, 0].tolist() == [3, 1, 2]
    reasons = dict(data.left_out)
    assert reasons == {
        ".hidden": "is hidden",
        "README": "has no image ending",
        "bag/._é x.png": "is hidden",
        "bag/.hidden.png": "is hidden",
        "bag/Thumbs.db": "is hidden",
        "bag/notes.txt": "has the ending .txt, which is not that of an image format that is read",
        "bag/pipe.png": "is not a file: opening it could wait for ever",
        "shoe/deeper/drawing.svg": "has the ending .svg, which is not that of an image format that is read",
    }
    assert describe_left_out(data.left_out, "list.csv") == (
        "left out 8 files: 4 hidden, 1 .png, 1 .svg, 1 .txt, 1 without ending; list.csv names each"
    )


def test_heic_is_read_or_listed_with_its_remedy(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"")
    monkeypatch.setattr(image_folder_module, "endings", lambda: decoding.ENDINGS)
    left_out = image_folder(tmp_path).left_out
    assert left_out == [("b.HEIC", "is a HEIC image, which needs another package: pip install 'deephash[heif]'")]
    assert describe_left_out(left_out) == "left out 1 file: 1 .heic; to read .heic: pip install 'deephash[heif]'"
    monkeypatch.setattr(image_folder_module, "endings", lambda: decoding.ENDINGS | decoding.HEIF_ENDINGS)
    assert image_folder(tmp_path).ids == ["a.png", "b.HEIC"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_without_labels(tmp_path, nested):
    below = "2024/may" if nested else "."
    for number in range(3):
        picture(tmp_path / below / f"{number}.png", number)
    data = folder_of_images(tmp_path, labels="none") if nested else image_folder(tmp_path)
    assert data.ids == [f"{'2024/may/' if nested else ''}{number}.png" for number in range(3)]
    assert data.labels.shape == (3, 0)
    assert data.class_names == []


def test_a_class_name_in_two_unicode_forms_is_one_class(tmp_path):
    for number, name in enumerate(("caf\u00e9", "cafe\u0301", "bar")):
        picture(tmp_path / name / f"{number}.png")
    data = image_folder(tmp_path)
    assert data.class_names == ["bar", "caf\u00e9"]
    assert data.labels.sum(axis=0).tolist() == [1, 2]


def test_large_images_stay_files(tmp_path):
    picture(tmp_path / "a" / "1.png", 1, side=100)
    picture(tmp_path / "b" / "1.png", 1, side=100)
    assert isinstance(image_folder(tmp_path).images, ImageFiles)


def test_links_that_lead_in_a_circle(tmp_path):
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert image_folder(tmp_path).ids == ["a/1.png"]
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="are the same file, in the classes a and b"):
        image_folder(tmp_path)


def test_links_to_the_same_folder_are_listed(tmp_path):
    picture(tmp_path / "a" / "x" / "1.png")
    (tmp_path / "a" / "y").symlink_to(tmp_path / "a" / "x")
    data = image_folder(tmp_path)
    assert data.ids == ["a/x/1.png"]
    assert data.left_out == [("a/y", "is a link to a folder that is read already")]


def test_a_broken_link_counts_as_an_image(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to("gone")
    data = image_folder(tmp_path)
    assert data.ids == ["1.png", "2.png"]
    with pytest.raises(DataError, match=r"2\.png cannot be read: it is a broken link to gone"):
        data.images.load(1, 8)


def test_a_file_that_is_linked_twice_is_one_image(tmp_path):
    write_photos(tmp_path, ("bag", "boot"), 3)
    (tmp_path / "bag" / "again.jpg").symlink_to("000.jpg")
    os.link(tmp_path / "boot" / "001.jpg", tmp_path / "boot" / "twice.jpg")
    for labels in ("folders", "none"):
        data = folder_of_images(tmp_path, labels)
        assert len(data) == 6
        assert dict(data.left_out) == {
            "bag/again.jpg": "is the same file as bag/000.jpg",
            "boot/twice.jpg": "is the same file as boot/001.jpg",
        }
    (tmp_path / "coat").symlink_to("bag")
    with pytest.raises(DataError, match="are the same file, in the classes bag and coat"):
        folder_of_images(tmp_path, "folders")


def test_runs_and_codes_beside_the_images_are_no_classes(tmp_path):
    """The folder of runs is often made in the folder of images, and has pictures of what was found."""
    write_photos(tmp_path, ("bag", "boot"), 3)
    for folder, record in (("runs/one", "run.json"), ("codes", "encode.json")):
        (tmp_path / folder / "codes").mkdir(parents=True)
        for name in (record, "config.yaml"):
            (tmp_path / folder / name).write_text("{}")
        shutil.copy(tmp_path / "bag" / "000.jpg", tmp_path / folder / "retrieval.jpg")
    data = folder_of_images(tmp_path, "folders")
    assert (len(data), data.class_names) == (6, ["bag", "boot"])
    assert [name for name, _ in data.left_out] == ["codes", "runs/one"]
    assert len(folder_of_images(tmp_path, "none")) == 6


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "secret" / "1.png")
    picture(tmp_path / "a" / "1.png")
    listed = os.scandir

    def refusing(path):  # as the superuser, tests could list any folder
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"folder .*a/secret cannot be listed: Permission denied; make it readable"):
        image_folder(tmp_path)


def test_image_folder_errors(tmp_path):
    with pytest.raises(DataError, match=r"needs dataset\.root=<folder>"):
        image_folder(None)
    with pytest.raises(DataError, match="none is not a folder"):
        image_folder(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"has no sub-folders and no image \(1 other files\)"):
        image_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.labels of an image folder must be folders or none, got all"):
        folder_of_images(tmp_path, labels="all")
    picture(tmp_path / "one.png")
    picture(tmp_path / "train" / "cat" / "1.png")
    picture(tmp_path / "test" / "cat" / "1.png")
    with pytest.raises(DataError, match="holds the folders test, train: these look like parts of a data set"):
        image_folder(tmp_path)
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"class folder .*/bag holds no image \(1 other files\)"):
        image_folder(tmp_path)
    picture(tmp_path / "bag" / "1.png")
    with pytest.raises(DataError, match=r"holds 1 images \(one\.png\) beside 3 sub-folders, .*dataset\.labels=none"):
        image_folder(tmp_path)
    assert len(folder_of_images(tmp_path, labels="none")) == 4


# List files


def write_lists(folder, **lists):
    for number in range(5):
        picture(folder / "images" / f"{number}.png", number)
    for name, content in lists.items():
        (folder / f"{name}.txt").write_bytes(content.encode() if isinstance(content, str) else content)


def lists(folder, *names):
    train, query, database = (*(f"{name}.txt" for name in names), None, None, None)[:3]
    return image_list(str(folder), train, query, database)


def test_list_files(tmp_path):
    write_lists(
        tmp_path,
        train="images/0.png 1 0\nimages/1.png 1 1\n",
        query="images/2.png 0 1\n",
        database="images/3.png 0 0\nimages/1.png 1 1\nimages/0.png 1 0\n",
    )
    data = lists(tmp_path, "train", "query", "database")
    assert data.ids == [f"images/{n}.png" for n in range(4)]
    assert data.labels.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]
    assert data.class_names == ["class 0", "class 1"]
    split = make_split("official", data, 0)
    assert (split.train.tolist(), split.query.tolist(), split.database.tolist()) == ([0, 1], [2], [0, 1, 3])
    assert split.flags["unlabelled_rows"] == {"query": 0, "train": 0, "database": 1}
    assert split.flags["label_kind"] == "multi"
    assert split.flags["database_contains_train"]
    assert make_split("official", lists(tmp_path, "train", "query"), 0).database.tolist() == [0, 1]


def test_list_files_with_bom_crlf_tabs_and_spaces(tmp_path):
    write_lists(
        tmp_path,
        train=b"\xef\xbb\xbfimages/0.png 1 0\r\nimages/my cat.png\t1\t1\r\nimages/1.png\t0 1  \r\n\r\n",
        query="images/2.png  0   1",
    )
    picture(tmp_path / "images" / "my cat.png")
    data = lists(tmp_path, "train", "query")
    assert data.ids == ["images/0.png", "images/my cat.png", "images/1.png", "images/2.png"]
    assert data.labels.tolist() == [[1, 0], [1, 1], [0, 1], [0, 1]]


def test_lists_beside_the_current_folder_or_the_root(tmp_path, monkeypatch):
    write_lists(tmp_path / "root", query="images/2.png 1")
    write_lists(tmp_path / "here", train="images/0.png 1")
    monkeypatch.chdir(tmp_path / "here")
    assert lists(tmp_path / "root", "train", "query").ids == ["images/0.png", "images/2.png"]


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (
            "images/0.png 1 0\nimages/1.png 1\n",
            "train.txt:2: expected 2 label columns, as in {folder}/train.txt:1, got 1",
        ),
        (
            "images/0.png 1 0\nimages/1.png 1 2\n",
            "train.txt:2: labels in 2 columns must be 0 or 1, or all -1 or 1, got '2'",
        ),
        (
            "images/0.png 1 -1\nimages/1.png 1 0\n",
            "train.txt:2: labels in 2 columns must be 0 or 1, or all -1 or 1, got '0', but other lines have -1",
        ),
        ("images/0.png 1.5 0\n", "train.txt:1: labels must be 0 or 1, or one class number, got '1.5'"),
        ("images/0.png nan 0\n", "train.txt:1: labels must be 0 or 1, or one class number, got 'nan'"),
        ("images/0.png 10 0\n", "train.txt:1: labels in 2 columns must be 0 or 1, or all -1 or 1, got '10'"),
        (
            "images/my cat.png 1 0\n",
            "1 of the images named do not exist under {folder}: images/my cat.png; set dataset.root to "
            "the folder that the paths start from, or bad_images=skip to leave them out (the first is in "
            "{folder}/train.txt:1), or put a tab after a path with spaces",
        ),
        ("images/0.png 1 x 0\n", "train.txt:1: labels must be 0 or 1, or one class number, got 'x'"),
        ("images/0.png, 1, 0\n", "train.txt:1: the columns are separated by commas"),
        ("images/0.png 1,0\n", "train.txt:1: the columns are separated by commas"),
        ("images/0.png cat\n", "got 'cat'; correct it, or give class names in a table with dataset=csv"),
        ("images/0.png,1,0\n", "train.txt:1: the columns are separated by commas; separate them by spaces"),
        ("image cat dog owl\nimages/0.png 1 0\n", "the header line names 3 classes (cat, dog, owl), but"),
        ("image\tcat\nimages/0.png\t1 0\n", "the header line names 1 classes (cat), but"),
        ("x" * 300 + ".jpg 0 1\n", "train.txt:1: the path 'xxx"),
        ("x\0.jpg 0 1\n", "train.txt:1: holds a NUL byte"),
        ("images 0 1\n", "train.txt:1: images is a folder, expected an image file"),
        (
            "images/0.png 1 0\n./images/0.png 1 0\n",
            "train.txt:2: ./images/0.png is already in line 1, where it is called images/0.png",
        ),
        ("./images/2.png 1 1\n", "query.txt:1: images/2.png has different labels in {folder}/train.txt:1"),
        ("images/0.png 1 0\n".encode("utf-16"), "train.txt is UTF-16 text, expected UTF-8"),
        ("images/0.png 1 0\n\nimages/1.png 1 0\n", "train.txt:2: the path is empty"),
        ("images/0.png 1 0\n\t1 0\n", "train.txt:2: the path is empty"),
        (" 1 0\n", "train.txt:1: the path is empty"),
        ("images/0.png\n", "train.txt:1: no labels after the path"),
        ("images/0.png 1 0\nimages/0.png 1 0\n", "train.txt:2: images/0.png is already in line 1"),
        ("images/2.png 1 1\n", "query.txt:1: images/2.png has different labels in {folder}/train.txt:1"),
        ("images/0.png 1 0 0\n", "query.txt:1: expected 3 label columns, as in {folder}/train.txt:1, got 2"),
        ("", "train.txt is empty"),
        (" \n\n", "train.txt is empty"),
        (b"images/0.png 1 0\nimages/\xff.png 1 0\n", "train.txt:2: not UTF-8 text"),
        (
            "".join(f"images/x{n}.png 1 0\n" for n in range(7)),
            "list files: 7 of the images named do not exist under {folder}: images/x0.png, images/x1.png, "
            "images/x2.png, images/x3.png, images/x4.png, ...; set dataset.root to the folder that the "
            "paths start from",
        ),
    ],
)
def test_malformed_lists(tmp_path, train, sentence):
    write_lists(tmp_path, train=train, query="images/2.png 0 1\n")
    with pytest.raises(DataError) as caught:
        lists(tmp_path, "train", "query")
    one_sentence(caught, sentence.replace("{folder}", str(tmp_path)))


def test_lists_that_are_not_there(tmp_path):
    write_lists(tmp_path, train="images/0.png 1")
    with pytest.raises(DataError, match=r"needs dataset\.train=<file>"):
        lists(tmp_path)
    with pytest.raises(DataError, match=r"needs dataset\.query=<file>"):
        lists(tmp_path, "train")
    with pytest.raises(DataError, match=r"dataset\.query=typo\.txt is not a file: found neither typo\.txt nor "):
        lists(tmp_path, "train", "typo")


def test_lists_with_class_numbers_headers_and_spaces(tmp_path):
    picture(tmp_path / "images" / "my cat.png")
    write_lists(
        tmp_path,
        train="images/0.png 0\nimages/1.png 9\nimages/my cat.png 3\n",
        query="images/2.png 0\nimages/3.png 1\n",  # only 0 and 1 here, but the lists are read together
    )
    data = lists(tmp_path, "train", "query")
    assert data.ids == ["images/0.png", "images/1.png", "images/my cat.png", "images/2.png", "images/3.png"]
    assert data.class_names == ["class 0", "class 1", "class 3", "class 9"]
    assert data.labels.argmax(axis=1).tolist() == [0, 3, 2, 0, 1]
    write_lists(
        tmp_path, train="image cat dog\rimages/0.png 1 -1\rimages/1.png -1 1\r", query="images/2.png 1.0 -1.0\n"
    )
    data = lists(tmp_path, "train", "query")
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_a_query_is_found_again_in_the_database(tmp_path):
    write_lists(
        tmp_path,
        train="images/0.png 1\n",
        query=f"images/1.png 1\n{tmp_path}/images/2.png 1\n",
        database="./images/0.png 1\nimages/../images/1.png 1.0\nlink.png 1\nimages/3.png 1\n",
    )
    (tmp_path / "link.png").symlink_to("images/2.png")
    data = lists(tmp_path, "train", "query", "database")
    assert data.ids == [f"images/{number}.png" for number in range(4)]
    split = make_split("official", data, 0)
    assert split.flags["query_in_database"] == 2
    assert split.database.tolist() == [0, 1, 2, 3]


def test_a_training_image_as_query_is_refused(tmp_path):
    write_lists(tmp_path, train="images/0.png 1\nimages/1.png 1", query="images/1.png 1")
    with pytest.raises(DataError, match=r"both query and training image: images/1\.png"):
        make_split("official", lists(tmp_path, "train", "query"), 0)


# Tables


def table(folder, content):
    write_lists(folder)
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_table(tmp_path):
    data = csv_table(
        None,
        table(
            tmp_path,
            b"\xef\xbb\xbfsplit,path,labels,remark\r\n"
            b'train;database,images/0.png,shoe; red,"x, y"\r\n'
            b"query,images/1.png,red,\r\ndatabase,images/2.png,,\r\n,images/3.png,bag,\r\n",
        ),
    )
    assert data.ids == [f"images/{n}.png" for n in range(4)]
    assert data.class_names == ["bag", "red", "shoe"]
    assert data.labels.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    split = make_split("official", data, 0)
    assert (split.train.tolist(), split.query.tolist(), split.database.tolist()) == ([0], [1], [0, 2])


@pytest.mark.parametrize(
    "content",
    [
        " Path , LABELS ,Split\n images/0.png , a , Train \n\nimages/1.png,a,QUERY\n,,\n",
        "label,split,path\ra,['train'],images/0.png\ra,query,images\\1.png\r",
        ",path,labels,split,,\n0,./images/0.png,a,train,,\n1,images/1.png,a,query,,\n",
    ],
)
def test_tables_as_other_programs_write_them(tmp_path, content):
    data = csv_table(None, table(tmp_path, content))
    assert data.ids == ["images/0.png", "images/1.png"]
    assert data.class_names == ["a"]
    split = make_split("auto", data, 0)
    assert (split.name, split.train.tolist(), split.query.tolist()) == ("official", [0], [1])


def test_table_without_labels(tmp_path):
    data = csv_table(None, table(tmp_path, "path,caption\nimages/0.png,one\nimages/1.png,two\n"))
    assert data.labels.shape == (2, 0)
    assert data.class_names == []
    assert data.reading == ("", "not used: column caption")


def test_table_without_split(tmp_path):
    path = table(tmp_path, "path,labels\n0.png,a\n1.png,a\n2.png,b\n")
    data = csv_table(tmp_path / "images", path)
    assert data.official is None
    assert make_split("auto", data, 0).name == "holdout"
    assert make_split("holdout", data, 0).flags["label_kind"] == "single"
    with pytest.raises(DataError, match="has no division of its own"):
        make_split("official", data, 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "the first line must name the columns, path and optionally labels and split, got ''"),
        (
            "name,labels\n",
            "the first line must name the columns, path and optionally labels and split, got 'name, labels'",
        ),
        ("file,labels\n", "table.csv: there is no column path, but a column file; rename it to path"),
        ("path,class\nimages/0.png,a\n", "there is no column labels, but a column class; rename it to labels"),
        ("path,labels,labels\nimages/0.png,a,b\n", "two columns are named labels: 'labels' and 'labels'"),
        ("path,labels,Label\nimages/0.png,a,b\n", "two columns are named labels: 'labels' and 'Label'"),
        ("path,labels,é,e\u0301\nimages/0.png,a,b,c\n", "two columns are named"),
        ("path;labels\nimages/0.png;a\n", "the columns are separated by ;, expected commas"),
        ("path\tlabels\nimages/0.png\ta\n", "the columns are separated by tabs, expected commas"),
        ("path,red,blue\nimages/0.png,0,1\n", "there is no column labels, and red, blue hold 0 or 1"),
        (
            "path,labels,fold\nimages/0.png,a,train\nimages/1.png,a,test\n",
            "the column fold holds test, train, but a division must be in the column split",
        ),
        (
            "path,labels\nimages/0.png,a\n./images/0.png,a\n",
            "table.csv:3: ./images/0.png is already in line 2, where it is called images/0.png",
        ),
        ("path,labels\nimages/" + "x" * 300 + ",a\n", "table.csv:2: the path 'images/xxx"),
        ("path,labels\nimages,a\n", "table.csv:2: images is a folder"),
        ('path,labels\n"images/\n0.png",a\n', "table.csv:3: the path 'images/ 0.png' has a line break in it"),
        ("path,labels\nimages/0.png," + "x" * 200_000 + "\n", "table.csv:2: cannot be read as a table: field larger"),
        ("path,labels\nimages/0.png,a\n".encode("utf-16"), "is UTF-16 text, expected UTF-8"),
        ("path,labels\n", "has no rows below its first line"),
        ("path,labels\nimages/0.png,a,b\n", "table.csv:2: expected 2 columns"),
        ("path,labels\nimages/0.png\n", "table.csv:2: expected 2 columns"),
        ("path,labels\nimages/0.png,a\n,b\n", "table.csv:3: the path is empty"),
        ("path,labels\nimages/0.png,a\nimages/0.png,b\n", "table.csv:3: images/0.png is already in line 2"),
        ("path,labels,split\nimages/0.png,a,test\n", "table.csv:2: split must be train, query or database, got 'test'"),
        ("path,labels\nimages/9.png,a\n", "table.csv: 1 of the images named do not exist under"),
        ('path,labels\n"images/0.png,a\n', "cannot be read as a table"),
        (b"path,labels\nimages/\xff.png,a\n", "table.csv:2: not UTF-8 text"),
    ],
)
def test_malformed_tables(tmp_path, content, sentence):
    path = table(tmp_path, content)
    with pytest.raises(DataError) as caught:
        csv_table(None, path)
    one_sentence(caught, sentence)


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"needs dataset\.file=<file\.csv>"):
        csv_table(None, None)
    with pytest.raises(DataError, match=r"dataset\.file=.*none\.csv does not exist"):
        csv_table(None, str(tmp_path / "none.csv"))
