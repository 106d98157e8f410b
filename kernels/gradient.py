"""phi of whole gradients: panels of numbers, transformed on both sides.

T_IJ = H D_I G_IJ D'_J H, phi[r, c ^ gamma_I] = sum of S_IJ[r, c] T_IJ[r ^ rho_J, c ^ gamma_J]. An
XOR after a Hadamard transform is a Walsh sign pattern before it, so the shifts become signs of G.

The naive version is ``HadamardSketch.add_gradient`` of pntk.projection.hadamard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.tiling import tile_layout
from pntk.kernels.variant import Variant
from pntk.kernels.walsh import flipped, folding, hadamard, parity, transform

# Sides of a panel, which is transformed at once: many small tiles, or a part of a large one. Larger
# ones, or two Hadamard matrices of 64, do not fit into the registers of sm_80.
SMALLEST_PANEL, LARGEST_PANEL = 32, 64
PARTS = 2  # bfloat16 numbers for a float32: on average an error of 2^-18 on either side
STAGES = 2


@triton.jit(do_not_specialize=[
    "batch", "size", "rows", "channels", "positions", "row_blocks", "channel_blocks", "splits",
])  # fmt: skip
def gradient_kernel(
    g_p, diagonals_p, signs_p, shifts_p, to_p, scale,
    batch, size, rows, channels, positions, row_blocks, channel_blocks, splits,
    KO: tl.constexpr, KI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
    PER_POSITION: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """phi, or [BM, BN] of a larger one, of one split of one sample. Grid: all of these.

    signs are seen as bytes.
    """
    TALL: tl.constexpr = 1 if KO <= BM else KO // BM  # panels in a tile
    WIDE: tl.constexpr = 1 if KI <= BN else KI // BN
    program = tl.program_id(0)
    part_m, part_n = program % (TALL * WIDE) // WIDE, program % WIDE  # of phi
    split = (program // (TALL * WIDE) % splits).to(tl.int64)
    sample = (program // (TALL * WIDE) // splits).to(tl.int64)

    padded_rows = row_blocks * KO
    column_blocks = channel_blocks * (positions if PER_POSITION else 1)
    across = tl.cdiv(column_blocks * KI, WIDE * BN)
    panels = tl.cdiv(padded_rows, TALL * BM).to(tl.int64) * across
    g_p += sample * size
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    b_h_rows, b_h_columns = hadamard(BM, KO), hadamard(BN, KI)
    b_phi = tl.zeros([BM, BN], tl.float32)
    for panel in range(split * panels // splits, (split + 1) * panels // splits):
        top = (panel // across).to(tl.int32) * (TALL * BM)
        left = (panel % across).to(tl.int32) * (WIDE * BN)
        b_x = tl.zeros([BN, BM], tl.float32)
        for inner in tl.range(TALL * WIDE, num_stages=1):
            inner_m, inner_n = inner // WIDE, inner % WIDE
            o_row = top + inner_m * BM + o_m
            o_y = left + inner_n * BN + o_n
            o_block, o_x = o_y // KI, o_y % KI
            m_row, m_block = o_row < rows, o_block < column_blocks
            # Kernel positions are neighbours in memory, so panels that follow each other are too.
            o_position = o_block % positions if PER_POSITION else o_block * 0
            o_channel = o_y
            o_j = o_block
            if PER_POSITION:
                o_channel = o_block // positions * KI + o_x
                o_j = o_position * channel_blocks + o_block // positions
            b_sign = tl.load(diagonals_p + o_row, mask=m_row, other=0.0)[None, :]
            at_diagonal = diagonals_p + padded_rows + o_channel
            b_sign *= tl.load(at_diagonal, mask=m_block, other=0.0)[:, None]
            b_rho = tl.load(shifts_p + o_j, mask=m_block, other=0)
            b_gamma_j = tl.load(shifts_p + column_blocks + o_j, mask=m_block, other=0)
            at_gamma_i = shifts_p + 2 * column_blocks + o_row // KO
            b_gamma_i = tl.load(at_gamma_i, mask=m_row, other=0)
            b_odd = b_rho[:, None] & (o_row % KO)[None, :]
            b_odd ^= ((b_gamma_i[None, :] ^ b_gamma_j[:, None]) * 8) & o_x[:, None]
            b_odd ^= (part_m & inner_m) ^ (part_n & inner_n) << 4  # disjoint bits
            b_sign *= 1 - 2 * parity(b_odd)  # [columns, rows]
            m_g = m_row[None, :] & m_block[:, None]
            if VECTOR:
                o_g = o_row.to(tl.int64)[None, :] * KI + o_x[:, None]
                m_g &= o_g < size
            else:
                m_g &= (o_channel < channels * (1 if PER_POSITION else positions))[:, None]
                if not PER_POSITION:
                    o_position = o_channel // channels
                    o_channel = o_channel % channels
                o_column = o_channel.to(tl.int64) * positions + o_position
                o_g = o_row.to(tl.int64)[None, :] * channels * positions + o_column[:, None]
            b_x += b_sign * tl.load(g_p + o_g, mask=m_g, other=0.0).to(tl.float32)
        b_tiles = transform(transform(b_x, b_h_rows, PARTS).trans(), b_h_columns, PARTS)
        # the entry signs of eight columns are a byte
        o_row = top + part_m * BM + o_m
        o_byte = left // 8 + part_n * (BN // 8) + tl.arange(0, BN // 8)
        o_block, o_group = o_byte // (KI // 8), o_byte % (KI // 8)
        m_row, m_block = o_row < padded_rows, o_block < column_blocks
        o_j = o_block
        if PER_POSITION:
            o_j = o_block % positions * channel_blocks + o_block // positions
        at_gamma_i = shifts_p + 2 * column_blocks + o_row // KO
        b_gamma_i = tl.load(at_gamma_i, mask=m_row, other=0)
        o_entry = (o_j.to(tl.int64)[None, :] * padded_rows + o_row[:, None]) * (KI // 8)
        o_entry += o_group[None, :] ^ b_gamma_i[:, None]
        b_bytes = tl.load(signs_p + o_entry, mask=m_row[:, None] & m_block[None, :], other=0)
        b_phi += flipped(b_tiles, b_bytes, BM, BN)
    ROWS: tl.constexpr = KO // TALL
    COLUMNS: tl.constexpr = KI // WIDE
    b_phi *= scale
    if ROWS < BM or COLUMNS < BN:  # add up the tiles of a panel
        b_phi = transform(b_phi, folding(BN, COLUMNS), 3).trans()
        b_phi = transform(b_phi, folding(BM, ROWS), 3).trans()
    o_phi = (part_m * BM + o_m)[:, None] * KI + (part_n * BN + o_n)[None, :]
    m_phi = (o_m < ROWS)[:, None] & (o_n < COLUMNS)[None, :]
    tl.store(to_p + (split * batch + sample) * (KO * KI) + o_phi, b_phi, mask=m_phi)


def gradient(
    g: Tensor,
    diagonals: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    to: Tensor,
) -> None:
    """Write the sketch of whole gradients to ``to``, split by split.

    Args:
        g: [b, O * C * P] contiguous, float32, float16 or bfloat16.
        diagonals: float32, of rows and of columns.
        signs: int32, packed entry signs.
        shifts: int32, rho, gamma of the column blocks and of the row blocks.
        tiles: O, C, P, ko, ki, per_position, vector.
        to: float32 [splits, b, k].
    """
    t = tile_layout(tiles)
    b, size = g.shape
    panel = panel_sizes(t.ko, t.ki)
    parts = max(1, t.ko // panel["BM"]) * max(1, t.ki // panel["BN"])
    if to.numel() == 0:
        return
    gradient_kernel[(parts * len(to) * b,)](
        g, diagonals, signs.view(torch.uint8), shifts, to, (t.ko * t.ki) ** -0.5,
        b, size, t.rows, t.channels, t.positions, t.row_blocks, t.channel_blocks, len(to),
        KO=t.ko, KI=t.ki, **panel, PARTS=PARTS,
        PER_POSITION=t.per_position, VECTOR=t.vector,
        num_warps=warps(**panel), num_stages=STAGES, enable_fp_fusion=True,
    )  # fmt: skip


def panel_sizes(ko: int, ki: int) -> dict[str, int]:
    """Return the sides of a panel."""
    return {
        name: min(LARGEST_PANEL, max(SMALLEST_PANEL, order))
        for name, order in (("BM", ko), ("BN", ki))
    }


def warps(BM: int, BN: int) -> int:
    """Return how many warps share a panel."""
    return 8 if BM * BN == LARGEST_PANEL**2 else 4


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    pointers = {"diagonals_p": "*fp32", "signs_p": "*u8", "shifts_p": "*i32", "to_p": "*fp32"}
    found = []
    for name, ko, ki, dtype, per_position, vector in (
        ("convolution", 64, 64, "fp32", True, False),
        ("convolution, bf16", 64, 64, "bf16", True, False),
        ("few channels", 64, 64, "fp32", False, False),
        ("k = 2048, few channels", 32, 64, "fp32", False, False),
        ("vector", 64, 64, "fp32", True, True),
        ("k = 8", 1, 8, "fp32", True, False),
        ("k = 65536", 256, 256, "fp32", True, False),
    ):
        panel = panel_sizes(ko, ki)
        constants = {"KO": ko, "KI": ki, **panel, "PARTS": PARTS}
        constants |= {"PER_POSITION": per_position, "VECTOR": vector}
        types = dict.fromkeys(set(gradient_kernel.arg_names) - set(constants), "i32")
        types |= {**pointers, "g_p": f"*{dtype}", "scale": "fp32"}
        found.append(
            Variant(
                name, gradient_kernel, types, constants, warps(**panel),
                tensor_cores=True, stages=STAGES,
            )
        )  # fmt: skip
    return found
