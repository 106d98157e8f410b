"""Entries: what can be measured, and the rule that nothing is timed before it is checked."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch

from benchmarks.timing import Spread

Number = Spread | float | int | str | None


class CheckFailed(RuntimeError):
    """A result does not agree with its reference, so no speed is given for it."""


class Unavailable(RuntimeError):
    """An entry cannot run here; the message says why."""


@dataclass(frozen=True)
class Options:
    """What all entries obey.

    Args:
        device: where models are.
        repeats: rounds of timing that count.
        quick: tiny models; shows that the code runs, and its numbers mean nothing.
        full: the slow cases too.
    """

    device: torch.device
    repeats: int = 20
    quick: bool = False
    full: bool = False


@dataclass(frozen=True)
class Check:
    """A comparison that was within its bound."""

    what: str
    error: float
    bound: float


def require(what: str, error: float, bound: float) -> Check:
    """Return a passed check.

    Raises:
        CheckFailed: the error is not below the bound (NaN is not).
    """
    if not error < bound:
        raise CheckFailed(
            f"{what}: relative error {error:.3g}; expected below {bound:.3g}, so nothing was timed"
        )
    progress(f"checked {what}: {error:.2g}")
    return Check(what, error, bound)


@dataclass(frozen=True)
class Row:
    """One line of a table: the ratios that answer the question, then the absolute values."""

    case: str
    ratios: dict[str, Number]
    values: dict[str, Number]


@dataclass(frozen=True)
class Result:
    """What an entry found."""

    name: str
    summary: str
    checks: list[Check]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


class Entry(ABC):
    """Something to measure.

    Attributes:
        name: what the command line calls it.
        summary: one sentence for the list and the report.
        notes: remarks for the report, which check and measure may add to.
    """

    name: str
    summary: str

    def __init__(self) -> None:
        self.notes: list[str] = []

    @abstractmethod
    def check(self, options: Options) -> list[Check]:
        """Compare with the reference.

        Raises:
            CheckFailed: the result is wrong.
            Unavailable: the entry cannot run here.
        """

    @abstractmethod
    def measure(self, options: Options) -> list[Row]:
        """Time what was checked."""


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(f"   {text}", file=sys.stderr, flush=True)


def run(entry: Entry, options: Options) -> Result:
    """Check an entry, then measure it; a failed check leaves it unmeasured."""
    checks = entry.check(options)
    if not checks:
        raise CheckFailed(f"{entry.name}: nothing was checked, so nothing was timed")
    return Result(entry.name, entry.summary, checks, entry.measure(options), entry.notes)
