"""The random bits of every projection: Philox4x32-10, addressed and never drawn in sequence.

A bit is a pure function of (seed, stream, index), the same on every device and backend:

- key = (seed low, seed high), 32 bits each;
- counter = (block low, block high, stream low, stream high);
- word i of a stream is output word i % 4 of block i // 4;
- bit n is bit n % 32, least significant first, of word n // 32; its sign is +1 for 0, -1 for 1.

The reasons are in docs/adr/0002-random-bits.md.

Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405
"""

import functools
import hashlib
import importlib
import operator
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pntk.errors import ConfigError, PntkWarning

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK32 = 0xFFFFFFFF

_BLOCK_WORDS, _BLOCK_BITS = 4, 128
_BLOCKS = 1 << 64  # in a stream; also the number of seeds, and of streams
_NUMPY_CHUNK = 1 << 16  # words made at a time, so that the temporaries stay in cache
_NATIVE_SIGNS = (torch.float32, torch.float64, torch.int8)


def stream_id(family: str, proj_dim: int, role: str, output: int, name: str) -> int:
    """Return the stream that a parameter's bits come from.

    The little-endian integer of BLAKE2b, 8 bytes, of the UTF-8 text
    ``pntk1|family|proj_dim|role|output|name``.

    Args:
        family: projection family, such as ``"hadamard"``; without ``|``.
        proj_dim: projection dimension k.
        role: what the bits are for, such as ``"S"``; without ``|``.
        output: index c of the differentiated output.
        name: qualified name of the parameter; anything.

    Returns:
        A stream in [0, 2^64).

    Raises:
        ConfigError: ``family`` or ``role`` contains ``|``, so that two texts could be equal.

    >>> hex(stream_id("hadamard", 4096, "S", 0, "layer1.0.conv1.weight"))
    '0xa0f271d43daf1c07'
    """
    for label, text in (("family", family), ("role", role)):
        if "|" in text:
            raise ConfigError(f"{label} is {text!r}; it must not contain '|': rename it")
    text = f"pntk1|{family}|{proj_dim}|{role}|{output}|{name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox_words_numpy(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """Return words start, ..., start + count - 1 of a stream, with NumPy.

    Args:
        seed: in [0, 2^64).
        stream: in [0, 2^64).
        start: index of the first word, >= 0; start + count <= 2^66.
        count: number of words, >= 0.

    Returns:
        uint32 [count].

    Raises:
        ConfigError: an argument is out of its range.
    """
    seed, stream, start, count = _check(seed, stream, start, count, _BLOCK_WORDS)
    out = np.empty(count, np.uint32)
    for done in range(0, count, _NUMPY_CHUNK):
        size = min(_NUMPY_CHUNK, count - done)
        first, offset, n_blocks = _blocks(start + done, size)
        block = np.arange(n_blocks, dtype=np.uint64) + np.uint64(first)
        words = _rounds(seed, stream, block)
        out[done : done + size] = np.stack(words, axis=1).reshape(-1)[offset : offset + size]
    return out


def philox_words_torch(
    seed: int, stream: int, start: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return words start, ..., start + count - 1 of a stream, with torch, on any device.

    Args:
        seed: in [0, 2^64).
        stream: in [0, 2^64).
        start: index of the first word, >= 0; start + count <= 2^66.
        count: number of words, >= 0.
        device: where the words are made.

    Returns:
        int64 [count], values 0 to 2^32 - 1.

    Raises:
        ConfigError: an argument is out of its range.
    """
    seed, stream, start, count = _check(seed, stream, start, count, _BLOCK_WORDS)
    first, offset, n_blocks = _blocks(start, count)
    # The unsigned block numbers, wrapped into int64, which every device has.
    wrapped = first - _BLOCKS if first >= _BLOCKS // 2 else first
    block = torch.arange(n_blocks, dtype=torch.int64, device=device) + wrapped
    words = _rounds(seed, stream, block)
    return torch.stack(words, dim=1).reshape(-1)[offset : offset + count]


