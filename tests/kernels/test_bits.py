"""Words of a stream, bit for bit those of NumPy."""

import math
import random

import numpy as np
import pytest
import torch

from pntk.kernels.bits import bits
from pntk.projection.bits import philox_words_numpy, stream_id
from pntk.projection.tiles import TileLayout

KS = [8, 16, 32, 64, 128, 512, 2048]
MOST_WORDS = 4096  # seen of one map; the interpreter is slow


def words(seed, stream, count, device):
    out = torch.full((count,), -559038737, dtype=torch.int32, device=device)
    bits(seed, stream, out)
    return out.cpu().numpy().view(np.uint32)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 63, 1023, 1024, 1025, 5000])
def test_any_number_of_words(count, device):
    seed, stream = 2**64 - 3, 2**63 + 2**31
    expected = philox_words_numpy(seed, stream, 0, count)
    assert np.array_equal(words(seed, stream, count, device), expected)


@pytest.mark.parametrize("value", [0, 1, 16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_any_seed_and_stream(value, device):
    for seed, stream in ((value, 5), (5, value), (value, value)):
        expected = philox_words_numpy(seed, stream, 0, 8)
        assert np.array_equal(words(seed, stream, 8, device), expected)


def test_nothing_beyond_the_end_is_written(device):
    out = torch.full((100,), 7, dtype=torch.int32, device=device)
    bits(0, 0, out[:33])
    assert bool((out[33:] == 7).all())


def random_maps(count):
    choose = random.Random(0)
    for n in range(count):
        shape = tuple(choose.choice([1, 2, 3, 5, 9, 20]) for _ in range(choose.randint(0, 4)))
        name = "".join(chr(choose.randint(32, 0x2FF)) for _ in range(choose.randint(0, 12)))
        yield choose.randrange(2**64), name, choose.choice(KS), shape, n % 3


def test_entry_signs_of_a_thousand_maps(device):
    for seed, name, k, shape, output in random_maps(1000):
        t = TileLayout.of(shape, k)
        count = t.column_blocks * t.padded_rows * t.ki
        stream = stream_id("hadamard", k, "entries", output, name)
        n = min(math.ceil(count / 32), MOST_WORDS)
        found = words(seed, stream, n, device)
        assert np.array_equal(found, philox_words_numpy(seed, stream, 0, n))
