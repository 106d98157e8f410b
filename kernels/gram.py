"""Products of rows, K = x y^T, and their cosines, with the norms divided out as tiles are written.

The naive version is ``x @ y.T * x_scale[:, None] * y_scale``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pntk.kernels.variant import Variant

# How float32 numbers go through tensor cores: as two of 11 bits and three products, or as one.
# tf32x3 also starts each block of columns from zero and rounds when it adds the block to the sum;
# within a sum tensor cores cut off, which for long rows would show.
PRODUCTS = {"fp32": "tf32x3", "tf32": "tf32", "bf16": "tf32"}
BLOCKS = {"BM": 128, "BN": 64, "BK": 32}
GROUP = 8  # blocks of rows that run beside one another, so that columns stay in the L2 cache
WARPS = 8


@triton.jit(do_not_specialize=["n"])
def gram_kernel(
    x_p, y_p, x_scale_p, y_scale_p, out_p, n, m, k,
    SCALED_X: tl.constexpr, SCALED_Y: tl.constexpr, PRODUCT: tl.constexpr, HALF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """One tile [BM, BN] of K. Grid: all tiles, GROUP blocks of rows at a time, column by column."""
    columns = tl.cdiv(m, BN)
    group = tl.program_id(0) // (GROUP * columns) * GROUP
    height = tl.minimum(tl.cdiv(n, BM) - group, GROUP)
    place = tl.program_id(0) % (GROUP * columns)
    o_m = (group + place % height).to(tl.int64) * BM + tl.arange(0, BM)
    o_n = (place // height).to(tl.int64) * BN + tl.arange(0, BN)
    m_m, m_n = o_m < n, o_n < m
    x_p += o_m[:, None] * k
    y_p += o_n[:, None] * k
    b_sum = tl.zeros([BM, BN], tl.float32)
    for i in range(0, k, BK):
        o_k = (i + tl.arange(0, BK))[None, :]
        b_x = tl.load(x_p + o_k, mask=m_m[:, None] & (o_k < k), other=0.0)  # [BM, BK]
        b_y = tl.load(y_p + o_k, mask=m_n[:, None] & (o_k < k), other=0.0)  # [BN, BK]
        if HALF:
            b_x, b_y = b_x.to(tl.bfloat16), b_y.to(tl.bfloat16)
        b_sum = tl.dot(b_x, b_y.trans(), b_sum, input_precision=PRODUCT)
    if SCALED_X:
        b_sum *= tl.load(x_scale_p + o_m, mask=m_m, other=0.0)[:, None]
    if SCALED_Y:
        b_sum *= tl.load(y_scale_p + o_n, mask=m_n, other=0.0)[None, :]
    tl.store(out_p + o_m[:, None] * m + o_n[None, :], b_sum, mask=m_m[:, None] & m_n[None, :])


def gram(
    x: Tensor,
    y: Tensor,
    x_scale: Tensor | None,
    y_scale: Tensor | None,
    out: Tensor,
    precision: str = "fp32",
) -> None:
    """Write K[i, j] = x_scale[i] y_scale[j] <x[i], y[j]>.

    Args:
        x, y: float32 [n, k] and [m, k], contiguous.
        x_scale, y_scale: float32 [n] and [m], such as inverse norms; None stands for ones.
        out: float32 [n, m], contiguous.
        precision: ``fp32`` (error below 1e-6 of the product of the norms), ``tf32`` (1e-3) or
            ``bf16`` (5e-3).
    """
    n, m, k = x.shape[0], *y.shape
    if out.numel() == 0:
        return
    gram_kernel[(triton.cdiv(n, BLOCKS["BM"]) * triton.cdiv(m, BLOCKS["BN"]),)](
        x, y, x_scale, y_scale, out, n, m, k,
        SCALED_X=x_scale is not None, SCALED_Y=y_scale is not None,
        PRODUCT=PRODUCTS[precision], HALF=precision == "bf16", **BLOCKS,
        GROUP=GROUP, num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip


def variants() -> list[Variant]:
    """Return the launches to compile ahead of time."""
    pointers = ("x_p", "y_p", "x_scale_p", "y_scale_p", "out_p")
    types = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(("n", "m", "k"), "i32")
    found = []
    for name, precision, scaled in (
        ("fp32, cosine", "fp32", True),
        ("fp32", "fp32", False),
        ("tf32", "tf32", False),
        ("bf16", "bf16", False),
    ):
        constants = {"SCALED_X": scaled, "SCALED_Y": scaled, "PRODUCT": PRODUCTS[precision]}
        constants |= {"HALF": precision == "bf16", **BLOCKS, "GROUP": GROUP}
        found.append(
            Variant(
                name, gram_kernel, types, constants, warps=WARPS, tensor_cores=True,
                divisible=("m", "k"),
            )
        )  # fmt: skip
    return found
