"""The GPU kernels as torch operators: one set of them, implemented in CUDA C++ and in Triton.

``impl`` is ``cuda`` or ``triton``, which alone has ``gram`` and ``dense`` of ``normal``. Operators
write all of what they are to write, whatever was there.

Shapes: b batch, T positions that are summed, N pixels, k = ko * ki.

- ``left`` bfloat16 [planes, b, rows padded to 64, T padded to 8]: H D rows.
- ``right`` bfloat16 [planes, b, N, channels padded to 64]: H D' columns. Two planes are the high
  and the low part of a number, one is the high part alone.
- ``signs`` int32: the bits of the entry signs, 32 a word; ``shifts`` int32: rho and gamma of each
  column block, then gamma of each row block; ``diagonals`` float32: of the rows, then the columns.
- ``tiles``: rows, channels, positions, ko, ki, per_position, vector; ``windows``: padding, kernel,
  stride, dilation and grid, three numbers each; ``size``: of the image, three numbers.
- ``to`` float32 [splits, b, k]: partial sums, to be added up.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.projection import cuda
from pntk.projection.signs import GROUP
from pntk.projection.tiles import MAX_ORDER, PANEL, padded

_MAP = "Tensor diagonals, Tensor signs, Tensor shifts, int[] tiles"
SCHEMAS = {
    "bits": "int seed, int stream, Tensor(a!) words",
    "mix": "Tensor x, Tensor diagonal, int order, Tensor(a!) y, bool positions_last",
    "products": (
        "Tensor left, Tensor right, Tensor signs, Tensor shifts, int[] tiles, int[] size, "
        "int[] windows, int splits_rows, Tensor(a!) to"
    ),
    "gradient": f"Tensor g, {_MAP}, Tensor(a!) to",
    "lookup": f"Tensor ids, Tensor right, {_MAP}, Tensor(a!) to",
    "dense": (
        "Tensor g, str family, str precision, float scale, int seed, int stream, Tensor(a!) to"
    ),
    "gram": "Tensor x, Tensor y, Tensor? x_scale, Tensor? y_scale, Tensor(a!) out",
    "norm_sums": "Tensor delta, Tensor x, Tensor mean, Tensor(a!) scale, Tensor(b!) shift",
}
FLOATS = tuple(cuda.TYPES)
MAX_SIZE = 2**31  # of one axis
MOST_PASSED = 10_000  # checks to remember
WORD = 1 << 64


def kernel(impl: str, name: str) -> Callable[..., None]:
    """Return an operator's implementation; Triton is imported when first asked for."""
    if impl == "cuda" and name != "gram":
        return getattr(cuda, name)
    if impl == "triton":
        return getattr(importlib.import_module(f"pntk.kernels.{name}"), name)
    raise ConfigError(
        f"impl is {impl!r}; the GPU operators have 'cuda' and 'triton' (gram has 'triton')"
    )


# ---- checks ------------------------------------------------------------------------------------


def _require(holds: bool, *parts: object) -> None:
    """Refuse with a message that is put together only where it is needed."""
    if not holds:
        raise ConfigError("".join(map(str, parts)))


def _is(name: str, x: Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int | None]) -> None:
    """Refuse a tensor of another type or shape; None stands for any size."""
    fits = x.dtype in dtypes and x.dim() == len(shape)
    fits = fits and all(want in (None, size) for size, want in zip(x.shape, shape, strict=False))
    if fits and all(size < MAX_SIZE for size in x.shape):
        return
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ConfigError(
        f"{name} is {x.dtype} of shape {list(x.shape)}; expected {' or '.join(map(str, dtypes))} "
        f"of shape [{sizes}], each size below 2^31"
    )


