"""Images that differ from one another in a small rectangle, and so do most of their activations.

A finite difference runs a network on images that differ from the evaluation point in one pixel.
Those whose pixels are neighbours go through together: a layer is computed once for the point, and
for each image only in the rectangle that its pixel reaches. The arithmetic is that of the whole
image, and what is not known here is computed on it.

Shapes: b images; c channels; s spatial sizes, any number of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
Span = tuple[int, int]  # start and stop along a dimension

_POINTWISE = {
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.elu.default,
    aten.leaky_relu.default,
    aten.hardtanh.default,
    aten.neg.default,
    aten.clone.default,
    aten.detach.default,
}
_IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    aten.relu_.default: F.relu,
    aten.silu_.default: F.silu,
    aten.leaky_relu_.default: F.leaky_relu,
    aten.hardtanh_.default: F.hardtanh,
}
_PAIRS: dict[Any, Callable[..., Tensor]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
}
_PAIRS_IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    aten.add_.Tensor: torch.add,
    aten.mul_.Tensor: torch.mul,
}


class Memo:
    """Results of operations on bases, by the operation and the very tensors that it was given."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Any, Tensor]] = {}

    def __call__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return ``function(*args, **kwargs)``, computed once."""
        given = (*tree_flatten((args, kwargs))[0],)
        key = (function, *(id(x) if isinstance(x, Tensor) else repr(x) for x in given))
        if key not in self._kept:
            # what was given is kept with it: a tensor that is gone could leave its id to another
            self._kept[key] = given, function(*args, **kwargs)
        return self._kept[key][1]


class NotLocalError(RuntimeError):
    """An operation changes images in a way that is not known here."""


class LocalImages(Tensor):
    """Images [b, c, *s] that equal one [1, c, *s] outside of a rectangle that they share.

    Attributes:
        base: [1, c, *s].
        patch: [b, c, *rectangle].
        rectangle: start and stop along each spatial dimension.
        memo: what operations gave for bases, shared by all that goes through one network.
    """

    base: Tensor
    patch: Tensor
    rectangle: list[Span]
    memo: Memo

    @staticmethod
    def __new__(cls, base: Tensor, patch: Tensor, rectangle: list[Span], memo: Memo) -> LocalImages:
        """Make a tensor without numbers, of the shape of the whole images."""
        shape = (patch.shape[0], *base.shape[1:])
        self: LocalImages = Tensor._make_wrapper_subclass(
            cls, shape, dtype=base.dtype, device=base.device
        )
        self.base, self.patch, self.rectangle, self.memo = base, patch, rectangle, memo
        return self

    def whole(self) -> Tensor:
        """Return the images as an ordinary tensor [b, c, *s]."""
        return self.crop([(0, size) for size in self.base.shape[2:]])

    def crop(self, spans: Sequence[Span]) -> Tensor:
        """Return the part of the images within spans, [b, c, *lengths]; a copy if it is larger."""
        if list(spans) == self.rectangle:
            return self.patch
        part = self.base[_window(spans)].repeat(self.patch.shape[0], 1, *[1] * len(spans))
        inner, outer = [], []
        for (start, stop), (first, last) in zip(spans, self.rectangle, strict=True):
            low, high = max(start, first), max(start, first, min(stop, last))
            inner.append((low - start, high - start))
            outer.append((low - first, high - first))
        part[_window(inner)] = self.patch[_window(outer)]
        return part

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute an operation on base and patch where its reach is known, or on whole images."""
        kwargs = kwargs or {}
        found = _local(function, args, kwargs)
        if found is None:
            if function._schema.is_mutable:
                raise NotLocalError(str(function))
            found = function(*tree_map_only(LocalImages, LocalImages.whole, args), **kwargs)
        return found


def _local(function: Any, args: Any, kwargs: Any) -> Any:
    """Return the result as LocalImages; None where the reach of an operation is not known."""
    x = args[0]
    if function in _PAIRS:
        return _pair(_PAIRS[function], *args, **kwargs)
    if function is aten.cat.default:
        return _cat(*args)
    if not isinstance(x, LocalImages):
        return None
    if function in _PAIRS_IN_PLACE:
        return _assign(x, _pair(_PAIRS_IN_PLACE[function], *args, **kwargs))
    if function in _POINTWISE:
        return _both(function, x, *args[1:], **kwargs)
    if function in _IN_PLACE:
        return _assign(x, _both(_IN_PLACE[function], x, *args[1:], **kwargs))
    if function is aten.native_batch_norm.default and not args[5]:
        return (_both(_batch_norm, x, *args[1:]), *_nothing(x, 2))
    if function is aten.convolution.default:
        return _convolution(x, *args[1:])
    if function is aten.max_pool2d_with_indices.default:
        # places of no size, so that whoever wants them gets an error
        return (_max_pool(x, *args[1:]), *_nothing(x, 1))
    if function is aten.avg_pool2d.default:
        return _mean_pool(x, *args[1:])
    return None


def _nothing(x: LocalImages, count: int) -> list[Tensor]:
    return [x.base.new_empty(0) for _ in range(count)]


def _both(
    function: Callable[..., Tensor], x: LocalImages, *args: Any, **kwargs: Any
) -> LocalImages:
    base = x.memo(function, x.base, *args, **kwargs)
    return LocalImages(base, function(x.patch, *args, **kwargs), x.rectangle, x.memo)


