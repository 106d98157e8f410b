"""Scores tile by tile, and what takes them: memory, a file, or the best of each target.

Shapes: n training samples; m targets; k width of a row; b, d rows of a tile; C checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pntk.attribution.checkpoints import Checkpoint, unusable
from pntk.attribution.ridge import Ridge
from pntk.attribution.targets import Plain, Solved, Targets, unit_rows
from pntk.errors import ConfigError
from pntk.ntk.kernel_file import KernelWriter
from pntk.products import product
from pntk.retrieval import TopK, largest_in_torch

SOLVED = ("trak", "influence")  # whose targets are multiplied by an inverse
SIDES = ("train", "test")
_FIXED = 2**25  # what threads and the kernels of matrix products take, whatever the sizes
_LEAST_TILE = 8


class Extremes(NamedTuple):
    """The training samples at both ends, for each target.

    Attributes:
        highest: descending, as :class:`pntk.TopK`.
        lowest: ascending; where no usable sample is left, -1 with the value infinity.
    """

    highest: TopK
    lowest: TopK


class Sink(Protocol):
    """What takes scores, tile by tile."""

    def wants(self, i: int, j: int) -> bool:
        """Whether tile (i, j) is to be computed."""

    def write(self, i: int, j: int, tile: Tensor) -> None:
        """Take the scores [b, d] of the i-th samples and the j-th targets."""


class Plan:
    """What is to be computed, and in which tiles.

    Args:
        shares: w [C].
        q: [n], or None for ones.
        budget: bytes.
        device: where rows are multiplied, and solved with.
    """

    def __init__(
        self,
        checkpoints: list[Checkpoint],
        shares: list[float],
        q: Tensor | None,
        method: str,
        ridge: Ridge,
        dtype: torch.dtype,
        budget: int,
        device: torch.device,
    ) -> None:
        self.checkpoints, self.shares, self.method = checkpoints, shares, method
        self.ridge, self.dtype, self.budget, self.device = ridge, dtype, budget, device
        self.q = None if q is None else q.to(device, dtype)
        self.n, self.m = checkpoints[0].train.shape[0], checkpoints[0].test.shape[0]
        self.tile = self._choose_tile()

    def run_in_memory(self, progress: bool) -> Tensor:
        """Return all scores [n, m]."""
        sink = _Memory(self.n, self.m, self.tile, self.dtype)
        self._run(sink, self.tile, progress)
        return sink.scores

    def run_top(self, top: int, both: bool, progress: bool) -> TopK | Extremes:
        """Return the largest scores of each target."""
        left_out = [unusable([getattr(c, what) for c in self.checkpoints]) for what in SIDES]
        signs = (1, -1) if both else (1,)
        sinks = [_Top(self, top, sign, *left_out) for sign in signs]
        self._run(_Both(sinks), self.tile, progress)
        found = [sink.result() for sink in sinks]
        return Extremes(*found) if both else found[0]

    def run_to_disk(self, writer: KernelWriter, progress: bool) -> None:
        """Write the tiles that a file lacks."""
        tile = writer.header.tile
        if self._bytes(tile) > self._room():
            raise ConfigError(
                f"memory_budget is {self.budget:,} bytes; {writer.path} was begun with tiles of "
                f"{tile} rows, which take {self._bytes(tile) + _FIXED:,}: use a larger budget, or "
                "delete it to start anew"
            )
        sink = _Disk(writer)
        if any(sink.missing):
            self._run(sink, tile, progress)

    def _run(self, sink: Sink, tile: int, progress: bool) -> None:
        targets = self._targets()
        bands, columns = range(-(-self.n // tile)), range(-(-self.m // tile))
        wanted = [(i, j) for j in columns for i in bands if sink.wants(i, j)]
        current, held = -1, list[Tensor]()
        for i, j in tqdm(wanted, unit="tile", desc=self.method, disable=not progress):
            if j != current:
                held.clear()
                first, last = j * tile, min((j + 1) * tile, self.m)
                for c, share in enumerate(self.shares):
                    held.append(self._here(targets.block(c, first, last)) * share)
                current = j
            sink.write(i, j, self._scores(i, held, tile))

    def _here(self, rows: Tensor) -> Tensor:
        return rows.to(self.device).to(self.dtype)

    def _scores(self, i: int, targets: list[Tensor], tile: int) -> Tensor:
        """Return the scores [b, d] of the i-th samples and of targets [d, k] a checkpoint."""
        start, stop = i * tile, min((i + 1) * tile, self.n)
        total: Tensor | None = None
        for checkpoint, rows in zip(self.checkpoints, targets, strict=True):
            x = self._here(checkpoint.train.block(start, stop))
            scores = product(unit_rows(x) if self.method == "cosine" else x, rows)
            total = scores if total is None else total.add_(scores)
        assert total is not None
        return total if self.q is None else total.mul_(self.q[start:stop, None])

    def _targets(self) -> Targets:
        if self.method not in SOLVED:
            return Plain(self.checkpoints, unit=self.method == "cosine")
        mean = self.method == "influence"
        return Solved(self.checkpoints, self.dtype, self.budget // 2, self.ridge, mean, self.device)

    def _room(self) -> int:
        """Bytes for tiles: half of the budget where the other half holds what was solved."""
        whole = self.budget // 2 if self.method in SOLVED else self.budget
        return whole - _FIXED

    def _bytes(self, tile: int) -> int:
        """What the work takes with tiles of so many rows."""
        width = max(checkpoint.width for checkpoint in self.checkpoints)
        held = sum(checkpoint.width for checkpoint in self.checkpoints)
        b, d = min(tile, self.n), min(tile, self.m)
        # rows as they are stored and as they are multiplied
        rows = self.dtype.itemsize * (3 * b * width + d * (held + width))
        # scores of a checkpoint, their sum, two copies, and what is kept while they are compared
        return rows + b * d * (4 * self.dtype.itemsize + 16)

    def _choose_tile(self) -> int:
        """Return the largest tile within the budget.

        Raises:
            ConfigError: there is none; says which budget would do.
        """
        most, room = max(self.n, self.m), self._room()
        least = min(_LEAST_TILE, most)
        if self._bytes(least) > room:
            factor = 2 if self.method in SOLVED else 1
            enough = factor * (self._bytes(least) + _FIXED)
            raise ConfigError(
                f"memory_budget is {self.budget:,} bytes; rows of this width take at least "
                f"{enough:,}: use memory_budget={enough}"
            )
        if self._bytes(most) <= room:
            return most
        low, high = least, most  # the first fits and the second does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._bytes(middle) <= room else (low, middle)
        return low


# ---- sinks -------------------------------------------------------------------------------------


class _Memory:
    """All scores."""

    def __init__(self, n: int, m: int, tile: int, dtype: torch.dtype) -> None:
        self.scores = torch.empty(n, m, dtype=dtype)
        self._tile = tile

    def wants(self, i: int, j: int) -> bool:
        return True

    def write(self, i: int, j: int, tile: Tensor) -> None:
        size = self._tile
        self.scores[i * size : (i + 1) * size, j * size : (j + 1) * size] = tile


class _Disk:
    """A kernel file."""

    def __init__(self, writer: KernelWriter) -> None:
        self._writer = writer
        self.missing = [set(writer.missing(i)) for i in range(writer.header.grid[0])]

    def wants(self, i: int, j: int) -> bool:
        return j in self.missing[i]

    def write(self, i: int, j: int, tile: Tensor) -> None:
        self._writer.write(i, j, tile.cpu())


class _Both:
    """Several sinks that get the same tiles."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def wants(self, i: int, j: int) -> bool:
        return True

    def write(self, i: int, j: int, tile: Tensor) -> None:
        for sink in self._sinks:
            sink.write(i, j, tile)


