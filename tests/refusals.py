"""Check that what is refused is said in one line, with the parts that matter."""

from collections.abc import Callable
from typing import Any

import pytest

from deephash_cli.errors import DataError


def refused(load: Callable[..., Any], *arguments: Any, parts: tuple[str, ...], **settings: Any) -> None:
    """Check that a loader raises a ``DataError`` of one line that has all ``parts``."""
    with pytest.raises(DataError) as caught:
        load(*arguments, **settings)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
