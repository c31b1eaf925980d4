"""Refusals of settings, each a ValueError that names the setting, what it must be and what it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral


def require(holds: bool, name: str, expected: str, received: object) -> None:
    """Refuse a setting unless this holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {received!r}")


def require_each(config: object, names: tuple[str, ...], holds: Callable[..., bool], expected: str) -> None:
    """Refuse settings of these names for whose values this does not hold."""
    for name in names:
        value = getattr(config, name)
        try:
            held = holds(value)
        except TypeError:  # a text, say, where a number is meant
            held = False
        require(held, name, expected, value)


def require_all(config: object, names: tuple[str, ...], holds: Callable[..., bool], expected: str) -> None:
    """Refuse settings of these names that are no tuple of at least one value, or for one of whose values this does not
    hold."""
    require_each(
        config, names, lambda values: values and all(map(holds, values)), f"one or more values, each {expected}"
    )


def require_counts(config: object, *names: str, least: int = 1) -> None:
    """Refuse settings of these names that are no whole numbers, below the least or beyond 31 bits."""
    for name, value in ((name, getattr(config, name)) for name in names):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        expected = "a whole number" if not whole else f">= {least}" if value < least else "below 2^31"
        require(whole and least <= value < 2**31, name, expected, value)


def require_positive(config: object, *names: str) -> None:
    """Refuse settings of these names that are not above zero, or infinite."""
    require_each(config, names, lambda v: 0 < v < math.inf, "> 0 and finite")


def require_not_negative(config: object, *names: str) -> None:
    """Refuse settings of these names that are below zero, or infinite."""
    require_each(config, names, lambda v: 0 <= v < math.inf, ">= 0 and finite")
