"""Words of a stream; the naive version is ``philox_words_numpy`` of pntk.projection.bits."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.philox import halves, philox_block
from pntk.kernels.variant import Variant

BLOCKS = 256  # of four words, in a program


@triton.jit(do_not_specialize=["count", "seed_low", "seed_high", "stream_low", "stream_high"])
def bits_kernel(
    words_p, count, seed_low, seed_high, stream_low, stream_high, BLOCKS: tl.constexpr
):  # fmt: skip
    """4 * BLOCKS words. Grid: words."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    o_block = first + tl.arange(0, BLOCKS)
    b_0, b_1, b_2, b_3 = philox_block(o_block, seed_low, seed_high, stream_low, stream_high)
    # word 4 i + w: the last axis of a join is the innermost
    b_words = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)).reshape(4 * BLOCKS)
    o_word = 4 * first + tl.arange(0, 4 * BLOCKS)
    tl.store(words_p + o_word, b_words.to(tl.int32, bitcast=True), mask=o_word < count)


def bits(seed: int, stream: int, words: Tensor) -> None:
    """Fill ``words``, int32 [n], with the words 0, ..., n - 1 of a stream."""
    if len(words):
        grid = (triton.cdiv(len(words), 4 * BLOCKS),)
        bits_kernel[grid](
            words, len(words), *halves(seed), *halves(stream), BLOCKS=BLOCKS,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    types = dict.fromkeys(("count", "seed_low", "seed_high", "stream_low", "stream_high"), "i32")
    return [Variant("words", bits_kernel, {"words_p": "*i32", **types}, {"BLOCKS": BLOCKS})]
