"""y = H D x of a factor, block by block of channels, written as bfloat16 numbers.

The naive version is ``_mix`` of pntk.projection.hadamard; the matrices are in
pntk.projection.reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.variant import Variant
from pntk.kernels.walsh import hadamard, parity, transform
from pntk.projection.tiles import PANEL

# Of few positions, the least that tl.dot takes; otherwise, x and two parts of it stay in registers.
BLOCK_POSITIONS = (16, 64)


@triton.jit(do_not_specialize=["channels", "positions", "steps"])
def mix_kernel(
    x_p, diagonal_p, out_p, scale, channels, positions, steps,
    x_batch, x_channel, x_position, out_plane, out_batch,
    ORDER: tl.constexpr, PARTS: tl.constexpr, PLANES: tl.constexpr, POSITIONS_LAST: tl.constexpr,
    BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """BC channels of BT positions of one sample. Grid: samples and positions, channels.

    steps: positions that out has in memory, divided by 8 where they are last.
    """
    PANELS: tl.constexpr = 1 if ORDER <= BC else ORDER // BC  # that are summed into one
    block = tl.program_id(1)
    # seen by the compiler to be a multiple of 8, where it is one
    padded_positions = steps * 8 if POSITIONS_LAST else steps
    blocks = tl.cdiv(padded_positions, BT)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    o_t = tl.program_id(0) % blocks * BT + tl.arange(0, BT)
    m_out, m_t = o_t < padded_positions, o_t < positions
    o_t = o_t.to(tl.int64)
    x_p += sample * x_batch
    out_p += sample * out_batch
    b_h = hadamard(BC, ORDER)
    b_y = tl.zeros([BT, BC], tl.float32)
    for panel in tl.range(PANELS, num_stages=1):
        o_c = (block // PANELS * PANELS + panel) * BC + tl.arange(0, BC)
        m_c = o_c < channels
        b_sign = tl.load(diagonal_p + o_c, mask=m_c, other=0.0)
        if PANELS > 1:
            b_sign *= 1.0 - 2.0 * parity(block % PANELS & panel)
        at_p = x_p + o_t[:, None] * x_position + o_c.to(tl.int64)[None, :] * x_channel
        b_x = tl.load(at_p, mask=m_t[:, None] & m_c[None, :], other=0.0).to(tl.float32)
        b_y += transform(b_x * b_sign[None, :], b_h, PARTS)  # [BT, BC]
    b_y *= scale
    o_c = block * BC + tl.arange(0, BC)
    if POSITIONS_LAST:
        at_p = out_p + o_c.to(tl.int64)[None, :] * padded_positions + o_t[:, None]
    else:
        at_p = out_p + o_t[:, None] * (tl.num_programs(1) * BC) + o_c[None, :]
    b_high = b_y.to(tl.bfloat16)
    tl.store(at_p, b_high, mask=m_out[:, None])
    if PLANES == 2:
        b_low = (b_y - b_high.to(tl.float32)).to(tl.bfloat16)
        tl.store(at_p + out_plane, b_low, mask=m_out[:, None])


def mix(x: Tensor, diagonal: Tensor, order: int, out: Tensor, positions_last: bool) -> None:
    """Write H D x, transformed over blocks of ``order`` channels.

    Args:
        x: [b, C, T], float32, float16 or bfloat16, any strides.
        diagonal: float32 [at least C], +1 and -1.
        order: of H, a power of two up to 256.
        out: bfloat16, contiguous; planes 1 or 2. [planes, b, channels, positions] for
            ``positions_last``, positions a multiple of 8, else [planes, b, T, channels]; both may
            be more than T and C, the rest becomes zero.
        positions_last: the axis order of ``out``.
    """
    b, c, t = x.shape
    planes, _, *last = out.shape
    padded_channels, padded_positions = last if positions_last else reversed(last)
    if out.numel() == 0:
        return
    bt = BLOCK_POSITIONS[padded_positions > BLOCK_POSITIONS[0]]
    grid = (b * triton.cdiv(padded_positions, bt), padded_channels // PANEL)
    mix_kernel[grid](
        x, diagonal, out, order**-0.5, c, t,
        padded_positions // 8 if positions_last else padded_positions,
        *x.stride(), out.stride(0), out.stride(1),
        ORDER=order, PARTS=_parts(x.dtype, planes), PLANES=planes, POSITIONS_LAST=positions_last,
        BC=PANEL, BT=bt, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def _parts(dtype: torch.dtype, planes: int) -> int:
    """Return how many bfloat16 numbers x is split into: eight bits each, with a sign."""
    return {torch.bfloat16: 1, torch.float16: 2}.get(dtype, planes + 1)


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    signature = {"x_p": "*fp32", "diagonal_p": "*fp32", "out_p": "*bf16", "scale": "fp32"}
    signature |= dict.fromkeys(("channels", "positions", "steps"), "i32")
    signature |= dict.fromkeys(("x_batch", "x_channel", "out_plane", "out_batch"), "i64")
    found = []
    for name, order, planes, dtype, last, bt, even in (
        ("left, fp32", 64, 2, "fp32", True, 64, True),
        ("left, fp32, odd T", 64, 2, "fp32", True, 64, False),
        ("left, fp32, few T", 64, 2, "fp32", True, 16, False),
        ("right, fp32", 64, 2, "fp32", False, 64, True),
        ("right, fp32, odd T", 64, 2, "fp32", False, 64, False),
        ("right, fp32, few T", 64, 2, "fp32", False, 16, False),
        ("right, bf16", 64, 1, "bf16", False, 64, True),
        ("order 1", 1, 2, "fp32", True, 64, True),
        ("order 256", 256, 2, "fp32", False, 64, True),
    ):
        types = {**signature, "x_p": f"*{dtype}"}
        parts = 1 if dtype == "bf16" else planes + 1
        constants = {"ORDER": order, "PARTS": parts, "PLANES": planes, "POSITIONS_LAST": last}
        constants |= {"BC": PANEL, "BT": bt, "x_position": 1}
        divisible = ("out_plane", "out_batch")
        divisible += ("x_channel", "x_batch") if even else ()
        found.append(
            Variant(name, mix_kernel, types, constants, tensor_cores=True, divisible=divisible)
        )
    return found
