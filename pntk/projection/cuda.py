"""The compiled CUDA kernels, ``pntk._cuda``, on tensors: see csrc/cuda/kernels.h.

The functions here are the GPU operators of ``gpu_ops``, which checks their tensors.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError, KernelError, PntkWarning
from pntk.projection.bits import native_switched_off

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PRECISIONS = {"fp32": 0, "tf32": 1, "bf16": 2}
HOPPER = (9, 0)
INTERFACE = 1  # of csrc/cuda/bindings.cpp; both change together


def cuda_module() -> Any:
    """Return the extension module ``pntk._cuda``, or None; ``cuda_error`` says why."""
    return _load()[0]


def cuda_error() -> str | None:
    """Return why the compiled CUDA kernels cannot be loaded, or None where they are."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Any, str | None]:
    if native_switched_off():
        return None, "turned off by PNTK_DISABLE_NATIVE=1"
    try:
        module = importlib.import_module("pntk._cuda")
        if getattr(module, "interface", None) != INTERFACE:
            raise ImportError("it was built for another version of pntk")
        return module, None
    except ModuleNotFoundError as error:
        if error.name == "pntk._cuda":
            remedy = "install with the CUDA toolkit's nvcc; PNTK_CUDA=1 shows why the build fails"
            return None, f"pntk._cuda was not built: {remedy}"
        reason = f"pntk._cuda is there and cannot be imported ({error}); reinstall pntk"
    except Exception as error:  # a module that was built and does not load is never normal
        reason = f"pntk._cuda is there and cannot be imported ({error}); reinstall pntk"
    warnings.warn(reason, PntkWarning, stacklevel=2)
    return None, reason


def why_not_on(device: torch.device) -> str | None:
    """Return why the compiled kernels do not run on a GPU, or None where they do."""
    module = cuda_module()
    driver, runtime = module.versions()
    if driver // 1000 < runtime // 1000:
        return (
            f"the driver serves CUDA {_version(driver)}, and pntk._cuda was built with "
            f"{_version(runtime)}: update the driver, or build with an older toolkit"
        )
    capability = torch.cuda.get_device_capability(device)
    if any(_runs(arch, capability) for arch in module.architectures.split(";")):
        return None
    return (
        f"pntk._cuda was built for {module.architectures}, and {device} is "
        f"{capability[0]}{capability[1]}: build with PNTK_CUDA_ARCHS={capability[0]}{capability[1]}"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _runs(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``80``, ``90a`` or ``90-virtual`` runs on a GPU."""
    number = arch.removesuffix("-virtual")
    own = number.endswith("a")  # instructions of one chip
    major, minor = divmod(int(number.rstrip("a")), 10)
    if arch.endswith("-virtual") and not own:
        return (major, minor) <= capability
    return major == capability[0] and (minor == capability[1] if own else minor <= capability[1])


def has_wgmma(device: torch.device) -> bool:
    """Return whether Hopper's own matrix instructions were compiled, and the device has them."""
    module = cuda_module()
    if module.device_type != "cuda":  # emulated
        return True
    return "90a" in module.architectures and torch.cuda.get_device_capability(device) == HOPPER


def bits(seed: int, stream: int, words: Tensor) -> None:
    """Fill words, int32 [n], with words 0 to n - 1 of a stream."""
    _call("bits", words, words.data_ptr(), words.numel(), seed, stream)


def mix(x: Tensor, diagonal: Tensor, order: int, out: Tensor, positions_last: bool) -> None:
    """Write H D x: [b, C, T] to bfloat16 planes, see ``gpu_ops``."""
    planes, _, first, second = out.shape
    padded = (first, second) if positions_last else (second, 0)
    _call(
        "mix",
        x,
        x.data_ptr(),
        TYPES[x.dtype],
        x.shape,
        x.stride(),
        diagonal.data_ptr(),
        order,
        *padded,
        positions_last,
        planes,
        out.data_ptr(),
    )


def products(
    left: Tensor,
    right: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    size: Sequence[int],
    windows: Sequence[int],
    splits_rows: int,
    to: Tensor,
) -> None:
    """Write the signed sums of tile products of prepared factors."""
    planes, b, rows, padded = left.shape
    positions = windows[12] * windows[13] * windows[14]
    _call(
        "products",
        left,
        list(tiles),
        *_addresses(shifts, signs, left),
        (b, rows, positions, padded),
        right.data_ptr(),
        right.shape[3],
        planes,
        tuple(size),
        tuple(windows),
        splits_rows,
        to.shape[0] // splits_rows,
        to.data_ptr(),
    )


def gradient(
    g: Tensor, diagonals: Tensor, signs: Tensor, shifts: Tensor, tiles: Sequence[int], to: Tensor
) -> None:
    """Write the sketch of whole gradients [b, size]."""
    addresses = _addresses(diagonals, shifts, signs, g)
    b, size = g.shape
    _call("gradient", g, list(tiles), *addresses, TYPES[g.dtype], b, size, len(to), to.data_ptr())


def lookup(
    ids: Tensor,
    right: Tensor,
    diagonals: Tensor,
    signs: Tensor,
    shifts: Tensor,
    tiles: Sequence[int],
    to: Tensor,
) -> None:
    """Write the sketch of look-ups ids [b, T] of prepared deltas."""
    planes, b, tokens, padded = right.shape
    addresses = _addresses(diagonals, shifts, signs, ids, right)
    _call("lookup", ids, list(tiles), *addresses, planes, b, tokens, padded, len(to), to.data_ptr())


def dense(
    g: Tensor, family: str, precision: str, scale: float, seed: int, stream: int, to: Tensor
) -> None:
    """Write P g for gradients [b, p] and a matrix of signs."""
    if family != "rademacher":
        raise ConfigError(f"the CUDA kernels make rademacher, not {family}; impl='triton' does")
    splits, b, k = to.shape
    _call(
        "dense",
        g,
        g.data_ptr(),
        b,
        g.shape[1],
        k,
        scale,
        seed,
        stream,
        PRECISIONS[precision],
        splits,
        has_wgmma(g.device),
        to.data_ptr(),
    )


def norm_sums(delta: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Write the sums over positions of delta (x - mean), and of delta: [n, C, L] to [n, C]."""
    _call(
        "norm_sums",
        delta,
        delta.data_ptr(),
        TYPES[delta.dtype],
        delta.stride(),
        x.data_ptr(),
        TYPES[x.dtype],
        x.stride(),
        delta.shape,
        *_addresses(mean, scale, shift),
    )


def _addresses(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _call(name: str, on: Tensor, *arguments: Any) -> None:
    """Run a kernel on the device of a tensor, in PyTorch's current stream there."""
    module, device = cuda_module(), on.device
    if module is None:
        raise ConfigError(f"impl='cuda' cannot be used: {cuda_error()}")
    if device.type != module.device_type:
        raise ConfigError(
            f"the CUDA kernels run on a {module.device_type} device; the tensors are on {device}"
        )
    index = queue = 0
    if device.type == "cuda":
        index, queue = device.index, torch.cuda.current_stream(device).cuda_stream
    try:
        getattr(module, name)(*arguments, index, queue)
    except RuntimeError as error:
        raise KernelError(
            f"the CUDA kernel for {name} failed on {device}: {error}; use impl='triton' or "
            "impl='torch', and report it"
        ) from None
