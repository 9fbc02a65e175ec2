"""Mosaics of Fashion-MNIST images: real images of several labels that need no download.

Each image is four of Fashion-MNIST's 10,000 test images in a square, and has the 1 to 4 classes of its tiles. A given
number of mosaics is the same data set on every machine.
"""

import numpy as np
from jaxtyping import Int64, UInt64

from deephash_cli.data.dataset import ImageArray, RetrievalDataset
from deephash_cli.data.fashion_mnist import fashion_mini

_TILES = 4
# Where the queries and the training images end, in tenths of the mosaics and of the tiles of each class. No tile is in
# two parts: a query would find the mosaics that repeat one of its tiles, whatever a method learned about classes.
_ENDS = (1, 6)


def fashion_mosaic(images: int) -> RetrievalDataset:
    """Make mosaics of Fashion-MNIST's test images: 56 x 56 grey pixels, with the labels of their four tiles.

    Mosaics of 1, 2, 3 and 4 labels are about equally frequent. In the official division a tenth of the mosaics are
    queries and a half are trained on; the database is everything except the queries. The tiles of queries, of training
    images and of the other images are different ones.

    Args:
        images: Number of mosaics, at least 10.
    """
    tiles = fashion_mini()
    assert isinstance(tiles.images, ImageArray)
    classes = len(tiles.class_names)
    # The rows of each class, in the order of the file. There are equally many of each class.
    members = np.argsort(tiles.labels.argmax(axis=1), kind="stable").reshape(classes, -1)
    query, train, other = np.split(np.arange(images), [end * images // 10 for end in _ENDS])
    pools = np.split(members, [end * members.shape[1] // 10 for end in _ENDS], axis=1)

    words = np.random.PCG64(0).random_raw(images * (1 + classes + 3 * _TILES)).reshape(images, -1)
    of_count, of_classes, of_tiles = np.split(words, [1, 1 + classes], axis=1)
    of_repeats, of_places, of_rows = np.split(of_tiles, 3, axis=1)
    # The first tiles have a class each; the classes of the others are drawn from these. Then the tiles are shuffled.
    count = 1 + _below(of_count, _TILES)
    drawn = np.where(np.arange(_TILES) < count, np.arange(_TILES), _below(of_repeats, count))
    shuffled = np.take_along_axis(drawn, _order(of_places), axis=1)
    of_class = np.take_along_axis(_order(of_classes), shuffled, axis=1)
    rows = np.empty_like(of_class)
    for part, pool in zip((query, train, other), pools, strict=True):
        rows[part] = pool[of_class[part], _below(of_rows[part], pool.shape[1])]

    labels = np.zeros((images, classes), np.uint8)
    np.put_along_axis(labels, of_class, 1, axis=1)
    side = tiles.images.images.shape[-1]
    squares = tiles.images.images[rows].reshape(images, 2, 2, side, side).transpose(0, 1, 3, 2, 4)
    return RetrievalDataset(
        name="fashion_mosaic",
        ids=[f"mosaic/{number:05d}" for number in range(images)],
        labels=labels,
        class_names=tiles.class_names,
        images=ImageArray(np.ascontiguousarray(squares).reshape(images, 1, 2 * side, 2 * side)),
        official={"query": query, "train": train, "database": np.concatenate([train, other])},
    )


def _below(words: UInt64[np.ndarray, "n m"], limits: Int64[np.ndarray, "n 1"] | int) -> Int64[np.ndarray, "n m"]:
    """Turn random words into whole numbers from 0 to below the limits, all equally frequent."""
    upper = words >> np.uint64(32)
    return (upper * np.asarray(limits, np.uint64) >> np.uint64(32)).astype(np.int64)


def _order(words: UInt64[np.ndarray, "n m"]) -> Int64[np.ndarray, "n m"]:
    """Turn each row of random words into a random order of the numbers below its length."""
    return np.argsort(words, axis=1, kind="stable")