def _batch_norm(x: Tensor, *args: Any) -> Tensor:
    normalised: Tensor = aten.native_batch_norm(x, *args)[0]
    return normalised


def _assign(x: LocalImages, found: LocalImages | None) -> LocalImages | None:
    """Make the images those of an operation in place."""
    if found is not None:
        x.base, x.patch, x.rectangle = found.base, found.patch, found.rectangle
    return None if found is None else x


def _pair(function: Callable[..., Tensor], x: Any, y: Any, **kwargs: Any) -> LocalImages | None:
    """Add or multiply images, or images and a number."""
    if isinstance(x, LocalImages) and isinstance(y, (int, float)):
        return _both(function, x, y, **kwargs)
    if not isinstance(x, LocalImages) or not isinstance(y, LocalImages) or x.shape != y.shape:
        return None
    spans = _union([x, y])
    base = x.memo(function, x.base, y.base, **kwargs)
    return LocalImages(base, function(x.crop(spans), y.crop(spans), **kwargs), spans, x.memo)


def _cat(images: Sequence[Any], dim: int = 0) -> LocalImages | None:
    if dim != 1 or not all(isinstance(x, LocalImages) for x in images):
        return None
    spans, memo = _union(images), images[0].memo
    base = memo(torch.cat, [x.base for x in images], 1)
    return LocalImages(base, torch.cat([x.crop(spans) for x in images], 1), spans, memo)


def _union(images: Sequence[LocalImages]) -> list[Span]:
    """Return the smallest rectangle around those of all images."""
    return [
        (min(start for start, _ in spans), max(stop for _, stop in spans))
        for spans in zip(*(x.rectangle for x in images), strict=True)
    ]


def _convolution(
    x: LocalImages,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> LocalImages | None:
    if transposed:
        return None

    rest = (dilation, False, output_padding, groups)
    base = x.memo(aten.convolution, x.base, weight, bias, stride, padding, *rest)
    spans, seen = _reach(x, base, weight.shape[2:], stride, padding, dilation, 0.0)
    patch = aten.convolution(seen, weight, bias, stride, [0] * len(padding), *rest)
    return LocalImages(base, patch, spans, x.memo)


def _max_pool(
    x: LocalImages,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> LocalImages:
    kernel, padding, dilation = _twice(kernel), _twice(padding), _twice(dilation)
    stride = _twice(stride or kernel)
    base = x.memo(F.max_pool2d, x.base, kernel, stride, padding, dilation, ceil_mode)
    spans, seen = _reach(x, base, kernel, stride, padding, dilation, float("-inf"))
    # maxima of slices, several times as fast as max_pool2d on a CPU
    patch = None
    for offsets in itertools.product(*map(range, kernel)):
        firsts = [o * d for o, d in zip(offsets, dilation, strict=True)]
        lasts = [
            first + (stop - start - 1) * step
            for first, step, (start, stop) in zip(firsts, stride, spans, strict=True)
        ]
        view = seen[_window([(a, b + 1) for a, b in zip(firsts, lasts, strict=True)], stride)]
        patch = view if patch is None else torch.maximum(patch, view)
    assert patch is not None
    return LocalImages(base, patch, spans, x.memo)


def _mean_pool(
    x: LocalImages,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    *_: Any,
) -> LocalImages | None:
    if any(padding) or ceil_mode or any(option not in (True, None) for option in _):
        return None
    kernel = _twice(kernel)
    stride = _twice(stride or kernel)
    base = x.memo(F.avg_pool2d, x.base, kernel, stride)
    spans, seen = _reach(x, base, kernel, stride, (0, 0), (1, 1), 0.0)
    return LocalImages(base, F.avg_pool2d(seen, kernel, stride), spans, x.memo)


def _reach(
    x: LocalImages,
    base: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    value: float,
) -> tuple[list[Span], Tensor]:
    """Return which outputs of sliding windows see the rectangle, and all that those see.

    Args:
        base: the output for the base, [1, o, *outputs].
        value: of the padding.
    """
    spans, inputs, pads = [], [], []
    sizes = zip(
        x.rectangle,
        x.base.shape[2:],
        base.shape[2:],
        kernel,
        stride,
        padding,
        dilation,
        strict=True,
    )
    for (first, last), size, outputs, k, s, p, d in sizes:
        extent = d * (k - 1) + 1
        start = min(max(-((extent - 1 - first - p) // s), 0), outputs - 1)
        stop = max(min((last - 1 + p) // s + 1, outputs), start + 1)
        low, high = start * s - p, (stop - 1) * s - p + extent
        spans.append((start, stop))
        inputs.append((max(low, 0), min(high, size)))
        pads.append((max(-low, 0), max(high - size, 0)))
    seen = x.crop(inputs)
    if any(side for pad in pads for side in pad):
        seen = F.pad(seen, [side for pad in reversed(pads) for side in pad], value=value)
    return spans, seen


def _twice(sizes: Sequence[int]) -> list[int]:
    """Return two sizes of one or two."""
    return list(sizes) * 2 if len(sizes) == 1 else list(sizes)


def _window(spans: Sequence[Span], steps: Sequence[int] | None = None) -> tuple[slice, ...]:
    """Return the index of a rectangle in images."""
    steps = steps or [1] * len(spans)
    return (
        slice(None),
        slice(None),
        *(slice(start, stop, step) for (start, stop), step in zip(spans, steps, strict=True)),
    )
