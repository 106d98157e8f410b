"""phi of an embedding's gradient G, G[ids[b, t]] += delta[b, t]: a rank-one tile a token.

    phi[r, c ^ gamma_I] += S_IJ[r, c] H[r ^ rho_J, o] D[id] right[t, J ki + (c ^ gamma_J)]

with id = I ko + o and right = H D' delta. The naive version is ``HadamardSketch.add_lookup`` of
pntk.projection.hadamard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.tiling import tile_layout
from pntk.kernels.variant import Variant
from pntk.kernels.walsh import flipped, parity
from pntk.projection.tiles import PANEL, padded

LARGEST_BLOCK = 64  # the sum of tiles stays in registers


@triton.jit(do_not_specialize=["batch", "tokens", "rows", "row_blocks", "column_blocks", "splits"])
def lookup_kernel(
    ids_p, right_p, row_diagonal_p, signs_p, shifts_p, to_p, scale,
    batch, tokens, padded_channels, rows, row_blocks, column_blocks, splits,
    KO: tl.constexpr, KI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """[BM, BN] of phi, of one split of one sample. Grid: all of these, parts of phi innermost.

    signs are seen as bytes.
    """
    WIDE: tl.constexpr = KI // BN
    PARTS: tl.constexpr = KO // BM * WIDE
    program = tl.program_id(0)
    part = program % PARTS
    split = (program // PARTS % splits).to(tl.int64)
    sample = (program // PARTS // splits).to(tl.int64)
    o_r = part // WIDE * BM + tl.arange(0, BM)
    o_q = part % WIDE * BN + tl.arange(0, BN)
    o_group = part % WIDE * (BN // 8) + tl.arange(0, BN // 8)
    plane = batch.to(tl.int64) * tokens * padded_channels
    b_phi = tl.zeros([BM, BN], tl.float32)
    for t in range(split * tokens // splits, (split + 1) * tokens // splits):
        token = sample * tokens + t
        row = tl.load(ids_p + token)
        inside = (row >= 0) & (row < rows)
        row = tl.where(inside, row, 0)
        i, o = row // KO, (row % KO).to(tl.int32)
        gamma_i = tl.load(shifts_p + 2 * column_blocks + i)
        weight = tl.load(row_diagonal_p + row) * scale
        for j in range(tl.where(inside, column_blocks, 0)):
            rho = tl.load(shifts_p + j)
            gamma_j = tl.load(shifts_p + column_blocks + j)
            b_left = weight * (1 - 2 * parity((o_r ^ rho) & o))  # [BM]
            o_channel = ((o_q // 8) ^ (gamma_i ^ gamma_j)) * 8 + o_q % 8
            # eight channels in a row stay so
            o_channel = tl.max_contiguous(tl.multiple_of(o_channel, 8), 8)
            at_right = right_p + token * padded_channels + j * KI + o_channel
            b_right = tl.load(at_right).to(tl.float32)  # [BN]
            if PLANES == 2:
                b_right += tl.load(at_right + plane).to(tl.float32)
            o_row = (j * row_blocks.to(tl.int64) + i) * KO + o_r
            at_signs = signs_p + o_row[:, None] * (KI // 8) + (o_group ^ gamma_i)[None, :]
            b_tile = b_left[:, None] * b_right[None, :]
            b_phi += flipped(b_tile, tl.load(at_signs), BM, BN)
    at_to = to_p + ((split * batch + sample) * KO + o_r[:, None]) * KI + o_q[None, :]
    tl.store(at_to, b_phi)


def lookup(
    ids: Tensor,
    right: Tensor,
    diagonals: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    to: Tensor,
) -> None:
    """Write the sketch of an embedding's gradient to ``to``; tokens are shared out among splits.

    Args:
        ids: int64 [b, T]; what is not in [0, O) adds nothing.
        right: bfloat16 [planes, b, T, padded channels], ``mix`` of the tokens' deltas.
        diagonals: float32, of rows and of columns.
        signs: int32, packed entry signs.
        shifts: int32, rho, gamma of the column blocks and of the row blocks.
        tiles: O, C, P, ko, ki, per_position, vector.
        to: float32 [splits, b, k].
    """
    t = tile_layout(tiles)
    b, tokens = ids.shape
    padded_channels = padded(t.padded_channels, PANEL)
    blocks = block_sizes(t.ko, t.ki)
    parts = t.ko // blocks["BM"] * (t.ki // blocks["BN"])
    if to.numel() == 0:
        return
    lookup_kernel[(parts * len(to) * b,)](
        ids, right, diagonals, signs.view(torch.uint8), shifts, to, t.ko**-0.5,
        b, tokens, padded_channels, t.rows, t.row_blocks, t.column_blocks, len(to),
        KO=t.ko, KI=t.ki, **blocks, PLANES=len(right),
        num_warps=warps(**blocks), enable_fp_fusion=True,
    )  # fmt: skip


def block_sizes(ko: int, ki: int) -> dict[str, int]:
    """Return the part of phi that a program adds up."""
    return {"BM": min(LARGEST_BLOCK, ko), "BN": min(LARGEST_BLOCK, ki)}


def warps(BM: int, BN: int) -> int:
    """Return how many warps share a part of phi."""
    return 4 if BM * BN >= 1024 else 1


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    pointers = {"ids_p": "*i64", "right_p": "*bf16", "row_diagonal_p": "*fp32", "signs_p": "*u8"}
    pointers |= {"shifts_p": "*i32", "to_p": "*fp32"}
    found = []
    for name, ko, ki, planes in (
        ("k = 4096", 64, 64, 2),
        ("bf16", 64, 64, 1),
        ("k = 8", 1, 8, 2),
        ("k = 65536", 256, 256, 2),
    ):
        blocks = block_sizes(ko, ki)
        constants = {"KO": ko, "KI": ki, **blocks, "PLANES": planes}
        types = dict.fromkeys(set(lookup_kernel.arg_names) - set(constants), "i32")
        types |= {**pointers, "scale": "fp32"}
        found.append(
            Variant(
                name, lookup_kernel, types, constants, warps(**blocks),
                divisible=("padded_channels",),
            )
        )  # fmt: skip
    return found
