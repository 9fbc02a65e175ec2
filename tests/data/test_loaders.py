"""Batches: an order that (seed, epoch) decides, each row once, positions that index the training set."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import QUICK, write_photos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from deephash_cli.data import loaders
from deephash_cli.data.dataset import ImageArray, ImageFiles
from deephash_cli.data.decoding import ImageError
from deephash_cli.data.loaders import (
    Batch,
    EpochSampler,
    Loader,
    Rows,
    encode_loader,
    lost_workers_explained,
    train_loader,
    worker_count,
)
from deephash_cli.data.preprocessing import central_square
from deephash_cli.errors import ConfigError, DataError


def epoch(sampler, number):
    sampler.set_epoch(number)
    return [batch.tolist() for batch in sampler]


@given(n=st.integers(2, 70), batch_size=st.integers(2, 20), seed=st.integers(0, 2**31 - 1))
def test_each_row_comes_once_an_epoch_and_no_batch_has_one_row(n, batch_size, seed):
    sampler = EpochSampler(n, batch_size, seed)
    batches = epoch(sampler, 0)
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    assert len(batches) == len(sampler)
    assert all(2 <= len(batch) <= batch_size + 1 for batch in batches)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (5, 4, [5]), (2, 2, [2])],
)
def test_a_last_batch_of_one_is_joined_to_the_one_before(n, batch_size, sizes):
    # Batch normalization raises on a batch of one; dropping it instead would leave a row of DPSH's buffer stale.
    assert [len(batch) for batch in EpochSampler(n, batch_size, 0)] == sizes


def test_the_order_depends_on_seed_and_epoch_alone():
    one = EpochSampler(30, 8, seed=5)
    orders = [epoch(one, number) for number in range(4)]
    np.random.seed(0)  # noqa: NPY002  the global generators must not matter
    torch.manual_seed(0)
    assert epoch(EpochSampler(30, 8, seed=5), 3) == orders[3]  # nor must earlier iterations
    assert epoch(one, 1) == orders[1]
    other = epoch(EpochSampler(30, 8, seed=6), 0)
    assert len({str(order) for order in [*orders, other]}) == 5


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_make_no_pair(n):
    with pytest.raises(DataError, match=rf"the training set has {n} image\(s\) but pairs need at least two"):
        EpochSampler(n, 8, 0)


@pytest.mark.parametrize(("n", "batch_size", "parts"), [(8, 1, 1), (8, 3, 2), (3, 8, 2)])
def test_a_batch_without_two_images_for_each_process_is_refused(n, batch_size, parts):
    with pytest.raises(ConfigError, match=rf"each of {parts} devices needs 2 .* got batches of {min(n, batch_size)}"):
        EpochSampler(n, batch_size, 0, 0, parts)


@pytest.mark.parametrize(("n", "sizes"), [(30, [8, 8, 8, 6]), (27, [8, 8, 11]), (29, [8, 8, 8, 5])])
def test_the_parts_of_a_batch_are_the_batch(n, sizes):
    # a last batch of 3 has no two images for each of two processes
    parts = [epoch(EpochSampler(n, 8, 5, part, 2), 1) for part in range(2)]
    together = [[*one, *other] for one, other in zip(*parts, strict=True)]
    assert [len(batch) for batch in together] == sizes
    assert min(len(batch) for part in parts for batch in part) >= 2
    assert sorted(position for batch in together for position in batch) == list(range(n))
    if sizes[-1] < 8:
        assert together == epoch(EpochSampler(n, 8, 5), 1)


@pytest.fixture
def rows():
    """Rows 3, 5, 6, 9 of ten images; image i is filled with i and has label i."""
    pixels = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 1, 2, 2))
    return Rows(ImageArray(pixels), torch.eye(10), np.array([3, 5, 6, 9]))


def test_indices_are_positions_in_the_set_that_is_gone_over(rows):
    # DPSH's buffer and train_labels have one row for each of these, not for each row of the data set.
    batches = list(train_loader(rows, 2, seed=0, num_workers=0, pin_memory=False))
    assert len(batches) == 2
    for batch in batches:
        assert isinstance(batch, Batch)
        expected = torch.tensor([3, 5, 6, 9])[batch.indices]
        assert torch.equal(batch.inputs[:, 0, 0, 0].long(), expected)
        assert torch.equal(batch.labels.argmax(1), expected)
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 4), (3, [3, 1]), (4, [4]), (9, [4])])
def test_encoding_goes_in_order_and_keeps_a_last_batch_of_one(rows, batch_size, sizes):
    batches = list(encode_loader(rows, batch_size, num_workers=0, pin_memory=False))
    assert [len(batch.indices) for batch in batches] == sizes
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3]
    assert torch.cat([batch.labels for batch in batches]).argmax(1).tolist() == [3, 5, 6, 9]


def test_worker_processes_give_the_same_batches(rows):
    alone, helped = (list(train_loader(rows, 2, seed=1, num_workers=n, pin_memory=False)) for n in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("setting", "cores", "launched", "expected"),
    [("auto", 4, {}, 4), ("auto", 64, {}, 16), ("auto", 8, {"LOCAL_WORLD_SIZE": "4"}, 2),
     ("auto", 2, {"LOCAL_WORLD_SIZE": "4"}, 1), (0, 4, {}, 0), (40, 4, {"LOCAL_WORLD_SIZE": "4"}, 40)],
)  # fmt: skip
def test_workers_by_cores(monkeypatch, setting, cores, launched, expected):
    monkeypatch.setattr(loaders, "usable_cores", lambda: cores)
    for name, value in ({"TORCHELASTIC_RUN_ID": "x", **launched} if launched else {}).items():
        monkeypatch.setenv(name, value)
    assert worker_count(setting) == expected


class Failing(Dataset):
    """Four batches, the third of which goes wrong in a worker process."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 4

    def __getitem__(self, number):
        if number == 2 and get_worker_info() is not None:
            self.fail()
        return [torch.full((2,), number)]


