"""Evaluate a network again and again on the same data: batches kept at hand, and fast layers.

Shapes: b batch; c outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pntk.batch import batch_size as size_of
from pntk.batch import split, tensors, to_device
from pntk.errors import DataError, PntkError, is_out_of_memory
from pntk.forward import explained
from pntk.loading import Batches

Criterion = Callable[[Tensor, Tensor], Tensor]

CACHE_BYTES = 2**22  # what the largest output of a layer may take, to stay in a core's cache
FEWEST, MOST = 16, 2048  # samples a batch


class Batch(NamedTuple):
    """Inputs and targets of ``size`` samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    size: int


class Samples:
    """Batches of a data set on a device.

    Raises:
        DataError: data that cannot be read, or without targets.
    """

    def __init__(self, data: Any, batch_size: int | None, device: torch.device) -> None:
        self._source = Batches(data, batch_size)
        self._device = device
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return self._source.length

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return self._source.batch_size

    def first(self) -> Batch:
        """Return the first samples, two or fewer, to learn shapes from."""
        return self._as_batch(self._source.first())

    def keep(self, room: int) -> bool:
        """Have all batches at hand from now on, so that several threads may take them.

        Returns:
            Whether they are: False if they would take more than ``room`` bytes.
        """
        views = self._source.in_memory and self._device.type == "cpu"  # which take no room
        kept: list[Batch] = []
        for batch in self:
            kept.append(batch)
            held = tensors((batch.args, batch.kwargs, batch.targets))
            room -= 0 if views else sum(t.numel() * t.element_size() for t in held)
            if room < 0:
                return False
        self._kept = kept
        return True

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        for rows, raw in self._source.covering(np.arange(len(self))):
            batch = self._as_batch(raw)
            _check_inputs(batch, int(rows[0]))
            yield batch

    def _as_batch(self, raw: Any) -> Batch:
        args, kwargs, targets = split(to_device(raw, self._device))
        if targets is None:
            raise DataError(
                "the data has no targets; expected (inputs, targets), or a dict with 'labels'"
            )
        return Batch(args, kwargs, targets, size_of(raw))


def _check_inputs(batch: Batch, start: int) -> None:
    """Refuse NaN; infinity may be meant, as in masks of attention."""
    for tensor in tensors((batch.args, batch.kwargs)):
        if not tensor.is_floating_point() or not bool(tensor.isnan().any()):
            continue
        row = int(tensor.isnan().reshape(len(tensor), -1).any(1).nonzero()[0])
        raise DataError(
            f"the inputs hold NaN, first in sample {start + row}; leave such samples out"
        )


def loss_of(criterion: Criterion, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of a batch.

    Raises:
        DataError: the criterion raises something, or does not return one number.
    """
    try:
        loss = criterion(outputs, targets)
    except PntkError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise DataError(
            f"{name} raised {type(error).__name__}: {error}; it was given outputs "
            f"{_shown(outputs)} and targets {_shown(targets)}: cross entropy expects [b, c] and "
            "class numbers below c, int64 [b]"
        ) from error
    if not isinstance(loss, Tensor) or loss.dim():
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise DataError(
            f"the criterion returned {shape}; expected one number, the mean over the batch"
        )
    return loss


def hits_of(outputs: Any, targets: Any) -> Tensor:
    """Return for each sample whether its largest output is that of its target, bool [b].

    Raises:
        DataError: outputs that are not [b, c], or targets that are not int [b] from 0 to c - 1.
    """
    fits = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not fits or outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        raise DataError(
            f"outputs are {_shown(outputs)} and targets {_shown(targets)}; expected [b, c] and "
            "class numbers [b]: accuracy is of classifiers"
        )
    classes = outputs.shape[1]
    if not bool(((targets >= 0) & (targets < classes)).all()):
        raise DataError(
            f"targets are {int(targets.min())} to {int(targets.max())} and the model has "
            f"{classes} outputs; expected class numbers 0 to {classes - 1}"
        )
    return outputs.argmax(1) == targets


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def largest_output(model: nn.Module, batch: Batch) -> tuple[Any, int]:
    """Run a batch; return the outputs and the bytes a sample of the largest output of a module."""
    largest = max(t.numel() * t.element_size() for t in tensors((batch.args, batch.kwargs)))

    def see(module: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal largest
        if isinstance(outputs, Tensor):
            largest = max(largest, outputs.numel() * outputs.element_size())

    hooks = [m.register_forward_hook(see) for m in model.modules()]
    try:
        with explained(model, (batch.args, batch.kwargs)):
            outputs = model(*batch.args, **batch.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, max(1, largest // batch.size)


def samples_at_once(each: int) -> int:
    """Return how many samples keep the largest output, of ``each`` bytes a sample, in cache."""
    return max(FEWEST, min(MOST, CACHE_BYTES // each))


def fast_layers(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which some layers are faster on a CPU; no gradients go through them.

    Max pooling of windows side by side: PyTorch's also finds where each maximum is, which only a
    backward pass needs, and takes half of a small convolutional network's time. Linear layers: by
    oneDNN, as convolutions are, which on an AMD EPYC takes 0.6 of the time for some 100 features.
    """
    return _FastLayers() if device.type == "cpu" else nullcontext()


class _FastLayers(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if func in (F.max_pool2d, torch.max_pool2d):
            return max_pool2d(*args, **(kwargs or {}))
        if func is F.linear and not kwargs and _suits_onednn(*args):
            return _ONEDNN_LINEAR(*args, *[None] * (3 - len(args)), "none", [], "")
        return func(*args, **(kwargs or {}))


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a linear layer is the plain case, many rows of float32."""
    if _ONEDNN_LINEAR is None or x.dim() != 2 or len(x) < FEWEST or torch.is_grad_enabled():
        return False
    return all(t is None or t.dtype == torch.float32 for t in (x, weight, bias))


def _onednn_linear() -> Any:
    """Return oneDNN's operator, which torch.compile uses too; None where torch has it not."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN_LINEAR = _onednn_linear()


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return ``F.max_pool2d``, by maxima of slices where windows lie side by side."""
    window = _pair(kernel_size)
    beside = not stride or _pair(stride) == window
    covered = all(size >= side for size, side in zip(input.shape[-2:], window, strict=True))
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode
    if return_indices or not (beside and covered and plain):
        ordinary: Any = F.max_pool2d
        return ordinary(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    found = input
    for dim, side in zip((-2, -1), window, strict=True):
        count = found.shape[dim] // side
        parts = found.narrow(dim, 0, count * side).unflatten(dim, (count, side))
        found, *others = parts.unbind(dim)
        for other in others:
            found = torch.maximum(found, other)
    return found


def _pair(value: Any) -> tuple[int, int]:
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return (both[0], both[-1])
