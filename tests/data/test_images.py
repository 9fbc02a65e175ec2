"""Decoding: every kind of picture becomes RGB by a stated rule, and every damaged one gives an error that names it."""

import hashlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deephash_cli.cache import cache_folder
from deephash_cli.data import decoding, small_images
from deephash_cli.data.dataset import ImageArray, ImageFiles
from deephash_cli.data.decoding import ImageError
from deephash_cli.data.preprocessing import central_square
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(folder))
    return folder


def files(folder, *names, size=None):
    return ImageFiles([folder / name for name in names], folder, size and central_square(size))


def loaded(path, size=8):
    return ImageFiles([path], path.parent).load(0, size)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


SOLID = [
    ("rgb.png", Image.new("RGB", (8, 8), (10, 20, 30)), (10, 20, 30)),
    ("grey.png", Image.new("L", (8, 8), 77), (77, 77, 77)),
    ("bilevel.png", Image.new("1", (8, 8), 1), (255, 255, 255)),
    ("rgba_clear.png", Image.new("RGBA", (8, 8), (10, 20, 30, 0)), (255, 255, 255)),
    ("rgba_opaque.png", Image.new("RGBA", (8, 8), (10, 20, 30, 255)), (10, 20, 30)),
    ("la_clear.png", Image.new("LA", (8, 8), (5, 0)), (255, 255, 255)),
    ("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255)), (0, 0, 0)),
    ("grey16.png", Image.fromarray(np.full((8, 8), 0x8123, dtype=np.uint16)), (0x81, 0x81, 0x81)),
    (
        "palette.png",
        Image.new("RGB", (8, 8), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE),
        (200, 100, 50),
    ),
    ("image.bmp", Image.new("RGB", (8, 8), (1, 2, 3)), (1, 2, 3)),
    ("one_pixel.png", Image.new("RGB", (1, 1), (9, 8, 7)), (9, 8, 7)),
    ("flat.png", Image.new("RGB", (3000, 1), (9, 8, 7)), (9, 8, 7)),
    ("rgb.tif", Image.new("RGB", (8, 8), (10, 20, 30)), (10, 20, 30)),
    ("bilevel.tiff", Image.new("1", (8, 8), 1), (255, 255, 255)),
    ("cmyk.tif", Image.new("CMYK", (8, 8), (0, 0, 0, 255)), (0, 0, 0)),
    ("lab.tif", Image.new("LAB", (8, 8), (0, 128, 128)), (1, 0, 1)),
    ("rgba_clear.tif", Image.new("RGBA", (8, 8), (10, 20, 30, 0)), (255, 255, 255)),
    ("grey16.tif", Image.fromarray(np.full((8, 8), 0x8123, dtype=np.uint16)), (0x81, 0x81, 0x81)),
]


@pytest.mark.parametrize(("name", "image", "colour"), SOLID, ids=[name for name, _, _ in SOLID])
def test_every_mode_becomes_rgb(tmp_path, name, image, colour):
    image.save(tmp_path / name)
    pixels = loaded(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 8, 8)
    assert np.unique(pixels.reshape(3, -1).T, axis=0).tolist() == [list(colour)]


def test_transparent_palette_is_laid_on_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "clear.png", transparency=0)
    assert (loaded(tmp_path / "clear.png") == 255).all()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert loaded(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_first_page_of_many(tmp_path):
    pages = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(200)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert (loaded(tmp_path / "pages.tif") == 0).all()


def test_avif(tmp_path):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "a.avif", quality=100)
    difference = loaded(tmp_path / "a.avif")[:, 4, 4].astype(int) - [10, 20, 30]
    assert abs(difference).max() <= 2


