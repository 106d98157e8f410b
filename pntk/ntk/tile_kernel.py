"""The exact kernel of a tile of samples, added up while the gradients flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pntk.errors import ModelError
from pntk.gradients.rules import Target
from pntk.ntk.columns import Axes
from pntk.ntk.contraction import Factors, Pieces, Sides, add_by_gradients, add_gram
from pntk.ntk.factors import Dense, Kept
from pntk.ntk.ways import Gatherer, Shapes, Way


@dataclass
class _Waiting:
    """What is kept of one parameter until all outputs are there that go together."""

    factors: Factors | None = None
    dense: Tensor | None = None  # [A, b, S, O Q]
    pieces: dict[tuple[int, int], Pieces] = field(default_factory=dict)
    done: bool = False  # with the present output

    @property
    def any(self) -> bool:
        return self.factors is not None or self.dense is not None or bool(self.pieces)


class TileKernel(Gatherer):
    """Add up the kernel of a tile.

    Attributes:
        kernels: component -> [each, A, n, A, m]; of a symmetric tile the upper triangle.

    Args:
        ways: parameter -> how its share is made.
        axes: of the outputs.
        sides: of the tile.
        component_of: parameter -> component.
        workspace: bytes of temporaries.
        unfolds: whether there is memory for what convolutions see of their inputs.
    """

    def __init__(
        self,
        shapes: Shapes,
        ways: Mapping[str, Way],
        axes: Axes,
        sides: Sides,
        component_of: Mapping[str, str],
        *,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int,
        unfolds: bool = False,
    ) -> None:
        super().__init__(shapes, sides.batch, dtype=dtype, device=device)
        self.ways, self.axes, self.sides, self.workspace = ways, axes, sides, workspace
        self.component_of, self.unfolds = component_of, unfolds
        a = axes.paired
        shape = (axes.each, a, sides.left, a, sides.columns)
        self.kernels: dict[str, Tensor] = {
            component: torch.zeros(shape, dtype=dtype, device=device)
            for component in dict.fromkeys(component_of.values())
        }
        self._waiting = {name: _Waiting() for name in ways}
        self._output = 0

    def target(self, name: str, output: int) -> Target:
        way = self.ways.get(name)
        if way is None or self._waiting[name].done:
            raise ModelError(
                f"the layers of {name} are called more often for this batch than for the first; "
                "expected the same calls for every batch: use method='func'"
            )
        for other in [n for n in self.pieces if n != name]:
            if len(self.pieces[other]) >= self.ways[other].calls:
                self._finish(other)
        return Kept(
            name,
            self.shapes[name],
            self.batch,
            self.dtype,
            self.pieces.setdefault(name, []),
            absorbs=way.bias is not None,
            unfolds=self.unfolds,
        )

    def add(self, name: str, gradient: Dense) -> None:
        """Take a parameter's gradients of the present output from elsewhere."""
        self.pieces[name] = [gradient]
        self._finish(name)

    def end_output(self) -> None:
        for name in list(self.pieces):
            self._finish(name)
        together = self.axes.paired * self.axes.summed
        last = self._output % together == together - 1
        for name, waiting in self._waiting.items():
            waiting.done = False
            if last and waiting.any:
                self._contract(name, waiting)
                self._waiting[name] = _Waiting()
        self._output += 1

    def start_over(self) -> None:
        """Begin with the first output again, for gradients that come another way."""
        self._output = 0

    def _finish(self, name: str) -> None:
        """Use or keep what the present output's backward pass has given."""
        pieces, way, waiting = self.pieces.pop(name), self.ways[name], self._waiting[name]
        if not pieces:
            return
        waiting.done = True
        a, s = divmod(self._output % (self.axes.paired * self.axes.summed), self.axes.summed)
        if way.shared is not None:
            if waiting.factors is None:
                outputs = (self.axes.paired, self.axes.summed)
                waiting.factors = Factors(way.shared, outputs, ones=way.bias is not None)
            if not waiting.factors.add(a, s, pieces):
                raise ModelError(
                    f"the layers of {name} got other inputs for another output; expected one "
                    "forward pass for all: use method='gradients'"
                )
        elif not way.keep:
            add_by_gradients([[pieces]], self.sides, self._kernel(name), self.workspace)
        elif len(pieces) == 1 and isinstance(pieces[0], Dense):
            values = pieces[0].values.flatten(1)
            if waiting.dense is None:
                shape = (self.axes.paired, self.batch, self.axes.summed, values.shape[1])
                waiting.dense = values.new_zeros(shape)
            waiting.dense[a, :, s] = values
        else:
            waiting.pieces[a, s] = pieces

    def _contract(self, name: str, waiting: _Waiting) -> None:
        kernel = self._kernel(name)
        if waiting.factors is not None:
            waiting.factors.contract(self.sides, kernel)
        if waiting.dense is not None:
            add_gram(waiting.dense.flatten(2), self.sides, kernel)
        if waiting.pieces:
            outputs: list[list[Pieces]] = [
                [waiting.pieces.get((a, s), ()) for s in range(self.axes.summed)]
                for a in range(self.axes.paired)
            ]
            add_by_gradients(outputs, self.sides, kernel, self.workspace)

    def _kernel(self, name: str) -> Tensor:
        """Return [A, n, A, m] of the present output."""
        d = self._output // (self.axes.paired * self.axes.summed)
        return self.kernels[self.component_of[name]][d]
