"""Philox blocks made in a kernel, against the known answers and the words of the other devices."""

import numpy as np
import pytest
import torch

from pntk.projection.bits import philox_words_numpy

from ..projection.test_bits import KNOWN_ANSWERS, pair

triton = pytest.importorskip("triton")
tl = triton.language
philox = pytest.importorskip("pntk.kernels.philox")
philox_block = philox.philox_block

N = 64  # blocks


@triton.jit
def words_kernel(
    block_p, out_p, seed_low, seed_high, stream_low, stream_high, N: tl.constexpr
):  # fmt: skip
    o_n = tl.arange(0, N)
    b_block = tl.load(block_p + o_n)
    b_0, b_1, b_2, b_3 = philox_block(b_block, seed_low, seed_high, stream_low, stream_high)
    tl.store(out_p + 4 * o_n, b_0.to(tl.int32, bitcast=True))
    tl.store(out_p + 4 * o_n + 1, b_1.to(tl.int32, bitcast=True))
    tl.store(out_p + 4 * o_n + 2, b_2.to(tl.int32, bitcast=True))
    tl.store(out_p + 4 * o_n + 3, b_3.to(tl.int32, bitcast=True))


def words(seed, stream, first, device):
    """Words of N blocks from the first on, which may be any below 2^64."""
    blocks = np.arange(N, dtype=np.uint64) + np.uint64(first)
    blocks = torch.from_numpy(blocks.view(np.int64)).to(device)
    out = torch.empty(4 * N, dtype=torch.int32, device=device)
    words_kernel[(1,)](
        blocks, out, *philox.halves(seed), *philox.halves(stream), N=N, enable_fp_fusion=True
    )
    return out.cpu().numpy().view(np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected, device):
    seed, block, stream = pair(*key), pair(*counter[:2]), pair(*counter[2:])
    found = words(seed, stream, min(block, 2**64 - N), device)
    assert tuple(found.reshape(N, 4)[block - min(block, 2**64 - N)]) == expected


@pytest.mark.parametrize("first", [0, 1, 2**31 - 5, 2**32 - 5, 2**63 - 5, 2**64 - N])
@pytest.mark.parametrize(("seed", "stream"), [(0, 1), (2**63 + 5, 2**31), (2**32 - 1, 2**64 - 1)])
def test_words_are_the_same_everywhere(seed, stream, first, device):
    expected = philox_words_numpy(seed, stream, 4 * first, 4 * N)
    np.testing.assert_array_equal(words(seed, stream, first, device), expected)


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1])
def test_halves(value):
    low, high = philox.halves(value)
    assert all(-(2**31) <= half < 2**31 for half in (low, high))
    assert low % 2**32 + (high % 2**32 << 32) == value
