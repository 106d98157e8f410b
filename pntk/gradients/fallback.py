"""Per-sample gradients by ``torch.func`` for the parameters that no rule serves.

The whole model runs again, vectorised over samples, but only these parameters get gradients. Where
``vmap`` cannot go (recurrent layers, data-dependent control flow), samples go one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pntk.batch import batch_size, take, tensors, tree_map
from pntk.errors import PntkWarning, is_out_of_memory
from pntk.gradients.hooks import exact, quiet
from pntk.gradients.ordinary import ordinary_gradients
from pntk.gradients.plan import Plan
from pntk.outputs import Output, check_values
from pntk.precision import lowered_by
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
        plan: completed; its ``fallback`` names the parameters.
        workspace: bytes of per-sample gradients and activations to hold at a time.
    """

    def __init__(self, plan: Plan, model: nn.Module, output: Output, workspace: int) -> None:
        self._plan = plan
        self._model = model
        self._output = output
        self._params = {name: plan.params[name] for name in plan.fallback}
        self._module = _OutputModule(model, output)
        raw_names = {id(p): name for name, p in self._module.named_parameters()}
        self._raw_names = {name: raw_names[id(p)] for name, p in self._params.items()}
        size = sum(p.numel() * p.element_size() for p in self._params.values())
        self._chunk = max(1, workspace // (size + plan.sample_bytes))
        self._vectorised = True

    def add(self, batch: Any, projector: Projector, rows_for: Callable[[str], Tensor]) -> None:
        """Add each parameter's projected gradients to its rows [b, k]."""
        columns = range(self._plan.outputs)
        for part in parts(batch_size(batch), 1, self._chunk):
            for index, column, gradients in self._gradients(take(batch, part), columns):
                with exact(projector.device):
                    for name, gradient in gradients.items():
                        rows = rows_for(name)[part][index]
                        projector.sketch(name).add_gradient(gradient, rows, column)

    def gradients(self, batch: Any, column: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield (samples, gradients [samples, *shape] by name) of one output, part by part."""
        for part in parts(batch_size(batch), 1, self._chunk):
            for index, _, gradients in self._gradients(take(batch, part), [column]):
                first = part.start + index.start
                yield slice(first, first + index.stop - index.start), gradients

    def _gradients(
        self, batch: Any, columns: Sequence[int]
    ) -> Iterator[tuple[slice, int, dict[str, Tensor]]]:
        """Yield (samples, output column, gradients [samples, *shape] by name)."""
        count = batch_size(batch)
        if self._vectorised:
            try:
                found = self._vmapped(batch, columns[0])
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._vectorised = False
                self._warn(error)
            else:
                yield slice(0, count), columns[0], found
                for column in columns[1:]:
                    yield slice(0, count), column, self._vmapped(batch, column)
                return
        for i in range(count):
            one = take(batch, slice(i, i + 1))
            each = ordinary_gradients(self._params, self._model, self._output, one)
            for column, gradients in enumerate(each):
                if column not in columns:
                    continue
                yield slice(i, i + 1), column, {n: g[None] for n, g in gradients.items()}

    def _vmapped(self, batch: Any, column: int) -> dict[str, Tensor]:
        def value(params: dict[str, Tensor], leaves: list[Tensor]) -> Tensor:
            rest = iter(leaves)
            sample = tree_map(lambda _: next(rest).unsqueeze(0), batch)
            raw = {self._raw_names[name]: p for name, p in params.items()}
            return functional_call(self._module, raw, (sample, column))

        values = {name: p.detach() for name, p in self._params.items()}
        # the fused attention kernels have no vmap rule; the backward pass of what stands in for
        # them mixes types, which autocast alone can bring together
        with (
            quiet(self._model),
            lowered_by(self._output),
            sdpa_kernel(SDPBackend.MATH),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return vmap(grad(value), in_dims=(None, 0))(values, list(tensors(batch)))

    def _warn(self, error: RuntimeError) -> None:
        names = list(self._params)
        warnings.warn(
            f"torch.func.vmap cannot vectorise {type(self._model).__name__} for "
            f"{', '.join(names[:3])} ({_first_line(error)}); the {len(names)} parameters without a "
            "rule go one sample at a time",
            PntkWarning,
            stacklevel=2,
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)
