"""Dense projections by the GPU kernels: see ``gpu_ops`` for what they take."""

from __future__ import annotations

import torch
from torch import Tensor

from pntk.projection import gpu_ops, ops
from pntk.projection.gpu_work import add_splits, splits_of
from pntk.projection.quantiles import dense_scale
from pntk.projection.sketch import WORKSPACE_BYTES, SpecSketch, parts
from pntk.projection.spec import ProjectionSpec

SPLIT_COORDINATES = 2**14
MOST_COORDINATES = 2**22  # of a split, whose float32 sums stay near 1e-6


class GpuDenseSketch(SpecSketch):
    """``rademacher`` and ``normal``, float32 sums; P is made in registers and used at once.

    Args:
        impl: ``cuda`` (``rademacher``) or ``triton`` (both).
        precision: of the gradient: ``fp32`` (two bfloat16 numbers), ``tf32`` or ``bf16``.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        shape: tuple[int, ...],
        *,
        impl: str,
        precision: str,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
    ) -> None:
        super().__init__(spec, name, shape, dtype=dtype, device=device, workspace=workspace)
        self.impl = impl
        self.precision = precision

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        flat = gradient.reshape(len(gradient), self.size).to(torch.float32).contiguous()
        splits = splits_of(self.size, SPLIT_COORDINATES)
        splits = max(splits, -(-self.size // MOST_COORDINATES))
        for part in parts(len(flat), 4 * splits * self.proj_dim, self.workspace):
            to = torch.empty(splits, len(flat[part]), self.proj_dim, device=self.device)
            gpu_ops.launch(
                "dense",
                self.impl,
                flat[part],
                self.spec.family,
                self.precision,
                dense_scale(self.spec.family, self.proj_dim),
                ops.signed(self.spec.seed),
                ops.signed(self.stream(output)),
                to,
            )
            add_splits(to, out[part])
