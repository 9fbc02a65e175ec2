"""The ways in which programs store packed codes: the order of the bits in a byte, and the type of the bytes.

Within deephash, and in its codes folders, the order is ``little`` and the type ``uint8``.

- ``uint8`` is ``ubinary`` of sentence-transformers and Cohere, with the order ``big``.
- ``int8_minus_128`` is the value of that byte less 128: ``binary`` of sentence-transformers and Cohere.
- ``int8_same_bits`` is the same eight bits read as a signed number: Vespa, OpenSearch, ``view(np.int8)``.

The two signed types differ in the highest bit of each byte, so their codes must not be compared with each other.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int8, UInt8

BitOrder = Literal["little", "big"]
ByteType = Literal["uint8", "int8_minus_128", "int8_same_bits"]

_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="big"), bitorder="little")
_MINUS_128 = np.uint8(128)  # modulo 256, to subtract 128 is to turn over the highest bit


def dtype_of(byte_type: ByteType) -> np.dtype:
    """Return the type of an array with these bytes."""
    return np.dtype(np.uint8 if byte_type == "uint8" else np.int8)


def store(
    packed: UInt8[np.ndarray, "n bytes"], bit_order: BitOrder, byte_type: ByteType
) -> UInt8[np.ndarray, "n bytes"] | Int8[np.ndarray, "n bytes"]:
    """Store packed codes of deephash as another program does. Without a change they are not copied.

    >>> store(np.array([[0b00000001, 0b00000011]], np.uint8), "big", "int8_minus_128")
    array([[ 0, 64]], dtype=int8)
    """
    turned = _REVERSED[packed] if bit_order == "big" else packed
    if byte_type == "int8_minus_128":
        turned = turned ^ _MINUS_128
    return turned.view(dtype_of(byte_type))


def restore(
    stored: UInt8[np.ndarray, "n bytes"] | Int8[np.ndarray, "n bytes"], bit_order: BitOrder, byte_type: ByteType
) -> UInt8[np.ndarray, "n bytes"]:
    """Undo `store`."""
    packed = stored.view(np.uint8)
    if byte_type == "int8_minus_128":
        packed = packed ^ _MINUS_128
    return _REVERSED[packed] if bit_order == "big" else packed
