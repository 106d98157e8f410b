"""Run a network with many sets of weights at once: channels of all sets side by side.

Shapes: g sets of weights; b batch; i, o channels or features; h, w positions. Values that depend on
the weights are [b, g * i, h, w], as one wide image, or [g, b, i]. Pooling and activations then are
the ordinary ones, on long rows of channels, and convolutions are grouped. ``torch.func.vmap``
moves data between layers instead, which takes longer here than the layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pntk.representation.inference import max_pool2d

_MARK = "_pntk_stacked"


class UnsupportedError(RuntimeError):
    """A function of the model has no rule for many sets of weights."""


def run_stacked(
    model: nn.Module, weights: Mapping[str, Tensor], args: Any, kwargs: Mapping[str, Any]
) -> Tensor:
    """Return the outputs for each set of weights, [g, b, c].

    Args:
        model: in eval mode.
        weights: name -> [g, ...], at least one; the others are the model's own.
        args, kwargs: inputs, the same for all sets.

    Raises:
        UnsupportedError: the model calls a function that has no rule here.
    """
    count = len(next(iter(weights.values())))
    for weight in weights.values():
        setattr(weight, _MARK, True)
    with _Stacked(count):
        outputs = functional_call(model, dict(weights), args, dict(kwargs))
    if not isinstance(outputs, Tensor) or not _is_stacked(outputs) or outputs.dim() != 3:
        raise UnsupportedError("the outputs are not [b, c]")
    return outputs


class _Stacked(TorchFunctionMode):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(_is_stacked(value) for value in [*args, *kwargs.values()]):
            return func(*args, **kwargs)
        if func in _RULES:
            found = _RULES[func](self.count, *args, **kwargs)
        elif func in _ANY_LAYOUT or (func in _IMAGES and args[0].dim() == 4):
            found = func(*args, **kwargs)
        else:
            raise UnsupportedError(f"{getattr(func, '__name__', func)} has no rule")
        if isinstance(found, Tensor):
            setattr(found, _MARK, True)
        return found


def _is_stacked(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, _MARK)


def _linear(count: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dim() != (3 if _is_stacked(x) else 2):
        raise UnsupportedError(f"linear of {x.dim()} axes")
    rows = x if _is_stacked(x) else x.expand(count, *x.shape)  # [g, b, i]
    columns = _every(count, weight).mT  # [g, i, o]
    if bias is None:
        return torch.bmm(rows, columns)
    return torch.baddbmm(_every(count, bias)[:, None], rows, columns)


def _conv2d(
    count: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if not _is_stacked(x):
        if groups != 1:
            raise UnsupportedError("grouped convolution of the inputs")
    else:
        groups *= count
    filters = _every(count, weight).flatten(0, 1)  # [g * o, i, h, w]
    shifts = None if bias is None else _every(count, bias).flatten()
    return F.conv2d(
        _channels_last(x), _channels_last(filters), shifts, stride, padding, dilation, groups
    )


def _batch_norm(
    count: int,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or not _is_stacked(x) or x.dim() != 4:
        raise UnsupportedError("batch_norm in train mode, or not of images")
    mean, variance, weight, bias = (
        None if v is None else _every(count, v).flatten() for v in (mean, variance, weight, bias)
    )
    return F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps)


def _flatten(count: int, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    if start_dim != 1 or end_dim not in (-1, 3) or x.dim() != 4:
        raise UnsupportedError("flatten other than (1)")
    return x.unflatten(1, (count, -1)).transpose(0, 1).flatten(2)  # [g, b, i * h * w]


def _mean(count: int, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    positions = isinstance(dim, (tuple, list)) and sorted(d % 4 for d in dim) == [2, 3]
    if x.dim() != 4 or not positions:
        raise UnsupportedError("mean of other than the positions of images")
    found = x.mean(dim, keepdim=True)
    return found if keepdim else _flatten(count, found, 1)


def _max_pool2d(count: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if x.dim() != 4:
        raise UnsupportedError("max_pool2d of other than images")
    found: Tensor = max_pool2d(x, *args, **kwargs)
    return found


def _dropout(count: int, x: Tensor, p: float = 0.5, training: bool = True, *args: Any) -> Tensor:
    if training:
        raise UnsupportedError("dropout in train mode")
    return x


def _every(count: int, value: Tensor) -> Tensor:
    """Return a weight of each set, [g, ...]."""
    return value if _is_stacked(value) else value.expand(count, *value.shape)


def _channels_last(x: Tensor) -> Tensor:
    """Return images or filters with channels innermost, also where torch sees no difference."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    torch.flatten: _flatten,
    Tensor.flatten: _flatten,
    torch.mean: _mean,
    Tensor.mean: _mean,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.dropout: _dropout,
}
_ANY_LAYOUT = {
    F.relu, torch.relu, Tensor.relu, F.gelu, F.silu, F.leaky_relu, F.elu, F.hardtanh, F.relu6,
    torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid, F.softplus, F.hardswish,
    Tensor.contiguous, Tensor.dim,
}  # fmt: skip
_IMAGES = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.add, Tensor.add, Tensor.__add__}
