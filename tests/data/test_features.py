"""Features on disk: computed once, the same bytes after any interruption, and keyed by all that they depend on."""

import hashlib
import json
import threading

import mutations
import numpy as np
import pytest
import torch

from deephash_cli.cache import cache_folder
from deephash_cli.data import features
from deephash_cli.data.dataset import ImageArray, RetrievalDataset, multi_hot
from deephash_cli.data.features import cached_features, feature_key
from deephash_cli.errors import ArtifactError
from deephash_cli.models import HashingNetwork, SmallCNN, warn_if_slower
from deephash_cli.training.inputs import Computing, Loading, Source, batch_for

N, WIDTH = 25, 6
VALUES = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(features, "_FLUSH_ROWS", 10)


class Computer:
    """A stand-in for the backbone that records what it is asked for, and fails at a row if told to."""

    def __init__(self, dies_at=None, values=VALUES):
        self.asked = []
        self.dies_at = dies_at
        self.values = values

    def __call__(self, start, stop):
        if self.dies_at is not None and stop >= self.dies_at:
            raise KeyboardInterrupt
        self.asked.append((start, stop))
        return self.values[start:stop]


def compute(folder, computer, n=N, width=WIDTH, progress=lambda _: None):
    return cached_features(folder, n, width, computer, progress)


def test_features_are_computed_in_pieces_once_and_read_after_that(tmp_path):
    computer, seen = Computer(), []
    first = compute(tmp_path / "key", computer, progress=seen.append)
    assert computer.asked == [(0, 10), (10, 20), (20, 25)]
    assert seen == [0, 10, 20, 25]
    second = compute(tmp_path / "key", Computer(dies_at=0))
    rows = np.array([7, 0, 24, 7])
    for kept in (first, second):
        assert len(kept) == N
        assert kept.batch(rows).dtype == np.float32
        assert (kept.batch(rows) == VALUES.half().float()[rows].numpy()).all()


@pytest.mark.parametrize(("dies_at", "resumes_at"), [(5, 0), (15, 10), (25, 20)])
def test_an_interruption_costs_one_piece_and_changes_no_byte(tmp_path, dies_at, resumes_at):
    compute(tmp_path / "whole", Computer())
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cut", Computer(dies_at))
    assert not (tmp_path / "cut" / "features.npy").exists()
    computer = Computer()
    compute(tmp_path / "cut", computer)
    assert computer.asked[0][0] == resumes_at
    for name in ("features.npy", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["features.npy", "lock", "manifest.json"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("partial.npy", b""),
        ("partial.npy", b"no array"),
        ("partial.json", b""),
        ("partial.json", b"[]"),
        ("partial.json", b'{"rows": "many", "n": 25, "width": 6}'),
        ("partial.json", b'{"rows": 26, "n": 25, "width": 6}'),
        ("partial.json", b'{"rows": 10, "n": 25, "width": 6}'),  # of an earlier version: without a digest
        ("partial.json", b'{"rows": 10, "n": 24, "width": 6}'),
    ],
)
def test_a_damaged_half_is_started_again(tmp_path, file, content):
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, Computer(dies_at=15))
    (tmp_path / file).write_bytes(content)
    computer = Computer()
    kept = compute(tmp_path, computer)
    assert computer.asked[0] == (0, 10)
    assert (kept.batch(np.arange(N)) == VALUES.half().float().numpy()).all()


@pytest.mark.parametrize("number", range(5))
def test_a_flipped_bit_in_the_finished_part_is_not_kept(tmp_path, number):
    compute(tmp_path / "whole", Computer())
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cut", Computer(dies_at=15))
    done = json.loads((tmp_path / "cut" / "partial.json").read_text())["bytes"]
    mutations.flip(tmp_path / "cut" / "partial.npy", number, done)
    computer = Computer()
    compute(tmp_path / "cut", computer)
    assert computer.asked[0] == (0, 10)
    for name in ("features.npy", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_damage_while_the_features_are_computed_is_found_when_they_are_read(tmp_path):
    """The digest is that of what was computed, not of what is on the disk at the end."""

    class Damaging(Computer):
        def __call__(self, start, stop):
            if start == 20:
                mutations.flip_at(tmp_path / "partial.npy", 128 + 10)
            return super().__call__(start, stop)

    compute(tmp_path, Damaging())
    computer = Computer()
    kept = compute(tmp_path, computer)
    assert computer.asked[0] == (0, 10)
    assert (kept.batch(np.arange(N)) == VALUES.half().float().numpy()).all()


def test_a_half_of_another_size_is_started_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, Computer(dies_at=15))
    computer = Computer()
    assert len(compute(tmp_path, computer, n=20)) == 20
    assert computer.asked[0] == (0, 10)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "manifest", "no manifest"])
def test_damaged_features_are_computed_again(tmp_path, damage):
    compute(tmp_path, Computer())
    file, manifest = tmp_path / "features.npy", tmp_path / "manifest.json"
    good = file.read_bytes()
    if damage == "flip":
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "truncate":
        file.write_bytes(good[:-8])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(json.dumps({"n": N, "width": WIDTH, "sha256": "0" * 64}))
    else:
        manifest.unlink()
    computer = Computer()
    compute(tmp_path, computer)
    assert computer.asked[0] == (0, 10)
    assert file.read_bytes() == good


