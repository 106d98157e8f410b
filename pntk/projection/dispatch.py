"""Which implementation makes the rows, and the sketches of all parameters of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.projection.dense import DenseSketch, IdentitySketch
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.signs import SIGN_CACHE_BYTES, SignCache
from pntk.projection.sketch import WORKSPACE_BYTES, Sketch
from pntk.projection.spec import ProjectionSpec

IMPLEMENTATIONS = ("torch",)


def resolve_impl(impl: str) -> str:
    """Return the implementation that ``impl`` names; ``auto`` takes the first that applies.

    Raises:
        ConfigError: there is no such implementation; an explicit choice never falls back.
    """
    if impl == "auto":
        return IMPLEMENTATIONS[0]
    if impl not in IMPLEMENTATIONS:
        raise ConfigError(
            f"impl is {impl!r}; this version has {', '.join(IMPLEMENTATIONS)} (or 'auto')"
        )
    return impl


class Projector:
    """Sketch the gradients of named parameters into rows of one width.

    Args:
        spec: which projection.
        shapes: name -> shape of each parameter, in the order of the identity's columns.
        dtype: float32 or float64, in which rows are summed.
        device: where gradients are.
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
        outputs: int = 1,
        workspace: int = WORKSPACE_BYTES,
        cache: int = SIGN_CACHE_BYTES,
    ) -> None:
        self.spec = spec
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
        if self.spec.family == "identity":
            names = list(self.shapes)
            before = names[: names.index(name)]
            return IdentitySketch(
                name,
                shape,
                offset=sum(math.prod(self.shapes[other]) for other in before),
                stride=self.gradient_size,
                dtype=self.dtype,
                device=self.device,
                workspace=self.workspace,
            )
        if self.spec.family == "hadamard":
            return HadamardSketch(
                self.spec,
                name,
                shape,
                dtype=self.dtype,
                device=self.device,
                workspace=self.workspace,
                cache=self._cache,
            )
        return DenseSketch(
            self.spec,
            name,
            shape,
            dtype=self.dtype,
            device=self.device,
            workspace=self.workspace,
        )
