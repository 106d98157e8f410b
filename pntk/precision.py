"""In which precision a model computes: bfloat16 where asked for, and how coarsely it rounds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from pntk.errors import ConfigError
from pntk.logits import Model
from pntk.outputs import Output, Values


class Autocast(Output):
    """Another output under ``torch.autocast``; the backward pass follows by itself.

    PyTorch advises against autocast around a backward pass: it would lower what the forward pass
    kept in float32.
    """

    def __init__(self, output: Output, device: torch.device) -> None:
        self.output = output
        self.name = output.name
        self._device_type = device.type

    def __call__(self, model: Model, batch: Any) -> Values:
        with self.lowered():
            return self.output(model, batch)

    def lowered(self) -> AbstractContextManager[Any]:
        """Return the context in which the other output runs.

        Without the cache of an autocast around it, which may hold weights in another type, or as
        they were before.
        """
        return torch.autocast(self._device_type, dtype=torch.bfloat16, cache_enabled=False)

    def describe(self) -> dict[str, Any]:
        return self.output.describe()


def lowered_by(output: Output) -> AbstractContextManager[Any]:
    """Return the context that an output sets for the model, to set it for a backward pass too."""
    return output.lowered() if isinstance(output, Autocast) else nullcontext()


def check_autocast(model: nn.Module, device: torch.device) -> None:
    """Refuse a model that cannot run under bfloat16 autocast.

    Raises:
        ConfigError: a parameter is float64, or the device has no bfloat16.
    """
    double = [name for name, p in model.named_parameters() if p.dtype == torch.float64]
    if double:
        raise ConfigError(
            f"precision is 'bf16' and parameter {double[0]} is torch.float64, which autocast "
            "leaves alone; convert the model with .float(), or use precision='fp64'"
        )
    try:
        torch.autocast(device.type, dtype=torch.bfloat16)
    except RuntimeError as error:
        raise ConfigError(
            f"precision is 'bf16' and {device} cannot run it ({error}); use precision='fp32'"
        ) from None


def arithmetic(model: nn.Module, output: Output) -> str:
    """Return the coarsest arithmetic of a forward pass: ``fp64``, ``fp32``, ``tf32`` or ``half``.

    Kernels that round so may give a sample another result in a batch of another size.
    """
    params = list(model.parameters())
    device = params[0].device
    lowest = min(p.element_size() for p in params)
    if isinstance(output, Autocast) or torch.is_autocast_enabled(device.type):
        lowest = min(lowest, 2)
    if lowest == 4 and device.type == "cuda" and _uses_tf32(model, device):
        return "tf32"
    return {8: "fp64", 4: "fp32"}.get(lowest, "half")


def _uses_tf32(model: nn.Module, device: torch.device) -> bool:
    """Whether float32 products of a model go through tensor cores, with factors of 11 bits."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if _in_tf32(matmul, matmul):
        return True
    convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    return convolutions and _in_tf32(getattr(cudnn, "conv", None), cudnn)


def _in_tf32(backend: Any, before: Any) -> bool:
    """Whether a backend rounds to TF32; ``before`` says so in PyTorch before 2.9.

    Newer ones refuse to read the old setting where the new one was made.
    """
    precision = getattr(backend, "fp32_precision", None)
    return bool(before.allow_tf32) if precision is None else precision == "tf32"
