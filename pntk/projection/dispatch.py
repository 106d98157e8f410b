"""Which implementation makes the rows, and the sketches of all parameters of a model.

``auto`` takes the first of ``IMPLEMENTATIONS`` that applies; an explicit choice never falls back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.projection import bits
from pntk.projection.dense import DenseSketch, IdentitySketch
from pntk.projection.dense_native import NativeDenseSketch
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.selftest import check_kernels
from pntk.projection.signs import SIGN_CACHE_BYTES, SignCache
from pntk.projection.sketch import WORKSPACE_BYTES, Sketch
from pntk.projection.spec import ProjectionSpec

IMPLEMENTATIONS = ("cpu", "torch")


def why_not(
    impl: str,
    family: str = "hadamard",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> str | None:
    """Return why an implementation cannot make such rows here, or None where it can.

    Raises:
        KernelError: the compiled kernels give wrong results on this machine.
    """
    if impl == "torch":
        return None
    if not bits.has_native():
        return bits.native_error()
    if torch.device(device).type != "cpu":
        return f"the compiled kernels run on the CPU, and the model is on {device}"
    if dtype != torch.float32:
        return f"the compiled kernels sum in float32, and rows here are {dtype}"
    if family == "identity":
        return "the identity projects nothing, so there is nothing to compile"
    check_kernels()
    return None


def resolve_impl(
    impl: str,
    family: str = "hadamard",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> str:
    """Return the implementation that ``impl`` names; ``auto`` takes the first that applies.

    Raises:
        ConfigError: there is no such implementation, or it cannot make such rows here.
        KernelError: the compiled kernels give wrong results on this machine.
    """
    if impl == "auto":
        return next(
            name
            for name in IMPLEMENTATIONS
            if not why_not(name, family, dtype=dtype, device=device)
        )
    if impl not in IMPLEMENTATIONS:
        raise ConfigError(
            f"impl is {impl!r}; this version has {', '.join(IMPLEMENTATIONS)} (or 'auto')"
        )
    reason = why_not(impl, family, dtype=dtype, device=device)
    if reason:
        raise ConfigError(f"impl={impl!r} cannot be used: {reason}; 'auto' finds one that can")
    return impl


class Projector:
    """Sketch the gradients of named parameters into rows of one width.

    Args:
        spec: which projection.
        shapes: name -> shape of each parameter, in the order of the identity's columns.
        dtype: float32 or float64, in which rows are summed.
        device: where gradients are.
        impl: as :func:`resolve_impl` returned it.
        outputs: number of differentiated outputs; the identity gives each its own columns.
        workspace: bytes of temporaries; cache: bytes of sign tables to keep.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype,
        device: torch.device,
        impl: str = "torch",
        outputs: int = 1,
        workspace: int = WORKSPACE_BYTES,
        cache: int = SIGN_CACHE_BYTES,
    ) -> None:
        self.spec = spec
        self.impl = impl
        self.dtype = dtype
        self.device = device
        self.shapes = dict(shapes)
        self.gradient_size = sum(math.prod(shape) for shape in shapes.values())
        self.width = spec.proj_dim or self.gradient_size * outputs
        self.workspace = workspace
        self._cache = SignCache(cache)
        self._sketches: dict[str, Sketch] = {}

    def sketch(self, name: str) -> Sketch:
        """Return the sketch of one parameter, made on first use."""
        if name not in self._sketches:
            self._sketches[name] = self._make(name)
        return self._sketches[name]

    def empty_rows(self, batch: int) -> Tensor:
        """Return zeros [batch, width] to add to."""
        return torch.zeros(batch, self.width, dtype=self.dtype, device=self.device)

    def _make(self, name: str) -> Sketch:
        shape = self.shapes[name]
        common: dict[str, Any] = {
            "dtype": self.dtype,
            "device": self.device,
            "workspace": self.workspace,
        }
        if self.spec.family == "identity":
            names = list(self.shapes)
            before = names[: names.index(name)]
            offset = sum(math.prod(self.shapes[other]) for other in before)
            return IdentitySketch(name, shape, offset=offset, stride=self.gradient_size, **common)
        if self.spec.family == "hadamard":
            if self.impl == "cpu":
                return NativeHadamardSketch(self.spec, name, shape, **common)
            return HadamardSketch(self.spec, name, shape, cache=self._cache, **common)
        kind = NativeDenseSketch if self.impl == "cpu" else DenseSketch
        return kind(self.spec, name, shape, **common)
