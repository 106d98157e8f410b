"""The compiled CPU kernels as torch operators, so that torch.compile and opcheck know them.

All add to ``out`` [b, k] float32 and return nothing. A parameter's map is passed as tensors:
``diagonals`` [padded rows + padded channels] float32; ``shifts`` int32, rho of each column block,
then gamma of each column block and of each row block; ``tiles``: rows, channels, positions, ko, ki,
per_position, vector. ``seed`` and ``stream`` are 64-bit patterns, as signed integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pntk.projection import bits

_MAP = "Tensor diagonals, Tensor shifts, int[] tiles"
_TAIL = "int seed, int stream, Tensor(a!) out"
_WORD = 1 << 64

SCHEMAS = {
    "hadamard_gradient": f"(Tensor gradient, {_MAP}, {_TAIL}) -> ()",
    "hadamard_factors": (
        f"(Tensor rows, Tensor columns, {_MAP}, int[] windows, int groups, {_TAIL}) -> ()"
    ),
    "hadamard_lookup": f"(Tensor ids, Tensor delta, {_MAP}, {_TAIL}) -> ()",
}


def signed(word: int) -> int:
    """Return the signed integer with the same 64 bits.

    >>> signed(2**64 - 1), signed(5)
    (-1, 5)
    """
    return word - _WORD if word >= _WORD // 2 else word


def _run(name: str) -> Any:
    kernel = getattr(bits.native_module(), name)
    threads = torch.get_num_threads

    def run(*args: Any) -> None:
        given = [a.numpy() if isinstance(a, Tensor) else a for a in args]
        *rest, seed, stream, out = given
        kernel(*rest, seed % _WORD, stream % _WORD, out, threads())

    return run


def _nothing(*args: Any) -> None:
    return None


_library = torch.library.Library("pntk", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    if bits.has_native():
        _library.impl(_name, _run(_name), "CPU")
    torch.library.register_fake(f"pntk::{_name}", _nothing, lib=_library)