def tiff(bits, bands, photometric, data, *more):
    """A TIFF of 8 x 8 pixels that Pillow does not write. ``more`` are further tags: (number, value)."""
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (277, bands), (278, 8), (279, len(data))]
    tags = sorted([*tags, (273, 0), *more])
    start = 8 + 2 + 12 * len(tags) + 4 + 2 * bands
    entries = b""
    for number, value in tags:
        if number == 258 and bands > 2:
            entries += struct.pack("<HHII", number, 3, bands, start - 2 * bands)
        else:
            entries += struct.pack("<HHII", number, 4, 1, start if number == 273 else value)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack(f"<{bands}H", *[bits] * bands) + data


def test_16_bits_with_white_as_zero(tmp_path):
    (tmp_path / "white.tif").write_bytes(tiff(16, 1, 0, np.full(64, 0x1000, "<u2").tobytes()))
    assert (loaded(tmp_path / "white.tif") == 0xFF - 0x10).all()


def encoded(image, kind="TIFF", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# A picture of each kind, in formats that lose nothing, so that the decoded bytes are the same on every machine.
Y, X = np.mgrid[0:24, 0:32]
COLOUR = np.stack([8 * X, 10 * Y, 4 * X + 5 * Y], axis=2).astype(np.uint8)
GREY, ALPHA = COLOUR[..., 2], (255 - 8 * X).astype(np.uint8)
PALETTE = Image.fromarray((X // 2).astype(np.uint8))
PALETTE.putpalette([value for number in range(16) for value in (16 * number, 255 - 16 * number, 7 * number)])
TURNED = Image.Exif()
TURNED[0x0112] = 6
KINDS = {
    "colour": (Image.fromarray(COLOUR), "PNG", {}),
    "bitmap": (Image.fromarray(COLOUR), "BMP", {}),
    "webp": (Image.fromarray(COLOUR), "WEBP", {"lossless": True}),
    "turned": (Image.fromarray(COLOUR), "PNG", {"exif": TURNED}),
    "cmyk": (Image.fromarray(np.dstack([COLOUR, GREY]), "CMYK"), "TIFF", {}),
    "alpha": (Image.fromarray(np.dstack([COLOUR, ALPHA])), "PNG", {}),
    "grey": (Image.fromarray(GREY), "PNG", {}),
    "grey_alpha": (Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG", {}),
    "bilevel": (Image.fromarray((X + Y) % 3 == 0), "PNG", {}),
    "16_bits": (Image.fromarray((2000 * X + 90 * Y).astype(np.uint16)), "PNG", {}),
    "palette": (PALETTE, "PNG", {}),
    "clear_palette": (PALETTE, "GIF", {"transparency": 3}),
    "moving": (PALETTE, "GIF", {"save_all": True, "append_images": [Image.new("P", (32, 24), 5)]}),
    "one_pixel": (Image.new("RGB", (1, 1), (9, 8, 7)), "PNG", {}),
}
# Start of the SHA-256 of size and pixels.
GOLDEN = {
    "colour": "4cbfb6aac750effe",
    "bitmap": "4cbfb6aac750effe",
    "webp": "4cbfb6aac750effe",
    "turned": "f101598bcc53e6c4",
    "cmyk": "58e25f757ff2a566",
    "alpha": "317e9c825fea23fe",
    "grey": "1f78835d10cd05fb",
    "grey_alpha": "2c89f2ad9edc2eef",
    "bilevel": "06b0dc262c9c7708",
    "16_bits": "a33cb050a33a3648",
    "palette": "583bc4417ce1eca5",
    "clear_palette": "8cbb7ab173b9abe0",
    "moving": "583bc4417ce1eca5",
    "one_pixel": "571124776e940fb3",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_of_each_kind_of_picture_never_change(name):
    image, kind, options = KINDS[name]
    found = decoding.decode(encoded(image, kind, **options))
    assert hashlib.sha256(repr(found.size).encode() + np.asarray(found).tobytes()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_large_picture_is_converted_in_bands_to_the_same_bytes(name, monkeypatch):
    image, kind, options = KINDS[name]
    whole = decoding.decode(encoded(image, kind, **options))
    monkeypatch.setattr(decoding, "_BAND", 100)
    np.testing.assert_array_equal(np.asarray(decoding.decode(encoded(image, kind, **options))), np.asarray(whole))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (encoded(Image.new("F", (8, 8))), "has floating-point values, whose range"),
        (encoded(Image.new("I", (8, 8))), "has 32-bit or signed values, whose range"),
        (tiff(8, 5, 2, bytes(320)), "damaged TIFF, or its values or bands are of a kind that is not supported"),
        (tiff(8, 1, 1, bytes(64), (322, 60000), (323, 60000)), "has a tile of 60000 x 60000 pixels, more than"),
        (encoded(Image.new("RGB", (64, 64)))[:3000], "truncated"),
        (encoded(Image.new("RGB", (64, 64)), "AVIF")[:200], "a damaged AVIF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
    ],
)
def test_refused_in_one_sentence(tmp_path, content, sentence):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.tif .*{sentence}") as caught:
        loaded(tmp_path / "a.tif")
    assert "\n" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))  # on its way out of a worker process
    assert (type(copy), str(copy), copy.reason) == (ImageError, str(caught.value), caught.value.reason)
    assert copy.reason in str(copy)


def test_heic_needs_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100))
    monkeypatch.setattr(decoding, "_register_heif", lambda: False)
    with pytest.raises(ImageError, match=r"a\.heic is a HEIC image, .*: pip install 'deephash\[heif\]'"):
        loaded(tmp_path / "a.heic")


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 64), (200, 20, 30)).save(tmp_path / "a.jpg", "HEIF", quality=95)
    difference = loaded(tmp_path / "a.jpg")[:, 4, 4].astype(int) - [200, 20, 30]
    assert abs(difference).max() <= 5


