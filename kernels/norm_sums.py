"""Sums over positions of delta (x - mean) and of delta: the gradients of a norm's scale and shift.

In torch: ``(delta * (x - mean[:, None])).sum(2), delta.sum(2)``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.variant import Variant

# Channels and positions of a block, by which of the two are neighbours in memory: whole lines.
BLOCKS = {"positions": {"BC": 4, "BL": 256}, "channels": {"BC": 32, "BL": 32}}


@triton.jit(do_not_specialize=["channels", "positions"])
def norm_sums_kernel(
    delta_p, x_p, mean_p, scale_p, shift_p, channels, positions,
    delta_batch, delta_channel, delta_position, x_batch, x_channel, x_position,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """BC channels of one sample. Grid: all of these, channels innermost."""
    blocks = tl.cdiv(channels, BC)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    o_c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    m_c = o_c < channels
    b_mean = tl.load(mean_p + o_c, mask=m_c, other=0.0)[:, None]
    delta_p += sample * delta_batch + o_c.to(tl.int64)[:, None] * delta_channel
    x_p += sample * x_batch + o_c.to(tl.int64)[:, None] * x_channel
    b_scale = tl.zeros([BC, BL], tl.float32)
    b_shift = tl.zeros([BC, BL], tl.float32)
    for start in range(0, positions, BL):
        o_l = start + tl.arange(0, BL)
        m_x = m_c[:, None] & (o_l < positions)[None, :]
        o_l = o_l.to(tl.int64)[None, :]
        b_delta = tl.load(delta_p + o_l * delta_position, mask=m_x, other=0.0).to(tl.float32)
        b_x = tl.load(x_p + o_l * x_position, mask=m_x, other=0.0).to(tl.float32)  # [BC, BL]
        b_scale += b_delta * (b_x - b_mean)  # delta is zero outside
        b_shift += b_delta
    o_out = sample * channels + o_c
    tl.store(scale_p + o_out, tl.sum(b_scale, 1), mask=m_c)
    tl.store(shift_p + o_out, tl.sum(b_shift, 1), mask=m_c)


def norm_sums(delta: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Write sum_l delta (x - mean) to ``scale`` and sum_l delta to ``shift``.

    Args:
        delta, x: [n, C, L], float32, float16 or bfloat16, any strides.
        mean: float32 [C].
        scale, shift: float32 [n, C].
    """
    n, c, length = delta.shape
    if scale.numel() == 0:
        return
    blocks = BLOCKS["channels" if x.stride(1) == 1 and x.stride(2) != 1 else "positions"]
    norm_sums_kernel[(n * triton.cdiv(c, blocks["BC"]),)](
        delta, x, mean, scale, shift, c, length, *delta.stride(), *x.stride(), **blocks,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    types = dict.fromkeys(("delta_p", "x_p", "mean_p", "scale_p", "shift_p"), "*fp32")
    types |= dict.fromkeys(("channels", "positions"), "i32")
    found = []
    for name, inner, outer in (
        ("channels first", "position", "channel"),
        ("channels last", "channel", "position"),
    ):
        strides = [f"{tensor}_{outer}" for tensor in ("delta", "x")]
        strides += ["delta_batch", "x_batch"]
        constants = {f"{tensor}_{inner}": 1 for tensor in ("delta", "x")}
        constants |= BLOCKS["positions" if inner == "position" else "channels"]
        signature = {**types, **dict.fromkeys(strides, "i32")}
        found.append(
            Variant(name, norm_sums_kernel, signature, constants, divisible=tuple(strides))
        )
    return found
