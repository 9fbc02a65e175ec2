"""Nested lengths: each learned method at several lengths of one network is the method at each length alone."""

import json
import os
import signal

import fitting
import numpy as np
import pytest
import torch
from conftest import METHODS, sampled
from torch import nn

from deephash_cli import runs
from deephash_cli.cli import checking
from deephash_cli.commands.methods import catalogue
from deephash_cli.data.loaders import Batch
from deephash_cli.errors import ConfigError
from deephash_cli.files import read_json
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.dhn import DHN
from deephash_cli.methods.parts.step_losses import LossSums
from deephash_cli.training import fit
from deephash_cli.training.checkpoints import LAST, batches_done, read_checkpoint
from deephash_cli.training.instantiate import build_module
from deephash_cli.training.nesting import FirstOutputs, Nested
from deephash_cli.training.targets import build

ENTRIES = {entry.name: entry for entry in catalogue(None)}
# What a transductive method learns for the database does not begin what it would learn for another length
LEARNED = [name for name in METHODS if ENTRIES[name].inputs == "images" and not ENTRIES[name].transductive]
LENGTHS = (3, 8, 12)
LABELS = torch.eye(3)[torch.arange(30) % 3]


@pytest.fixture
def vectors(tmp_path):
    """The beginning of a command that trains on 137 vectors of five classes, in nine batches."""
    x, labels = fitting.clusters(157, 16, 5)
    for name, array in (("x", x.astype(np.float32)), ("y", labels.astype(np.uint8))):
        np.save(tmp_path / f"{name}.npy", array)
    data = f"dataset=vectors dataset.vectors={tmp_path / 'x.npy'} dataset.labels={tmp_path / 'y.npy'}".split()
    return ("train", *data, "trainer=cpu", "logger=none", "checkpoint.every_seconds=0", "loader.batch_size=16")


def settings(*typed):
    return checking.train_settings("model=small_cnn", "model.image_size=16", "model.network.dropout=0.0", *typed)


def module(config, bits=None):
    torch.manual_seed(0)
    network = build(config.model.network, bits=bits or config.bits)
    return build_module(config, network, LABELS).eval()


@pytest.mark.parametrize("method", sampled(LEARNED))
def test_a_step_is_the_sum_of_the_losses_of_methods_built_alone(method):
    nested = module(settings(f"method={method}", "bits=12", "nested=[8,3]"))
    alone = {bits: module(settings(f"method={method}", f"bits={bits}")) for bits in LENGTHS}
    features = torch.randn(30, nested.network.backbone.num_features, generator=torch.Generator().manual_seed(1))
    for rows in (torch.arange(16), torch.arange(14, 30)):  # the second batch meets what the first left behind
        batch = Batch(features[rows], LABELS[rows], rows)
        torch.manual_seed(2)
        total = nested.training_step(batch, 0)
        torch.manual_seed(2)  # the views of methods with two of them are the same
        u, terms = nested._by_image(nested.network(nested._features(batch.inputs))), {}
        for bits, one in alone.items():
            one._seed_step(0)
            terms |= {f"{n}_{bits}": v for n, v in one.losses(u[..., :bits], batch).items()}
        sums = nested.loss_sums.state()
        assert sums.keys() == {*terms, "loss", "images"}
        assert total.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-6)
        assert {name: sums[name].item() for name in terms} == pytest.approx(
            {name: 16 * term.item() for name, term in terms.items()}, rel=1e-5
        )
        nested.loss_sums = LossSums()
    state = nested.state_dict()
    for bits, one in alone.items():
        for name, value in one.state_dict().items():
            if not name.startswith("network."):
                assert torch.allclose(state[f"bits_{bits}.{name}"], value, rtol=1e-6), name
    names = {name for name in state if not name.startswith("network.")}
    assert len(names) == sum(not name.startswith("network.") for one in alone.values() for name in one.state_dict())


def test_a_method_at_a_length_sees_a_network_of_that_length():
    nested = module(settings("bits=12", "nested=[3]"))
    first = nested.methods[3].network
    assert (first.bits, first.image_size) == (3, nested.network.image_size)
    x = torch.randn(2, nested.network.backbone.num_features)
    assert torch.equal(first(x), nested.network(x)[:, :3])
    first.train()
    assert nested.network.training
    assert not list(first.parameters())
    with pytest.raises(AttributeError, match="nothing_such"):
        first.nothing_such  # noqa: B018


