"""Look over the images of a data set before they are used: files that cannot be read, and images that show nothing."""

import contextlib
import dataclasses
import io
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from deephash_cli.console import progress
from deephash_cli.cores import usable_cores
from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset
from deephash_cli.data.decoding import FORMATS, ImageError, Member, decode
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import DataError
from deephash_cli.files import csv_text, write_text

COLUMNS = ("id", "reason")  # of a list of files that are left out
REMEDY = "set bad_images=skip to leave out such files and list them"
_NAMED = 5  # number of files that a message names
_SAMPLE = 64  # number of files that are opened to look at their values
_SMALL_FILE = 2**14  # bytes; an image of a few pixels has no larger file
_FEWEST = 8  # pixels a side
_DARK = 2**14  # lowest value that a 16-bit image should reach: a quarter of the full range


def unreadable_images(dataset: RetrievalDataset) -> list[tuple[str, str]]:
    """Decode every image file of a data set, and return the ids of those that cannot be read, each with the reason."""
    images = dataset.images
    if not isinstance(images, ImageFiles):
        return []

    def check(row: int) -> str | None:
        try:
            decode(images.source(row), at_least=1)
        except ImageError as error:
            return error.reason
        return None

    bad = []
    with (
        progress("checking that every image can be read, images", len(images)) as show,
        ThreadPoolExecutor(max_workers=usable_cores()) as pool,
    ):
        try:
            for row, reason in enumerate(pool.map(check, range(len(images)))):
                if reason is not None:
                    bad.append((dataset.ids[row], reason))
                show(row + 1)
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


def refusal(
    bad: Sequence[tuple[str, str]], count: int, file: Path, left_out: Sequence[tuple[str, str]] = ()
) -> DataError:
    """Return the error that names the image files that cannot be read.

    Args:
        bad: Id of each file, with the reason.
        count: Number of images of which these are a part.
        file: File to write the whole list to, if the message cannot name all.
        left_out: Files that are not read and stand in the same list, each with the reason.
    """
    some = named(bad[:_NAMED])
    if len(bad) == 1:
        return DataError(f"image {bad[0][0]} {bad[0][1]}; replace or remove it, or {REMEDY}")
    rest = ""
    if len(bad) > _NAMED:
        write_list(file, [*left_out, *bad])
        rest = f" and {len(bad) - _NAMED} more, which {file} lists"
    return DataError(
        f"{len(bad)} of the {count} images cannot be read: {some}{rest}; replace or remove them, or {REMEDY}"
    )


@contextlib.contextmanager
def all_unreadable_named(dataset: RetrievalDataset, file: Path) -> Iterator[None]:
    """When an image cannot be read, check all images of the data set, so that one message names all such files.

    Args:
        dataset: Data set that is used within the context.
        file: File to write the whole list to, if the message cannot name all.

    Raises:
        DataError: If an image cannot be read within the context.
    """
    try:
        yield
    except ImageError as error:
        if bad := unreadable_images(dataset):
            raise refusal(bad, len(dataset), file) from error
        raise


def named(bad: Sequence[tuple[str, str]]) -> str:
    """Return the names of image files that cannot be read, with each reason once behind the names that share it.

    Args:
        bad: Name of each file, with the reason.
    """
    groups = itertools.groupby(bad, key=lambda entry: entry[1].removeprefix("cannot be read: "))
    return ", ".join(f"{', '.join(name for name, _ in group)} ({reason})" for reason, group in groups)


def unreadable_count(count: int) -> str:
    """Return the start of a sentence about images that could not be read, up to its verb."""
    return "1 image could not be read and is" if count == 1 else f"{count} images could not be read and are"


def write_list(file: Path, left_out: Sequence[tuple[str, str]]) -> None:
    """Write ids and reasons as a CSV file with a heading.

    Raises:
        ArtifactError: If the file cannot be written.
    """
    write_text(file, csv_text(COLUMNS, [record(*entry) for entry in left_out]))


def record(name: str, reason: str) -> dict[str, str]:
    """Return a line of a list of files that are left out, with an escape for each byte of a name that is not UTF-8."""
    return {"id": os.fsencode(name).decode(errors="backslashreplace"), "reason": reason}


