"""Dense projections whose matrix exists only in registers: phi = scale P g.

The naive version is DenseSketch of pntk.projection.dense. Here gradients are first copied into the
numbers that tensor cores multiply, two bfloat16 for a float32 (hi + lo); then each program makes
tiles of P^T and multiplies them with the samples of its block.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.philox import halves, philox_block
from pntk.kernels.variant import Variant
from pntk.projection.quantiles import NORMAL_TABLE

UNIT = 128  # coordinates; splits are made of whole ones
# Tensor cores cut off what does not fit when they add to an accumulator. After so many coordinates
# it is added to what is in memory, rounded, so that the loss stays below that of hi + lo.
PROMOTE = 1024
BLOCK_OUTPUTS = 128
BLOCK_COORDINATES = 64
BLOCK_COPIED = 1024  # coordinates of one sample, of a program that copies gradients
WARPS = 8
WORKSPACE_BYTES = 64 * 2**20  # of copied operands
NUMBERS = {"fp32": (2, torch.bfloat16), "tf32": (1, torch.float32), "bf16": (1, torch.bfloat16)}
FAMILIES = ("rademacher", "normal")


@triton.jit
def split_range(p, UNIT: tl.constexpr):
    """Return the first coordinate of this program's split and the one after its last."""
    split, splits = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    units = (tl.cast(p, tl.int64) + UNIT - 1) // UNIT
    return split * units // splits * UNIT, (split + 1) * units // splits * UNIT


@triton.jit(do_not_specialize=["p", "offset"])
def copy_kernel(
    g_p, out_p, p, offset, window,
    PLANES: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A window of each split's coordinates as PLANES numbers; zero after the split's end.

    Grid: blocks of the window of each sample, 1, splits.
    """
    first, stop = split_range(p, UNIT)
    blocks = tl.cdiv(window, BLOCK)
    sample, b = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    o_out = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    o_g = first + offset + o_out
    m_g = (o_g < tl.minimum(stop, p)) & (o_out < window)
    b_g = tl.load(g_p + sample.to(tl.int64) * p + o_g, mask=m_g, other=0.0)
    out_p += (tl.program_id(2).to(tl.int64) * b + sample) * window
    if out_p.dtype.element_ty == tl.float32:  # tf32: to 10 bits, which the hardware would cut off
        b_bits = (b_g.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000
        b_round = tl.where(tl.abs(b_g) < float("inf"), b_bits.to(tl.float32, bitcast=True), b_g)
        tl.store(out_p + o_out, b_round, mask=o_out < window)
    else:
        b_high = b_g.to(tl.bfloat16)
        tl.store(out_p + o_out, b_high, mask=o_out < window)
        if PLANES == 2:
            plane = tl.num_programs(2).to(tl.int64) * b * window
            b_low = (b_g - b_high.to(tl.float32)).to(tl.bfloat16)
            tl.store(out_p + plane + o_out, b_low, mask=o_out < window)


@triton.jit
def entries(
    word_row, j, k4, table_p, seed_low, seed_high, stream_low, stream_high,
    BP: tl.constexpr, BJ: tl.constexpr, NORMAL: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Return P^T [BP, BJ] without its scale: coordinates from a row of words, outputs from j.

    A row has k4 words, one an output; a word has 32 signs, or 4 places in the table of levels.
    """
    PER_WORD: tl.constexpr = 4 if NORMAL else 32
    ROWS: tl.constexpr = BP // PER_WORD
    o_row = word_row + tl.arange(0, ROWS)
    o_block = o_row[:, None] * (k4 // 4) + (j // 4 + tl.arange(0, BJ // 4))[None, :]
    b_0, b_1, b_2, b_3 = philox_block(o_block, seed_low, seed_high, stream_low, stream_high)
    b_words = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)).reshape(ROWS, 1, BJ)
    o_part = tl.arange(0, PER_WORD).to(tl.uint32)[None, :, None]
    if NORMAL:
        b_level = (b_words >> (8 * o_part)) & 0xFF
        b_entries = tl.load(table_p + b_level.to(tl.int32)).to(TYPE)
    else:
        b_sign = (b_words >> o_part) & 1
        if tl.bfloat16 == TYPE:
            b_entries = ((b_sign << 15) | 0x3F80).to(tl.uint16).to(TYPE, bitcast=True)
        else:
            b_entries = ((b_sign << 31) | 0x3F800000).to(TYPE, bitcast=True)
    return b_entries.reshape(BP, BJ)  # from [ROWS, PER_WORD, BJ]


