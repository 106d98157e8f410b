"""Times that can be compared: competitors run alternately, in one process, after a warm-up."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def times(self, factor: float) -> Spread:
        """Return the spread in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.4g}"
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class Times:
    """Seconds of each competitor, one a round."""

    seconds: Mapping[str, Sequence[float]]

    def of(self, name: str) -> Spread:
        """Return the median and quartiles of one competitor, in seconds."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """Return time of ``name`` over time of ``base``, taken round by round.

        What disturbs a round disturbs both, so ratios spread less than times.
        """
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])

    def scaled(self, factors: Mapping[str, float]) -> Times:
        """Return the times of each competitor multiplied by its own factor."""
        return Times(
            {name: [s * factors[name] for s in all_] for name, all_ in self.seconds.items()}
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the compiled kernels use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(
    competitors: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 2,
    device: torch.device | None = None,
    seconds: float = math.inf,
) -> Times:
    """Time functions alternately, every second round in reverse order.

    Args:
        competitors: name -> function without arguments.
        repeats: rounds that count.
        warmup: rounds before those, which do not count.
        device: a CUDA device to wait for before the clock is read.
        seconds: after which no further round starts, if there were ``FEWEST_ROUNDS``.
    """
    start = time.perf_counter()
    order = list(competitors)
    for _ in range(warmup):
        for name in order:
            competitors[name]()
    found: dict[str, list[float]] = {name: [] for name in order}
    for done in range(repeats):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name in order:
            found[name].append(_seconds(competitors[name], device))
        order.reverse()
    return Times(found)


def calls_in(call: Callable[[], object], seconds: float, device: torch.device | None = None) -> int:
    """Return how many calls fill so many seconds, from the time of one: 1 to 1000."""
    return max(1, min(1000, round(seconds / max(_seconds(call, device), 1e-6))))


def repeated(call: Callable[[], object], count: int) -> Callable[[], None]:
    """Return a function that calls so many times."""

    def turn() -> None:
        for _ in range(count):
            call()

    return turn


def _seconds(function: Callable[[], object], device: torch.device | None) -> float:
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
