"""Data that is linearly separable along one direction, and directions of single frequencies.

Shapes: n samples; *shape of one input, such as [c, h, w]; u, v frequencies.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pntk.errors import ConfigError


class DirectionalLinearDataset(Dataset[tuple[Tensor, int]]):
    """Two classes that differ along one direction alone, with noise in all others.

    x = +-(epsilon / 2) v + sigma (I - v v^T) z, z standard normal; + is class 0 and - is class 1.

    Args:
        direction: v, [*shape], which is scaled to unit length.
        num_samples: n; class 0 comes first and has one more where n is odd.
        sigma: standard deviation of the noise.
        epsilon: distance between the classes.
        seed: of the noise; the same samples for the same arguments.

    Attributes:
        data: float32 [n, *shape].
        targets: int64 [n].

    Raises:
        ConfigError: the direction is zero or not finite, or another argument cannot work.

    Source:
        Ortiz-Jimenez, Modas, Moosavi-Dezfooli, Frossard (2020), Neural anisotropy directions,
        https://arxiv.org/abs/2006.09717.

    Example:
        >>> v = torch.tensor([[[3.0, 4.0]]])
        >>> data = DirectionalLinearDataset(v, num_samples=3, epsilon=2)
        >>> data.targets, data[2][1]
        (tensor([0, 0, 1]), 1)
        >>> (data.data * v / 5).sum((1, 2, 3))  # +-epsilon / 2, whatever the noise
        tensor([ 1.0000,  1.0000, -1.0000])
    """

    def __init__(
        self,
        direction: Tensor,
        num_samples: int = 10_000,
        sigma: float = 3,
        epsilon: float = 1,
        seed: int = 0,
    ) -> None:
        self.direction = unit_direction(direction)
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ConfigError(f"num_samples is {num_samples!r}; expected an integer of at least 1")
        check_number("sigma", sigma, zero=True)
        check_number("epsilon", epsilon)
        self.sigma, self.epsilon, self.seed = sigma, epsilon, seed
        v = self.direction.flatten()
        random = torch.Generator().manual_seed(seed)
        flat = torch.randn(num_samples, v.numel(), generator=random).mul_(sigma)
        flat.addr_(flat @ v, v, alpha=-1)
        self.targets = (torch.arange(num_samples) >= (num_samples + 1) // 2).long()
        flat.addr_(epsilon / 2 * (1 - 2 * self.targets.float()), v)
        self.data = flat.view(num_samples, *self.direction.shape)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data[index], int(self.targets[index])


def create_rfft2_direction(
    shape: Sequence[int], index: Sequence[int], value: complex = 1j
) -> Tensor:
    """Return the unit direction whose 2-D Fourier transform has one coefficient.

    v[c, y, x] ~ Re(value exp(2 pi i (u y / h + v x / w))) in channel c, zero in the others: what
    ``irfft2`` makes of that one coefficient, divided by its length.

    Args:
        shape: [..., h, w], such as [c, h, w].
        index: of the coefficient in ``rfft2`` of that shape, [..., h, w // 2 + 1], such as
            (c, u, v); negative ones count from the end.
        value: of the coefficient; its argument is the phase: 1 a cosine, 1j a sine.

    Returns:
        float32 of that shape.

    Raises:
        ConfigError: the shape or the index cannot work, or the direction is zero: coefficients that
            are their own conjugates (u of 0 or h / 2, and v of 0 or w / 2) have no sine.

    Example:
        >>> create_rfft2_direction((1, 1, 4), (0, 0, 1), 1)
        tensor([[[ 0.7071,  0.0000, -0.7071,  0.0000]]])
    """
    shape, index, value = tuple(shape), tuple(index), complex(value)
    if len(shape) < 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ConfigError(f"shape is {shape}; expected positive sizes such as (1, 32, 32)")
    limits = (*shape[:-1], shape[-1] // 2 + 1)
    if len(index) != len(shape) or not all(
        isinstance(place, int) and -limit <= place < limit
        for place, limit in zip(index, limits, strict=True)
    ):
        raise ConfigError(
            f"index is {index}; expected a place in rfft2 of {shape}, which has shape {limits}"
        )
    if not cmath.isfinite(value) or value == 0:
        raise ConfigError(f"value is {value}; expected a finite number other than 0")
    *channel, u, v = (place % limit for place, limit in zip(index, limits, strict=True))
    height, width = shape[-2:]
    if 2 * u % height == 0 and 2 * v % width == 0:  # a real wave
        if value.real == 0:
            raise ConfigError(
                f"the coefficient at {index} of shape {shape} is its own conjugate, so that value "
                f"{value} gives the zero direction; use a real value such as 1"
            )
        value = complex(value.real)
    # whole numbers are reduced before they become angles, which keeps angles exact
    turns = (u * torch.arange(height) % height).double()[:, None] / height
    turns = turns + (v * torch.arange(width) % width).double() / width
    wave = torch.cos(2 * math.pi * turns + cmath.phase(value))
    wave[wave.abs() < 1e-12] = 0
    direction = torch.zeros(shape)
    direction[tuple(channel)] = (wave / wave.norm()).float()
    return direction


class FourierGrid(NamedTuple):
    """Directions of a grid of low frequencies.

    Attributes:
        directions: float32 [r, *shape], row by row of the grid.
        frequencies: (u, v) of each.
    """

    directions: Tensor
    frequencies: list[tuple[int, int]]


def fourier_grid(
    shape: Sequence[int], step: int = 1, channel: int = 0, *, negative: bool = False
) -> FourierGrid:
    """Return sines of all frequencies below h / 2 and w / 2, every ``step``-th of them.

    Where a frequency has no sine, as at (0, 0), the cosine stands for it.

    Args:
        shape: [c, h, w].
        step: from one frequency to the next.
        channel: that has the wave.
        negative: also the vertical frequencies from -h / 2 on: waves that lean the other way.

    Raises:
        ConfigError: see :func:`create_rfft2_direction`.

    Example:
        >>> fourier_grid((1, 32, 32), step=8).frequencies
        [(0, 0), (0, 8), (8, 0), (8, 8)]
    """
    if len(shape) != 3:
        raise ConfigError(f"shape is {tuple(shape)}; expected [c, h, w], such as (1, 32, 32)")
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ConfigError(f"step is {step!r}; expected an integer of at least 1")
    vertical = [*range(0, max(1, shape[1] // 2), step)]
    if negative:
        vertical = [*range(-step, -(shape[1] // 2) - 1, -step)][::-1] + vertical
    frequencies = [(u, v) for u in vertical for v in range(0, max(1, shape[2] // 2), step)]
    directions = [
        create_rfft2_direction(
            shape, (channel, u, v), 1 if 2 * u % shape[1] == 2 * v % shape[2] == 0 else 1j
        )
        for u, v in frequencies
    ]
    return FourierGrid(torch.stack(directions), frequencies)


def unit_direction(direction: Any, name: str = "direction") -> Tensor:
    """Return a direction as float32 on the CPU, scaled to unit length.

    Raises:
        ConfigError: it is no tensor of floating point, or zero, or not finite.
    """
    if not isinstance(direction, Tensor) or not direction.is_floating_point():
        kind = direction.dtype if isinstance(direction, Tensor) else type(direction).__name__
        raise ConfigError(f"{name} is {kind}; expected a tensor of floating point, of unit length")
    found = direction.detach().cpu().double()
    norm = float(found.norm()) if found.numel() else 0.0
    if norm == 0 or not math.isfinite(norm):
        raise ConfigError(
            f"{name} of shape {tuple(found.shape)} has length {norm}; expected a direction that is "
            "finite and not zero"
        )
    return (found / norm).float()


def check_number(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is no finite positive number, or zero unless it may be.

    Raises:
        ConfigError: naming it.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not zero):
        wanted = "of at least 0" if zero else "above 0"
        raise ConfigError(f"{name} is {value!r}; expected a finite number {wanted}")
