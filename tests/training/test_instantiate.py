"""A run is built again from its own folder: without the hub, without a folder of weights, without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import digests
import fitting
import hub
import numpy as np
import pytest
import yaml
from conftest import QUICK, sampled, write_photos

from deephash_cli import runs
from deephash_cli.errors import ArtifactError
from deephash_cli.files import read_sealed
from deephash_cli.inference.encoder import load_encoder
from deephash_cli.retrieval.codes_folder import MANIFEST

DINO2, DINO3, CLIP, SIGLIP, VIT, CONVNEXT, LITE0, RESNET = hub.FAMILIES
TIMM = (
    "model=timm", "model.image_size=56", "bits=12", "gallery=false",
    *(word for word in QUICK if not word.startswith(("model", "trainer.max"))),
)  # fmt: skip
DPSH = ("method=dpsh", "scheduler=constant")


@pytest.fixture
def data(tmp_path):
    return ["dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}", *TIMM]


def codes(run):
    return [np.load(run / runs.CODES / f"{part}.npy") for part in ("query", "database")]


def damaged_weights(folder):
    """Weights of another network in the place of those that a run was trained with: a run must not look at them."""
    shutil.rmtree(folder)
    hub.save(folder, "resnet10t.c3_in1k")


@pytest.mark.parametrize("name", sampled(hub.FAMILIES, len(hub.FAMILIES)))
def test_a_run_needs_its_folder_of_weights_no_more(deephash, data, tmp_path, name):
    size = "model.image_size=64" if name in (DINO3, CLIP, SIGLIP, VIT) else "model.image_size=56"
    frozen = f"model.frozen={str(name != CONVNEXT).lower()}"
    folder = hub.save(tmp_path / "my weights (1)", name, **hub.FAMILIES[name])
    chosen = [*DPSH, *data, size, frozen, f"model.timm_name=local-dir:{folder}"]
    assert deephash("train", *chosen, "trainer.max_epochs=2", f"run_dir={tmp_path / 'whole'}").code == 0
    run = tmp_path / "run"
    assert deephash("train", *chosen, "trainer.max_epochs=1", f"run_dir={run}").code == 0
    record = runs.read_record(run)["backbone"]
    assert (record["name"], record["architecture"]) == ("my weights (1)", name.partition(".")[0])
    assert read_sealed(run / runs.CODES / MANIFEST)["provenance"]["backbone"] == record
    assert runs.read_config(run)["model"]["name"] == "my weights (1)"

    damaged_weights(folder)
    encoded = deephash(
        "encode", f"run={run}", f"input={tmp_path / 'photos'}", f"output={tmp_path / 'codes'}", "num_workers=0"
    )
    assert encoded.code == 0, encoded
    ids = (tmp_path / "codes" / "database_ids.txt").read_text().splitlines()
    own = (run / runs.CODES / "database_ids.txt").read_text().splitlines()
    again = np.load(tmp_path / "codes" / "database.npy")[[ids.index(name) for name in own]]
    assert np.array_equal(again, codes(run)[1])
    assert deephash("search", f"run={run}", f"query={tmp_path / 'photos' / 'bag' / '000.jpg'}", "k=2").code == 0
    resumed = deephash("train", f"resume={run}", "trainer.max_epochs=2")
    assert resumed.code == 0, resumed
    assert "local-dir:" not in resumed.out
    assert runs.read_record(run)["backbone"] == record
    assert all(map(np.array_equal, codes(run), codes(tmp_path / "whole")))


def test_the_hub_by_the_command_line_and_then_without_it(deephash, data, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub.into_cache(tmp_path / "hf", "acme/tiny-clip", hub.save(tmp_path / "clip", CLIP, **hub.FAMILIES[CLIP]), commit)
    run = tmp_path / "run"
    words = [
        "method=itq", *data, "model.image_size=null", "model.frozen=true", f"run_dir={run}",
        "model.timm_name=hf-hub:acme/tiny-clip@main",
    ]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hf")}
    line = [sys.executable, "-c", "from deephash_cli.cli.main import main; main()", "train", *words]
    subprocess.run(line, env=offline, check=True, timeout=120, capture_output=True)
    record = runs.read_record(run)["backbone"]
    assert (record["name"], record["weights"]) == ("tiny-clip", f"hf-hub:acme/tiny-clip@{commit}")
    assert record["preprocessing"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert record["preprocessing"]["size"] == 224
    encoded = deephash(
        "encode", f"run={run}", f"input={tmp_path / 'photos'}", f"output={tmp_path / 'codes'}", "num_workers=0"
    )
    assert encoded.code == 0, encoded


@pytest.mark.slow
def test_a_file_of_weights_may_be_gone_when_a_run_is_resumed(deephash, data, tmp_path):
    file = hub.save(tmp_path / "resnet", "resnet10t.c3_in1k") / "model.safetensors"
    chosen = [*DPSH, *data, "model.timm_name=resnet10t", f"model.weights={file}", "model.frozen=true"]
    assert deephash("train", *chosen, "trainer.max_epochs=2", f"run_dir={tmp_path / 'whole'}").code == 0
    run = tmp_path / "run"
    assert deephash("train", *chosen, "trainer.max_epochs=1", f"run_dir={run}").code == 0
    digests.edit(run / runs.RECORD, backbone=None)  # earlier versions did not record it
    file.unlink()
    resumed = deephash("train", f"resume={run}", "trainer.max_epochs=2")
    assert resumed.code == 0, resumed
    assert runs.read_record(run)["backbone"]["weights"] == "not recorded"
    assert all(map(np.array_equal, codes(run), codes(tmp_path / "whole")))
    shutil.rmtree(run / runs.CHECKPOINTS)
    again = deephash("train", f"resume={run}", "trainer.max_epochs=3")
    assert again.code == 4
    assert "model.safetensors is neither a file" in again.err


def test_a_run_of_an_earlier_version_is_resumed_with_its_preprocessing(deephash, data, tmp_path):
    run = tmp_path / "run"
    then = ["model.network.mean=[0.485,0.456,0.406]", "model.network.std=[0.229,0.224,0.225]"]
    since = ["model.network.crop=1.0", "model.network.crop_mode=square", "model.network.interpolation=bilinear"]
    since += ["model.network.backbone.image_size=null"]
    chosen = [*DPSH, *data, "model.timm_name=resnet10t", "model.weights=none", "trainer.max_epochs=1", f"run_dir={run}"]
    assert deephash("train", *chosen, *then, *since).code == 0
    config = runs.read_config(run)
    for name in ("crop", "crop_mode", "interpolation"):
        del config["model"]["network"][name]
    for name in ("global_pool", "dynamic_img_size"):
        del config["model"][name], config["model"]["network"]["backbone"][name]
    del config["model"]["network"]["backbone"]["image_size"]
    (run / runs.CONFIG).write_text(yaml.safe_dump(config))
    overrides = [text for text in runs.read_record(run)["overrides"] if text not in (*then, *since)]
    digests.edit(run / runs.RECORD, backbone=None, overrides=overrides)
    digests.renew(run)
    resumed = deephash("train", f"resume={run}", "trainer.max_epochs=2")
    assert resumed.code == 0, resumed
    form = runs.read_record(run)["backbone"]["preprocessing"]
    assert (form["size"], form["crop"], form["crop_mode"], form["interpolation"]) == (56, 1.0, "square", "bilinear")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (None, "does not say which architecture local-dir:"),
        ({"arguments": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path is no argument of an architecture"),
        ({"architecture": "local-dir:/etc"}, "damaged or was edited by hand: local-dir:/etc is no architecture"),
        ({"preprocessing": {"size": 1}}, "the record of the backbone is damaged or was edited by hand"),
        ({"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2}}, "does not fit"),
    ],
)
def test_an_edited_record_reads_nothing_else(in_a_folder, tmp_path, backbone, message):
    run = shutil.copytree(in_a_folder, tmp_path / "edited")
    record = runs.read_record(run)["backbone"]
    digests.edit(run / runs.RECORD, backbone=backbone and {**record, **backbone})
    with pytest.raises(ArtifactError, match=message) as raised:
        load_encoder(run)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory):
    """A run with weights from a folder. Not to be written to: tests share it."""
    from deephash_cli.cli import main as cli

    place = tmp_path_factory.mktemp("run")
    folder = hub.save(place / "weights", DINO2, **hub.FAMILIES[DINO2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        words = ["dataset=image_folder", f"dataset.root={write_photos(place / 'photos')}", *TIMM, "model.frozen=true"]
        words += ["method=lsh", f"model.timm_name=local-dir:{folder}", f"run_dir={place / 'run'}"]
        assert cli.run(["train", *words]) == 0
    return place / "run"


def test_a_learned_method_that_a_package_re_exports_is_not_built_to_encode(deephash, tmp_path, monkeypatch):
    package = tmp_path / "exporting"
    package.mkdir()
    (package / "__init__.py").write_text("from .method import Mine\n")
    (package / "method.py").write_text(
        "from deephash_cli.methods.csq import CSQ\n\n\nclass Mine(CSQ):\n    def __init__(self, **settings):\n"
        "        assert settings['train_labels'].shape[1] == 5\n        super().__init__(**settings)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x, labels = fitting.clusters(100, 16, 5)
    np.save("x.npy", x.astype(np.float32))
    np.save("y.npy", labels.astype(np.uint8))
    data = ("dataset=vectors", "dataset.vectors=x.npy", "dataset.labels=y.npy", "method=csq", "bits=8", "logger=none")
    settings = ("module._target_=exporting.Mine", "trainer=cpu", "trainer.max_epochs=1", "run_dir=runs/a")
    assert deephash("train", *data, *settings).code == 0
    assert load_encoder(Path("runs/a"), allowed_targets=["exporting"]).bits == 8
