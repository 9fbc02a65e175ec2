"""Preprocessing: timm's evaluation transform as the slow twin, on the two photographs that scikit-learn has."""

import numpy as np
import pytest
from photographs import NAMES, photograph
from PIL import Image
from timm.data import create_transform

from deephash_cli.data.dataset import ImageFiles
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.errors import ConfigError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def timms(form, image):
    """Pixels from 0 to 255 that timm's transform gives."""
    transform = create_transform(
        form.size, interpolation=form.interpolation, crop_pct=form.crop, crop_mode=form.crop_mode, **PLAIN
    )
    return 255 * transform(image).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("size", "crop"), [(224, 0.9), (176, 0.875), (225, 0.965), (518, 1.0)])
def test_a_photograph_is_resized_and_cropped_as_by_timm(size, crop, crop_mode, interpolation):
    form = Preprocessing(size, crop, crop_mode, interpolation, **PLAIN)
    wide, upright = photograph(NAMES[0]), photograph(NAMES[1]).transpose(Image.Transpose.ROTATE_90)
    for image in (wide, upright):
        assert np.array_equal(form.pixels(image), timms(form, image).round())


def test_a_long_picture_too_up_to_rounding():
    form = Preprocessing(224, 0.9, "center", "bicubic", **PLAIN)
    for shape in ((640, 60), (60, 427)):
        image = photograph("china.jpg").crop((0, 0, *shape))
        difference = np.abs(form.pixels(image) - timms(form, image))
        assert difference.max() <= 8  # of 255, at edges where the filter overshoots
        assert difference.mean() < 0.5


def test_a_large_photograph_is_decoded_at_a_fraction_of_its_size_which_changes_little(tmp_path):
    large = photograph("china.jpg").resize((2560, 1708), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    form = Preprocessing(224, 0.9, "center", "bicubic", **PLAIN)
    pixels = ImageFiles([tmp_path / "large.jpg"], tmp_path, form).load(0)
    difference = np.abs(pixels - timms(form, Image.open(tmp_path / "large.jpg")))
    assert 0 < difference.mean() < 1
    assert difference.max() <= 24


def test_an_image_that_has_the_size_is_taken_as_it_is():
    image = photograph("flower.jpg").crop((0, 0, 64, 64))
    form = Preprocessing(64, 0.5, "center", "bicubic", **PLAIN)
    assert np.array_equal(form.pixels(image).transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("shape", [(4000, 3), (3, 4000)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "square"])
def test_extreme_shapes(shape, crop_mode):
    pixels = Preprocessing(32, 0.9, crop_mode, "bicubic", **PLAIN).pixels(Image.new("RGB", shape, (7, 8, 9)))
    assert pixels.shape == (3, 32, 32)
    assert (pixels == np.array([7, 8, 9])[:, None, None]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"crop_mode": "border"},
            r"model\.network\.crop_mode must be center or squash or square, got border",
        ),
        ({"interpolation": "lanczos"}, r"model\.network\.interpolation must be bilinear or bicubic, got lanczos"),
        ({"crop": 0}, r"model\.network\.crop must be above 0 and at most 1, got 0"),
        ({"crop": 1.5}, r"at most 1, got 1\.5"),
        ({"mean": (0.5,)}, r"model\.network\.mean must be three numbers, got \[0\.5\]"),
        ({"std": (0.5, 0.0, 0.5)}, r"model\.network\.std must not contain 0"),
        ({"size": 0}, r"model\.image_size must be a whole number of pixels, got 0"),
    ],
)
def test_impossible_values(changes, message):
    good = {"size": 32, "crop": 0.9, "crop_mode": "center", "interpolation": "bicubic", **PLAIN}
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**{**good, **changes}).require_supported()


def test_the_record_is_the_same_again():
    form = Preprocessing(224, 0.9, "squash", "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert Preprocessing.from_record(form.record()) == form
    assert form.record()["mean"] == [0.5, 0.4, 0.3]
