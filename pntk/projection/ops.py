"""The compiled CPU kernels as torch operators, so that torch.compile and opcheck know them.

All but ``norm_sums`` add to ``out`` [b, k] float32 and return nothing. A parameter's map is passed
as tensors: ``diagonals`` [padded rows + padded channels] float32; ``shifts`` int32, rho of each
column block, then gamma of each column block and of each row block; ``tiles``: rows, channels,
positions, ko, ki, per_position, vector. ``seed`` and ``stream`` are 64-bit patterns, as signed
integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.projection import bits

_MAP = "Tensor diagonals, Tensor shifts, int[] tiles"
_TAIL = "int seed, int stream, Tensor(a!) out"
_WORD = 1 << 64
_WORDS = ("seed", "stream", "bias_stream")

SCHEMAS = {
    "hadamard_gradient": f"(Tensor gradient, {_MAP}, {_TAIL}) -> ()",
    "hadamard_factors": (
        f"(Tensor rows, Tensor columns, {_MAP}, int[] windows, int groups, {_TAIL}) -> ()"
    ),
    "hadamard_affine": (
        f"(Tensor rows, Tensor columns, {_MAP}, int[] windows, int groups, Tensor bias_diagonals, "
        f"Tensor bias_shifts, int[] bias_tiles, int bias_stream, {_TAIL}) -> ()"
    ),
    "hadamard_lookup": f"(Tensor ids, Tensor delta, {_MAP}, {_TAIL}) -> ()",
    "dense_project": f"(Tensor gradient, bool normal, float scale, bool bf16, {_TAIL}) -> ()",
}


def signed(word: int) -> int:
    """Return the signed integer with the same 64 bits.

    >>> signed(2**64 - 1), signed(5)
    (-1, 5)
    """
    return word - _WORD if word >= _WORD // 2 else word


def _kernel(name: str) -> Any:
    native = bits.native_module()
    if native is None:
        raise ConfigError(f"pntk::{name} needs the compiled kernels: {bits.native_error()}")
    return getattr(native, name)


def _run(name: str) -> Any:
    def run(*args: Any) -> None:
        try:
            given = [a.numpy() if isinstance(a, Tensor) else a for a in args]
            for i in words:
                given[i] %= _WORD
            _kernel(name)(*given, torch.get_num_threads())
        except TypeError:
            raise TypeError(_mismatch(name, args)) from None

    arguments = getattr(torch.ops.pntk, name).default._schema.arguments
    words = [i for i, argument in enumerate(arguments) if argument.name in _WORDS]
    return run


def _mismatch(name: str, args: tuple[Any, ...]) -> str:
    names = [a.name for a in getattr(torch.ops.pntk, name).default._schema.arguments]
    found = [
        f"{label} {str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
        + ("" if given.is_contiguous() else f" of strides {given.stride()}")
        for label, given in zip(names, args, strict=True)
        if isinstance(given, Tensor)
    ]
    return (
        f"pntk::{name} got {', '.join(found)}; expected float32 (ids int64, shifts int32), and "
        "contiguous but for rows, columns, and the delta and x of norms"
    )


def _nothing(*args: Any) -> None:
    return None


_library = torch.library.Library("pntk", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _run(_name), "CPU")
    torch.library.register_fake(f"pntk::{_name}", _nothing, lib=_library)


def _norm_sums(delta: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over positions [n, C] of delta (x - mean), and of delta [n, C, L]; mean [C]."""
    scale, shift = delta.new_empty(delta.shape[:2]), delta.new_empty(delta.shape[:2])
    try:
        arrays = (each.numpy() for each in (delta, x, mean, scale, shift))
        _kernel("norm_sums")(*arrays, torch.get_num_threads())
    except TypeError:
        raise TypeError(_mismatch("norm_sums", (delta, x, mean))) from None
    return scale, shift


def _norm_sums_fake(delta: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    shape = delta.shape[:2]
    return delta.new_empty(shape), delta.new_empty(shape)


_library.define("norm_sums(Tensor delta, Tensor x, Tensor mean) -> (Tensor, Tensor)")
_library.impl("norm_sums", _norm_sums, "CPU")
torch.library.register_fake("pntk::norm_sums", _norm_sums_fake, lib=_library)