@triton.jit(
    do_not_specialize=[
        "b", "p", "k", "offset", "seed_low", "seed_high", "stream_low", "stream_high",
    ]
)  # fmt: skip
def dense_kernel(
    g_p, table_p, to_p, b, p, k, offset, window, scale,
    seed_low, seed_high, stream_low, stream_high,
    PLANES: tl.constexpr, NORMAL: tl.constexpr,
    BB: tl.constexpr, BJ: tl.constexpr, BP: tl.constexpr,
    UNIT: tl.constexpr, PROMOTE: tl.constexpr,
):  # fmt: skip
    """Add a window of each split to BJ outputs of BB samples; the last one applies the scale.

    Grid: blocks of outputs, which read the same gradients; blocks of samples; splits.
    """
    PER_WORD: tl.constexpr = 4 if NORMAL else 32
    TYPE: tl.constexpr = g_p.dtype.element_ty
    split = tl.program_id(2).to(tl.int64)
    first, stop = split_range(p, UNIT)
    left = stop - first - offset  # may be 0 or less: a split without coordinates, or a shorter one
    count = tl.minimum(left, window).to(tl.int32)
    word_row = (first + offset) // PER_WORD
    j, sample = tl.program_id(0) * BJ, tl.program_id(1) * BB
    k4 = (tl.cast(k, tl.int64) + 3) // 4 * 4
    o_b = tl.arange(0, BB)
    m_b = o_b < b - sample
    g_p += (split * b + sample) * window
    plane = tl.num_programs(2).to(tl.int64) * b * window
    o_j = tl.arange(0, BJ)
    to_p += (split * b + sample) * k + j
    to_p += o_b[None, :] * k + o_j[:, None]
    m_to = (o_j < k - j)[:, None] & m_b[None, :]
    for start in range(0, tl.where(offset == 0, tl.maximum(count, 1), count), PROMOTE):
        b_sum = tl.zeros([BJ, BB], tl.float32)
        end = tl.minimum(start + PROMOTE, count)
        for i in range(start, end, BP):
            b_entries = entries(
                word_row + i // PER_WORD, j, k4, table_p,
                seed_low, seed_high, stream_low, stream_high, BP, BJ, NORMAL, TYPE,
            ).trans()  # fmt: skip
            o_g = o_b[:, None] * window + (i + tl.arange(0, BP))[None, :]
            b_g = tl.load(g_p + o_g, mask=m_b[:, None], other=0.0)  # [BB, BP]
            b_sum = tl.dot(b_entries, b_g.trans(), b_sum, input_precision="tf32")
            if PLANES == 2:
                b_g = tl.load(g_p + plane + o_g, mask=m_b[:, None], other=0.0)
                b_sum = tl.dot(b_entries, b_g.trans(), b_sum, input_precision="tf32")
        stored = tl.where(offset + start > 0, k - j, 0)  # outputs that were written before
        b_sum += tl.load(to_p, mask=(o_j < stored)[:, None] & m_b[None, :], other=0.0)
        tl.store(to_p, b_sum * tl.where(end >= left, scale, 1.0), mask=m_to)


def dense(
    g: Tensor, family: str, precision: str, scale: float, seed: int, stream: int, to: Tensor
) -> None:
    """Write scale P g, coordinates shared out among splits.

    Args:
        g: float32 [b, p], contiguous.
        family: ``rademacher`` or ``normal``.
        precision: ``fp32`` (relative error of a row below 1e-5), ``tf32`` (1e-3), ``bf16`` (3e-3).
        scale: what the entries, +1 and -1 or integer levels, are multiplied by.
        seed, stream: where the random words come from.
        to: float32 [splits, b, k], contiguous; its sum over splits is phi.
    """
    b, p = g.shape
    splits, _, k = to.shape
    if to.numel() == 0:
        return
    planes, dtype = NUMBERS[precision]
    longest = triton.cdiv(triton.cdiv(p, UNIT), splits) * UNIT  # coordinates of a split
    room = WORKSPACE_BYTES // (planes * splits * b * dtype.itemsize) // PROMOTE * PROMOTE
    window = max(UNIT, min(longest, max(room, PROMOTE)))
    copied = torch.empty(planes, splits, b, window, dtype=dtype, device=g.device)
    table = _table(g.device, dtype)
    tile = block_samples(b)
    for offset in range(0, max(longest, 1), window):
        copy_kernel[triton.cdiv(window, BLOCK_COPIED) * b, 1, splits](
            g, copied, p, offset, window,
            PLANES=planes, BLOCK=BLOCK_COPIED, UNIT=UNIT, enable_fp_fusion=True,
        )  # fmt: skip
        dense_kernel[triton.cdiv(k, BLOCK_OUTPUTS), triton.cdiv(b, tile), splits](
            copied, table, to, b, p, k, offset, window, scale, *halves(seed), *halves(stream),
            PLANES=planes, NORMAL=family == "normal",
            BB=tile, BJ=BLOCK_OUTPUTS, BP=BLOCK_COORDINATES, UNIT=UNIT, PROMOTE=PROMOTE,
            num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def block_samples(b: int) -> int:
    """Return how many samples share the entries of a tile; no sample's arithmetic depends on it."""
    return 16 if b <= 16 else 64


@functools.cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(NORMAL_TABLE).to(device=device, dtype=dtype)


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    halves_of = ("seed_low", "seed_high", "stream_low", "stream_high")
    blocks = {"BJ": BLOCK_OUTPUTS, "BP": BLOCK_COORDINATES, "UNIT": UNIT, "PROMOTE": PROMOTE}
    found = []
    for precision, (planes, dtype) in NUMBERS.items():
        pointer = "*fp32" if dtype == torch.float32 else "*bf16"
        types = {"g_p": "*fp32", "out_p": pointer, "p": "i32", "offset": "i32", "window": "i32"}
        constants = {"PLANES": planes, "BLOCK": BLOCK_COPIED, "UNIT": UNIT}
        found.append(Variant(precision, copy_kernel, types, constants, divisible=("window",)))
        types = {"g_p": pointer, "table_p": pointer, "to_p": "*fp32", "scale": "fp32"}
        types |= dict.fromkeys(("b", "p", "k", "offset", "window", *halves_of), "i32")
        for family in FAMILIES:
            for tile in (16, 64):
                constants = {"PLANES": planes, "NORMAL": family == "normal", "BB": tile, **blocks}
                found.append(
                    Variant(
                        f"{family}, {precision}, {tile} samples", dense_kernel, types, constants,
                        warps=WARPS, tensor_cores=True, divisible=("window",),
                    )
                )  # fmt: skip
    return found
