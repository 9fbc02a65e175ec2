"""Random changes of training images, pixel by pixel."""

import pytest
import torch

from deephash_cli.data.augment import ShiftFlip


def batch(n=64, channels=3, height=8, width=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def possible(image, most, mirrored):
    """Every picture that ``image`` may become, by hand: shifted by up to ``most`` with its edges repeated."""
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
