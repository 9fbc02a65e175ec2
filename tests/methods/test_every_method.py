"""Tests that every method must pass. They run for each YAML in conf/method, so a new method needs no entry here."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import METHODS, QUICK, sampled, write_photos
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from deephash_cli import choices, methods
from deephash_cli.cli import arguments, checking
from deephash_cli.cli import main as cli
from deephash_cli.data.image_folder import image_folder
from deephash_cli.data.loaders import Batch
from deephash_cli.data.protocol import load_split
from deephash_cli.errors import ConfigError
from deephash_cli.files import read_json
from deephash_cli.methods.base import HashingModule
from deephash_cli.retrieval.codes_folder import load_codes, open_side
from deephash_cli.training.checkpoints import LAST, read_checkpoint
from deephash_cli.training.instantiate import build_module
from deephash_cli.training.saving import VerifiedCheckpointIO
from deephash_cli.training.targets import build

SETTINGS = (*QUICK, "bits=12", "loader.batch_size=16", "trainer.max_epochs=10", "model.backbone_lr=0.001")


def class_of(method):
    return get_class(OmegaConf.load(choices.CONF_DIR / "method" / f"{method}.yaml").module._target_)


LEARNED = [method for method in METHODS if issubclass(class_of(method), HashingModule)]


def compose(method, *overrides):
    return checking.check(
        "train", [arguments.normalize(text) for text in (f"method={method}", *SETTINGS, *overrides)], None, False
    )


def module_of(config, labels):
    """Return a module as a run builds it, but with other random weights."""
    torch.manual_seed(99)
    return build_module(config, build(config.model.network, bits=config.bits), labels)


class Trained(NamedTuple):
    """A run on tiny photos."""

    method: str
    photos: Path
    folder: Path
    code: int
    without_gradient: set[str]


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    method, place = request.param, tmp_path_factory.mktemp(request.param)
    photos, folder = write_photos(place / "photos"), place / "run"
    needed, received = set(), set()

    def note(module, optimizer):
        for name, weight in module.named_parameters():
            if weight.requires_grad:
                needed.add(name)
                if weight.grad is not None and weight.grad.any():
                    received.add(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        patch.setattr(HashingModule, "on_before_optimizer_step", note)
        settings = ("dataset=image_folder", f"dataset.root={photos}", f"run_dir={folder}")
        code = cli.run(["train", f"method={method}", *SETTINGS, *settings])
    if method in LEARNED:
        assert needed
    return Trained(method, photos, folder, code, needed - received)


every_method = pytest.mark.parametrize("trained", METHODS, indirect=True)
every_learned_method = pytest.mark.parametrize("trained", LEARNED, indirect=True)


def test_a_method_is_one_module_and_one_yaml_of_the_same_name():
    modules = {file.stem for file in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert modules == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_it_composes_and_builds(method):
    config = compose(method)
    assert config.method == method
    assert config.module._target_.startswith(f"deephash_cli.methods.{method}.")
    module = module_of(config, torch.eye(3)[torch.arange(30) % 3])
    assert type(module) is class_of(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_number_without_meaning_is_refused(method):
    """Weights, widths and numbers of rounds are not negative; the least cosine of a target is at least -1."""
    config = compose(method)
    labels = torch.eye(3)[torch.arange(30) % 3]
    network = build(config.model.network, bits=config.bits)
    for place in ("loss", "module"):
        for name, value in (config[place] or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            changed = OmegaConf.merge(config, {place: {name: -2}})
            with pytest.raises(ConfigError, match=f"^{place}: {name}.* must .*, got -2"):
                build(changed.loss) if place == "loss" else build_module(changed, network, labels)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_line_of_its_yaml_makes_it_a_bundle(method):
    # A comment above this line silently disables it, and then the method's loss and optimizer are not selected.
    text = (choices.CONF_DIR / "method" / f"{method}.yaml").read_text()
    assert text.startswith("# @package _global_\n")


@every_method
def test_it_runs_to_metrics_that_are_numbers(trained):
    assert trained.code == 0
    metrics = read_json(trained.folder / "metrics.json")
    assert metrics["method"] == trained.method
    assert metrics["bits"] == 12
    assert 0 < metrics["map"] <= 1
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert read_json(trained.folder / "run.json")["status"] == "finished"


@every_learned_method
def test_its_loss_falls(trained):
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-3:]) < losses[0]


@every_learned_method
def test_every_trainable_parameter_gets_a_gradient(trained):
    assert trained.without_gradient == set()


@pytest.mark.parametrize("method", sampled(LEARNED, 3))
def test_its_loss_mixes_no_devices(method):
    """With tensors that have no values and say that they are on a GPU, so that none is needed."""
    module = module_of(compose(method), torch.eye(3)[torch.arange(30) % 3])
    views = module.views
    with FakeTensorMode(shape_env=ShapeEnv()):
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        tensors[name] = nn.Parameter(moved) if tensors is part._parameters else moved
        n, shape = 16, (16,) if views == 1 else (16, 2)
        inputs, u = (torch.empty(*shape, width, device="cuda") for width in (module.network.backbone.num_features, 12))
        indices = torch.empty(n, dtype=torch.int64, device="cuda")
        terms = module.losses(u, Batch(inputs, torch.empty(n, 3, device="cuda"), indices))
        assert {value.device.type for value in terms.values()} == {"cuda"}


@pytest.mark.parametrize("trained", sampled(METHODS), indirect=True)
def test_its_checkpoint_makes_the_codes_of_the_run(trained, deephash, tmp_path):
    # The checkpoint holds all that the codes depend on: loaded over other random weights, it gives the same codes.
    config = compose(trained.method)
    data = image_folder(trained.photos)
    split = load_split(trained.folder / "split.json", data)
    labels = torch.from_numpy(data.labels).float()[split.train]
    module = module_of(config, labels)
    state = read_checkpoint(trained.folder / "checkpoints" / LAST)["state_dict"]
    module.load_state_dict(state)
    VerifiedCheckpointIO().save_checkpoint({"state_dict": module.state_dict()}, tmp_path / LAST)
    again = read_checkpoint(tmp_path / LAST)["state_dict"]
    assert again.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.items())

    data = ("dataset=image_folder", f"dataset.root={trained.photos}")
    result = deephash("encode", f"run={trained.folder}", *data, f"output={tmp_path / 'codes'}", "num_workers=0")
    assert (result.code, result.err) == (0, "")
    encoded = open_side(tmp_path / "codes")
    codes = dict(zip(encoded.ids, encoded.packed.tolist(), strict=True))
    for side in load_codes(trained.folder / "codes")[:2]:
        assert [codes[name] for name in side.ids] == side.packed.tolist()


@every_method
def test_its_codes_evaluate_to_the_same_digits(trained, deephash, tmp_path):
    result = deephash("eval", f"run={trained.folder}", f"output={tmp_path / 'again.json'}")
    assert (result.code, result.surprises) == (0, "")
    again = read_json(tmp_path / "again.json")
    again["ceiling"].pop("map_features", None)  # only eval measures it
    assert again == read_json(trained.folder / "metrics.json")


@pytest.mark.parametrize("method", sampled(METHODS))
def test_it_takes_items_with_several_labels_and_with_none(method, deephash, tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5, 32))
    labels = np.zeros((150, 5), np.uint8)
    for row, item in enumerate(labels[:140]):  # the last ten have no label
        item[[row % 5, rng.integers(5)]] = 1
    np.save(tmp_path / "x.npy", (labels @ centres + 0.5 * rng.standard_normal((150, 32))).astype(np.float32))
    np.save(tmp_path / "y.npy", labels)
    data = ("dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}", f"dataset.labels={tmp_path / 'y.npy'}")
    settings = ("bits=12", "trainer=cpu", "trainer.max_epochs=10", "loader.batch_size=32", "logger=none")
    result = deephash("train", f"method={method}", *data, *settings, f"run_dir={tmp_path / 'run'}")
    assert (result.code, result.surprises) == (0, "")
    metrics = read_json(tmp_path / "run" / "metrics.json")
    query, database, _ = load_codes(tmp_path / "run" / "codes")
    similar = query.labels.astype(int) @ database.labels.T > 0
    assert metrics["map"] > similar.mean()  # better than chance
