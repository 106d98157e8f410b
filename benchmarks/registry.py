"""Entries: what can be measured, and the rule that nothing is timed before it is checked."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from benchmarks.timing import Spread
from pntk.errors import ConfigError

Number = Spread | float | int | str | None
NOT_TIMED = "not timed"  # the column that says why


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
        deadline: of ``time.monotonic()``, after which an entry starts no further row.
    """

    device: torch.device
    repeats: int = 20
    quick: bool = False
    full: bool = False
    deadline: float = math.inf

    def seconds_left(self) -> float:
        """Return the time until the deadline."""
        return self.deadline - time.monotonic()


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
    failures: list[str] = field(default_factory=list)


class Entry(ABC):
    """Something to measure.

    Attributes:
        name: what the command line calls it.
        summary: one sentence for the list and the report.
        notes: remarks for the report, which check and measure may add to.
        checks: those that measure made, each before it timed something.
        failures: rows that could not be made, or were wrong, where others were not.
    """

    name: str
    summary: str

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.checks: list[Check] = []
        self.failures: list[str] = []

    @abstractmethod
    def check(self, options: Options) -> list[Check]:
        """Compare with the reference.

        Raises:
            CheckFailed: the result is wrong.
            Unavailable: the entry cannot run here.
        """

    @abstractmethod
    def measure(self, options: Options) -> Iterable[Row]:
        """Time what was checked."""

    def attempt(self, case: str, options: Options, make: Callable[[], Row]) -> Row:
        """Return a row, or one that says why there is none, so that others can follow."""
        if options.seconds_left() <= 0:
            return Row(case, {}, {NOT_TIMED: "no time was left"})
        progress(case)
        try:
            return make()
        except (Unavailable, ConfigError, torch.cuda.OutOfMemoryError) as error:
            reason = _first_line(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            self.failures.append(f"{case}: {reason}")
            progress(f"FAILED {case}: {error}")
        return Row(case, {}, {NOT_TIMED: reason})


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(f"   {text}", file=sys.stderr, flush=True)


def run(entry: Entry, options: Options, save: Callable[[Result], object] | None = None) -> Result:
    """Check an entry, then measure it; a failed check leaves it unmeasured.

    Args:
        save: takes what there is after each row, so that a run that is cut off leaves something.
    """
    checks = entry.check(options)
    if not checks:
        raise CheckFailed(f"{entry.name}: nothing was checked, so nothing was timed")
    rows: list[Row] = []

    def found() -> Result:
        all_checks = [*checks, *entry.checks]
        return Result(entry.name, entry.summary, all_checks, rows, entry.notes, entry.failures)

    for row in entry.measure(options):
        rows.append(row)
        if save:
            save(found())
    return found()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
