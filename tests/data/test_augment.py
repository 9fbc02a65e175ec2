"""Random augmentation of training images, checked pixel by pixel."""

import pytest
import torch
import torchvision.transforms.v2.functional
from torch import nn

from deephash_cli.data.augment import CropColour, ShiftFlip, Views


def batch(n=64, channels=3, height=8, width=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def possible(image, most, mirrored):
    """Every picture that ``image`` may become, made by hand: shifted by up to ``most`` with its edges repeated."""
    height, width = image.shape[1:]
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            moved = torch.stack([image[:, min(max(y + down, 0), height - 1)] for y in range(height)], dim=1)
            moved = torch.stack([moved[:, :, min(max(x + right, 0), width - 1)] for x in range(width)], dim=2)
            for flip in mirrored:
                yield moved.flip(2) if flip else moved


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 1, 8, 8), (4, 3, 6, 10)])
def test_shape_and_type_stay(shape):
    changed = ShiftFlip(0.25, 0.5)(batch(*shape))
    assert changed.shape == shape
    assert changed.dtype == torch.uint8


def test_nothing_to_do_is_the_identity():
    images = batch()
    assert torch.equal(ShiftFlip(0.0, 0.0)(images), images)


def test_flip_one_is_the_mirror_image():
    images = batch()
    assert torch.equal(ShiftFlip(0.0, 1.0)(images), images.flip(3))


def test_each_result_is_a_shift_and_perhaps_a_mirror_image():
    images = batch(8, 3, 8, 6)
    for image, changed in zip(images, ShiftFlip(0.125, 0.5)(images), strict=True):
        assert any(torch.equal(changed, one) for one in possible(image, 1, (False, True)))


def test_every_image_is_changed_in_its_own_way():
    torch.manual_seed(0)
    same = batch(1).expand(200, -1, -1, -1)
    outcomes = {changed.numpy().tobytes() for changed in ShiftFlip(0.125, 0.5)(same)}
    assert outcomes == {one.contiguous().numpy().tobytes() for one in possible(same[0], 1, (False, True))}  # all 18


def test_the_share_of_mirror_images_is_the_one_asked_for():
    torch.manual_seed(0)
    same = batch(1).expand(2000, -1, -1, -1)
    mirrored = (ShiftFlip(0.0, 0.3)(same) == same.flip(3)).all(dim=(1, 2, 3)).float().mean()
    assert mirrored == pytest.approx(0.3, abs=0.04)


def test_the_generator_of_torch_decides():
    images, change = batch(), ShiftFlip(0.125, 0.5)
    torch.manual_seed(3)
    first = change(images)
    assert not torch.equal(change(images), first)
    torch.manual_seed(3)
    assert torch.equal(change(images), first)


def test_what_came_in_is_not_changed():
    images = batch()
    before = images.clone()
    ShiftFlip(0.125, 1.0)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("shift", "flip"), [(1.0, 0.5), (-0.1, 0.5), (0.1, 1.5), (0.1, -1)])
def test_shares_out_of_range_are_refused(shift, flip):
    with pytest.raises(ValueError, match=r"shift must be in \[0, 1\) and flip in \[0, 1\], got"):
        ShiftFlip(shift, flip)


STILL = {"area": 1.0, "ratio": 1.0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def one_draw(name):
    """Return the images changed in only one way, and the factor that was drawn for each."""
    torch.manual_seed(0)
    change = CropColour(**{**STILL, name: 0.5})
    factors = {}
    drawn = change._factors
    change._factors = lambda x, width: factors.setdefault(width, drawn(x, width)) if width else drawn(x, width)
    return change(batch(16)), factors[0.5].flatten().tolist()


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 1, 8, 8), (4, 3, 6, 10)])
def test_parts_and_colours_keep_shape_and_type(shape):
    changed = CropColour(0.5, 1.3, 0.5, 0.4, 0.4, 0.4)(batch(*shape))
    assert changed.shape == shape
    assert changed.dtype == torch.uint8