def test_two_at_a_time_compute_once(tmp_path):
    started, computer, results = threading.Event(), Computer(), []

    def slow(start, stop):
        started.set()
        return computer(start, stop)

    def work():
        results.append(compute(tmp_path, slow).batch(np.arange(N)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started.is_set()
    assert computer.asked == [(0, 10), (10, 20), (20, 25)]
    assert len(results) == 4
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_features_that_float16_cannot_hold_are_an_error(tmp_path, value):
    values = VALUES.clone()
    values[12, 3] = value
    with pytest.raises(ArtifactError, match=r"float16 cannot hold \(images 10 to 19\)"):
        compute(tmp_path, Computer(values=values))
    assert not (tmp_path / "features.npy").exists()
    assert np.isfinite(compute(tmp_path, Computer()).batch(np.array([12]))).all()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="could not store features in"):
        compute(tmp_path / "file" / "key", Computer())


# the key


def network(seed=0, image_size=16, **changes):
    torch.manual_seed(seed)
    settings = {
        "bits": 12, "mean": [0.5] * 3, "std": [0.5] * 3, "frozen": True, "frozen_norm": False,
        "standardize": True, "hidden_units": 4,
        "dropout": 0.0, "channels_last": False, "mirrored": False,
    }  # fmt: skip
    return HashingNetwork(SmallCNN(), image_size=image_size, **{**settings, **changes})


def data(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = multi_hot(np.arange(n) % 3, 3)
    return RetrievalDataset("data", [f"{i}" for i in range(n)], labels, list("abc"), ImageArray(pixels.numpy()))


def test_the_key_changes_with_weights_size_and_data():
    changed = data()
    changed.images.images[3, 0, 0, 0] ^= 1
    keys = {
        feature_key(net.backbone_digest(), images.images.digest())
        for net, images in [
            (network(), data()),
            (network(seed=1), data()),
            (network(image_size=17), data()),
            (network(mirrored=True), data()),
            (network(), changed),
            (network(), data(n=N - 1)),
        ]
    }
    assert len(keys) == 6


def test_the_key_is_the_same_for_every_method_length_and_head():
    assert feature_key(network().backbone_digest(), data().images.digest()) == feature_key(
        network(bits=24, hidden_units=0, standardize=False).backbone_digest(), data().images.digest()
    )


def test_the_precision_is_a_part_of_the_key_unless_it_is_the_one_that_earlier_versions_had():
    known = hashlib.sha256(b"float16 network data").hexdigest()[:32]
    assert feature_key("network", "data") == feature_key("network", "data", "fp32") == known
    assert feature_key("network", "data", "bf16") != known


def source(net, dataset=None, precision="fp32", batch_size=None):
    computing = Computing(precision, batch_size)
    return Source(dataset or data(), net, torch.device("cpu"), Loading(8, 4, 0, False), computing)


def test_features_in_bf16_are_near_the_others_and_are_kept_beside_them():
    exact, near = (source(network(), precision=precision).inputs.batch(np.arange(N)) for precision in ("fp32", "bf16"))
    assert not np.array_equal(exact, near)
    assert np.allclose(exact, near, atol=0.02 * np.abs(exact).max())  # bf16 has 8 bits
    assert np.array_equal(near, source(network(), precision="bf16").inputs.batch(np.arange(N)))
    assert len(list((cache_folder() / "features").iterdir())) == 2


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [4, 4, 2]), (3, [3, 3, 3, 1])])
def test_the_backbone_gets_as_many_images_at_once_as_the_setting_says(monkeypatch, batch_size, sizes):
    seen, net = [], network()
    monkeypatch.setattr(net.backbone, "forward", lambda x: seen.append(len(x)) or torch.zeros(len(x), 128))
    source(net, data(n=20), batch_size=batch_size)  # None: loader.eval_batch_size, on a CPU
    assert seen == 2 * sizes  # in two pieces of ten


@pytest.mark.parametrize(
    ("free", "side", "images"), [(80e9, 224, 512), (10e9, 224, 64), (10e9, 518, 16), (1e9, 224, 16)]
)
def test_on_a_gpu_the_batch_fits_its_free_memory(monkeypatch, free, side, images):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), int(90e9)))
    assert batch_for(torch.device("cuda"), side, 64) == images


@pytest.mark.parametrize("has", [True, False])
def test_bf16_on_a_processor_without_it_is_slower_and_a_line_says_so(monkeypatch, capsys, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has}, raising=False)
    warn_if_slower.cache_clear()
    source(network(), precision="bf16")
    source(network(seed=1), precision="bf16")
    assert capsys.readouterr().err.count("no instructions for bf16") == (0 if has else 1)
    warn_if_slower.cache_clear()


def test_a_source_gives_the_features_of_a_frozen_backbone_and_the_images_of_another():
    net = network()
    batch = next(iter(source(net).in_order(np.array([4, 2, 9]))))
    images = torch.from_numpy(data().images.batch(np.array([4, 2, 9])))
    assert torch.allclose(batch.inputs, net.eval().features(images), atol=1e-3)
    assert torch.allclose(net(batch.inputs), net(images), atol=1e-2)
    assert torch.equal(next(iter(source(network(frozen=False)).in_order(np.array([4, 2, 9])))).inputs, images)


def test_features_are_computed_as_in_evaluation_although_the_network_is_in_training_mode():
    # In training mode batch statistics would make a feature depend on the other images of its batch.
    net, twin = network(), network()
    twin.backbone.train()
    assert np.array_equal(source(twin).inputs.batch(np.arange(N)), source(net).inputs.batch(np.arange(N)))


def test_every_length_and_seed_shares_one_file():
    for net in (network(), network(bits=24)):
        source(net)
    assert len(list((cache_folder() / "features").iterdir())) == 1
    source(network(seed=1))
    assert len(list((cache_folder() / "features").iterdir())) == 2


def test_a_disk_without_room_is_said_before_the_first_feature(tmp_path):
    def compute(*_):
        raise AssertionError("nothing is computed")

    with pytest.raises(ArtifactError, match=r"the features of 1000000000000 images take 8000\.0 GB, but the disk with"):
        cached_features(tmp_path / "key", 10**12, 4, compute, lambda _: None)
