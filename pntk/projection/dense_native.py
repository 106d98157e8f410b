"""Dense projections by the compiled CPU kernels: see csrc/cpu/dense.h."""

from __future__ import annotations

import torch
from torch import Tensor

from pntk.projection import ops
from pntk.projection.quantiles import dense_scale
from pntk.projection.sketch import SpecSketch


class NativeDenseSketch(SpecSketch):
    """``rademacher`` and ``normal``, float32 on the CPU; P is made in cache, and used at once."""

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        flat = gradient.reshape(gradient.shape[0], -1).to(self.dtype).contiguous()
        torch.ops.pntk.dense_project(
            flat,
            self.spec.family == "normal",
            dense_scale(self.spec.family, self.proj_dim),
            False,
            ops.signed(self.spec.seed),
            ops.signed(self.stream(output)),
            out,
        )
