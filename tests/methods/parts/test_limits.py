"""Limits of settings: what has no meaning is refused."""

import pytest

from deephash_cli.methods.parts.limits import above_zero, at_least

NAN = float("nan")


@pytest.mark.parametrize("value", [0.9, -1, NAN])
def test_what_is_below_a_limit_is_named(value):
    at_least(1, a=1, b=2.5)
    with pytest.raises(ValueError, match=f"b must be at least 1, got {value}"):
        at_least(1, a=1, b=value)


@pytest.mark.parametrize("value", [0, -0.5, NAN])
def test_what_is_not_above_zero_is_named(value):
    above_zero(a=1e-9)
    with pytest.raises(ValueError, match=f"a must be above 0, got {value}"):
        above_zero(a=value)
