"""phi of transformed factors: tile products with their signs, summed in registers.

    phi[r, c ^ gamma_I] += S_IJ[r, c] sum over t of left[I ko + (r ^ rho_J), t]
                                                    right[window_J(t), J' ki + (c ^ gamma_J)]

The naive version is pntk.projection.reference; docs/projection.md says what the symbols are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.tiling import tile_layout
from pntk.kernels.variant import Variant
from pntk.kernels.walsh import flipped
from pntk.projection.tiles import PANEL, padded

LARGEST_BLOCK = 64  # a tile and the sum of tiles, both float32, stay in registers
SMALLEST_BLOCK = 16  # that tl.dot takes
POSITIONS = (16, 32)  # per chunk: of factors that have no more than 16, and of all others
STAGES = 3  # of loads in flight; with more positions in each, registers run out on sm_80
AXES = 3


@triton.jit(do_not_specialize=[
    "batch", "positions", "octets", "row_blocks", "channel_blocks", "splits_rows", "splits_columns",
    "size_0", "size_1", "size_2", "padding_0", "padding_1", "padding_2",
    "kernel_0", "kernel_1", "kernel_2", "stride_0", "stride_1", "stride_2",
    "dilation_0", "dilation_1", "dilation_2", "grid_1", "grid_2",
])  # fmt: skip
def products_kernel(
    left_p, right_p, signs_p, shifts_p, to_p,
    batch, positions, octets, padded_rows, padded_channels, row_blocks, channel_blocks,
    size_0, size_1, size_2, padding_0, padding_1, padding_2, kernel_0, kernel_1, kernel_2,
    stride_0, stride_1, stride_2, dilation_0, dilation_1, dilation_2, grid_1, grid_2,
    splits_rows, splits_columns,
    KO: tl.constexpr, KI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
    UNIT: tl.constexpr, PLANES: tl.constexpr, WINDOWS: tl.constexpr, ONE_CHUNK: tl.constexpr,
):  # fmt: skip
    """[BM, BN] of phi, of one split of one sample. Grid: all of these, parts of phi innermost.

    octets: positions that left has in memory, divided by 8; signs are seen as bytes.
    ONE_CHUNK: of positions; then it is the loop over row blocks that loads ahead.
    """
    PARTS_N: tl.constexpr = 1 if KI <= BN else KI // BN
    PARTS: tl.constexpr = PARTS_N if KO <= BM else PARTS_N * (KO // BM)
    UNIT_I: tl.constexpr = 1 if KO >= UNIT else UNIT // KO
    UNIT_J: tl.constexpr = 1 if KI >= UNIT else UNIT // KI
    program = tl.program_id(0)
    part = program % PARTS
    split = program // PARTS % (splits_rows * splits_columns)
    sample = (program // PARTS // (splits_rows * splits_columns)).to(tl.int64)
    split_row, split_column = split // splits_columns, split % splits_columns

    rows = tl.cdiv(row_blocks, UNIT_I).to(tl.int64)
    first_i = (split_row * rows // splits_rows * UNIT_I).to(tl.int32)
    last_i = ((split_row + 1) * rows // splits_rows * UNIT_I).to(tl.int32)
    last_i = tl.minimum(last_i, row_blocks)
    units = tl.cdiv(channel_blocks, UNIT_J)
    columns = units.to(tl.int64) * (kernel_0 * kernel_1 * kernel_2)
    first_unit = (split_column * columns // splits_columns).to(tl.int32)
    last_unit = ((split_column + 1) * columns // splits_columns).to(tl.int32)

    o_r = part // PARTS_N * BM + tl.arange(0, BM)  # rows of phi
    o_q = part % PARTS_N * BN + tl.arange(0, BN)  # and columns
    o_group = part % PARTS_N * (BN // 8) + tl.arange(0, BN // 8)
    column_blocks = kernel_0 * kernel_1 * kernel_2 * channel_blocks
    padded_positions = octets * 8  # seen by the compiler to be a multiple of 8
    pixels = size_0.to(tl.int64) * size_1 * size_2
    left_p += sample * padded_rows * padded_positions
    right_p += sample * pixels * padded_channels
    left_plane = batch.to(tl.int64) * padded_rows * padded_positions
    right_plane = batch.to(tl.int64) * pixels * padded_channels

    b_phi = tl.zeros([BM, BN], tl.float32)
    for unit in range(first_unit, last_unit):
        p = unit // units
        origin_0 = p // (kernel_1 * kernel_2) * dilation_0 - padding_0
        origin_1 = p // kernel_2 % kernel_1 * dilation_1 - padding_1
        origin_2 = p % kernel_2 * dilation_2 - padding_2
        first_block = unit % units * UNIT_J
        for block in range(first_block, tl.minimum(first_block + UNIT_J, channel_blocks)):
            j = p * channel_blocks + block
            rho = tl.load(shifts_p + j)
            gamma_j = tl.load(shifts_p + column_blocks + j)
            for i in range(first_i, last_i):
                gamma_i = tl.load(shifts_p + 2 * column_blocks + i)
                o_left = (i * KO + (o_r ^ rho)).to(tl.int64) * padded_positions
                o_channel = (((o_q // 8) ^ (gamma_i ^ gamma_j)) * 8) + o_q % 8
                # eight channels in a row stay so
                o_channel = tl.max_contiguous(tl.multiple_of(o_channel, 8), 8)
                o_right = block * KI + o_channel
                b_tile = tl.zeros([BM, BN], tl.float32)
                for start in range(0, BT if ONE_CHUNK else positions, BT):
                    o_t = start + tl.arange(0, BT)
                    m_t = o_t < positions
                    o_pixel = o_t
                    if WINDOWS:
                        o_0 = o_t // (grid_1 * grid_2) * stride_0 + origin_0
                        o_1 = o_t // grid_2 % grid_1 * stride_1 + origin_1
                        o_2 = o_t % grid_2 * stride_2 + origin_2
                        m_t &= (o_0 >= 0) & (o_0 < size_0) & (o_1 >= 0) & (o_1 < size_1)
                        m_t &= (o_2 >= 0) & (o_2 < size_2)
                        o_pixel = (o_0 * size_1 + o_1) * size_2 + o_2
                    m_left = (o_t < padded_positions)[None, :]
                    m_right = m_t[:, None]
                    if KO < BM:
                        m_left &= (o_r < KO)[:, None]
                    if KI < BN:
                        m_right &= (o_q < KI)[None, :]
                    at_left = left_p + o_left[:, None] + o_t[None, :]  # [BM, BT]
                    o_pixel = o_pixel.to(tl.int64) * padded_channels
                    at_right = right_p + o_pixel[:, None] + o_right[None, :]  # [BT, BN]
                    b_left = tl.load(at_left, mask=m_left, other=0.0)
                    b_right = tl.load(at_right, mask=m_right, other=0.0)
                    if PLANES == 1:
                        b_tile = tl.dot(b_left, b_right, b_tile)
                    else:
                        # Tensor cores cut off what they add to an accumulator. Over many chunks
                        # that would be more than the second plane is worth.
                        b_low = tl.load(at_right + right_plane, mask=m_right, other=0.0)
                        b_chunk = tl.dot(b_left, b_low)
                        b_low = tl.load(at_left + left_plane, mask=m_left, other=0.0)
                        b_chunk = tl.dot(b_low, b_right, b_chunk)
                        b_tile += tl.dot(b_left, b_right, b_chunk)
                o_row = (j.to(tl.int64) * row_blocks + i) * KO + o_r
                at_signs = signs_p + o_row[:, None] * (KI // 8) + (o_group ^ gamma_i)[None, :]
                m_signs = (o_r < KO)[:, None] & (o_group < KI // 8)[None, :]
                b_bytes = tl.load(at_signs, mask=m_signs, other=0)
                b_phi += flipped(b_tile, b_bytes, BM, BN)
    at_to = to_p + ((split.to(tl.int64) * batch + sample) * KO + o_r[:, None]) * KI + o_q[None, :]
    tl.store(at_to, b_phi, mask=(o_r < KO)[:, None] & (o_q < KI)[None, :])


def products(
    left: Tensor,
    right: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    size: Sequence[int],
    windows: Sequence[int],
    splits_rows: int,
    to: Tensor,
) -> None:
    """Write the sum of signed tile products to ``to``, split by split.

    Args:
        left: bfloat16 [planes, b, padded rows, padded positions] of ``mix``, positions last.
        right: bfloat16 [planes, b, pixels, padded channels] of ``mix``.
        signs: int32, packed entry signs.
        shifts: int32, rho, gamma of the column blocks and of the row blocks.
        tiles: O, C, P, ko, ki, per_position, vector.
        size: of the image, three axes.
        windows: padding, kernel, stride, dilation, grid, three axes each.
        splits_rows: into which row blocks are shared out; column blocks into the others of ``to``.
        to: float32 [splits, b, k].
    """
    t = tile_layout(tiles)
    padding, kernel, stride, dilation, grid = (windows[i : i + AXES] for i in range(0, 15, AXES))
    b, positions = left.shape[1], math.prod(grid)
    padded_rows, padded_channels = padded(t.padded_rows, PANEL), padded(t.padded_channels, PANEL)
    padded_positions = padded(positions, 8)
    blocks = block_sizes(t.ko, t.ki)
    parts = max(1, t.ko // blocks["BM"]) * max(1, t.ki // blocks["BN"])
    if not b:
        return
    bt = POSITIONS[positions > POSITIONS[0]]
    plain = list(padding) == [0] * AXES and list(kernel) == [1] * AXES == list(stride)
    products_kernel[(parts * len(to) * b,)](
        left, right, signs.view(torch.uint8), shifts, to,
        b, positions, padded_positions // 8, padded_rows, padded_channels,
        t.row_blocks, t.channel_blocks, *size, *padding, *kernel, *stride, *dilation, *grid[1:],
        splits_rows, len(to) // splits_rows,
        KO=t.ko, KI=t.ki, **blocks, BT=bt, UNIT=PANEL,
        PLANES=len(left), WINDOWS=not plain or list(size) != list(grid), ONE_CHUNK=positions <= bt,
        num_warps=warps(**blocks), num_stages=STAGES, enable_fp_fusion=True,
    )  # fmt: skip


def block_sizes(ko: int, ki: int) -> dict[str, int]:
    """Return the part of phi that a program adds up."""
    return {
        name: min(LARGEST_BLOCK, max(SMALLEST_BLOCK, order))
        for name, order in (("BM", ko), ("BN", ki))
    }


def warps(BM: int, BN: int) -> int:
    """Return how many warps share a part of phi."""
    return 4 if BM * BN > 1024 else 2


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    pointers = {"left_p": "*bf16", "right_p": "*bf16", "signs_p": "*u8", "shifts_p": "*i32"}
    found = []
    few, many = POSITIONS
    for name, ko, ki, bt, one_chunk, planes, windows in (
        ("linear", 64, 64, many, False, 2, False),
        ("linear, 16 positions", 64, 64, few, True, 2, False),
        ("linear, 32 positions", 64, 64, many, True, 2, False),
        ("convolution", 64, 64, many, False, 2, True),
        ("convolution, bf16", 64, 64, many, False, 1, True),
        ("k = 1024", 32, 32, many, False, 2, True),
        ("k = 64", 8, 8, many, False, 2, True),
        ("k = 65536", 256, 256, many, False, 2, True),
    ):
        blocks = block_sizes(ko, ki)
        constants = {"KO": ko, "KI": ki, **blocks, "BT": bt, "UNIT": PANEL}
        constants |= {"PLANES": planes, "WINDOWS": windows, "ONE_CHUNK": one_chunk}
        types = dict.fromkeys(set(products_kernel.arg_names) - set(constants), "i32")
        types |= {**pointers, "to_p": "*fp32"}
        found.append(
            Variant(
                name, products_kernel, types, constants, warps(**blocks),
                tensor_cores=True, stages=STAGES, divisible=("padded_rows", "padded_channels"),
            )
        )  # fmt: skip
    return found
