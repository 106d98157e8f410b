"""One forward, one backward an output: factors are used up while the gradients flow.

No weight gradient is made by autograd. Each served layer's output gets a hook; when its gradient
delta arrives, the layer's rule hands the per-sample gradients to a sink, as factors where it can,
and forgets them. A sink may sketch them onto rows, or make a kernel of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pntk.batch import batch_size, channels_last
from pntk.errors import ModelError, OutputError, is_out_of_memory
from pntk.gradients.hooks import Use, exact, quiet, tapped
from pntk.gradients.plan import Plan
from pntk.gradients.rules import Call, Sketched, Target
from pntk.outputs import Output, Values, check_values
from pntk.projection.dispatch import Projector

RowsFor = Callable[[str], Tensor]


class Sink(Protocol):
    """What takes per-sample gradients.

    Attributes:
        dtype: float32 or float64, in which gradients are made.
        device: where they are.
        impl: which implementation serves; see ``pntk.projection.dispatch``.
    """

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def impl(self) -> str: ...

    def target(self, name: str, output: int) -> Target:
        """Return what takes those of one parameter and one output."""

    def collecting(self) -> AbstractContextManager[None]:
        """Return a context around the backward pass of an output."""


@dataclass
class RowSink:
    """Sketch gradients onto rows.

    Args:
        projector: of all parameters.
        rows_for: canonical parameter name -> rows [b, k] to add its share to.
    """

    projector: Projector
    rows_for: RowsFor

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.dtype

    @property
    def device(self) -> torch.device:
        return self.projector.device

    @property
    def impl(self) -> str:
        return self.projector.impl

    def target(self, name: str, output: int) -> Target:
        return Sketched(self.projector.sketch(name), self.rows_for(name), output)

    def collecting(self) -> AbstractContextManager[None]:
        return self.projector.collecting()


class _Root(torch.autograd.Function):
    """Start a graph at a tensor that has none, without a copy, so that hooks see its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        return None, None


def capture(plan: Plan, model: nn.Module, output: Output, batch: Any, sink: Sink) -> Values:
    """Hand the per-sample gradients of all parameters that rules serve to a sink.

    Args:
        plan: completed by the probe.

    Returns:
        The output's values for the batch.

    Raises:
        OutputError: the number of outputs is not the probe's, or no gradient reaches a layer.
        ModelError: a layer's input was changed in place after its use.
    """
    size = batch_size(batch)
    run = _Run(sink, size, keep=plan.outputs > 1)
    with quiet(model), torch.enable_grad(), tapped(plan.uses.values(), run.on_call):
        found = _forward(plan, model, output, batch)
        values = check_values(found, size)
        if values.shape[1] != plan.outputs:
            raise OutputError(
                f"the output has {values.shape[1]} columns and had {plan.outputs} on the first "
                "batch; expected the same number for every batch"
            )
        if plan.uses and not values.requires_grad:
            raise OutputError(
                "the output has no gradient path to the selected parameters; check that the model "
                "or the output callable does not detach or run under no_grad"
            )
        for column in range(values.shape[1] if plan.uses else 0):
            run.output = column
            last = column == values.shape[1] - 1
            with sink.collecting():
                values[:, column].sum().backward(retain_graph=not last)
    return Values(found.values.detach(), found.labels, found.reweighting)


def _forward(plan: Plan, model: nn.Module, output: Output, batch: Any) -> Values:
    if plan.channels_last:
        try:
            return output(model, channels_last(batch))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            plan.channels_last = False  # a view that the first batch's sizes allowed, not these
    return output(model, batch)


class _Run:
    """The calls of one forward pass, waiting for their gradients."""

    def __init__(self, sink: Sink, batch: int, keep: bool) -> None:
        self.sink = sink
        self.batch = batch
        self.keep = keep
        self.output = 0
        self._anchor = torch.zeros((), device=sink.device, requires_grad=True)

    def on_call(self, use: Use, inputs: Tensor, result: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return result
        layout = use.layout
        if layout.shared:
            result = layout.expand(result, self.batch)
        elif inputs.shape[layout.axis] % self.batch:
            raise ModelError(
                f"{use.name} got an input of shape {tuple(inputs.shape)} for a batch of "
                f"{self.batch}; expected axis {layout.axis} to hold the samples, as in the first "
                "batch: name its parameters in fallback="
            )
        if not result.requires_grad:
            # a view cannot be given a graph in place, so an expanded result is anchored out of it
            result = (
                result + self._anchor.to(result.dtype)
                if layout.shared
                else _Root.apply(result, self._anchor)
            )
        call = Call(
            use.module,
            layout.samples_first(inputs.detach(), self.batch),
            self.batch,
            self.sink.dtype,
            self.keep,
            self.sink.impl,
        )
        version = inputs._version

        def on_gradient(delta: Tensor) -> None:
            if inputs._version != version:
                raise ModelError(
                    f"the input of {use.name} was changed in place after the layer used it, so its "
                    "gradient is lost; make that operation out of place"
                )
            self._contribute(use, call, delta)

        result.register_hook(on_gradient)
        return result

    def _contribute(self, use: Use, call: Call, delta: Tensor) -> None:
        targets = {key: self.sink.target(name, self.output) for key, name in use.params.items()}
        delta = delta if use.layout.shared else delta.movedim(use.layout.axis, 0)
        with torch.no_grad(), exact(self.sink.device):
            use.rule.contribute(call, delta, targets)
