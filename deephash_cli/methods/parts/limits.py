"""Refuse values of a method's settings for which its formulas have no meaning."""


def at_least(least: float, **settings: float) -> None:
    """Refuse a setting below a limit.

    Raises:
        ValueError: If one is below the limit or not a number. The message names it.

    >>> at_least(1, anchors=300, iterations=0)
    Traceback (most recent call last):
    ValueError: iterations must be at least 1, got 0
    """
    for name, value in settings.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def above_zero(**settings: float) -> None:
    """Refuse a setting that is not above 0.

    Raises:
        ValueError: If one is not above 0 or not a number. The message names it.

    >>> above_zero(sigma=-1.0)
    Traceback (most recent call last):
    ValueError: sigma must be above 0, got -1.0
    """
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
