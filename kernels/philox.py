"""Philox4x32-10 in registers: the random bits of pntk.projection.bits, where a kernel needs them.

Word i of a stream is word i % 4 of block i // 4, so a kernel that wants four consecutive words
makes one block.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(10)


def halves(value: int) -> tuple[int, int]:
    """Return the low and the high 32 bits of a seed or stream, as signed 32-bit integers.

    Signed, because Triton types an integer argument by its value: a half above 2^31 would be 64
    bits wide, and the kernel compiled a second time.
    """
    low, high = value & 0xFFFFFFFF, value >> 32
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


@triton.jit
def philox_block(block, seed_low, seed_high, stream_low, stream_high):
    """Return the four uint32 words of each block; block: int64 tensor, the rest: 32-bit scalars."""
    MULTIPLIER_0: tl.constexpr = 0xD2511F53
    MULTIPLIER_1: tl.constexpr = 0xCD9E8D57
    WEYL_0: tl.constexpr = 0x9E3779B9
    WEYL_1: tl.constexpr = 0xBB67AE85
    b_0 = block.to(tl.uint32)
    b_1 = (block >> 32).to(tl.uint32)
    b_2 = tl.zeros_like(b_0) + tl.cast(stream_low, tl.uint32)
    b_3 = tl.zeros_like(b_0) + tl.cast(stream_high, tl.uint32)
    key_0 = tl.cast(seed_low, tl.uint32)
    key_1 = tl.cast(seed_high, tl.uint32)
    for _ in tl.static_range(ROUNDS):
        b_high_0 = tl.umulhi(b_0, MULTIPLIER_0)
        b_high_1 = tl.umulhi(b_2, MULTIPLIER_1)
        b_low_0 = tl.mul(b_0, MULTIPLIER_0, sanitize_overflow=False)
        b_low_1 = tl.mul(b_2, MULTIPLIER_1, sanitize_overflow=False)
        b_0 = b_high_1 ^ b_1 ^ key_0
        b_1 = b_low_1
        b_2 = b_high_0 ^ b_3 ^ key_1
        b_3 = b_low_0
        key_0 = tl.add(key_0, WEYL_0, sanitize_overflow=False)
        key_1 = tl.add(key_1, WEYL_1, sanitize_overflow=False)
    return b_0, b_1, b_2, b_3
