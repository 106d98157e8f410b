"""The gradient of a batch by ordinary automatic differentiation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import batch_size
from pntk.gradients.hooks import quiet
from pntk.outputs import Output, check_values


def ordinary_gradients(
    params: Mapping[str, nn.Parameter], model: nn.Module, output: Output, batch: Any
) -> Iterator[dict[str, Tensor]]:
    """Yield, for each output column, the gradient of its sum over the batch.

    As in training: by ``backward``, with gradients of all parameters, because reentrant checkpoints
    refuse ``torch.autograd.grad`` and inputs without gradients.

    Args:
        params: name -> parameter to differentiate.
    """
    with quiet(model), fresh_leaves(model) as leaves, torch.enable_grad():
        values = check_values(output(model, batch), batch_size(batch))
        for column in range(values.shape[1]):
            for leaf in leaves.values():
                leaf.grad = None
            last = column == values.shape[1] - 1
            values[:, column].sum().backward(retain_graph=not last)
            yield {name: _dense_gradient(leaves[id(p)]) for name, p in params.items()}


@contextmanager
def fresh_leaves(model: nn.Module) -> Iterator[dict[int, nn.Parameter]]:
    """Put leaves of our own in place of a model's parameters.

    The model's own have hooks that a backward pass would run: DDP's reducer, an optimizer's step.
    """
    places = [
        (module, key, p)
        for module in model.modules()
        for key, p in module._parameters.items()
        if p is not None
    ]
    leaves = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.is_floating_point()) for _, _, p in places
    }
    try:
        for module, key, p in places:
            setattr(module, key, leaves[id(p)])
        yield leaves
    finally:
        for module, key, p in places:
            setattr(module, key, p)


def _dense_gradient(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p, requires_grad=False)
    return p.grad.to_dense() if p.grad.is_sparse else p.grad
