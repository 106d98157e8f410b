"""Where the tests of the Triton kernels run: on a GPU, or in Triton's interpreter.

The interpreter has to be chosen before anything imports triton, for a whole process. So without a
GPU the other tests of this directory are left to ``test_interpreted.py``, which runs them in a
process with TRITON_INTERPRET=1; set that yourself to run one of them alone.
"""

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from pntk.projection import ProjectionSpec
from pntk.projection.bits import philox_words_numpy, stream_id
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.reference import hadamard_matrix, projection_matrix
from pntk.projection.tiles import TileLayout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = find_spec("triton") is not None and (torch.cuda.is_available() or INTERPRETED)
NO_KERNELS = {"test_aot.py", "test_interpreted.py"}  # launch none in this process
NAME = "block.0.weight"

_files = {path.name for path in Path(__file__).parent.glob("test_*.py")}
collect_ignore = sorted(NO_KERNELS if INTERPRETED else set() if HERE else _files - NO_KERNELS)


def pytest_collection_modifyitems(items):
    """Mark what runs on a GPU; say what to do about files that were asked for by name."""
    for item in items:
        if item.path.parent != Path(__file__).parent or item.path.name in NO_KERNELS:
            continue
        if not INTERPRETED:
            item.add_marker(pytest.mark.gpu)
        if not HERE:
            item.add_marker(pytest.mark.skip(reason="no GPU: set TRITON_INTERPRET=1"))


def _to_bfloat16(x):
    """Bits of the nearest bfloat16, ties to even."""
    bits = torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.int16)
    return bits.numpy().view(np.uint16).reshape(x.shape)


def _from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


if INTERPRETED:
    # The interpreter keeps the bits of a bfloat16. Triton 3.9 multiplies them as integers in a dot
    # and cuts a float32 off where devices round it.
    import triton.language as tl
    from triton.runtime import interpreter

    _dot = interpreter.InterpreterBuilder.create_dot
    _cast = interpreter.InterpreterBuilder.cast_impl

    def _cast_impl(self, source, to):
        types = source.dtype.scalar, to.scalar
        if types == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_to_bfloat16(source.data), tl.bfloat16)
        if types == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_from_bfloat16(source.data), tl.float32)
        return _cast(self, source, to)

    def _create_dot(self, a, b, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (
                interpreter.TensorHandle(_from_bfloat16(side.data), tl.float32) for side in (a, b)
            )
        return _dot(self, a, b, *rest)

    interpreter.InterpreterBuilder.cast_impl = _cast_impl
    interpreter.InterpreterBuilder.create_dot = _create_dot


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):  # a GPU says nothing about NaN either
        yield


@pytest.fixture(scope="session")
def device():
    return torch.device("cpu" if INTERPRETED else "cuda")


@dataclass(frozen=True)
class Map:
    """One parameter's tile-Hadamard map as the kernels want it, from the words of the streams."""

    k: int
    shape: tuple[int, ...]
    device: torch.device
    seed: int = 2**63 + 7
    output: int = 0

    @property
    def layout(self):
        return TileLayout.of(self.shape, self.k)

    @property
    def tiles(self):
        t = self.layout
        return [t.rows, t.channels, t.positions, t.ko, t.ki, int(t.per_position), int(t.vector)]

    def words(self, role, count):
        output = self.output if role == "entries" else 0
        stream = stream_id("hadamard", self.k, role, output, NAME)
        return torch.from_numpy(philox_words_numpy(self.seed, stream, 0, count).astype(np.int64))

    def diagonal(self, role, count):
        bits = self.words(role, -(-count // 32))[:, None] >> torch.arange(32) & 1
        return (1.0 - 2.0 * bits).flatten()[:count].to(self.device)

    @property
    def row_diagonal(self):
        return self.diagonal("row_diagonal", self.layout.padded_rows)

    @property
    def column_diagonal(self):
        return self.diagonal("column_diagonal", self.layout.padded_channels)

    @property
    def diagonals(self):
        return torch.cat([self.row_diagonal, self.column_diagonal])

    @property
    def signs(self):
        t = self.layout
        words = self.words("entries", -(-t.column_blocks * t.padded_rows * t.ki // 32))
        return words.to(torch.uint32).view(torch.int32).to(self.device)

    @property
    def shifts(self):
        t = self.layout
        parts = (
            self.words("row_shift", t.column_blocks) % t.ko,
            self.words("column_shift", t.column_blocks) % (t.ki // 8),
            self.words("block_shift", t.row_blocks) % (t.ki // 8),
        )
        return torch.cat(parts).int().to(self.device)

    def rows(self, gradient):
        """Rows in float64 of gradients [b, *shape]: by the matrix, where that is not too large."""
        flat = gradient.double().cpu().reshape(len(gradient), -1)
        spec = ProjectionSpec("hadamard", self.k, self.seed)
        if flat.shape[1] * self.k <= 2**19:
            matrix = projection_matrix(spec, NAME, self.shape, self.output)
            return flat @ torch.from_numpy(matrix).T
        options = {"dtype": torch.float64, "device": torch.device("cpu")}
        rows = flat.new_zeros(len(flat), self.k)
        sketch = HadamardSketch(spec, NAME, self.shape, **options)
        sketch.add_gradient(flat.view(-1, *self.shape), rows, self.output)
        return rows

    def left(self, x, planes):
        """H D x [planes, b, padded O, padded T] of x [b, O, T], from float64."""
        t = self.layout
        return _factor(x, self.row_diagonal, t.ko, planes, 8)

    def right(self, x, planes):
        """H D' x [planes, b, T, padded C] of x [b, C, T], from float64."""
        t = self.layout
        return _factor(x, self.column_diagonal, t.ki, planes, 1).mT.contiguous()


def _factor(x, diagonal, order, planes, multiple):
    b, c, t = x.shape
    padded = -(-len(diagonal) // 64) * 64
    mixed = x.new_zeros(b, padded, -(-t // multiple) * multiple, dtype=torch.float64)
    mixed[:, :c, :t] = x.double() * diagonal[:c, None].double()
    h = torch.from_numpy(hadamard_matrix(order)).to(x.device)
    mixed = (h @ mixed.unflatten(1, (-1, order))).flatten(1, 2)
    return split(mixed.float(), planes)


def split(x, planes):
    """hi and lo of x: [planes, *x.shape]."""
    high = x.bfloat16()
    return torch.stack([high, (x - high.float()).bfloat16()][:planes])


@pytest.fixture(scope="session")
def make_map(device):
    def make(k, shape, **options):
        return Map(k, shape, device, **options)

    return make


@pytest.fixture(scope="session")
def into():
    """A float32 [splits, b, k] full of NaN."""

    def make(made, splits, b):
        return torch.full((splits, b, made.k), math.nan, device=made.device)

    return make


@pytest.fixture(scope="session")
def close():
    """Whether the sum of ``to`` over splits is as near to the rows of a gradient as promised."""

    def check(made, to, gradient, planes=2):
        found, expected = to.sum(0).cpu().double(), made.rows(gradient)
        scale = gradient.double().cpu().reshape(len(gradient), -1).norm(dim=1)
        error = (found - expected).norm(dim=1) / scale.clamp(min=1e-30)
        assert float(error.max()) <= {1: 4e-3, 2: 1e-5}[planes]

    return check