def test_a_loss_that_refers_to_bits_gets_those_of_its_length(vectors, deephash, tmp_path):
    weight = "loss.quantization_weight=${bits}"
    config = settings("method=dhn", "bits=12", "nested=[3]", weight)
    for known in (config, fit.OmegaConf.create(fit._shared(config))):  # the second is that of further processes
        losses = {bits: method.loss for bits, method in module(known).methods.items()}
        assert {bits: loss.quantization_weight for bits, loss in losses.items()} == {3: 3, 12: 12}


class OwnStep(DHN):
    def configure_optimizers(self):
        return super().configure_optimizers()


def test_a_method_that_does_more_than_its_losses_is_refused():
    network = fitting.network_on(8, 12)
    method = fitting.learned(OwnStep, FirstOutputs(network, 3), nn.Identity(), LABELS)
    with pytest.raises(ConfigError, match="but OwnStep has configure_optimizers of its own: leave out nested"):
        fitting.learned(lambda loss, **parts: Nested({3: method}, **parts), network, None, LABELS)  # noqa: ARG005


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["bits=16", "nested=[8,16]"], "nested=[8,16] must be lengths below bits=16, each of them once"),
        (["bits=16", "nested=[8,8]"], "nested=[8,8] must be lengths below bits=16, each of them once"),
        (["bits=16", "nested=[0]"], "nested must be a list of whole numbers, at least 1"),
        (["bits=16", "nested=8"], "nested must be a list"),
        (["bits=16", "nested=[8]", "method=itq"], "nested=[8]: method=itq is fitted in one step"),
    ],
)
def test_what_cannot_be_nested_is_refused_in_one_sentence(deephash, typed, sentence):
    result = deephash("train", *typed)
    assert result.code == 2
    assert sentence in result.err
    assert result.err.count("\n") == 1


# runs


def lines(folder):
    """The lines of the record without the times."""
    read = [json.loads(line) for line in (folder / runs.STEPS).read_text().splitlines()]
    return [[entry for entry in line.items() if not entry[0].startswith("time")] for line in read]


def interrupt(monkeypatch, epoch, batch):
    start = HashingModule.on_train_batch_start

    def hook(method, data, number):
        if isinstance(method, Nested) and (method.current_epoch, number) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGINT)
        return start(method, data, number)

    monkeypatch.setattr(HashingModule, "on_train_batch_start", hook)


@pytest.mark.parametrize(
    "typed",
    [
        ("method=dsdh", "validation.queries=8", "ema.decay=0.9", "module.buffer_init=first_pass"),
        *(
            pytest.param((f"method={name}",), marks=pytest.mark.slow)
            for name in LEARNED
            if name != "dsdh"
        ),
    ],
    ids=lambda typed: typed[0],
)  # fmt: skip
def test_a_run_goes_on_within_an_epoch_and_prefixes_have_its_numbers(vectors, deephash, tmp_path, monkeypatch, typed):
    before = signal.getsignal(signal.SIGINT)
    command = (*vectors, *typed, "bits=12", "nested=[3,8]", "trainer.max_epochs=2")
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert deephash(*command, f"run_dir={whole}").code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 1, 1)
        assert deephash(*command, f"run_dir={again}").code == 130
    signal.signal(signal.SIGINT, before)
    assert batches_done(read_checkpoint(again / runs.CHECKPOINTS / LAST)) == 2
    assert deephash(*command, f"run_dir={again}", "resume=auto").code == 0
    for file in (*(whole / runs.CODES).iterdir(), whole / runs.METRICS):
        assert (again / file.relative_to(whole)).read_bytes() == file.read_bytes(), file.name
    assert lines(again) == lines(whole)
    logged = dict(lines(whole)[-1])
    terms = [name for name in logged if name.startswith("train/") and name.endswith("_12")]
    assert terms
    assert {name.replace("_12", f"_{bits}") for name in terms for bits in LENGTHS} <= logged.keys()
    assert ("codes/classification_3" in logged) == (typed[0] == "method=dsdh")

    metrics = read_json(whole / runs.METRICS)
    assert metrics["nested"].keys() == {"3", "8"}
    for bits, source in ((3, f"run={whole}"), (8, f"codes={whole / runs.CODES}")):
        result = deephash("eval", source, f"code_bits={bits}", "prefix=true", f"output={tmp_path / f'{bits}.json'}")
        assert result.code == 0
        assert "were not trained" not in result.err
        found = read_json(tmp_path / f"{bits}.json")
        assert {name: found[name] for name in metrics["nested"][str(bits)]} == metrics["nested"][str(bits)]
        assert (found["bits"], found["prefix_of"]) == (bits, 12)
