"""Dense projections by the compiled CPU kernels: see csrc/cpu/dense.h."""

from __future__ import annotations

import torch
from torch import Tensor

from pntk.projection import ops
from pntk.projection.bits import stream_id
from pntk.projection.quantiles import dense_scale
from pntk.projection.sketch import WORKSPACE_BYTES, Sketch
from pntk.projection.spec import ProjectionSpec


class NativeDenseSketch(Sketch):
    """``rademacher`` and ``normal``, float32 on the CPU; P is made in cache, and used at once."""

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
    ) -> None:
        super().__init__(name, shape, dtype=dtype, device=device, workspace=workspace)
        assert spec.proj_dim is not None
        self.spec = spec
        self.proj_dim = spec.proj_dim
        self._scale = dense_scale(spec.family, spec.proj_dim)

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        flat = gradient.reshape(gradient.shape[0], -1).to(self.dtype).contiguous()
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
