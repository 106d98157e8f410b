"""The gradient of a batch by ordinary automatic differentiation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    refuse ``torch.autograd.grad`` and inputs without gradients. Each ``grad`` is put back.

    Args:
        params: name -> parameter to differentiate.
    """
    everything = [p for p in model.parameters() if p.is_floating_point()]
    kept = [p.grad for p in everything]
    with quiet(model), torch.enable_grad():
        try:
            for p in everything:
                p.requires_grad_(True)
            values = check_values(output(model, batch), batch_size(batch))
            for column in range(values.shape[1]):
                for p in everything:
                    p.grad = None
                last = column == values.shape[1] - 1
                values[:, column].sum().backward(retain_graph=not last)
                yield {name: _dense_gradient(p) for name, p in params.items()}
        finally:
            for p, gradient in zip(everything, kept, strict=True):
                p.grad = gradient


def _dense_gradient(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p, requires_grad=False)
    return p.grad.to_dense() if p.grad.is_sparse else p.grad
