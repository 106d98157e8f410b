"""A rule a layer type: from what went in and what came back to per-sample gradients.

Shapes: b samples; T positions that one sample sums over; i, o layer in/out features. A call's
``input`` and ``delta`` (gradient of the summed output with respect to the layer's output) have the
samples in front: [b * m, ...], where a sample may own m > 1 consecutive entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk.errors import ModelError
from pntk.projection.dispatch import GPU
from pntk.projection.norms import norm_sums
from pntk.projection.sketch import Columns, Sketch, Windows

T = TypeVar("T")


class Target(ABC):
    """What takes one parameter's per-sample gradients of one output, in the form that they have.

    A layer may own m > 1 consecutive entries of a sample; those add up.
    """

    @abstractmethod
    def gradient(self, gradient: Tensor) -> None:
        """Add per-sample gradients [b * m, *shape]."""

    @abstractmethod
    def products(self, rows: Tensor, columns: Columns) -> None:
        """Add products of prepared factors."""

    @abstractmethod
    def affine(self, bias: Target | None, rows: Tensor, columns: Columns) -> None:
        """Add products of rows [b * m, O, T] and prepared columns, and their sums for a bias."""

    @abstractmethod
    def lookup(self, ids: Tensor, delta: Tensor) -> None:
        """Add delta [b * m, T, d] at rows ids [b * m, T]."""

    def prepare_rows(self, rows: Tensor, groups: int = 1) -> Tensor:
        """Return row factors [b * m, O, T] as :meth:`products` wants them."""
        return rows

    def prepare_columns(self, columns: Columns) -> Columns:
        """Return column factors as :meth:`products` wants them; good for all outputs."""
        return columns


@dataclass
class Sketched(Target):
    """Sketch them, and add that to rows [b, k]."""

    sketch: Sketch
    rows: Tensor
    output: int

    def gradient(self, gradient: Tensor) -> None:
        if len(gradient) != len(self.rows):
            by_sample = gradient.unflatten(0, (len(self.rows), -1))
            gradient = by_sample.sum(1, dtype=self.sketch.dtype)
        self.sketch.queue_gradient(gradient, self.rows, self.output)

    def products(self, rows: Tensor, columns: Columns) -> None:
        self._add(rows.shape[0], self.sketch.add_products, rows, columns)

    def affine(self, bias: Target | None, rows: Tensor, columns: Columns) -> None:
        whole = len(rows) == len(self.rows)
        if isinstance(bias, Sketched) and bias.rows is self.rows and whole:  # one pass over rows
            self._add(rows.shape[0], partial(self.sketch.add_affine, bias.sketch), rows, columns)
            return
        groups = 1 if columns.windows is None else columns.windows.groups
        self.products(self.sketch.prepare_rows(rows, groups), columns)
        if bias is not None:
            bias.gradient(rows.sum(2, dtype=self.sketch.dtype))

    def lookup(self, ids: Tensor, delta: Tensor) -> None:
        self._add(ids.shape[0], self.sketch.add_lookup, ids, delta)

    def prepare_rows(self, rows: Tensor, groups: int = 1) -> Tensor:
        return self.sketch.prepare_rows(rows, groups)

    def prepare_columns(self, columns: Columns) -> Columns:
        return self.sketch.prepare_columns(columns)

    def _add(self, count: int, add: Callable[..., None], *factors: Any) -> None:
        b, k = self.rows.shape
        if count == b:
            add(*factors, self.rows, self.output)
            return
        pieces = self.rows.new_zeros(count, k)
        add(*factors, pieces, self.output)
        self.rows += pieces.view(b, -1, k).sum(1)


@dataclass
class Call:
    """One use of a layer in a forward pass.

    Attributes:
        module: the layer.
        input: [b * m, ...].
        batch: b.
        dtype: float32 or float64, in which gradients are made.
        keep: whether more outputs follow, so that what depends on the input alone is kept.
        impl: which implementation serves; see ``pntk.projection.dispatch``.
    """

    module: Any
    input: Tensor
    batch: int
    dtype: torch.dtype
    keep: bool = False
    impl: str = "torch"
    kept: dict[str, Any] = field(default_factory=dict)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return ``make()``, kept for the next output if there is one."""
        if key in self.kept:
            return self.kept[key]
        value = make()
        if self.keep:
            self.kept[key] = value
        return value

    def factor(self, x: Tensor) -> Tensor:
        """Return a factor in the type in which sketches take it; GPU kernels read any."""
        return x if self.impl in GPU else x.to(self.dtype)

    def positions(self, x: Tensor) -> Tensor:
        """Return [b, T, features] of a factor whose last axis holds features."""
        return self.factor(x.reshape(self.batch, -1, x.shape[-1]))