def words(
    seed: int, stream: int, start: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return words start, ..., start + count - 1 of a stream, by the fastest way on the device.

    On the CPU the compiled kernel where there is one (see ``has_native``), otherwise NumPy; on
    other devices torch. All give the same values.

    Args:
        seed: in [0, 2^64).
        stream: in [0, 2^64).
        start: index of the first word, >= 0; start + count <= 2^66.
        count: number of words, >= 0.
        device: where the words are made.

    Returns:
        int64 [count], values 0 to 2^32 - 1.

    Raises:
        ConfigError: an argument is out of its range.
    """
    if torch.device(device).type != "cpu":
        return philox_words_torch(seed, stream, start, count, device)
    native = native_module()
    if native is None:
        return torch.from_numpy(philox_words_numpy(seed, stream, start, count).astype(np.int64))
    seed, stream, start, count = _check(seed, stream, start, count, _BLOCK_WORDS)
    out = np.empty(count, np.int64)
    native.philox_words(out, seed, stream, *divmod(start, _BLOCK_WORDS))
    return torch.from_numpy(out)


def signs(
    seed: int,
    stream: int,
    start: int,
    count: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return the signs of bits start, ..., start + count - 1 of a stream: 1 - 2 bit.

    Args:
        seed: in [0, 2^64).
        stream: in [0, 2^64).
        start: index of the first bit (not word), >= 0; start + count <= 2^71.
        count: number of bits, >= 0.
        dtype: floating point, complex or signed integer.
        device: where the signs are made.

    Returns:
        ``dtype`` [count] of +1 and -1.

    Raises:
        ConfigError: an argument is out of its range, or ``dtype`` cannot hold -1.

    >>> signs(0, 0, 0, 8)  # the first word is 0x6627e8d5: 1 0 1 0 1 0 1 1, low bit first
    tensor([-1.,  1., -1.,  1., -1.,  1., -1., -1.])
    """
    if not dtype.is_signed:
        raise ConfigError(f"dtype is {dtype}; signs need one that holds -1, such as torch.float32")
    seed, stream, start, count = _check(seed, stream, start, count, _BLOCK_BITS)
    device = torch.device(device)
    native = native_module() if device.type == "cpu" else None
    if native is not None:
        made = torch.empty(count, dtype=dtype if dtype in _NATIVE_SIGNS else torch.int8)
        native.philox_signs(made.numpy(), seed, stream, *divmod(start, _BLOCK_BITS))
        return made.to(dtype)
    offset, n_words = start % 32, (start % 32 + count + 31) // 32
    if device.type == "cpu":
        found = philox_words_numpy(seed, stream, start // 32, n_words)
        unpacked = np.unpackbits(found.astype("<u4", copy=False).view(np.uint8), bitorder="little")
        bits = torch.from_numpy(unpacked[offset : offset + count])
    else:
        bits = _unpack(philox_words_torch(seed, stream, start // 32, n_words, device))
        bits = bits[offset : offset + count]
    return bits.to(torch.int8).mul_(-2).add_(1).to(dtype)


def has_native() -> bool:
    """Return whether the compiled kernels are used on the CPU."""
    return native_module() is not None


def native_error() -> str | None:
    """Return why the compiled kernels are not used, or None where they are."""
    return _load_native()[1]


def native_module() -> Any:
    """Return the extension module ``pntk._C``, or None; ``native_error`` says why.

    It is imported on the first call, and never where ``PNTK_DISABLE_NATIVE=1`` is set by then.

    Raises:
        ConfigError: ``PNTK_DISABLE_NATIVE`` or ``PNTK_CPU_LEVEL`` has a value without a meaning.
    """
    return _load_native()[0]


def native_switched_off() -> bool:
    """Return whether ``PNTK_DISABLE_NATIVE=1`` forbids compiled extension modules.

    Raises:
        ConfigError: it has a value without a meaning.
    """
    switch = os.environ.get("PNTK_DISABLE_NATIVE", "")
    if switch not in ("", "0", "1"):
        raise ConfigError(f"PNTK_DISABLE_NATIVE is {switch!r}; set it to 1, to 0, or not at all")
    return switch == "1"


@functools.cache
def _load_native() -> tuple[ModuleType | None, str | None]:
    if native_switched_off():
        return None, "turned off by PNTK_DISABLE_NATIVE=1"
    try:
        module = importlib.import_module("pntk._C")
    except ModuleNotFoundError as error:
        if error.name == "pntk._C":
            remedy = "install with a C++17 compiler; PNTK_NATIVE=1 shows why the build fails"
            return None, f"pntk._C was not built: {remedy}"
        reason = _broken(error)
    except Exception as error:  # a module that was built and does not load is never normal
        reason = _broken(error)
    else:
        _check_level(module)
        return module, None
    warnings.warn(reason, PntkWarning, stacklevel=2)
    return None, reason


def _check_level(module: Any) -> None:
    try:
        module.level()
    except ValueError as error:  # PNTK_CPU_LEVEL names none
        raise ConfigError(str(error)) from None


def _broken(error: Exception) -> str:
    remedy = "reinstall pntk; until then NumPy and torch operations are used"
    return f"pntk._C is there and cannot be imported ({type(error).__name__}: {error}): {remedy}"


def _check(
    seed: int, stream: int, start: int, count: int, per_block: int
) -> tuple[int, int, int, int]:
    # The four as plain integers; start and count are in words or bits, per_block of them a block.
    seed, stream = _integer("seed", seed), _integer("stream", stream)
    start, count = _integer("start", start), _integer("count", count)
    for label, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < _BLOCKS:
            raise ConfigError(
                f"{label} is {value}; it must be in [0, 2^64): take it modulo 2**64 to keep its "
                f"low bits"
            )
    for label, value in (("start", start), ("count", count)):
        if value < 0:
            raise ConfigError(f"{label} is {value}; it must be 0 or more: streams start at 0")
    if start + count > _BLOCKS * per_block:
        raise ConfigError(
            f"start + count is {start + count}; a stream ends at {_BLOCKS * per_block}: use "
            f"another stream"
        )
    return seed, stream, start, count


def _integer(label: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        found = f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{label} is {found}; it must be an integer: use int()") from None


def _blocks(start: int, count: int) -> tuple[int, int, int]:
    # First block, offset of the first word in it, number of blocks.
    first, offset = divmod(start, _BLOCK_WORDS)
    return first, offset, -(-(offset + count) // _BLOCK_WORDS)


def _rounds(seed: int, stream: int, block: Any) -> tuple[Any, Any, Any, Any]:
    # The four output words of each block, for uint64 (NumPy) or int64 (torch) block numbers.
    # Sums and products keep their low 64 bits, so masking after the shift is right for int64
    # too, where >> copies the sign bit.
    c0, c1 = block & _MASK32, (block >> 32) & _MASK32
    c2, c3 = block * 0 + (stream & _MASK32), block * 0 + (stream >> 32)
    k0, k1 = seed & _MASK32, seed >> 32
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _MASK32) ^ c1 ^ k0
        c1 = product1 & _MASK32
        c2 = ((product0 >> 32) & _MASK32) ^ c3 ^ k1
        c3 = product0 & _MASK32
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def _unpack(found: torch.Tensor) -> torch.Tensor:
    # [n] -> [32 n]; bytes first, which keeps the temporaries at one byte a bit.
    octets = torch.stack([(found >> s & 0xFF).to(torch.uint8) for s in (0, 8, 16, 24)], dim=1)
    shifts = torch.arange(8, dtype=torch.uint8, device=found.device)
    return (octets.unsqueeze(-1) >> shifts & 1).reshape(-1)