@pytest.mark.timeout(20)
def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("gone")
    for name, reason in {
        "pipe": "it is a named pipe, not a file",
        "folder": "it is a folder, not a file",
        "link": "it is a broken link to gone",
    }.items():
        with pytest.raises(ImageError, match=rf"{name}\.png cannot be read: {reason}"):
            loaded(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match="broken link"):
        files(tmp_path, "link.png").digest()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = np.zeros((8, 8, 3), dtype=np.uint8)
    upright[:4, :4, 0] = 255  # red at the upper left
    upright[:4, 4:, 1] = 255  # green at the upper right
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = Image.fromarray(upright)
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert (loaded(tmp_path / "turned.png").transpose(1, 2, 0) == upright).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_make_an_image_unreadable(tmp_path):
    Image.new("RGB", (8, 8), (128, 128, 128)).save(
        tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fbroken"
    )
    assert (loaded(tmp_path / "a.jpg") == 128).all()


def test_centre_square_is_kept(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 9:21] = 255  # antialiasing looks a pixel beyond the square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    both = files(tmp_path, "wide.png", "tall.png").batch(np.array([0, 1]), 5)
    assert both.shape == (2, 3, 5, 5)
    assert (both == 255).all()


def test_shrinking_is_antialiased(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    pixels = loaded(tmp_path / "board.png", 8).astype(float)
    assert pixels.min() > 118
    assert pixels.max() < 138


def test_large_jpeg_decoded_smaller_looks_the_same(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 1024).astype(np.uint8), (1024, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    difference = loaded(tmp_path / "ramp.jpg", 32).astype(int) - loaded(tmp_path / "ramp.png", 32)
    assert np.abs(difference).max() <= 2


def test_batch_keeps_the_order_and_accepts_tensors(tmp_path):
    for value in range(3):
        Image.new("L", (8, 8), value).save(tmp_path / f"{value}.png")
    images = files(tmp_path, "0.png", "1.png", "2.png", size=4)
    assert images.batch(np.array([2, 0]))[:, 0, 0, 0].tolist() == [2, 0]
    assert images.batch(np.array([1, 1]))[:, 0, 0, 0].tolist() == [1, 1]
    assert not images.in_memory
    with pytest.raises(ValueError, match="at least 1 pixel"):
        files(tmp_path, "0.png").load(0)


def test_can_be_pickled_for_workers(tmp_path):
    Image.new("L", (8, 8), 5).save(tmp_path / "a.png")
    copy = pickle.loads(pickle.dumps(files(tmp_path, "a.png", size=4)))
    assert (copy.load(0) == 5).all()


def damaged(kind):
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture, "PNG" if kind.startswith("png") else "JPEG")
    whole = picture.getvalue()
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "random": np.random.default_rng(1).bytes(5000),
        "jpeg_cut": whole[: len(whole) // 2],
        "png_cut": whole[: len(whole) // 2],
        "png_flipped": whole[:200] + bytes(byte ^ 0xFF for byte in whole[200:260]) + whole[260:],
        "pdf": b"%PDF-1.4\n" + bytes(100),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "html", "random", "jpeg_cut", "png_cut", "png_flipped", "pdf"])
def test_damaged_files_are_named(tmp_path, kind):
    path = tmp_path / "bad.jpg"
    path.write_bytes(damaged(kind))
    with pytest.raises(DataError, match=r"bad\.jpg cannot be read: .+; replace or remove the file") as caught:
        loaded(path)
    assert "\n" not in str(caught.value)
    if kind == "empty":
        assert "it is empty" in str(caught.value)
    if kind == "html":
        assert "none of JPEG, PNG" in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png cannot be read: No such file"):
        loaded(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        files(tmp_path, "gone.png").digest()


@pytest.mark.parametrize("side", [9600, 12000, 60000])
def test_decompression_bombs_are_refused(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"bomb\.png has .* pixels, more than the 89478485 allowed"):
        loaded(tmp_path / "bomb.png")


def test_own_pixel_limit_needs_no_help_from_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    Image.new("L", (10, 10)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match="10 x 10 pixels, more than the 99 allowed"):
        loaded(tmp_path / "large.png")


def test_only_listed_decoders_are_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="TGA")
    with pytest.raises(DataError, match="none of JPEG"):
        loaded(tmp_path / "a.png")


def test_array_digest_depends_on_shape_and_pixels():
    pixels = np.arange(24, dtype=np.uint8)
    one, other = ImageArray(pixels.reshape(2, 3, 2, 2)), ImageArray(pixels.reshape(2, 3, 4, 1))
    changed = pixels.copy()
    changed[7] += 1
    strided = pixels.reshape(2, 2, 2, 3).transpose(0, 3, 1, 2)
    assert one.digest() == ImageArray(pixels.reshape(2, 3, 2, 2).copy()).digest()
    assert len({one.digest(), other.digest(), ImageArray(changed.reshape(2, 3, 2, 2)).digest()}) == 3
    assert ImageArray(strided).digest() == ImageArray(np.ascontiguousarray(strided)).digest()
    assert one.batch(np.array([1])).flatten().tolist() == list(range(12, 24))
    assert len(one) == 2
    assert one.in_memory


def test_files_digest_changes_with_the_files(tmp_path):
    Image.new("L", (8, 8), 1).save(tmp_path / "a.png")
    images = ImageFiles([tmp_path / "a.png"], tmp_path)
    before = images.digest()
    assert images.digest() == before
    Image.new("L", (9, 9), 1).save(tmp_path / "a.png")
    assert images.digest() != before


# Small images


def small(folder, count=5, side=16):
    for value in range(count):
        Image.new("L", (side, side), value).save(folder / f"{value}.png")
    return files(folder, *(f"{value}.png" for value in range(count)))


def test_small_images_are_decoded_once(tmp_path, monkeypatch):
    first = in_memory_if_small(small(tmp_path))
    assert isinstance(first, ImageArray)
    assert first.images.shape == (5, 3, 16, 16)
    assert first.images[:, 2, 7, 7].tolist() == [0, 1, 2, 3, 4]

    def never(files, shape):
        raise AssertionError("decoded again")

    monkeypatch.setattr(small_images, "_decode_all", never)
    second = in_memory_if_small(files(tmp_path, *(f"{value}.png" for value in range(5))))
    assert isinstance(second, ImageArray)
    assert second.digest() == first.digest()


@pytest.mark.parametrize("harm", ["flip", "cut", "no_manifest", "empty"])
def test_damaged_cache_is_decoded_again(tmp_path, own_cache, harm):
    images = small(tmp_path)
    expected = in_memory_if_small(images).digest()
    [stored] = (own_cache / "images").glob("*.npy")
    content = bytearray(stored.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
        stored.write_bytes(content)
    elif harm == "cut":
        stored.write_bytes(content[:-10])
    elif harm == "empty":
        stored.write_bytes(b"")
    else:
        stored.with_suffix(".json").unlink()
    assert in_memory_if_small(images).digest() == expected


def test_changed_file_is_decoded_again(tmp_path):
    images = small(tmp_path)
    before = in_memory_if_small(images).digest()
    Image.new("L", (16, 16), 200).save(tmp_path / "3.png")
    assert in_memory_if_small(images).digest() != before


def test_large_or_mixed_images_stay_files(tmp_path):
    assert isinstance(in_memory_if_small(small(tmp_path, side=65)), ImageFiles)
    images = small(tmp_path, count=40, side=16)
    Image.new("L", (17, 16)).save(tmp_path / "1.png")  # not in the sample of 16 among 40
    assert isinstance(in_memory_if_small(images), ImageFiles)


def test_small_images_too_many_for_memory_stay_files(tmp_path, monkeypatch):
    monkeypatch.setattr(small_images, "MAX_BYTES", 5 * 3 * 16 * 16 - 1)
    assert isinstance(in_memory_if_small(small(tmp_path)), ImageFiles)


@pytest.mark.parametrize("row", [0, 1])  # in the sample of 16, and not in it
def test_a_damaged_small_image_is_reported_when_it_is_loaded(tmp_path, row):
    images = small(tmp_path, count=40)
    (tmp_path / f"{row}.png").write_bytes(b"")
    left = in_memory_if_small(images)
    assert isinstance(left, ImageFiles)
    with pytest.raises(ImageError, match=rf"{row}\.png cannot be read: it is empty"):
        left.load(row, 8)


def test_a_missing_small_image_is_reported_when_it_is_loaded(tmp_path):
    images = small(tmp_path, count=40)
    (tmp_path / "1.png").unlink()
    assert in_memory_if_small(images) is images


def test_unwritable_cache_costs_nothing_but_time(tmp_path, own_cache):
    (own_cache / "images").write_text("a file where a folder should be")
    assert isinstance(in_memory_if_small(small(tmp_path)), ImageArray)


# The cache folder


def test_cache_folder_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DEEPHASH_CACHE_DIR")
    assert cache_folder() == tmp_path / "xdg" / "deephash"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "deephash"
    assert cache_folder().is_dir()


def test_cache_folder_falls_back_to_the_temporary_directory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    folder = cache_folder()
    assert folder.is_dir()
    assert folder.parent == tmp_path / "tmp"
    assert cache_folder() == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)  # planted by someone else
    assert cache_folder() not in (folder, tmp_path)


def test_the_digest_of_files_has_their_paths_sizes_and_times(tmp_path):
    (tmp_path / "sub").mkdir()
    paths = ["a.png", "./sub//b.png", "sub/caf\u00e9.png", "\udcff.png", str(tmp_path / "a.png")]
    for number, path in enumerate(paths):
        (tmp_path / path).write_bytes(b"x" * (number + 1))
        os.utime(tmp_path / path, ns=(0, 1000 + number))
    text = "".join(
        f"{Path(path).as_posix()}\0{size}\0{time}\n"
        for path, size, time in zip(paths, (5, 2, 3, 4, 5), (1004, 1001, 1002, 1003, 1004), strict=True)
    )
    expected = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    assert ImageFiles(paths, tmp_path).digest() == expected
    assert ImageFiles([Path(path) for path in paths], tmp_path).digest() == expected
    assert ImageFiles(paths, tmp_path).subset(np.arange(5)).digest() == expected
