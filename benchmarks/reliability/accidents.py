"""Damage by accident: what then is called whole must be what was written; see ``fuzz``."""

from __future__ import annotations

import numpy as np

from benchmarks.reliability.bases import NUMBERS, Place, Random, edit
from benchmarks.reliability.rehash import used


def truncated(place: Place, random: Random) -> None:
    def cut(content: bytearray) -> bytes:
        whole = len(content)
        lengths = [int(random.integers(1, 100)), int(random.integers(whole)), whole - 1]
        return bytes(content[: lengths[random.integers(3)]])

    edit(place, random, cut)


def appended(place: Place, random: Random) -> None:
    edit(
        place, random, lambda content: bytes(content) + random.bytes(int(random.integers(1, 9000)))
    )


def bits_anywhere(place: Place, random: Random) -> None:
    def flip(content: bytearray) -> None:
        for _ in range(int(2 ** random.integers(7))):
            content[random.integers(len(content))] ^= 1 << random.integers(8)

    edit(place, random, flip)


def bits_of_metadata(place: Place, random: Random) -> None:
    def flip(content: bytearray) -> None:
        places = used(bytes(content))
        for _ in range(int(2 ** random.integers(5))):
            content[random.choice(places)] ^= 1 << random.integers(8)

    edit(place, random, flip)


def numbers_of_metadata(place: Place, random: Random) -> None:
    """Put numbers that are large, small or odd where sizes and addresses may be."""

    def put(content: bytearray) -> None:
        at = int(random.choice(used(bytes(content))))
        value = int(random.choice(np.array(NUMBERS, dtype=object)))
        size = int(random.choice([1, 2, 4, 8]))
        content[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")

    edit(place, random, put)


def _block(content: bytearray, random: Random, size: int) -> slice:
    start = int(random.integers(max(1, len(content) - size)))
    if random.random() < 0.5:
        start -= start % 512
    return slice(start, min(start + size, len(content)))


def block_overwritten(place: Place, random: Random) -> None:
    def put(content: bytearray) -> None:
        block = _block(content, random, int(2 ** random.integers(4, 14)))
        size = block.stop - block.start
        content[block] = [bytes(size), b"\xff" * size, random.bytes(size)][random.integers(3)]

    edit(place, random, put)


def blocks_moved(place: Place, random: Random) -> None:
    """Copy a block to another place, or swap two."""

    def move(content: bytearray) -> None:
        size = int(random.choice([512, 4096, 8192]))
        a, b = _block(content, random, size), _block(content, random, size)
        size = min(a.stop - a.start, b.stop - b.start)
        a, b = slice(a.start, a.start + size), slice(b.start, b.start + size)
        first, second = content[a], content[b]
        content[b] = first
        if random.random() < 0.5:
            content[a] = second

    edit(place, random, move)
