"""Which implementation makes the rows, and the sketches of all parameters of a model.

``auto`` takes the first of ``IMPLEMENTATIONS`` that applies; an explicit choice never falls back.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.projection import bits, cuda
from pntk.projection.dense import DenseSketch, IdentitySketch
from pntk.projection.dense_gpu import GpuDenseSketch
from pntk.projection.dense_native import NativeDenseSketch
from pntk.projection.gpu_vectors import VectorBatch
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.hadamard_gpu import GpuHadamardSketch
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.selftest import check_gram, check_kernels
from pntk.projection.signs import SIGN_CACHE_BYTES, SignCache
from pntk.projection.sketch import WORKSPACE_BYTES, Sketch
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import MAX_ORDER, tile_shape

IMPLEMENTATIONS = ("cuda", "triton", "cpu", "torch")
GPU = ("cuda", "triton")
OLDEST_GPU = (8, 0)  # bfloat16 on tensor cores
# of temporaries on a GPU, where more samples a launch are worth more than memory
GPU_WORKSPACE_BYTES = 2**30


def why_not(
    impl: str,
    family: str = "hadamard",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    proj_dim: int | None = None,
) -> str | None:
    """Return why an implementation cannot make such rows here, or None where it can.

    Raises:
        KernelError: the kernels give wrong results on this machine.
    """
    if impl == "torch":
        return None
    device = torch.device(device)
    reason = _why_no_gpu(impl, device) if impl in GPU else _why_no_cpu(device)
    if reason:
        return reason
    if dtype != torch.float32:
        return f"the kernels sum in float32, and rows here are {dtype}"
    if family == "identity":
        return "the identity projects nothing, so there is nothing to compile"
    if impl in GPU and family == "hadamard" and max(tile_shape(proj_dim or 8)) > MAX_ORDER:
        return f"proj_dim is {proj_dim}, and the GPU kernels have up to {MAX_ORDER**2}"
    if impl == "cuda" and family == "normal":
        return "the CUDA kernels make rademacher and hadamard; impl='triton' makes normal"
    check_kernels(impl, device)
    return None


def why_not_gram(dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Return why Triton cannot multiply rows [n, k] of a type on a device, or None where it can.

    Raises:
        KernelError: its kernel gives wrong results there.
    """
    device = torch.device(device)
    reason = _why_no_gpu("triton", device)
    if reason:
        return reason
    if dtype != torch.float32:
        return f"the kernel multiplies float32, and rows here are {dtype}"
    check_gram(device)
    return None


def _why_no_cpu(device: torch.device) -> str | None:
    if not bits.has_native():
        return bits.native_error()
    if device.type != "cpu":
        return f"the compiled kernels run on the CPU, and the model is on {device}"
    return None


def _why_no_gpu(impl: str, device: torch.device) -> str | None:
    if impl == "cuda":
        module = cuda.cuda_module()
        if module is None:
            return cuda.cuda_error()
        if device.type == module.device_type != "cuda":  # emulated, for tests
            return None
    elif importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    elif device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"its kernels run on a CUDA device, and the model is on {device}"
    if not torch.cuda.is_available():
        return "PyTorch can use no CUDA device here"
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs, and this PyTorch is built for AMD's"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST_GPU:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {found[0]}.{found[1]}; the kernels need 8.0"
    return cuda.why_not_on(device) if impl == "cuda" else None


def resolve_impl(
    impl: str,
    family: str = "hadamard",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    proj_dim: int | None = None,
) -> str:
    """Return the implementation that ``impl`` names; ``auto`` takes the first that applies.

    Raises:
        ConfigError: there is no such implementation, or it cannot make such rows here.
        KernelError: the kernels give wrong results on this machine.
    """
    where: dict[str, Any] = {"dtype": dtype, "device": device, "proj_dim": proj_dim}
    if impl == "auto":  # on a CPU the GPU kernels can only be interpreted, which nobody means
        on_cpu = torch.device(device).type == "cpu"
        names = [name for name in IMPLEMENTATIONS if not (on_cpu and name in GPU)]
        return next(name for name in names if not why_not(name, family, **where))
    if impl not in IMPLEMENTATIONS:
        raise ConfigError(
            f"impl is {impl!r}; this version has {', '.join(IMPLEMENTATIONS)} (or 'auto')"
        )
    reason = why_not(impl, family, **where)
    if reason:
        raise ConfigError(f"impl={impl!r} cannot be used: {reason}; 'auto' finds one that can")
    return impl


def workspace_bytes(impl: str) -> int:
    """Return how many bytes of temporaries an implementation does well with."""
    return GPU_WORKSPACE_BYTES if impl in GPU else WORKSPACE_BYTES


class Projector:
    """Sketch the gradients of named parameters into rows of one width.

    Args:
        spec: which projection.
        shapes: name -> shape of each parameter, in the order of the identity's columns.
        dtype: float32 or float64, in which rows are summed.
        device: where gradients are.
        impl: as :func:`resolve_impl` returned it.
        precision: of the factors on a GPU: ``fp32`` or ``bf16``; the dense families also have
            ``tf32``.
        outputs: number of differentiated outputs; the identity gives each its own columns.
        workspace: bytes of temporaries; None for those of :func:`workspace_bytes`.
        cache: bytes of sign tables to keep.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype,
        device: torch.device,
        impl: str = "torch",
        precision: str = "fp32",
        outputs: int = 1,
        workspace: int | None = None,
        cache: int = SIGN_CACHE_BYTES,
    ) -> None:
        self.spec = spec
        self.impl = impl
        self.precision = precision
        self.dtype = dtype
        self.device = device
        self.shapes = dict(shapes)
        self.gradient_size = sum(math.prod(shape) for shape in shapes.values())
        self.width = spec.proj_dim or self.gradient_size * outputs
        self.workspace = workspace_bytes(impl) if workspace is None else workspace
        self._cache = SignCache(cache)
        self._vectors = VectorBatch(impl, self.workspace)
        self._sketches: dict[str, Sketch] = {}

    def sketch(self, name: str) -> Sketch:
        """Return the sketch of one parameter, made on first use."""
        if name not in self._sketches:
            self._sketches[name] = self._make(name)
        return self._sketches[name]

    def collecting(self) -> AbstractContextManager[None]:
        """Return a context at whose end rows are complete, for many small gradients in between."""
        return self._vectors.collecting()

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
        if self.impl in GPU:
            common |= {"impl": self.impl, "precision": self.precision}
        if self.spec.family == "hadamard":
            if self.impl == "cpu":
                return NativeHadamardSketch(self.spec, name, shape, **common)
            common["cache"] = self._cache
            if self.impl in GPU:
                return GpuHadamardSketch(self.spec, name, shape, vectors=self._vectors, **common)
            return HadamardSketch(self.spec, name, shape, **common)
        kinds = {"cpu": NativeDenseSketch, "torch": DenseSketch}
        return kinds.get(self.impl, GpuDenseSketch)(self.spec, name, shape, **common)
