"""MIRFlickr-25k: 25,000 photographs of Flickr with labels of 24 concepts; an image may have several or none.

Huiskes, Lew, 2008, "The MIR Flickr retrieval evaluation".
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deephash_cli.data import published
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.download import Archive
from deephash_cli.data.text import lines
from deephash_cli.data.usual_lists import from_lists
from deephash_cli.errors import DataError, short
from deephash_cli.names import Names

# An annotator saw the concept somewhere in the image ("potential"), or found it important there ("relevant").
POTENTIAL = (
    "animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male", "night",
    "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport", "tree", "water",
)  # fmt: skip
RELEVANT = (
    "baby_r1", "bird_r1", "car_r1", "clouds_r1", "dog_r1", "female_r1", "flower_r1", "male_r1", "night_r1",
    "people_r1", "portrait_r1", "river_r1", "sea_r1", "tree_r1",
)  # fmt: skip
LABELS = {"potential": POTENTIAL, "all38": tuple(sorted(POTENTIAL + RELEVANT))}
COUNTS = {"all": 25_000}
LISTED = {"train": (4_000,), "query": (1_000,), "database": (20_000,)}

_TITLE = "MIRFlickr-25k"
_IMAGES = Archive(
    "https://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k.zip",
    size=None,
    md5="a23d0a8564ee84cda5622a6c2f947785",
    max_files=300_000,
    max_bytes=8 * 10**9,
)
_ANNOTATIONS = Archive(
    "https://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k_annotations_v080.zip",
    size=None,
    md5=None,
    max_files=100,
    max_bytes=50 * 10**6,
    into="annotations",
)
_OTHER_FOLDER = "mirflickr25k_annotations_v080"  # the name that file managers give to the unpacked annotations


def mirflickr(
    root: str | Path | None, lists: str | Path | None, download: bool, labels: str, incomplete: bool
) -> RetrievalDataset:
    """Load the photographs with the labels of their concepts.

    Args:
        root: Folder that holds ``mirflickr/im1.jpg`` to ``im25000.jpg`` and ``annotations``; None searches the usual
            folders.
        lists: Folder with the usual lists, which are then read instead of the annotations; None for none.
        download: Whether to download the two archives (3 GB) if the files are not found.
        labels: ``potential`` for the 24 concepts that papers use; ``all38`` for these and the 14 that were annotated
            again as relevant, which some lists have.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        ConfigError: If ``labels`` is neither of the two.
        DataError: If files are missing or malformed, or the number of images is not the published one.
    """
    published.require_choice("dataset.labels", labels, tuple(LABELS))
    concepts = LABELS[labels]
    names = [concept.replace("_", " ") for concept in concepts]
    if lists is not None:
        title = f"{_TITLE} ({labels} labels)"
        return from_lists("mirflickr", title, lists, root, [names], LISTED, incomplete, most="people")
    items = [published.Item("mirflickr", "3 GB", _IMAGES.url)]
    items += [
        published.Item(f"annotations/{concept}.txt", "up to 60 kB", _ANNOTATIONS.url, f"{_OTHER_FOLDER}/{concept}.txt")
        for concept in concepts
    ]
    folder = published.find_or_fetch("mirflickr", _TITLE, root, items, [_IMAGES, _ANNOTATIONS], download)
    count = COUNTS["all"]
    paths = [f"im{number}.jpg" for number in range(1, count + 1)]
    files = Names(paths)
    dataset = RetrievalDataset(
        name="mirflickr",
        ids=files,
        labels=np.stack([_images_of(folder, concept, count) for concept in concepts], axis=1),
        class_names=names,
        images=ImageFiles(files, folder / "mirflickr"),
        reading=(f"{labels} labels",),
        usual="mirflickr",
    )
    return published.complete(dataset, _TITLE, COUNTS, incomplete, folder / "mirflickr")


def _images_of(folder: Path, concept: str, count: int) -> UInt8[np.ndarray, " n"]:
    """Read which images have a concept: a line for each, with its number from 1."""
    places = [folder / name / f"{concept}.txt" for name in ("annotations", _OTHER_FOLDER)]
    path = next(place for place in places if place.exists())
    column = np.zeros(count, np.uint8)
    row_of = {str(image): image - 1 for image in range(1, count + 1)}
    for number, line in enumerate(lines(path), start=1):
        row = row_of.get(line.strip())
        if row is None:
            raise DataError(
                f"{path}:{number}: expected the number of an image, from 1 to {count}, got {short(line)!r}; get the "
                "file again"
            )
        column[row] = 1
    return column
