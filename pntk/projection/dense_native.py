"""Dense projections by the compiled CPU kernels: see csrc/cpu/dense.h."""

from __future__ import annotations

import torch
from torch import Tensor

from pntk.projection import ops
from pntk.projection.bits import stream_id
from pntk.projection.dense import DenseSketch


class NativeDenseSketch(DenseSketch):
    """``rademacher`` and ``normal``, float32 on the CPU; P is made in cache, and used at once."""

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        flat = gradient.reshape(gradient.shape[0], -1).to(torch.float32).contiguous()
        stream = stream_id(self.spec.family, self.proj_dim, "entries", output, self.name)
        torch.ops.pntk.dense_project(
            flat,
            self.spec.family == "normal",
            self._scale,
            False,
            ops.signed(self.spec.seed),
            ops.signed(stream),
            out,
        )