@dataclass(frozen=True)
class Rule:
    """How one family of layers is served.

    Attributes:
        name: shown by ``coverage()``.
        matches: whether a module is served.
        contribute: ``(call, delta, targets)`` adds the gradients of the wanted parameters.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    contribute: Callable[[Call, Tensor, dict[str, Target]], None]


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule that serves a module, if any.

    A subclass is served only if it keeps the forward of the class that the rule was written for.
    """
    return next((rule for rule in RULES if rule.matches(module)), None)


def refuse(module: nn.Module, name: str) -> None:
    """Refuse a layer in a state where one sample's output depends on others or on chance.

    Raises:
        ModelError: with the module's name and the remedy.
    """
    where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.training:
            raise ModelError(
                f"{where} is in training mode, where each sample's output depends on its batch; "
                "call model.eval()"
            )
        if module.running_mean is None:
            raise ModelError(
                f"{where} has no running statistics, so each sample's output depends on its batch; "
                "set track_running_stats=True, or use another norm"
            )
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
        raise ModelError(f"{where} is active, so rows would be random; call model.eval()")
    tracks = isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.training
    if tracks and module.track_running_stats:
        raise ModelError(
            f"{where} is in training mode and would change its running statistics; call "
            "model.eval()"
        )
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            raise ModelError(
                f"{where} has max_norm={module.max_norm}, which changes the weights in the forward "
                "pass; set max_norm=None after training"
            )
        if module.scale_grad_by_freq:
            raise ModelError(
                f"{where} has scale_grad_by_freq=True, which mixes the samples of a batch; set it "
                "to False"
            )


# ---- linear maps -----------------------------------------------------------------------------


