"""Which outputs of a model a kernel is about, as columns to differentiate one by one.

The columns of a batch are [b, R * S]: R outputs that the kernel keeps, and S over which it sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pntk.batch import split
from pntk.errors import ConfigError, OutputError
from pntk.logits import Model, at_least_float32, tensor_of
from pntk.outputs import Output, Values, resolve_output

KINDS = ("trace", "pntk", "diagonal", "full")


@dataclass(frozen=True)
class Axes:
    """How the columns make a kernel.

    Attributes:
        kept: sizes of the output's axes that the kernel keeps; their product is R.
        summed: S.
        pairs: whether all pairs of kept outputs are wanted, or each with itself.
    """

    kept: tuple[int, ...]
    summed: int
    pairs: bool

    @property
    def each(self) -> int:
        """Kept outputs whose kernels stand beside each other."""
        return 1 if self.pairs else math.prod(self.kept)

    @property
    def paired(self) -> int:
        """A, kept outputs of which all pairs are wanted."""
        return math.prod(self.kept) if self.pairs else 1

    @property
    def columns(self) -> int:
        return self.each * self.paired * self.summed

    @property
    def entry(self) -> tuple[int, ...]:
        """Shape of what the kernel holds for two samples."""
        return self.kept * 2 if self.pairs else self.kept

    def shaped(self, kernel: Tensor) -> Tensor:
        """Return [n, m, *entry] of a kernel [each, paired, n, paired, m]."""
        n, m = kernel.shape[2], kernel.shape[4]
        return kernel.permute(2, 4, 0, 1, 3).reshape(n, m, *self.entry)


class Columns(Output):
    """An output as columns [b, R * S].

    Args:
        kind: ``trace`` sums the kernels of all outputs, ``pntk`` differentiates their sum,
            ``diagonal`` keeps each output's kernel, ``full`` all pairs of outputs.
        output: what the model's outputs are; None for what it returns, with any further axes.
        trace_axes: axes of the output [b, ...] over which ``diagonal`` and ``full`` sum.

    Raises:
        ConfigError: unknown kind, or axes that do not go with it.
    """

    name = "columns"

    def __init__(
        self, kind: str, output: Any = None, trace_axes: tuple[int, ...] | None = None
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
        whole = isinstance(trace_axes, (tuple, list)) and all(type(a) is int for a in trace_axes)
        if trace_axes is not None and not whole:
            raise ConfigError(f"trace_axes is {trace_axes!r}; expected a tuple of integers")
        if trace_axes and kind in ("trace", "pntk"):
            raise ConfigError(
                f"trace_axes={trace_axes!r} with kind={kind!r}, which sums over all axes; use "
                "kind='full' or 'diagonal' to sum over some of them"
            )
        self.kind = kind
        self.output = None if output is None else resolve_output(output)
        self.trace_axes = tuple(trace_axes or ())
        self.axes: Axes | None = None  # known once a batch has been seen

    def __call__(self, model: Model, batch: Any) -> Values:
        values = self._values(model, batch)
        if self.kind == "pntk":
            self.axes = Axes((), 1, False)
            return Values(values.flatten(1).sum(1) if values.dim() > 1 else values)
        rest = range(1, values.dim())
        traced = list(rest) if self.kind == "trace" else self._traced(values)
        kept = [axis for axis in rest if axis not in traced]
        sizes = tuple(values.shape[axis] for axis in kept)
        summed = math.prod(values.shape[axis] for axis in traced)
        self.axes = Axes(sizes, summed, self.kind == "full")
        return Values(values.permute(0, *kept, *traced).reshape(values.shape[0], -1))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "output": None if self.output is None else self.output.describe(),
            "trace_axes": list(self.trace_axes),
        }

    def _values(self, model: Model, batch: Any) -> Tensor:
        if self.output is not None:
            return self.output(model, batch).values
        args, kwargs, _ = split(batch)
        values = tensor_of(model(*args, **kwargs))
        if not values.is_floating_point():
            kind = "complex" if values.is_complex() else "not floating point"
            raise OutputError(
                f"the model returned {values.dtype}, which is {kind}; expected real floating point "
                "outputs: pass output=callable(model, batch) that returns them"
            )
        if values.dim() == 0 or 0 in values.shape:
            raise OutputError(
                f"the model returned an output of shape {tuple(values.shape)}; expected [b, ...] "
                "with at least one output a sample"
            )
        return at_least_float32(values)

    def _traced(self, values: Tensor) -> list[int]:
        found = [axis + values.dim() if axis < 0 else axis for axis in self.trace_axes]
        if any(not 1 <= axis < values.dim() for axis in found) or len(set(found)) < len(found):
            raise ConfigError(
                f"trace_axes is {self.trace_axes} for outputs of shape {tuple(values.shape)}; "
                f"expected different axes from 1 to {values.dim() - 1} (0 holds the samples)"
            )
        return found