def test_a_whole_image_of_its_own_colours_is_the_image():
    images = batch()
    assert torch.equal(CropColour(**STILL)(images), images)
    assert torch.equal(CropColour(**{**STILL, "flip": 1.0})(images), images.flip(3))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_torchvision_changes_them(name):
    changed, factors = one_draw(name)
    reference = getattr(torchvision.transforms.v2.functional, f"adjust_{name}")
    assert min(factors) < 0.75 < 1.25 < max(factors)
    assert all(0.5 <= factor <= 1.5 for factor in factors)
    for image, one, factor in zip(batch(16), changed, factors, strict=True):
        expected = reference(image.float() / 255, factor) * 255
        assert (one - expected).abs().max() <= 1  # of 255: the two sides may round differently


def test_a_part_is_stretched_to_the_whole():
    # The values of this picture are its column and row numbers, so each crop of it is a piece of a straight line.
    place = torch.arange(64, dtype=torch.uint8)
    picture = torch.stack([place.expand(64, 64), place[:, None].expand(64, 64)])[None].expand(200, -1, -1, -1)
    torch.manual_seed(0)
    changed = CropColour(**{**STILL, "area": 0.25, "ratio": 2.0})(picture).float()
    wide = (changed[:, 0, :, 62] - changed[:, 0, :, 1]).mean(dim=1) / 61
    high = (changed[:, 1, 62] - changed[:, 1, 1]).mean(dim=1) / 61
    assert (wide * high).min() == pytest.approx(0.25, abs=0.03)
    assert (wide * high).max() > 0.9
    assert (wide / high).max() == pytest.approx(2, abs=0.1)
    assert (wide / high).min() == pytest.approx(0.5, abs=0.05)
    middles = changed[:, 0, 32, 32]
    assert middles.min() < 20  # the crop can be anywhere
    assert middles.max() > 43


def test_each_image_has_a_part_and_colours_of_its_own():
    torch.manual_seed(0)
    same = batch(1).expand(50, -1, -1, -1)
    assert len({changed.numpy().tobytes() for changed in CropColour(0.5, 1.3, 0.5, 0.4, 0.4, 0.4)(same)}) == 50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"area": 0.0}, "area must be"), ({"ratio": 0.5}, "ratio at least 1"), ({"contrast": 1.5}, "contrast must be in")],
)
def test_parts_and_colours_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CropColour(**{**STILL, **wrong})


# two views


def test_views_of_features_lose_different_values_and_keep_their_mean():
    torch.manual_seed(0)
    views = Views(nn.Identity(), nn.Identity(), [0.5, 0.0])
    features = torch.ones(200, 50)
    first, second = views(features)
    assert torch.equal(second, features)
    assert set(first.unique().tolist()) == {0, 2}
    assert first.mean().item() == pytest.approx(1, abs=0.03)


def test_views_of_images_are_those_of_their_own_changes():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    first, second = Views(nn.Identity(), ShiftFlip(0, 1), [0, 0])(images)
    assert torch.equal(first, images)
    assert torch.equal(second, images.flip(-1))


@pytest.mark.parametrize("dropout", [[0.1], [0.1, 1.0], [-0.1, 0.1]])
def test_shares_that_are_none_are_refused(dropout):
    with pytest.raises(ValueError, match="dropout must be two numbers in"):
        Views(nn.Identity(), nn.Identity(), dropout)


def test_grey_images_have_no_colours_and_the_share_is_the_probability():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (400, 3, 2, 2), dtype=torch.uint8)
    changed = CropColour(area=1, ratio=1, flip=0, brightness=0, contrast=0, saturation=0, grey=0.25)(images)
    grey = (changed == changed[:, :1]).all(dim=(1, 2, 3))
    assert 0.15 < grey.float().mean() < 0.35
    assert torch.equal(changed[~grey], images[~grey])
