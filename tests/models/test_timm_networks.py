"""Networks of timm: one of each family, saved in the hub's layout with random weights and loaded by the real code."""

import json
import shutil
from dataclasses import replace

import hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants, errors
from photographs import NAMES, photograph
from safetensors.torch import load_file
from timm.data import create_transform
from timm.data.config import resolve_model_data_config

from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.models import HashingNetwork, Origin, timm_backbone

DINO2, DINO3, CLIP, SIGLIP, VIT, CONVNEXT, LITE0, RESNET = hub.FAMILIES
OWN = {"image_size": None, "mean": None, "std": None, "crop": None, "crop_mode": None, "interpolation": None}


def network(backbone, **changes):
    settings = {
        "bits": 8, "frozen": True, "frozen_norm": False, "standardize": False, "hidden_units": 0, "dropout": 0.0,
        "channels_last": False, "mirrored": False, **OWN,
    }  # fmt: skip
    torch.manual_seed(0)
    return HashingNetwork(backbone, **{**settings, **changes}).eval()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each family by its name. Not to be written to: tests share it."""
    place = tmp_path_factory.mktemp("weights")
    return {name: hub.save(place / name, name, **arguments) for name, arguments in hub.FAMILIES.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", hub.FAMILIES)
def test_preprocessing_and_weights_are_those_of_the_folder(folders, name):
    net = network(timm_backbone(f"local-dir:{folders[name]}", "auto"))
    form = net.preprocessing
    transform = create_transform(**resolve_model_data_config(timm.create_model(name)), is_training=False)
    level = 1 / (255 * torch.tensor(form.std)[:, None, None])
    for image in map(photograph, NAMES):
        expected = transform(image)
        from_file = net.preprocess(torch.from_numpy(form.pixels(image))[None])[0]
        torch.testing.assert_close(from_file, expected, rtol=0, atol=1e-5)
        in_memory = net.preprocess(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None])[0]
        assert ((in_memory - expected).abs() / level).max() < 1.5  # of 255 levels: Pillow rounds twice, tensors do not

    state = load_file(folders[name] / "model.safetensors")
    loaded = net.backbone.state_dict()
    assert loaded
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    features = net.backbone(torch.zeros(2, 3, form.size, form.size))
    assert features.shape == (2, net.backbone.num_features)


@pytest.mark.parametrize("name", [DINO3, SIGLIP, CONVNEXT])
def test_a_network_is_built_again_from_its_record(folders, name):
    first = timm_backbone(f"local-dir:{folders[name]}", "auto", image_size=96)
    record = json.loads(json.dumps(first.origin.record()))
    assert Origin.from_record(record).record() == record
    again = timm_backbone(
        record["architecture"], "none", image_size=96, arguments=record["arguments"], global_pool=record["pooling"]
    )
    again.load_state_dict(first.state_dict())
    assert network(again).backbone_digest() == network(first).backbone_digest()
    x = torch.rand(2, 3, 96, 96)
    assert torch.equal(again.eval()(x), first.eval()(x))


def test_the_record_says_where_the_weights_come_from(folders):
    record = timm_backbone(f"local-dir:{folders[VIT]}", "auto").origin.record()
    digest = record.pop("weights")
    assert digest.startswith("file model.safetensors sha256 ")
    assert record == {
        "name": VIT,
        "architecture": "vit_base_patch16_224",
        "arguments": {**hub.FAMILIES[VIT], "img_size": 224},
        "licence": "apache-2.0",
        "pretraining": "ImageNet-21k, then ImageNet-1k",
        "labelled": ["imagenet"],
        "parameters": 43712,
        "preprocessing": {
            "size": 224, "crop": 0.9, "crop_mode": "center", "interpolation": "bicubic", "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "pooling": "token",
    }  # fmt: skip
    random = timm_backbone(f"local-dir:{folders[VIT]}", "none").origin
    assert (random.weights, random.pretraining, random.labelled) == ("none", None, ())


def test_the_hub_without_a_network(folders, cache):
    commit = "89abcdef0123456789abcdef0123456789abcdef"
    hub.into_cache(cache, "acme/tiny-clip", folders[CLIP], commit)
    for name in ("hf-hub:acme/tiny-clip", "hf-hub:acme/tiny-clip@main", f"hf-hub:acme/tiny-clip@{commit}"):
        backbone = timm_backbone(name, "auto")
        assert backbone.origin.name == "tiny-clip"
        assert backbone.origin.weights == f"hf-hub:acme/tiny-clip@{commit}"
        assert network(backbone).preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)


def test_a_name_of_timm_from_the_cache_of_the_hub(cache, tmp_path):
    hub.into_cache(cache, "timm/resnet10t.c3_in1k", hub.save(tmp_path / "resnet", "resnet10t.c3_in1k"))
    origin = timm_backbone("resnet10t", "auto").origin
    assert origin.weights.startswith("hf-hub:timm/resnet10t.c3_in1k@0123456789")
    assert (origin.pretraining, origin.labelled) == ("ImageNet-1k", ("imagenet",))


def test_position_embeddings_are_resampled_to_the_size(folders):
    name = f"local-dir:{folders[DINO2]}"
    fixed, free = timm_backbone(name, "auto", 56), timm_backbone(name, "auto", 56, dynamic_img_size=True)
    assert fixed.pos_embed.shape[1] == 1 + 4 * 4
    assert free.pos_embed.shape[1] == 1 + 37 * 37
    x = torch.rand(1, 3, 56, 56)
    torch.testing.assert_close(fixed.eval()(x), free.eval()(x), rtol=1e-3, atol=1e-3)
    assert network(fixed).backbone_digest() != network(free).backbone_digest()
    assert network(fixed).image_size == network(free).image_size == 56


def test_pooling(folders):
    x = torch.rand(1, 3, 256, 256)
    token = timm_backbone(f"local-dir:{folders[DINO3]}", "auto")
    mean = timm_backbone(f"local-dir:{folders[DINO3]}", "auto", global_pool="avg")
    assert (token.origin.pooling, mean.origin.pooling) == ("token", "avg")
    tokens = mean.forward_features(x)
    assert torch.equal(token(x), tokens[:, 0])
    torch.testing.assert_close(mean(x), tokens[:, token.num_prefix_tokens :].mean(dim=1))
    assert network(token).backbone_digest() != network(mean).backbone_digest()
    # A mean over the tokens of weights that were trained with the class token keeps their norm where it is
    assert timm_backbone(f"local-dir:{folders[DINO2]}", "auto", 56, global_pool="avg").origin.pooling == "avg"


def test_the_width_is_that_of_the_output():
    # timm calls the width before the last layers num_features
    assert timm_backbone("mobilenetv3_small_050", "none").num_features == 1024


def test_a_file_of_weights_has_the_preprocessing_of_the_architecture_and_says_so(folders, capsys, tmp_path):
    file = shutil.copy(folders[RESNET] / "model.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(ArtifactError, match=r"mine\.safetensors does not fit the network"):
        timm_backbone("resnet50.tv_in1k", str(file))
    backbone = timm_backbone(f"local-dir:{folders[RESNET]}", str(file))
    assert "weights of mine.safetensors, preprocessing of timm's resnet50: resized (shorter" in capsys.readouterr().out
    assert backbone.origin.weights.startswith("file mine.safetensors sha256 ")
    assert (backbone.origin.licence, backbone.origin.pretraining, backbone.origin.labelled) == (None, None, ())


def test_a_setting_overrides_what_is_not_supported():
    backbone = timm_backbone("resnet10t", "none")
    backbone.origin = replace(backbone.origin, preprocessing=replace(backbone.origin.preprocessing, crop_mode="border"))
    with pytest.raises(ConfigError, match=r"model\.network\.crop_mode must be center or squash or square, got border"):
        network(backbone)
    assert network(backbone, crop_mode="squash").origin.record()["preprocessing"]["crop_mode"] == "squash"


def test_settings_of_the_preprocessing_override_the_weights_one_by_one(folders):
    own = timm_backbone(f"local-dir:{folders[CLIP]}", "auto")
    form = own.origin.preprocessing
    for name, value in {"crop": 1.0, "interpolation": "bilinear", "mean": [0.5] * 3, "crop_mode": "square"}.items():
        changed = network(own, **{name: value}).preprocessing
        assert changed == replace(form, **{name: tuple(value) if name == "mean" else value})
        own.origin = replace(own.origin, preprocessing=form)


def test_the_digest_knows_how_images_are_resized():
    backbone = timm_backbone("resnet10t", "none")
    forms = [{}, {"crop": 0.9}, {"interpolation": "bilinear"}, {"crop_mode": "squash"}]
    settings = {"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
    geometry = {"crop": 0.8, "crop_mode": "center", "interpolation": "bicubic"}
    assert len({network(backbone, **settings, **{**geometry, **form}).backbone_digest() for form in forms}) == 4


# what is wrong, and what to do


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet_18", {}, r"timm has no network 'resnet_18'; similar names are .*resnet18"),
        ("resnet18.nowhere", {}, r"timm has no weights 'nowhere' of resnet18; it has .*a1_in1k"),
        ("timm/resnet18.a1_in1k", {}, r"a name of the hub is written hf-hub:<org>/<name>, a folder local-dir:<folder>"),
        ("local-dir:", {}, r"has nothing after local-dir:"),
        (
            "vit_tiny_patch16_224",
            {"image_size": 100},
            r"patches of 16 pixels: set model\.image_size to 96 or 112, got 100",
        ),
        (
            "resnet10t",
            {"dynamic_img_size": True},
            r"timm cannot build resnet10t with these settings: .*dynamic_img_size",
        ),
        ("resnet10t", {"global_pool": ""}, r"not one vector: set model\.global_pool, such as to avg"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, r"cannot pool by map, set another model\.global_pool"),
        ("resnet10t", {"arguments": {"checkpoint_path": "/x"}}, r"checkpoint_path is no argument of an architecture"),
    ],
)
def test_settings_that_cannot_work(name, settings, message, cache):
    with pytest.raises((ConfigError, ArtifactError), match=message) as raised:
        timm_backbone(name, "none", **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder),
            r"is not a folder: local-dir:\S* needs a folder with config\.json and model",
        ),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"has no config\.json: .*hf download 'timm/<name>' --local-dir",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), r"does not describe a network of timm"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"has no model\.safetensors; put it there, or set model",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), r"model\.safetensors cannot be loaded: "),
    ],
)
def test_a_wrong_folder(folders, tmp_path, damage, message):
    folder = shutil.copytree(folders[CONVNEXT], tmp_path / "folder")
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as raised:
        timm_backbone(f"local-dir:{folder}", "auto")
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_in_the_cache(cache):
    message = (
        r"no weights for vit_small_patch14_dinov2\.lvd142m: model\.safetensors is not in \S*models--timm--vit_small\S* "
        r"and HF_HUB_OFFLINE is set; hf download timm/vit_small_patch14_dinov2\.lvd142m "
        r"model\.safetensors puts it there"
    )
    with pytest.raises(ArtifactError, match=message):
        timm_backbone("vit_small_patch14_dinov2.lvd142m", "auto", image_size=28)
    message = (
        r"models--acme--tiny and HF_HUB_OFFLINE .* acme/tiny config\.json model\.safetensors --revision v2 puts it"
    )
    with pytest.raises(ArtifactError, match=message):
        timm_backbone("hf-hub:acme/tiny@v2", "auto")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def unreachable(*_arguments, **_options):
        raise errors.LocalEntryNotFoundError("a long text\nof several lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(
        ArtifactError, match=r"the hub cannot be reached \(HF_HUB_OFFLINE=1 does not try\); hf download"
    ):
        timm_backbone("hf-hub:acme/tiny", "auto")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.GatedRepoError,
            r"ask for consent: accept it at https://huggingface\.co/acme/tiny, then run hf auth login",
        ),
        (errors.RevisionNotFoundError, r"the hub has no revision v2 of acme/tiny"),
        (errors.RepositoryNotFoundError, r"the hub has no acme/tiny, or it is not public"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, message):
    import httpx2

    def refuse(*_arguments, **_options):
        raise error("403\nForbidden", response=httpx2.Response(403, request=httpx2.Request("GET", "https://hf")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ArtifactError, match=message) as raised:
        timm_backbone("hf-hub:acme/tiny@v2", "auto")
    assert "\n" not in str(raised.value)