class _Top:
    """The best scores of each target, those of the samples that came first among equals.

    Args:
        sign: -1 for the lowest.
        samples, targets: those that cannot be used.
    """

    def __init__(self, plan: Plan, top: int, sign: int, samples: Tensor, targets: Tensor) -> None:
        self._values = torch.empty(plan.m, top, dtype=plan.dtype)
        self._indices = torch.empty(plan.m, top, dtype=torch.int64)
        self._tile, self._top, self._sign = plan.tile, top, sign
        self._samples, self._targets = samples.to(plan.device), targets
        self._column = -1
        # [d, up to top], in the samples' order
        self._best = torch.empty(0, 0, dtype=plan.dtype, device=plan.device)
        self._places = torch.empty(0, 0, dtype=torch.int64, device=plan.device)

    def wants(self, i: int, j: int) -> bool:
        return True

    def write(self, i: int, j: int, tile: Tensor) -> None:
        b, d = tile.shape
        if j != self._column:
            self._column = j
            self._best, self._places = self._best.new_empty(d, 0), self._places.new_empty(d, 0)
        start = i * self._tile
        scores = (tile * self._sign).nan_to_num_(nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
        here = (self._samples >= start) & (self._samples < start + b)
        scores[self._samples[here] - start] = -np.inf
        known = self._best.shape[1]
        scores = torch.cat([self._best, scores.T], dim=1)
        columns = largest_in_torch(scores, min(self._top, scores.shape[1]))
        self._best = scores.gather(1, columns)
        places = torch.cat([self._places, self._places.new_empty(d, 1)], dim=1)
        places = places.gather(1, columns.clamp(max=known))
        self._places = torch.where(columns < known, places, columns - known + start)
        if self._best.shape[1] == self._top:  # until then there are too few
            values, order = self._best.sort(dim=1, descending=True, stable=True)
            first = j * self._tile
            self._values[first : first + d] = values
            self._indices[first : first + d] = self._places.gather(1, order)

    def result(self) -> TopK:
        self._values[self._targets] = -np.inf
        self._indices.masked_fill_(self._values == -np.inf, -1)
        return TopK(self._values * self._sign, self._indices)