def _linear(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    rows = call.positions(delta).transpose(1, 2)
    weight, bias = targets.get("weight"), targets.get("bias")
    if weight:
        columns = call.once(
            "columns",
            lambda: weight.prepare_columns(Columns(call.positions(call.input).transpose(1, 2))),
        )
        weight.affine(bias, rows, columns)
    elif bias:
        bias.gradient(rows.sum(2, dtype=call.dtype))


def _transposed_linear(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    """Hugging Face's Conv1D: the weight is [i, o], so input and delta change places."""
    delta = call.positions(delta)
    if weight := targets.get("weight"):
        rows = call.once(
            "rows",
            lambda: weight.prepare_rows(call.positions(call.input).transpose(1, 2)),
        )
        weight.products(rows, weight.prepare_columns(Columns(delta.transpose(1, 2))))
    if bias := targets.get("bias"):
        bias.gradient(delta.sum(1, dtype=call.dtype))


# ---- convolutions ----------------------------------------------------------------------------


def _convolution(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    rows = call.factor(delta.flatten(2))
    weight, bias = targets.get("weight"), targets.get("bias")
    if weight:
        columns = call.once("columns", lambda: weight.prepare_columns(_seen(call, delta)))
        weight.affine(bias, rows, columns)
    elif bias:
        bias.gradient(rows.sum(2, dtype=call.dtype))


def _seen(call: Call, delta: Tensor) -> Columns:
    """Return the input [b * m, i, *spatial] as the kernel sees it."""
    conv, x = call.module, call.factor(call.input)
    padding: tuple[int, ...] = ()
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        padding = tuple(conv.padding)
    elif any(conv._reversed_padding_repeated_twice):  # "same" may pad one side more than the other
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    grid = tuple(delta.shape[2:])
    return Columns(
        x, Windows(conv.kernel_size, conv.stride, conv.dilation, grid, padding, conv.groups)
    )


def _transposed_convolution(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    """A transposed convolution's weight gradient: the convolution's, input and delta swapped."""
    conv = call.module
    if weight := targets.get("weight"):
        grid = tuple(call.input.shape[2:])
        windows = Windows(
            conv.kernel_size, conv.stride, conv.dilation, grid, conv.padding, conv.groups
        )
        rows = call.once(
            "rows",
            lambda: weight.prepare_rows(call.factor(call.input.flatten(2)), conv.groups),
        )
        seen = Columns(call.factor(delta), windows)
        weight.products(rows, weight.prepare_columns(seen))
    if bias := targets.get("bias"):
        bias.gradient(delta.flatten(2).sum(2, dtype=call.dtype))


# ---- look-ups and norms ----------------------------------------------------------------------


def _embedding(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    if weight := targets.get("weight"):
        ids = call.input.reshape(call.batch, -1).long()
        delta = call.positions(delta)
        if call.module.padding_idx is not None:
            delta = delta * (ids != call.module.padding_idx)[..., None]
        weight.lookup(ids, delta)


def _feature_norm(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    """LayerNorm and RMSNorm: a scale and shift for each normalised feature."""
    shape = tuple(call.module.normalized_shape)
    flat = (call.batch, -1, *shape)
    delta = delta.to(call.dtype).reshape(flat)
    if weight := targets.get("weight"):
        normed = call.once("normed", lambda: _features_normed(call, shape).reshape(flat))
        weight.gradient((delta * normed).sum(1))
    if bias := targets.get("bias"):
        bias.gradient(delta.sum(1))


def _features_normed(call: Call, shape: tuple[int, ...]) -> Tensor:
    x, norm = call.input.to(call.dtype), call.module
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, shape, eps=norm.eps)
    eps = torch.finfo(call.input.dtype).eps if norm.eps is None else norm.eps
    return F.rms_norm(x, shape, eps=eps)


def _channel_norm(call: Call, delta: Tensor, targets: dict[str, Target]) -> None:
    """BatchNorm (eval), GroupNorm and InstanceNorm: a scale and shift for each channel."""
    norm, delta = call.module, _by_channel(call.factor(delta))
    weight, bias = targets.get("weight"), targets.get("bias")
    if call.impl != "torch" and weight and _running(norm):
        x = _by_channel(call.factor(call.input))
        mean, var = norm.running_mean.to(call.dtype), norm.running_var.to(call.dtype)
        scale, shift = norm_sums(call.impl, delta, x, mean.contiguous())
        weight.gradient(scale * torch.rsqrt(var + norm.eps))
    else:
        shift = delta.sum(2, dtype=call.dtype)
        if weight:
            normed = call.once("normed", lambda: _by_channel(_channels_normed(call)))
            weight.gradient((delta * normed).sum(2))
    if bias:
        bias.gradient(shift)


def _running(norm: Any) -> bool:
    """Whether a norm's statistics are those it was trained with, and not its input's."""
    if getattr(norm, "running_mean", None) is None:
        return False
    instance = isinstance(norm, nn.modules.instancenorm._InstanceNorm)
    return not instance or (norm.track_running_stats and not norm.training)


def _by_channel(x: Tensor) -> Tensor:
    """Return [n, C, L] of [n, C, ...]."""
    return x.flatten(2) if x.dim() > 2 else x[..., None]


def _channels_normed(call: Call) -> Tensor:
    x, norm = call.input.to(call.dtype), call.module
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(x, norm.num_groups, eps=norm.eps)
    if not _running(norm):
        return F.instance_norm(x, eps=norm.eps)
    mean, var = norm.running_mean.to(call.dtype), norm.running_var.to(call.dtype)
    by_channel = (1, -1) + (1,) * (x.dim() - 2)
    return (x - mean.view(by_channel)) * torch.rsqrt(var + norm.eps).view(by_channel)


# ---- the table -------------------------------------------------------------------------------


def _is(*classes: type[nn.Module]) -> Callable[[nn.Module], bool]:
    def matches(module: nn.Module) -> bool:
        return any(
            isinstance(module, cls)
            and type(module).forward is cls.forward
            and getattr(type(module), "_conv_forward", None) is getattr(cls, "_conv_forward", None)
            for cls in classes
        )

    return matches


def _is_hugging_face_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


RULES = (
    Rule("linear", _is(nn.Linear), _linear),
    Rule("convolution", _is(nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    Rule(
        "transposed convolution",
        _is(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        _transposed_convolution,
    ),
    Rule("embedding", _is(nn.Embedding), _embedding),
    Rule("layer norm", _is(nn.LayerNorm), _feature_norm),
    Rule("rms norm", _is(nn.RMSNorm), _feature_norm),
    Rule("group norm", _is(nn.GroupNorm), _channel_norm),
    Rule(
        "batch norm",
        _is(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        _channel_norm,
    ),
    Rule(
        "instance norm",
        _is(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        _channel_norm,
    ),
    Rule("transposed linear", _is_hugging_face_conv1d, _transposed_linear),
)