def loader(dataset, workers=1, size=0):
    return Loader(dataset, range(4), workers, "loader.num_workers", size, pin_memory=False)


def refuse():
    raise ImageError("image a.jpg cannot be read: it is empty; replace or remove the file", "cannot be read")


def test_an_error_in_a_worker_is_raised_as_it_is():
    with pytest.raises(ImageError) as caught:
        list(loader(Failing(refuse)))
    assert str(caught.value) == "image a.jpg cannot be read: it is empty; replace or remove the file"
    assert caught.value.reason == "cannot be read"


@pytest.mark.parametrize("how", ["(pid 12) is killed by signal: Killed. ", "(pid(s) 12) exited unexpectedly"])
def test_a_killed_worker_is_one_sentence(how):
    # no worker is killed here: the handler of torch would raise anywhere in this process
    sentence = "was killed, often because memory ran out: lower num_workers or the batch"
    with pytest.raises(ConfigError, match=sentence), lost_workers_explained("num_workers"):
        raise RuntimeError(f"DataLoader worker {how}")
    with pytest.raises(RuntimeError, match="something else"), lost_workers_explained("num_workers"):
        raise RuntimeError("something else")


@pytest.mark.slow
def test_a_process_ends_soon_after_an_error_in_a_worker():
    program = """
from deephash_cli.data.loaders import Loader
from deephash_cli.errors import DataError
from torch.utils.data import Dataset
class Failing(Dataset):
    def __len__(self): return 4
    def __getitem__(self, key): raise DataError("no such image")
try:
    list(Loader(Failing(), range(4), 2, "num_workers", 0, pin_memory=False))
except DataError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "no such image\n"


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_training_in_one_sentence(tmp_path):
    """In a process of its own, because the handler of torch raises anywhere in the process."""
    photos = write_photos(tmp_path / "photos")
    for file in photos.rglob("*.jpg"):
        Image.open(file).resize((96, 96)).save(file)  # too large to be held in memory
    program = """
import os, sys
from torch.utils.data import get_worker_info
from deephash_cli.cli import main
from deephash_cli.data.dataset import ImageFiles
read = ImageFiles.batch
def batch(images, rows):
    if get_worker_info() is not None:
        os.kill(os.getpid(), 9)
    return read(images, rows)
ImageFiles.batch = batch
sys.exit(main.run(sys.argv[1:]))
"""
    settings = ["dataset=image_folder", f"dataset.root={photos}", *QUICK, "loader.num_workers=2", "bits=8"]
    command = [sys.executable, "-c", program, "train", *settings, f"run_dir={tmp_path / 'run'}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2, result
    assert "error: a worker process that decodes images was killed, often because memory ran out" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_worker_that_hangs_is_one_sentence(monkeypatch):
    monkeypatch.setattr(loaders, "PATIENCE", 1)
    with pytest.raises(ConfigError, match=r"gave no batch for 1 seconds: .* or set loader\.num_workers=0"):
        list(loader(Failing(lambda: time.sleep(4))))


def test_batches_that_shared_memory_has_no_room_for_are_made_here(monkeypatch, capsys):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    loaders._warn_once.cache_clear()
    assert [batch[0].tolist() for batch in loader(Failing(lambda: None))] == [[n, n] for n in range(4)]
    assert capsys.readouterr().err.count("shared memory (/dev/shm) is full") == 1


@pytest.mark.parametrize(("free", "workers", "prefetched"), [(600, 2, 2), (400, 2, 1), (300, 1, 1), (200, 0, None)])
def test_as_many_workers_as_shared_memory_has_room_for(monkeypatch, capsys, free, workers, prefetched):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=2**20))
    loaders._warn_once.cache_clear()
    made = loader(Failing(lambda: None), workers=2, size=100 * 2**20)
    assert (made.num_workers, made.prefetch_factor) == (workers, prefetched)
    said = capsys.readouterr().err
    assert ("has no room for batches of 100 MiB from loader.num_workers=2 workers" in said) == (workers < 2)


def test_the_size_of_a_batch_is_that_of_decoded_files(tmp_path, rows):
    assert rows.batch_bytes(8) == 0  # nothing is decoded
    files = Rows(ImageFiles([tmp_path / "a.png"], tmp_path, central_square(10)), torch.zeros(1, 5), np.array([0]))
    assert files.batch_bytes(8) == 8 * (300 + 20)


def test_an_interrupted_epoch_is_continued_after_its_finished_batches():
    whole = EpochSampler(30, 8, seed=5)
    orders = [epoch(whole, number) for number in range(3)]
    continued = EpochSampler(30, 8, seed=5)
    continued.continue_at(epoch=1, batches=2)
    assert len(continued) == len(whole)  # the length of an epoch decides the schedule
    assert epoch(continued, 1) == orders[1][2:]
    assert [epoch(continued, number) for number in (0, 2)] == [orders[0], orders[2]]
