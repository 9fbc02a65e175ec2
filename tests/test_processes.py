"""Several processes give the same result as a single one: the same steps and codes, and each image once."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import METHODS, write_photos

from deephash_cli import choices, processes
from deephash_cli.errors import DeephashError
from deephash_cli.files import read_json
from deephash_cli.retrieval.codes_folder import load_codes
from deephash_cli.runs import CHECKPOINTS, CODES
from deephash_cli.training.checkpoints import LAST, read_checkpoint

LEARNED = [name for name in METHODS if (choices.CONF_DIR / "loss" / f"{name}.yaml").exists()]
COMMON = ("trainer=cpu", "logger=none", "checkpoint.every_seconds=0", "bits=12", "loader.num_workers=0")


@pytest.fixture
def vectors(tmp_path):
    """Settings of a data set of 157 vectors of five kinds in 16 dimensions."""
    rng = np.random.default_rng(0)
    kinds = np.arange(157) % 5
    np.save(tmp_path / "x.npy", (rng.normal(size=(5, 16))[kinds] * 1.5 + rng.normal(size=(157, 16))).astype(np.float32))
    np.save(tmp_path / "y.npy", kinds)
    return ("dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}", f"dataset.labels={tmp_path / 'y.npy'}")


def together_and_alone(deephash, tmp_path, *settings):
    """Train twice with the same settings, with two processes and with one; return both run folders."""
    folders = []
    for devices in (2, 1):
        folder = tmp_path / f"by-{devices}"
        result = deephash("train", *COMMON, *settings, f"trainer.devices={devices}", f"run_dir={folder}")
        assert result.code == 0, result.err
        folders.append(folder)
    return folders


def state(folder):
    return read_checkpoint(folder / CHECKPOINTS / LAST)["state_dict"]


def logged(folder, name):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def assert_same(two, one, least=0.5):
    """Compare buffers, weights, losses, codes and metrics, up to differences from the order of sums."""
    ours, expected = state(two), state(one)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(ours[name].double(), tensor.double(), rtol=1e-4, atol=1e-4), name
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-4)
    assert logged(two, "validation/map") == pytest.approx(logged(one, "validation/map"), abs=1e-6)
    for mine, its in zip(load_codes(two / CODES)[:2], load_codes(one / CODES)[:2], strict=True):
        assert mine.ids == its.ids  # each image once, at its position
        assert np.array_equal(mine.packed, its.packed)
        assert np.allclose(mine.u, its.u, rtol=2e-3, atol=1e-3)  # float16, of weights that differ by 1e-4
    measured = [read_json(folder / "metrics.json") for folder in (two, one)]
    assert measured[0]["map"] == measured[1]["map"] > least
    assert measured[0]["precision_at_k"] == measured[1]["precision_at_k"]


def test_buffers_codes_and_classifier_are_those_of_one_process(deephash, tmp_path, vectors):
    # 157 vectors less 16 queries and 7 validation queries: the last batch and the parts that the two processes encode
    # have uneven lengths
    settings = ("method=dsdh", "trainer.max_epochs=4", "loader.batch_size=33", "validation.queries=7")
    two, one = together_and_alone(deephash, tmp_path, *vectors, *settings)
    assert {"u_buffer", "b_buffer", "w_buffer", "network.hidden.0.running_var"} <= state(one).keys()
    assert torch.equal(state(two)["b_buffer"], state(one)["b_buffer"])
    assert_same(two, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [*LEARNED, "dsdh nested=[5]", "greedyhash nested=[5]", "bihalf nested=[5]", "mdsh module.pairs_from_epoch=1"],
)
def test_every_deep_method_is_that_of_one_process(deephash, tmp_path, vectors, method):
    settings = (*f"method={method}".split(), "trainer.max_epochs=3", "loader.batch_size=33", "validation.queries=7")
    own = (choices.CONF_DIR / "method" / f"{method.split()[0]}.yaml").read_text()
    has_views = "override /augment" in own
    if has_views:  # each process draws the random changes of its own images
        settings += ("augment.dropout=[0,0]",)
    # Two equal views teach little: more than the share of each of the five kinds
    assert_same(*together_and_alone(deephash, tmp_path, *vectors, *settings), least=0.2 if has_views else 0.5)


@pytest.mark.slow
def test_images_heads_and_averages_too(deephash, tmp_path):
    photos = write_photos(tmp_path / "photos")
    settings = (
        "dataset=image_folder", f"dataset.root={photos}", "model=small_cnn", "model.image_size=16", "head.epochs=2",
        "model.network.frozen_norm=true", "model.network.standardize=true", "augment=none", "ema.decay=0.9",
        "module.buffer_init=first_pass", "loader.batch_size=16", "trainer.max_epochs=2", "validation.queries=6",
        "optimizer=sgd",  # AdamW takes full-size steps even if a gradient is only rounding error
    )  # fmt: skip
    assert_same(*together_and_alone(deephash, tmp_path, *settings))


@pytest.mark.slow
def test_a_backbone_that_learns_gives_each_process_the_features_of_all_images(deephash, tmp_path):
    settings = (
        "dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}", "model=small_cnn",
        "model.image_size=16", "model.frozen=false", "model.network.frozen_norm=true", "augment=none", "method=bihalf",
        "loader.batch_size=13", "trainer.max_epochs=2", "validation.queries=6", "optimizer=sgd",
    )  # fmt: skip
    assert_same(*together_and_alone(deephash, tmp_path, *settings))


@pytest.mark.slow
def test_a_sweep_works_in_processes_and_classic_methods_do_not(deephash, tmp_path, vectors):
    result = deephash(
        "train",
        "-m",
        *COMMON,
        *vectors,
        "method=dhn,itq",
        "trainer.devices=2",
        f"runs={tmp_path}",
        "trainer.max_epochs=1",
    )
    assert result.code == 0, result.err
    assert result.out.count("run folder") == 2


@pytest.mark.slow
def test_two_machines_of_torchrun_are_one_process(deephash, tmp_path, vectors):
    """Two torchrun agents on this machine stand for two machines; they do not know that they share one."""
    settings = (*COMMON, *vectors, "method=dsdh", "trainer.max_epochs=3", "loader.batch_size=33")
    assert deephash("train", *settings, f"run_dir={tmp_path / 'by-1'}").code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "main.py").write_text("from deephash_cli.cli.main import main; main()")

    def start(node, *more):
        options = ("--nnodes=2", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}")
        verb = ("train", *settings, "trainer.num_nodes=2", f"run_dir={tmp_path / 'by-2'}", *more)
        call = (sys.executable, "-m", "torch.distributed.run", *options, str(tmp_path / "main.py"), *verb)
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for more in ((), ("resume=auto",)):  # the second time, the run is already done, and both processes must still end
        nodes = [start(node, *more) for node in (1, 0)]
        told = [node.communicate(timeout=120)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], told
        assert "map" in told[1]
        assert "map" not in told[0]  # only one of them prints
    assert_same(tmp_path / "by-2", tmp_path / "by-1")


def test_a_trainer_of_ones_own_need_not_name_devices(deephash, tmp_path, vectors):
    (tmp_path / "conf" / "trainer").mkdir(parents=True)
    settings = "trainer:\n  _target_: pytorch_lightning.Trainer\n  accelerator: cpu\n  max_epochs: 3\n"
    (tmp_path / "conf" / "trainer" / "mine.yaml").write_text("# @package _global_\n" + settings)
    own = (*COMMON[1:], *vectors, "trainer=mine", f"run_dir={tmp_path / 'run'}", "--config-dir", str(tmp_path / "conf"))
    result = deephash("train", "method=itq", *own)
    assert result.code == 0, result.err


def test_a_run_that_another_program_has_multiplied_is_refused(deephash, vectors, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = deephash("train", *COMMON, *vectors, "method=dhn")
    assert result.code == 2
    assert "leave out torchrun" in result.err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    result = deephash("train", "-m", *COMMON, *vectors, "method=dhn,dpsh")
    assert result.code == 2
    assert "torchrun starts the processes of one run" in result.err


@pytest.mark.slow
def test_the_others_end_with_the_first(tmp_path, vectors):
    command = ["train", *COMMON, *vectors, "method=dhn", "trainer.devices=2", "trainer.max_epochs=100000"]
    environment = {**os.environ, "DEEPHASH_CACHE_DIR": str(tmp_path / "cache")}
    script = "from deephash_cli.cli.main import main; main()"
    first = subprocess.Popen([sys.executable, "-c", script, *command, f"run_dir={tmp_path / 'run'}"], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (other,) = _children(first.pid)
    first.kill()
    first.wait()
    while _alive(other):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_more_processes_than_queries_are_refused(deephash, vectors):
    result = deephash("train", *COMMON, *vectors, "method=dhn", "trainer.devices=3", "validation.queries=2")
    assert result.code == 2
    assert "each of 3 devices needs at least one image of the queries, of the database" in result.err
    assert "but the smallest of these has 2" in result.err


def test_a_process_that_falls_down_is_named(tmp_path):
    dies = [sys.executable, "-c", "import sys; sys.exit(7)"]
    with (
        pytest.raises(DeephashError, match=r"process 1 of 2 .* exit code 7"),
        processes.team(2, torch.device("cpu"), dies, "task"),
    ):
        pass
    assert not torch.distributed.is_initialized()
    assert "LOCAL_RANK" not in os.environ


def _children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("n", "parts"), [(7, 2), (2, 3), (9, 3), (0, 2)])
def test_shares_are_all_rows_in_order_and_of_lengths_that_differ_by_one_at_most(n, parts):
    shares = [processes.share(np.arange(n), part, parts) for part in range(parts)]
    assert np.concatenate(shares).tolist() == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_as_it_is():
    x = torch.ones(3, 2, requires_grad=True)
    assert processes.of_all(x) is x
    assert processes.sum_of_all(x) is x
    assert processes.from_first("x") == "x"
    assert processes.own_share([1, 2, 3]) == [1, 2, 3]
    assert (processes.rank(), processes.count()) == (0, 1)
