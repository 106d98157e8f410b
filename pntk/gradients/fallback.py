"""Per-sample gradients by ``torch.func`` for the parameters that no rule serves.

The whole model runs again, vectorised over samples, but only these parameters get gradients. Where
``vmap`` cannot go (recurrent layers, data-dependent control flow), samples go one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pntk.batch import batch_size, take, tree_map
from pntk.errors import PntkWarning
from pntk.gradients.hooks import quiet
from pntk.gradients.plan import Plan
from pntk.outputs import Output, check_values
from pntk.projection.dispatch import Projector
from pntk.projection.sketch import parts


class _OutputModule(nn.Module):
    """The output as a module, so that ``functional_call`` can replace the model's parameters."""

    def __init__(self, model: nn.Module, output: Output) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, batch: Any, column: int) -> Tensor:
        return check_values(self.output(self.model, batch), 1)[0, column]


class Fallback:
    """Sketch the gradients of a plan's fallback parameters.

    Args:
        plan: whose ``fallback`` names the parameters.
        workspace: bytes of per-sample gradients to hold at a time.
    """

    def __init__(self, plan: Plan, model: nn.Module, output: Output, workspace: int) -> None:
        self.plan = plan
        self.model = model
        self.workspace = workspace
        self._module = _OutputModule(model, output)
        self._raw_name = {id(p): name for name, p in self._module.named_parameters()}
        self.vectorised = True

    def add(self, batch: Any, projector: Projector, rows_for: Callable[[str], Tensor]) -> None:
        """Add each parameter's projected gradients to its rows [b, k]."""
        names = list(self.plan.fallback)
        if not names:
            return
        params = {n: self.plan.params[n] for n in names}
        raw = {self._raw_name[id(p)]: n for n, p in params.items()}
        values = {r: params[n].detach() for r, n in raw.items()}
        batch = tree_map(Tensor.detach, batch)
        count = batch_size(batch)
        each = sum(p.numel() * p.element_size() for p in params.values()) + self.plan.sample_bytes
        with quiet(self.model):
            for part in parts(count, each, self.workspace):
                for column in range(self.plan.outputs):
                    for index, gradients in self._gradients(
                        values, take(batch, part), column, part.start
                    ):
                        for raw_name, gradient in gradients.items():
                            name = raw[raw_name]
                            projector.sketch(name).add_gradient(
                                gradient, rows_for(name)[index], column
                            )

    def _gradients(
        self, values: dict[str, Tensor], batch: Any, column: int, start: int
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        count = batch_size(batch)
        if self.vectorised:
            try:
                yield slice(start, start + count), self._vmapped(values, batch, column)
                return
            except RuntimeError as error:
                self.vectorised = False
                warnings.warn(
                    f"torch.func.vmap cannot vectorise {type(self.model).__name__} for "
                    f"{', '.join(list(self.plan.fallback)[:3])} ({_first_line(error)}); the "
                    f"{len(self.plan.fallback)} parameters without a rule go one sample at a time",
                    PntkWarning,
                    stacklevel=2,
                )
        for i in range(count):
            one = take(batch, slice(i, i + 1))
            yield slice(start + i, start + i + 1), self._single(values, one, column)

    def _vmapped(self, values: dict[str, Tensor], batch: Any, column: int) -> dict[str, Tensor]:
        def value(params: dict[str, Tensor], leaves: list[Tensor]) -> Tensor:
            rest = iter(leaves)
            sample = tree_map(lambda _: next(rest).unsqueeze(0), batch)
            return functional_call(self._module, params, (sample, column))

        leaves: list[Tensor] = []
        tree_map(leaves.append, batch)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no vmap rule
            return vmap(grad(value), in_dims=(None, 0))(values, leaves)

    def _single(self, values: dict[str, Tensor], one: Any, column: int) -> dict[str, Tensor]:
        with torch.enable_grad():
            params = {name: value.detach().requires_grad_() for name, value in values.items()}
            value = functional_call(self._module, params, (one, column))
            found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        return {
            name: (torch.zeros_like(p) if g is None else g)[None]
            for (name, p), g in zip(params.items(), found, strict=True)
        }


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)
