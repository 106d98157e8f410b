"""Dense projections with independent entries, made a few coordinates at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from pntk.projection import bits
from pntk.projection.quantiles import NORMAL_TABLE, dense_scale
from pntk.projection.sketch import WORKSPACE_BYTES, Sketch, SpecSketch, pad_last
from pntk.projection.spec import ProjectionSpec

# coordinates that share one 32-bit word of an output dimension: 32 signs, or 4 table indices
PER_WORD = {"rademacher": 32, "normal": 4}
ONE = 0x3F800000  # 1.0 in float32
CACHE_BYTES = 4 * 2**20  # of P at a time, so that it is used while in cache


class DenseSketch(SpecSketch):
    """``rademacher`` and ``normal``: phi = P g, E[P^T P] = identity.

    Entry (j, i) comes from word (i // per_word) * k4 + j of the parameter's stream, k4 = k rounded
    up to a multiple of 4: bit i % 32 for a sign, byte i % 4 for a level of the normal table. P is
    never held whole.
    """

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
        super().__init__(spec, name, shape, dtype=dtype, device=device, workspace=workspace)
        self.padded_dim = -(-self.proj_dim // 4) * 4
        self.per_word = PER_WORD[spec.family]
        self._scale = dense_scale(spec.family, self.proj_dim)
        self._table = torch.from_numpy(NORMAL_TABLE).to(device=device, dtype=dtype)

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        flat = gradient.reshape(gradient.shape[0], -1).to(self.dtype)
        total = out if self.padded_dim == self.proj_dim else pad_last(out, self.padded_dim)
        word_rows = -(-self.size // self.per_word)
        bytes_per_row = self.per_word * self.padded_dim * self.dtype.itemsize
        step = max(1, min(self.workspace // 2, CACHE_BYTES) // bytes_per_row)
        for start in range(0, word_rows, step):
            stop = min(word_rows, start + step)
            piece = flat[:, start * self.per_word : stop * self.per_word]
            entries = self._entries(start, stop, output)[: piece.shape[1]]
            total.addmm_(piece, entries, alpha=self._scale)
        if total is not out:
            out.copy_(total[:, : self.proj_dim])

    def _entries(self, start: int, stop: int, output: int) -> Tensor:
        """Return unscaled P^T [(stop - start) * per_word, k4] for these rows of words."""
        first, count = start * self.padded_dim, (stop - start) * self.padded_dim
        words = bits.words(self.spec.seed, self.stream(output), first, count, self.device)
        words = words.view(-1, 1, self.padded_dim)
        if self.spec.family == "rademacher":
            # bit i goes to the sign of the float 1.0
            up = torch.arange(31, -1, -1, dtype=torch.int32, device=self.device)[:, None]
            signs = (words.to(torch.int32) << up).bitwise_and_(-(2**31)).bitwise_or_(ONE)
            entries = signs.view(torch.float32).to(self.dtype)
        else:
            entries = self._table[
                words >> torch.arange(0, 32, 8, device=self.device)[:, None] & 0xFF
            ]
        return entries.view(-1, self.padded_dim)


class IdentitySketch(Sketch):
    """No projection: the gradient itself, at this parameter's place in the row."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        offset: int,
        stride: int,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
    ) -> None:
        super().__init__(name, shape, dtype=dtype, device=device, workspace=workspace)
        self.offset = offset
        self.stride = stride

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        start = output * self.stride + self.offset
        flat = gradient.reshape(gradient.shape[0], -1).to(self.dtype)
        out[:, start : start + self.size] += flat