def without(dataset: RetrievalDataset, bad: Sequence[tuple[str, str]]) -> RetrievalDataset:
    """Return a data set without the image files that cannot be read, which its attribute ``unreadable`` then lists.

    Args:
        dataset: Data set of image files.
        bad: Id of each file that is taken out, with the reason.

    Raises:
        DataError: If no image is left.
    """
    images = dataset.images
    if not bad or not isinstance(images, ImageFiles):
        return dataset
    names: Collection[str] = {name for name, _ in bad}
    kept = [row for row, name in enumerate(dataset.ids) if name not in names]
    if not kept:
        raise DataError(
            f"none of the {len(dataset)} images can be read; the first one is {bad[0][0]}, which {bad[0][1]}"
        )
    rows = np.array(kept)
    readable = in_memory_if_small(images.subset(rows))
    return dataclasses.replace(dataset.subset(rows), images=readable, unreadable=[*dataset.unreadable, *bad])


def peculiarities(dataset: RetrievalDataset) -> list[str]:
    """Return a sentence for each peculiarity that makes images useless although they can be read.

    These are images of fewer than 8 pixels a side, and 16-bit images that use only the lower part of their range, as
    12 bits from a microscope do: of their values the upper 8 bits are kept, so they become nearly black. The header of
    every small file is read, and up to 64 files are opened to look at their values.
    """
    found = [_tiny(dataset), _dark(dataset)]
    return [sentence for sentence in found if sentence]


def _tiny(dataset: RetrievalDataset) -> str | None:
    images = dataset.images
    names: Sequence[str] = []
    if isinstance(images, ImageArray):
        names = dataset.ids if min(images.images.shape[2:]) < _FEWEST else []
    elif isinstance(images, ImageFiles):
        names = [name for row, name in enumerate(dataset.ids) if _is_tiny(images.source(row))]
    if not names:
        return None
    some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return (
        f"{len(names)} of {len(dataset)} images have fewer than {_FEWEST} pixels on a side, too few to show anything: "
        f"{some}; remove them if they are not meant"
    )


def _is_tiny(source: Path | Member) -> bool:
    try:
        size = source.size if isinstance(source, Member) else source.stat().st_size
        if size > _SMALL_FILE:
            return False
        with _opened(source) as image:
            return min(image.size) < _FEWEST
    except Exception:  # whatever is wrong with the file is reported when it is decoded
        return False


def _dark(dataset: RetrievalDataset) -> str | None:
    images = dataset.images
    rows = np.unique(np.linspace(0, len(dataset) - 1, num=_SAMPLE).astype(int)).tolist()
    if isinstance(images, ImageArray):  # the files are not at hand, so only all images together say something
        most = {row: int(images.images[row].max()) for row in rows}
        dark = {row: value for row, value in most.items() if max(most.values()) < _DARK >> 8}
        kind = "images"
    elif isinstance(images, ImageFiles):
        values = {row: _most_of_16_bits(images.source(row)) for row in rows}
        dark = {row: value for row, value in values.items() if value is not None and value < _DARK >> 8}
        kind = "images with 16 bits per value"
    else:
        return None
    if not dark:
        return None
    first = next(iter(dark))
    return (
        f"{len(dark)} of {len(rows)} images looked at are {kind} that are nearly black: only the upper 8 bits are "
        f"kept, and {dataset.ids[first]} has no value above {dark[first]} of 255; if they hold fewer bits, such as 12, "
        "scale their values to the full range of 16 bits, from 0 to 65535, and start again"
    )


def _opened(source: Path | Member) -> ImageFile:
    """Open an image without decoding it.

    Raises:
        OSError: If it is not an ordinary file, or not an image.
    """
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(source)
    return Image.open(io.BytesIO(source.read()) if isinstance(source, Member) else source, formats=FORMATS)


def _most_of_16_bits(source: Path | Member) -> int | None:
    """Return the largest value of a 16-bit image after decoding; None for other images and unreadable ones."""
    try:
        with _opened(source) as image:
            # Pillow opens a PNG of three 16-bit channels as RGB, and only the layout of the file tells
            if not (image.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in image.tile)):
                return None
        return int(np.asarray(decode(source)).max())
    except Exception:  # whatever is wrong with the file is reported when it is decoded
        return None