def _in_order(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        _require(x.is_contiguous(), name, " is not contiguous; make it so")


def _aligned(x: Tensor) -> bool:
    return x.data_ptr() % 16 == 0


def _has_planes(name: str, x: Tensor) -> None:
    _require(
        x.dim() == 4 and len(x) in (1, 2), name, f" is {list(x.shape)}; expected 1 or 2 planes"
    )
    _require(_aligned(x), name, " does not start at a multiple of 16 bytes; copy it")


def _is_order(name: str, order: int, least: int) -> None:
    fits = least <= order <= MAX_ORDER and order & (order - 1) == 0
    _require(fits, f"{name} is ", order, "; expected a power of two, ", least, " to ", MAX_ORDER)


def _map_fits(
    tiles: Sequence[int], signs: Tensor, shifts: Tensor, diagonals: Tensor | None
) -> tuple[int, int, int]:
    """Return (rows, channels of one position, k), padded, of a map that fits its tensors."""
    _require(len(tiles) == 7, "tiles has ", len(tiles), " numbers; expected 7")
    rows, channels, positions, ko, ki, per_position, _vector = tiles
    sizes = (rows, channels, positions)
    _require(
        all(1 <= size < MAX_SIZE for size in sizes),
        f"rows, channels and positions are {sizes}; expected 1 to 2^31 - 1",
    )
    _is_order("ko", ko, 1)
    _is_order("ki", ki, GROUP)
    padded_rows = padded(rows, ko)
    padded_channels = padded(channels if per_position else channels * positions, ki)
    columns = padded_channels // ki * (positions if per_position else 1)
    _is("signs", signs, [torch.int32], [-(-columns * padded_rows * ki // 32)])
    _is("shifts", shifts, [torch.int32], [2 * columns + padded_rows // ko])
    _in_order(signs=signs, shifts=shifts)
    if diagonals is not None:
        _is("diagonals", diagonals, [torch.float32], [padded_rows + padded_channels])
        _in_order(diagonals=diagonals)
    return padded_rows, padded_channels, ko * ki


def _check_bits(seed: int, stream: int, words: Tensor) -> None:
    _is("words", words, [torch.int32], [None])
    _in_order(words=words)


def _check_mix(x: Tensor, diagonal: Tensor, order: int, y: Tensor, positions_last: bool) -> None:
    _is_order("order", order, 1)
    _is("x", x, FLOATS, [None, None, None])
    b, c, t = x.shape
    channels = padded(c, max(order, PANEL))
    tail = [channels, padded(t, 8)] if positions_last else [t, channels]
    _is("y", y, [torch.bfloat16], [None, b, *tail])
    _has_planes("y", y)
    _is("diagonal", diagonal, [torch.float32], [None])
    _require(len(diagonal) >= c, "diagonal has ", len(diagonal), " signs for ", c, " channels")
    _in_order(diagonal=diagonal, y=y)


def _check_products(
    left: Tensor,
    right: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    size: Sequence[int],
    windows: Sequence[int],
    splits_rows: int,
    to: Tensor,
) -> None:
    rows, channels, k = _map_fits(tiles, signs, shifts, None)
    _require(not tiles[6], "a vector has no factors; expected a matrix or a convolution")
    lengths = (len(size), len(windows))
    _require(lengths == (3, 15), "size and windows have ", lengths, " numbers; expected (3, 15)")
    padding, kernel_size, stride, dilation, grid = (windows[i : i + 3] for i in range(0, 15, 3))
    above = min(*kernel_size, *stride, *dilation, *grid, *size)
    _require(
        min(padding) >= 0 and above >= 1,
        f"windows are {list(windows)} on an image of {list(size)}; expected positive sizes",
    )
    for a in range(3):
        last = (grid[a] - 1) * stride[a] + (kernel_size[a] - 1) * dilation[a]
        seen = size[a] + 2 * padding[a]
        _require(last < seen, "a window ends at pixel ", last, " of an axis that has ", seen)
    positions, expected = math.prod(kernel_size), tiles[2] if tiles[5] else 1
    _require(
        positions == expected,
        f"the windows have {positions} kernel positions; the parameter's map expects {expected}",
    )
    _has_planes("left", left)
    planes, b = left.shape[:2]
    shape = [planes, b, padded(rows, PANEL), padded(math.prod(grid), 8)]
    _is("left", left, [torch.bfloat16], shape)
    _is("right", right, [torch.bfloat16], [planes, b, math.prod(size), padded(channels, PANEL)])
    _is("to", to, [torch.float32], [None, b, k])
    _require(
        splits_rows >= 1 and len(to) >= 1 and len(to) % splits_rows == 0,
        f"to has {len(to)} splits, which are not a multiple of the {splits_rows} of rows",
    )
    _in_order(left=left, right=right, to=to)


def _check_gradient(
    g: Tensor, diagonals: Tensor, signs: Tensor, shifts: Tensor, tiles: Sequence[int], to: Tensor
) -> None:
    _, _, k = _map_fits(tiles, signs, shifts, diagonals)
    _is("g", g, FLOATS, [None, None])
    size, most = g.shape[1], math.prod(tiles[:3])
    fits = most - tiles[1] < size <= most if tiles[6] else size == most
    _require(fits, "g has ", size, " numbers, which is not a gradient of tiles ", list(tiles))
    _is("to", to, [torch.float32], [None, len(g), k])
    _in_order(g=g, to=to)


def _check_lookup(
    ids: Tensor,
    right: Tensor,
    diagonals: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    to: Tensor,
) -> None:
    _, channels, k = _map_fits(tiles, signs, shifts, diagonals)
    _require(
        not tiles[6] and tiles[2] == 1, "tiles are ", list(tiles), "; expected those of a matrix"
    )
    _is("ids", ids, [torch.int64], [None, None])
    _is("right", right, [torch.bfloat16], [None, *ids.shape, padded(channels, PANEL)])
    _has_planes("right", right)
    _is("to", to, [torch.float32], [None, len(ids), k])
    _in_order(ids=ids, right=right, to=to)


def _check_dense(
    g: Tensor, family: str, precision: str, scale: float, seed: int, stream: int, to: Tensor
) -> None:
    families, precisions = ("rademacher", "normal"), tuple(cuda.PRECISIONS)
    _require(family in families, f"family is {family!r}; expected one of {families}")
    _require(precision in precisions, f"precision is {precision!r}; expected one of {precisions}")
    _is("g", g, [torch.float32], [None, None])
    _is("to", to, [torch.float32], [None, len(g), None])
    _in_order(g=g, to=to)


def _check_gram(
    x: Tensor, y: Tensor, x_scale: Tensor | None, y_scale: Tensor | None, out: Tensor
) -> None:
    _is("x", x, [torch.float32], [None, None])
    _is("y", y, [torch.float32], [None, x.shape[1]])
    _is("out", out, [torch.float32], [len(x), len(y)])
    for name, scale, rows in (("x_scale", x_scale, x), ("y_scale", y_scale, y)):
        if scale is not None:
            _is(name, scale, [torch.float32], [len(rows)])
            _in_order(**{name: scale})
    _in_order(x=x, y=y, out=out)


def _check_norm_sums(delta: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> None:
    _is("delta", delta, FLOATS, [None, None, None])
    _is("x", x, FLOATS, delta.shape)
    _is("mean", mean, [torch.float32], delta.shape[1:2])
    for name, sums in (("scale", scale), ("shift", shift)):
        _is(name, sums, [torch.float32], delta.shape[:2])
    _in_order(mean=mean, scale=scale, shift=shift)


# ---- registration ------------------------------------------------------------------------------


def _run(name: str) -> Callable[..., None]:
    check = globals()[f"_check_{name}"]
    arguments = getattr(torch.ops.pntk, f"gpu_{name}").default._schema.arguments[1:]
    words = [i for i, argument in enumerate(arguments) if argument.name in ("seed", "stream")]
    tensors = [i for i, argument in enumerate(arguments) if str(argument.type) == "Tensor"]
    written = [i for i in tensors if arguments[i].is_write]
    passed: set[Any] = set()  # a check takes longer than a launch, and layers repeat

    def run(impl: str, *args: Any) -> None:
        seen = tuple(_seen(each) for i, each in enumerate(args) if i not in words)
        if seen not in passed:
            devices = {args[i].device for i in tensors}
            _require(len(devices) == 1, "tensors are on ", devices, "; expected them on one device")
            check(*args)
            if len(passed) < MOST_PASSED:
                passed.add(seen)
        if not all(args[i].numel() for i in tensors):  # no samples, or nothing to sum
            for i in written:
                args[i].zero_()
            return
        given = list(args)
        for i in words:
            given[i] %= WORD
        with _current(args[written[-1]].device):
            kernel(impl, name)(*given)

    return run


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _seen(argument: Any) -> Any:
    """Return all that checks look at."""
    if isinstance(argument, Tensor):
        contiguous = argument.is_contiguous()
        return argument.dtype, argument.shape, contiguous, argument.device, _aligned(argument)
    return tuple(argument) if isinstance(argument, (list, tuple)) else argument


def launch(name: str, impl: str, *args: Any) -> None:
    """Run an operator; without PyTorch's dispatcher, which takes as long again, where it can."""
    if torch.compiler.is_compiling():
        getattr(torch.ops.pntk, f"gpu_{name}")(impl, *args)
    else:
        RUN[name](impl, *args)


def _nothing(*args: Any) -> None:
    return None


RUN: dict[str, Callable[..., None]] = {}
_library = torch.library.Library("pntk", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(f"gpu_{_name}(str impl, {_schema}) -> ()")
    RUN[_name] = _run(_name)
    for _key in ("CUDA", "CPU"):  # on the CPU: Triton's interpreter, and emulated CUDA
        _library.impl(f"gpu_{_name}", RUN[_name], _key)
    torch.library.register_fake(f"pntk::gpu_{_name}", _nothing, lib=_library)
