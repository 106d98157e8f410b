"""Covariance of projected input gradients over data, for a trained model or several checkpoints.

Shapes: n samples; b batch; c outputs; k width of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pntk.batch import batch_size as size_of
from pntk.batch import plain, tensors, to_device, tree_map
from pntk.errors import ConfigError, DataError
from pntk.gradients.rules import refuse
from pntk.loading import Batches
from pntk.naming import canonical
from pntk.outputs import Output
from pntk.projection.dispatch import Projector
from pntk.projection.spec import ProjectionSpec
from pntk.writing import raise_if_nonfinite

INPUT = "input"  # in the place of a parameter's name: it keys the projection
MAX_WIDTH = 2**14

State = Mapping[str, Tensor]


def input_gradient_covariance(
    model: nn.Module,
    output: Output,
    data: Any,
    spec: ProjectionSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    impl: str,
    checkpoints: Iterable[State] | None = None,
    batch_size: int | None = None,
    centered: bool = False,
    progress: bool = True,
) -> Tensor:
    """Return 1/n sum phi phi^T, phi = sum_c A_c grad_x f_c(x), averaged over checkpoints.

    x is the first floating-point tensor of a batch, and A_c the projection of a parameter that
    would be called ``input``. The trace is the mean square of the gradient, in expectation.

    Args:
        model: its weights are as before at the end.
        data: see :class:`pntk.loading.Batches`.
        checkpoints: state dicts to load one after the other; None for the model as it is.
        batch_size: samples a batch; None for the loader's own, or 64.
        centered: whether to take off the mean over samples and checkpoints.
        progress: whether to show a progress bar.

    Returns:
        float64 [k, k], symmetric, on ``device``.

    Raises:
        ConfigError: no checkpoints, one that does not fit, or a width above 16,384.
        DataError: the batch holds no floating-point input, or one that the output ignores.
        ModelError: the model mixes samples.
        NonFiniteError: a gradient holds NaN or infinity.
    """
    for name, module in model.named_modules():
        refuse(module, canonical(name))
    batches = Batches(data, batch_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    total = mean = None
    count = 0
    with tqdm(unit="row", desc="input gradients", disable=not progress) as bar:
        try:
            for number, state in enumerate([None] if checkpoints is None else checkpoints):
                if state is not None:
                    _load(model, state, number)
                for index, batch in batches.covering(np.arange(batches.length)):
                    moved = plain(to_device(batch, device))
                    rows = _rows(model, output, moved, spec, dtype=dtype, impl=impl)
                    raise_if_nonfinite(rows, index)
                    rows = rows.double()
                    if total is None or mean is None:
                        total = rows.new_zeros(rows.shape[1], rows.shape[1])
                        mean = rows.new_zeros(rows.shape[1])
                    total.addmm_(rows.T, rows)
                    mean += rows.sum(0)
                    count += len(rows)
                    bar.update(len(rows))
        finally:
            if checkpoints is not None:
                model.load_state_dict(before)
    if total is None or mean is None:
        raise ConfigError("there are no checkpoints; expected at least one state dict, or None")
    total, mean = total / count, mean / count
    return total - torch.outer(mean, mean) if centered else total


def _load(model: nn.Module, state: State, number: int) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"checkpoint {number} does not fit the model ({str(error).splitlines()[0]}); expected "
            "a state dict of it"
        ) from error


def _rows(
    model: nn.Module,
    output: Output,
    batch: Any,
    spec: ProjectionSpec,
    *,
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    """Return the projected input gradients [b, k] of a batch."""
    x = next((t for t in tensors(batch) if t.is_floating_point()), None)
    if x is None:
        raise DataError(
            "the batch holds no floating-point tensor, so there is no input to differentiate; "
            "token numbers have no gradient"
        )
    found = x.clone().requires_grad_()
    with torch.enable_grad():
        values = output(model, tree_map(lambda t: found if t is x else t, batch)).values
        columns = list((values[:, None] if values.dim() == 1 else values).sum(0))
        projector = _projector(spec, found, len(columns), dtype=dtype, impl=impl)
        rows = projector.empty_rows(size_of(batch))
        for number, value in enumerate(columns):
            gradient = _gradient(value, found, last=number == len(columns) - 1)
            projector.sketch(INPUT).add_gradient(gradient.to(dtype), rows, number)
    return rows


def _gradient(value: Tensor, x: Tensor, *, last: bool) -> Tensor:
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, x, retain_graph=not last, allow_unused=True)
    if gradient is None:
        raise DataError(
            "the output does not depend on the first floating-point tensor of the batch; put the "
            "input first"
        )
    return gradient.detach()


def _projector(
    spec: ProjectionSpec, x: Tensor, outputs: int, *, dtype: torch.dtype, impl: str
) -> Projector:
    projector = Projector(
        spec, {INPUT: tuple(x.shape[1:])}, dtype=dtype, device=x.device, impl=impl, outputs=outputs
    )
    if projector.width > MAX_WIDTH:
        raise ConfigError(
            f"rows are {projector.width:,} wide, and their covariance would have the square of it; "
            f"expected at most {MAX_WIDTH:,}: project, with a smaller proj_dim"
        )
    return projector
