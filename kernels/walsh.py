"""What the kernels of the tile-Hadamard map share: Hadamard products and packed sign bits.

The Hadamard matrix is kept as its signs, +1 and -1, which bfloat16 holds exactly; a kernel scales
its sums by 1/sqrt(order) at the end.
"""

import triton
import triton.language as tl


@triton.jit
def parity(bits):
    """Return 1 where an odd number of the low eight bits is set, else 0."""
    bits ^= bits >> 4
    bits ^= bits >> 2
    bits ^= bits >> 1
    return bits & 1


@triton.jit
def hadamard(SIZE: tl.constexpr, ORDER: tl.constexpr):
    """Return [SIZE, SIZE], bfloat16, with the signs of H_ORDER in each block on the diagonal.

    Where ORDER is larger than SIZE: the signs of H_SIZE, its upper left corner. Block (i, j) of the
    large matrix is that times (-1)^popcount(i & j).
    """
    o_i = tl.arange(0, SIZE)[:, None]
    o_j = tl.arange(0, SIZE)[None, :]
    b_signs = 1.0 - 2.0 * parity(o_i & o_j & (ORDER - 1))
    return tl.where((o_i ^ o_j) < ORDER, b_signs, 0.0).to(tl.bfloat16)


@triton.jit
def folding(SIZE: tl.constexpr, ORDER: tl.constexpr):
    """Return [SIZE, SIZE], bfloat16, that adds up every ORDER-th column in X folding."""
    o_i = tl.arange(0, SIZE)[:, None]
    o_j = tl.arange(0, SIZE)[None, :]
    return tl.where(o_i % ORDER == o_j, 1.0, 0.0).to(tl.bfloat16)


@triton.jit
def transform(b_x, b_h, PARTS: tl.constexpr):
    """Return X H, float32, of float32 X [M, SIZE] as the sum of PARTS bfloat16 numbers.

    Three parts hold a float32 whole; two leave an error of 2^-18 on average, 2^-16 at most. X is on
    the left, because that side is shared out among warps.
    """
    b_y = tl.zeros(b_x.shape, tl.float32)
    for _ in tl.static_range(PARTS):
        b_part = b_x.to(tl.bfloat16)
        b_y = tl.dot(b_part, b_h, b_y)
        b_x -= b_part.to(tl.float32)
    return b_y


@triton.jit
def flipped(b_x, b_bytes, M: tl.constexpr, N: tl.constexpr):
    """Return X [M, N] with a minus where the bit of its place is 1; bytes [M, N / 8], low first."""
    o_bit = tl.arange(0, 8)[None, None, :]
    b_bits = (b_bytes.to(tl.int32)[:, :, None] >> o_bit) & 1  # [M, N / 8, 8]
    return tl.where(b_bits.reshape(M, N) != 0, -b_x, b_x)
