"""How each parameter's share of an exact kernel is made: what its layers give decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from pntk.gradients.rules import Target
from pntk.ntk.columns import Axes
from pntk.ntk.contraction import Pieces, Sizes, cost, shared_factor, sizes_of
from pntk.ntk.factors import Kept, Piece, Product
from pntk.projection.dispatch import resolve_impl

_SMALL = 2**14  # numbers a sample of a parameter's gradients of all outputs that are worth keeping

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Way:
    """How one parameter's share of the kernel is made.

    Attributes:
        calls: pieces that a backward pass gives.
        shared: by factors: whether all outputs share the columns or the rows; None by gradients.
        keep: whether all outputs are waited for, and what they give is kept until then.
        sample: numbers a sample that are kept.
        unfolded: numbers a sample of what convolutions see of their inputs.
        cost: multiplications an entry.
        bias: name of the bias whose share is made along with this one's.
    """

    calls: int
    shared: bool | None
    keep: bool
    sample: int
    unfolded: int
    cost: float
    bias: str | None = None


class Gatherer:
    """A sink that gathers the pieces of each parameter and output.

    Args:
        shapes: name -> shape of each parameter.
        batch: b.
    """

    def __init__(
        self, shapes: Shapes, batch: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes, self.batch, self.dtype, self.device = shapes, batch, dtype, device
        # of norms alone, of which the compiled ones keep no normalised copy of their input
        on_cpu = device.type == "cpu"
        self.impl = resolve_impl("auto", dtype=dtype, device=device) if on_cpu else "torch"
        self.pieces: dict[str, list[Piece]] = {}

    def target(self, name: str, output: int) -> Target:
        pieces = self.pieces.setdefault(name, [])
        return Kept(name, self.shapes[name], self.batch, self.dtype, pieces)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        yield
        self.end_output()

    def end_output(self) -> None:
        """Take note that the backward pass of an output is over."""


class Survey(Gatherer):
    """Learn from a few samples what each parameter gives."""

    def __init__(
        self, shapes: Shapes, batch: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shapes, batch, dtype=dtype, device=device)
        self.calls = dict.fromkeys(shapes, 0)
        self._seen: dict[str, list[Pieces]] = {name: [] for name in shapes}
        self._targets: list[Kept] = []
        self._with_weight: dict[str, list[str]] = {name: [] for name in shapes}

    def target(self, name: str, output: int) -> Target:
        made = super().target(name, output)
        assert isinstance(made, Kept)
        self._targets.append(made)
        return made

    def end_output(self) -> None:
        came: dict[str, list[str]] = {}
        for target in self._targets:
            for bias in target.biases:
                came.setdefault(bias, []).append(target.name)
        for name, pieces in self.pieces.items():
            self.calls[name] = max(self.calls[name], len(pieces))
            weights = came.get(name, [])
            self._with_weight[name] += weights if len(weights) == len(pieces) else ["", ""]
            if len(self._seen[name]) < 2 and pieces:
                self._seen[name].append(pieces)
        self.pieces, self._targets = {}, []

    def sizes(self, name: str) -> tuple[Sizes, bool | None] | None:
        """Return what decides the way, and which factor is shared; None without gradients."""
        seen = self._seen[name]
        if not seen:
            return None
        shared = shared_factor(seen[-1], seen[0])
        return sizes_of(seen[0], shared), shared

    def unfolded(self, name: str) -> int:
        """Return the numbers a sample that the layers see of their inputs, beyond the inputs."""
        return sum(
            p.positions * p.width
            for p in (self._seen[name] or [()])[0]
            if isinstance(p, Product) and p.columns.windows is not None and p.groups == 1
        )

    def bias_of(self, name: str) -> str | None:
        """Return the bias that comes with every use of a weight, and with no other."""
        for bias, weights in self._with_weight.items():
            if weights and set(weights) == {name} and self.calls[bias] == self.calls[name]:
                return bias
        return None


def choose_ways(
    survey: Survey, axes: Axes, method: str, samples: int, component_of: Mapping[str, str]
) -> dict[str, Way]:
    """Return how to make each parameter's share.

    Args:
        method: ``auto``, ``factors`` where there are some, or ``gradients``.
        samples: of a tile.
        component_of: parameter -> component.
    """
    ways = {}
    for name in survey.shapes:
        found = survey.sizes(name)
        if found is None:
            continue
        sizes, shared = found
        by_factors, by_gradients = cost(sizes, axes.summed, axes.paired**2, samples, samples)
        factors = sizes.factors and (by_factors <= by_gradients or method == "factors")
        factors = factors and method != "gradients"
        outputs = axes.paired * axes.summed
        small = sizes.dense and outputs * sizes.entries <= _SMALL
        keep = factors or axes.paired > 1 or (axes.summed > 1 and small)
        each = sizes.entries if sizes.dense else sizes.positions * sizes.varying
        ways[name] = Way(
            calls=survey.calls[name],
            shared=shared if factors else None,
            keep=keep,
            sample=each * (outputs if keep else 1),
            unfolded=survey.unfolded(name),
            cost=by_factors if factors else by_gradients,
        )
    for name, way in list(ways.items()):
        bias = survey.bias_of(name) if way.shared is not None else None
        if bias is not None and component_of[bias] == component_of[name]:
            ways[name] = replace(way, bias=bias)
            ways[bias] = replace(ways[bias], calls=0, keep=False, sample=0, cost=0.0)
    return ways
