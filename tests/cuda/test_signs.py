"""The kernels' random bits against NumPy, bit for bit: the headers compiled for this processor."""

import ctypes
import random

import numpy as np
import pytest

from pntk.projection import bits
from pntk.projection.tiles import TileLayout

from ..projection.test_bits import KNOWN_ANSWERS, pair
from .emulated import EMULATOR, build, load, needs_emulator

pytestmark = needs_emulator


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build("signs.so", [EMULATOR / "signs.cpp"])))
    loaded.philox_words.argtypes = [ctypes.c_uint64] * 3 + [ctypes.c_int64, ctypes.c_void_p]
    loaded.signs_of_words.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return loaded


def words_of(library, seed, stream, start, count):
    first, skip = divmod(start, 4)
    blocks = -(-(skip + count) // 4)
    words = np.empty(4 * blocks, np.uint32)
    library.philox_words(seed, stream, first, blocks, words.ctypes.data)
    return words[skip : skip + count]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(library, counter, key, expected):
    seed, block, stream = pair(*key), pair(*counter[:2]), pair(*counter[2:])
    found = words_of(library, seed, stream, 4 * block, 4)
    assert tuple(found.tolist()) == expected


def random_maps(count):
    """Yield (seed, name, k, shape, output): the matrix of one parameter."""
    choose = random.Random(11)
    for n in range(count):
        axes = choose.choice([1, 2, 2, 3, 4])
        shape = tuple(choose.choice([1, 2, 3, 7, 16, 33, 65]) for _ in range(min(axes, 2)))
        shape += tuple(choose.choice([1, 2, 3]) for _ in range(axes - 2))
        name = f"layers.{choose.randrange(99)}.größe.{choose.choice(['weight', 'bias'])}"
        yield choose.getrandbits(64), name, 2 ** (3 + n % 12), shape, n % 3


def test_a_thousand_maps(library):
    """Words, diagonals, shifts and entry signs of 1,000 parameters' maps."""
    for seed, name, k, shape, output in random_maps(1000):
        tiles = TileLayout.of(shape, k)
        counts = {
            "row_diagonal": tiles.padded_rows,
            "column_diagonal": tiles.padded_channels,
            "entries": min(tiles.column_blocks * tiles.padded_rows * tiles.ki, 4099),
        }
        for role, count in counts.items():
            stream = bits.stream_id("hadamard", k, role, output if role == "entries" else 0, name)
            expected = bits.philox_words_numpy(seed, stream, 0, -(-count // 32))
            words = words_of(library, seed, stream, 0, len(expected))
            np.testing.assert_array_equal(words, expected)
            unpacked = np.unpackbits(expected.astype("<u4").view(np.uint8), bitorder="little")
            signs = np.empty(count, np.float32)
            library.signs_of_words(words.ctypes.data, count, signs.ctypes.data)
            np.testing.assert_array_equal(signs, 1.0 - 2.0 * unpacked[:count])
        for role, count in (
            ("row_shift", tiles.column_blocks),
            ("column_shift", tiles.column_blocks),
            ("block_shift", tiles.row_blocks),
        ):
            stream = bits.stream_id("hadamard", k, role, 0, name)
            found = words_of(library, seed, stream, 0, count)
            np.testing.assert_array_equal(found, bits.philox_words_numpy(seed, stream, 0, count))


@pytest.mark.parametrize("boundary", [4 * 2**32, 4 * 2**63])
def test_far_blocks(library, boundary):
    # Around block 2^32 the carry goes into the second word of the counter.
    found = words_of(library, 7, 11, boundary - 301, 602)
    np.testing.assert_array_equal(found, bits.philox_words_numpy(7, 11, boundary - 301, 602))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("skip", [0, 1])
def test_kernel(count, skip):
    # skip: an address that is no multiple of 16, for which words are written one by one
    words = np.full(count + 8, 7, np.uint32)
    seed, stream = 2**63 + 5, 2**64 - 2
    load().bits(words.ctypes.data + 4 * skip, count, seed, stream, 0, 0)
    expected = np.full(count + 8, 7, np.uint32)
    expected[skip : skip + count] = bits.philox_words_numpy(seed, stream, 0, count)
    np.testing.assert_array_equal(words, expected)
