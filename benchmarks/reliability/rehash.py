"""Checksums of HDF5's metadata, so that changes to it look as if HDF5 had made them.

Source: HDF5 File Format Specification 3.0, https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html;
the checksum is lookup3 (hashlittle) of Bob Jenkins, https://burtleburtle.net/bob/c/lookup3.c.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

_SUPERBLOCK = 44  # bytes before the checksum, in versions 2 and 3
_MASK = 2**32 - 1


def object_headers(content: bytes) -> list[tuple[int, int]]:
    """Return (start, stop) of the superblock and of each object header, checksums left out."""
    found = [(8, _SUPERBLOCK)]
    for match in re.finditer(b"OHDR\x02", content):
        start = match.start()
        flags = content[start + 5]
        at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        size = 1 << (flags & 3)
        stop = at + size + int.from_bytes(content[at : at + size], "little")
        if stop + 4 <= len(content):
            found.append((start, stop))
    return found


def rehash(content: bytearray) -> None:
    """Write the right checksums of the superblock and of all object headers."""
    for start, stop in object_headers(bytes(content)):
        first = 0 if start == 8 else start
        content[stop : stop + 4] = lookup3(bytes(content[first:stop])).to_bytes(4, "little")


def used(content: bytes) -> npt.NDArray[np.int64]:
    """Return the bytes of the superblock, object headers, and other structures with a signature."""
    places = [np.arange(start, stop + 4) for start, stop in object_headers(content)]
    for match in re.finditer(b"FRHP|FHDB|BTHD|BTLF|FSHD|FSSE|OCHK|GCOL", content):
        places.append(np.arange(match.start(), min(match.start() + 200, len(content))))
    return np.concatenate([np.arange(8), *places])


def lookup3(data: bytes) -> int:
    """Return the checksum of bytes.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    blocks = (len(data) - 1) // 12
    for i in range(blocks):
        x, y, z = _words(data[12 * i : 12 * i + 12])
        a, b, c = _mix((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)
    x, y, z = _words(data[12 * blocks :].ljust(12, b"\0"))
    return _final((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)


def _words(data: bytes) -> tuple[int, int, int]:
    x, y, z = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8))
    return x, y, z


def _rotated(x: int, k: int) -> int:
    return ((x << k) | (x >> (32 - k))) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a, c = ((a - c) & _MASK) ^ _rotated(c, 4), (c + b) & _MASK
    b, a = ((b - a) & _MASK) ^ _rotated(a, 6), (a + c) & _MASK
    c, b = ((c - b) & _MASK) ^ _rotated(b, 8), (b + a) & _MASK
    a, c = ((a - c) & _MASK) ^ _rotated(c, 16), (c + b) & _MASK
    b, a = ((b - a) & _MASK) ^ _rotated(a, 19), (a + c) & _MASK
    c, b = ((c - b) & _MASK) ^ _rotated(b, 4), (b + a) & _MASK
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - _rotated(b, 14)) & _MASK
    a = ((a ^ c) - _rotated(c, 11)) & _MASK
    b = ((b ^ a) - _rotated(a, 25)) & _MASK
    c = ((c ^ b) - _rotated(b, 16)) & _MASK
    a = ((a ^ c) - _rotated(c, 4)) & _MASK
    b = ((b ^ a) - _rotated(a, 14)) & _MASK
    return ((c ^ b) - _rotated(b, 24)) & _MASK
