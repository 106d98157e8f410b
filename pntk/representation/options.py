"""What options of measures must be, so that a wrong one is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from pntk.errors import ConfigError
from pntk.representation import neighbours, rsa


class Rule(NamedTuple):
    """What a value must be: a test, and words for it."""

    holds: Callable[[Any], bool]
    words: str


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer of at least ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def one_of(allowed: Sequence[str]) -> Rule:
    """Return the rule that a value is one of some words."""
    *others, last = map(repr, allowed)
    few = f"{', '.join(others)} or {last}"
    words = few if len(allowed) <= 3 else f"one of {', '.join(allowed)}"
    return Rule(lambda value: value in allowed, words)


FLAG = Rule(lambda value: isinstance(value, (bool, np.bool_)), "True or False")
RULES = {
    "method": one_of(("svd", "qr")),
    "average": one_of(("mean", "squared")),
    "weights_from": one_of(("x", "y", "fewer")),
    "compare": one_of(rsa.CORRELATIONS),
    "debiased": FLAG,
    "jaccard": FLAG,
    "k": Rule(is_count, "an integer of at least 1"),
    "dims": Rule(
        lambda value: value is None or is_count(value), "an integer of at least 1, or None"
    ),
    "threshold": Rule(
        lambda value: is_number(value) and 0 < value <= 1, "a share above 0 and at most 1"
    ),
    "ridge": Rule(lambda value: is_number(value) and value >= 0, "a variance, 0 or more"),
    "sigma": Rule(
        lambda value: is_number(value) and value > 0, "a positive multiple of the median distance"
    ),
    "channel_axis": Rule(
        lambda value: value is None or isinstance(value, Integral), "the number of an axis, or None"
    ),
    "samples_per_neuron": Rule(
        lambda value: value is None or (is_number(value) and value > 0), "more than 0, or None"
    ),
    "max_samples": Rule(
        lambda value: value is None or is_count(value, 2), "at least 2 rows, or None"
    ),
}
METRICS = {"neighbours": one_of(neighbours.METRICS), "rsa": one_of(rsa.METRICS)}


def check_options(measure: str, options: Mapping[str, Any]) -> None:
    """Refuse options that cannot work, whatever the data.

    Args:
        measure: name of the measure, whose ``metric`` may differ from another's.
        options: of it, or of how matrices are made of layers.

    Raises:
        ConfigError: names the option.
    """
    for name, value in options.items():
        rule = METRICS.get(measure) if name == "metric" else RULES.get(name)
        if rule is not None and not rule.holds(value):
            raise ConfigError(f"{name} is {value!r}; expected {rule.words}")
