"""The tangent kernel by its definition, one sample and one output at a time: what to test against.

Shapes: n, m samples; p parameters; c outputs, all axes of the output flattened.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import batch_size, split, take
from pntk.logits import tensor_of
from pntk.naming import ParamFilter, select_parameters


def reference_jacobians(model: nn.Module, x: Any, params: ParamFilter = None) -> dict[str, Tensor]:
    """Return parameter name -> gradients [n, c, p of it], by a plain loop of autograd."""
    chosen = select_parameters(model, params)
    flags = {p: p.requires_grad for p in chosen.values()}
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}
    try:
        for p in chosen.values():
            p.requires_grad_(True)
        with torch.enable_grad():
            for i in range(batch_size(x)):
                args, kwargs, _ = split(take(x, slice(i, i + 1)))
                outputs = tensor_of(model(*args, **kwargs)).reshape(-1)
                each = [
                    torch.autograd.grad(
                        value, list(chosen.values()), retain_graph=True, allow_unused=True
                    )
                    for value in outputs
                ]
                for k, (name, p) in enumerate(chosen.items()):
                    found = [torch.zeros_like(p) if g[k] is None else g[k] for g in each]
                    rows[name].append(torch.stack([g.reshape(-1) for g in found]))
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    return {name: torch.stack(found).detach() for name, found in rows.items()}


def reference_ntk(
    model: nn.Module, x: Any, x2: Any = None, *, params: ParamFilter = None
) -> dict[str, Tensor]:
    """Return parameter name -> its share of the kernel of all pairs of outputs, [n, m, c, c].

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> reference_ntk(layer, torch.tensor([[2.0], [3.0]]))["weight"].flatten().tolist()
    [4.0, 6.0, 6.0, 9.0]
    """
    left = reference_jacobians(model, x, params)
    right = left if x2 is None else reference_jacobians(model, x2, params)
    return {name: torch.einsum("iap,jbp->ijab", left[name], right[name]) for name in left}
