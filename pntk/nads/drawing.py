"""Draw random networks, each from a seed of its own, and leave the random state as found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pntk.errors import ConfigError, OutputError

Build = Callable[[int], nn.Module]


def network_seed(seed: int, number: int) -> int:
    """Return the seed of one network, 0 to 2^63 - 1: a hash of the run's seed and its number."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@contextlib.contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Give the random state back at the end: the CPU's and that of the device."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def builder(
    model_cls: Callable[..., nn.Module],
    model_params: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    force_eval: bool,
) -> Build:
    """Return what draws a network by its number, to be called within ``own_random_state``.

    Parameters require no gradient, which would only be computed for nothing.
    """

    def build(number: int) -> nn.Module:
        _seed(network_seed(seed, number), device)
        try:
            model = model_cls(**model_params)
        except Exception as error:
            raise ConfigError(
                f"{name_of(model_cls)} cannot be built with {dict(model_params)} "
                f"({type(error).__name__}: {error}); correct model_params"
            ) from error
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{name_of(model_cls)} made a {type(model).__name__}; expected a torch.nn.Module"
            )
        if not all(_fits(t, device, dtype) for t in (*model.parameters(), *model.buffers())):
            model = model.to(device=device, dtype=dtype)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return model.eval() if force_eval else model

    return build


class Redraw:
    """Draws networks into one that is there: the same numbers without building modules anew.

    Works where building a network is drawing its layers in order, by ``reset_parameters``; whether
    it is has been tried with two seeds. LeNet on one core: 0.42 ms to build, 0.2 to draw again.

    Args:
        model: to draw into.
        build: what made it; see :func:`builder`.
        seed: of the run.
        device: of the networks.
    """

    def __init__(self, model: nn.Module, build: Build, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self.model = model
        own = (
            m for m in self.model.modules() if next(m.parameters(recurse=False), None) is not None
        )
        self._layers: list[Any] = list(own)
        self.works = all(hasattr(layer, "reset_parameters") for layer in self._layers) and all(
            self._equals(build, number) for number in (1, 2)
        )

    def stacked(self, numbers: Iterable[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and buffers of some networks, [g, ...] each."""
        drawn = []
        for number in numbers:
            self._draw(number)
            drawn.append([p.clone() for p in self.model.parameters()])
        names = [name for name, _ in self.model.named_parameters()]
        params = {
            name: torch.stack(each)
            for name, each in zip(names, zip(*drawn, strict=True), strict=True)
        }
        buffers = {
            name: buffer.expand(len(drawn), *buffer.shape)
            for name, buffer in self.model.named_buffers()
        }
        return params, buffers

    def _draw(self, number: int) -> None:
        _seed(network_seed(self._seed, number), self._device)
        for layer in self._layers:
            layer.reset_parameters()

    def _equals(self, build: Build, number: int) -> bool:
        expected = _tensors(build(number))
        self._draw(number)
        found = _tensors(self.model)
        return expected.keys() == found.keys() and all(
            torch.equal(found[name], value) for name, value in expected.items()
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _seed(seed: int, device: torch.device) -> None:
    """Do what torch.manual_seed does; it spends longer on devices that are not there."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _fits(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> bool:
    return tensor.device == device and (tensor.dtype == dtype or not tensor.is_floating_point())


def name_of(model_cls: Callable[..., Any]) -> str:
    """Return the name of a class, a function, or what a partial calls."""
    return str(getattr(model_cls, "__name__", None) or name_of(getattr(model_cls, "func", type)))


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device, once it is known to be there.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"device is {str(device)!r}, which cannot be used ({reason}); use 'cpu'"
        ) from error
    return found


def is_repeatable(model: nn.Module) -> bool:
    """Whether no part of a model is in training mode, where it may mix samples or be random."""
    return not any(module.training for module in model.modules())


def scalars(name: str, outputs: Any, count: int) -> Tensor:
    """Return what a network gave for ``count`` inputs as [count].

    Raises:
        OutputError: not one number an input.
    """
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape not in [(count,), (count, 1)]:
        raise OutputError(
            f"{name} returns {shape} for {count} input{'s' * (count > 1)}; expected one number an "
            "input, such as num_classes=1 in model_params gives"
        )
    return outputs.reshape(count)
