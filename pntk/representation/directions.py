"""Directions in weight space: random ones, between checkpoints, along a training run.

A direction is a dict, name -> tensor of the parameter's shape. Shapes: T checkpoints; p entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pntk.errors import ConfigError
from pntk.naming import unwrap

Direction = dict[str, Tensor]
Checkpoint = nn.Module | Mapping[str, Tensor]

NORMALIZE = ("filter", "layer", None)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def random_direction(
    params: Checkpoint,
    seed: int = 0,
    *,
    normalize: str | None = "filter",
    ignore_1d: bool = True,
) -> Direction:
    """Draw a direction from N(0, 1) and give its parts the lengths that the weights have.

    Filter i of a parameter w (its slice w[i]: an output channel, a row): d[i] |w[i]| / |d[i]|.

    Args:
        params: a model, of which the parameters count, or name -> tensor.
        seed: of the draw, which is the same on every device.
        normalize: ``filter``; ``layer`` for d |w| / |d| over the whole parameter; None for d as
            drawn.
        ignore_1d: whether parameters of fewer than two axes (biases, those of BatchNorm) stay
            where they are, as in the paper. Otherwise each counts as one filter.

    Raises:
        ConfigError: another ``normalize`` or seed, or no parameter that would move.

    Source: Li, Xu, Taylor, Studer, Goldstein (2018), Visualizing the loss landscape of neural nets,
    section 4, https://arxiv.org/abs/1712.09913

    >>> net = nn.Linear(2, 3)
    >>> direction = random_direction(net, seed=1)
    >>> torch.allclose(direction["weight"].norm(dim=1), net.weight.norm(dim=1))
    True
    >>> direction["bias"]
    tensor([0., 0., 0.])
    """
    if normalize not in NORMALIZE:
        raise ConfigError(f"normalize is {normalize!r}; expected 'filter', 'layer' or None")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected an integer of at least 0")
    if isinstance(params, nn.Module):
        params = dict(unwrap(params).named_parameters())
    if not isinstance(params, Mapping):
        raise ConfigError(
            f"params is a {type(params).__name__}; expected a model, or a dict name -> tensor"
        )
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, weight in params.items():
        if not weight.is_floating_point():
            continue
        if not bool(weight.isfinite().all()):
            raise ConfigError(f"{name} holds NaN or infinity; expected finite weights")
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if ignore_1d and weight.dim() < 2:
            drawn.zero_()
        elif normalize is not None:
            by_filter = normalize == "filter" and weight.dim() > 1
            drawn = _rescaled(drawn, weight.detach().cpu().double(), by_filter)
        direction[name] = drawn.to(weight.device, weight.dtype)
    if not any(bool(part.any()) for part in direction.values()):
        raise ConfigError(
            f"none of {len(direction)} parameters would move: their weights are zero, or have "
            "fewer than two axes; use ignore_1d=False or normalize=None"
        )
    return direction


def between(a: Checkpoint, b: Checkpoint, *, ignore_1d: bool = False) -> Direction:
    """Return b - a, so that a + 1 * direction is b; running statistics of BatchNorm move along.

    Args:
        a, b: models or state dicts of the same names and shapes.
        ignore_1d: whether entries of fewer than two axes stay where they are.

    Raises:
        ConfigError: other names or shapes, values that are not finite, or a equals b.

    >>> between({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
    {'w': tensor([2.])}
    """
    first, second = _tensors(a), _tensors(b)
    _check_alike(first, second, "b")
    direction = {
        name: (second[name].to(start) - start) * float(not (ignore_1d and start.dim() < 2))
        for name, start in first.items()
    }
    if not any(bool(part.any()) for part in direction.values()):
        raise ConfigError("both checkpoints are the same; expected two that differ")
    return direction


class Trajectory(NamedTuple):
    """Principal directions of a training run.

    Attributes:
        x, y: directions of length 1, orthogonal to each other.
        explained: float64 [2], share of the squared distances to the last checkpoint.
        path: float64 [T, 2], coordinates of the checkpoints; those of the last are (0, 0).
    """

    x: Direction
    y: Direction
    explained: npt.NDArray[np.float64]
    path: npt.NDArray[np.float64]


def trajectory_pca(checkpoints: Sequence[Checkpoint], *, center: bool = False) -> Trajectory:
    """Return the two directions that hold most of a training run, seen from its end.

    Principal directions of the rows theta_t - theta_T. Statistics of BatchNorm are left out. The
    products of rows are summed in float64 and no p x p matrix is made.

    Args:
        checkpoints: models or state dicts, at least three, in order.
        center: subtract the mean of the rows, as PCA does. Then lines through the last checkpoint
            are no longer those that lie closest to the run.

    Raises:
        ConfigError: fewer than three, other names or shapes, values that are not finite, or
            checkpoints that lie on one line.

    Source: Li et al. (2018), section 7.2, https://arxiv.org/abs/1712.09913
    """
    if len(checkpoints) < 3:
        raise ConfigError(
            f"there are {len(checkpoints)} checkpoints; expected at least 3, which span a plane"
        )
    found = [_tensors(one, statistics=False) for one in checkpoints]
    last = found[-1]
    for number, one in enumerate(found[:-1]):
        _check_alike(last, one, f"checkpoint {number}")
    rows = torch.stack([_flat(one, last) for one in found])  # [T, p]
    steps = rows - rows.mean(0) if center else rows
    values, vectors = torch.linalg.eigh(steps @ steps.T)  # [T, T], ascending
    shares = (values.clamp(min=0) / values.clamp(min=0).sum()).flip(0)
    if not float(shares[1]) > 1e-12:
        raise ConfigError(
            "the checkpoints lie on one line, or are all the same; expected three that span a "
            "plane: use between() for a line"
        )
    axes = vectors[:, [-1, -2]].T @ steps  # [2, p]
    axes /= axes.norm(dim=1, keepdim=True)
    path = rows @ axes.T
    flip = torch.where(path[0] < 0, -1.0, 1.0).double()  # the run begins at positive coordinates
    axes, path = axes * flip[:, None], path * flip
    x, y = (_unflat(axis, last) for axis in axes)
    return Trajectory(x, y, shares[:2].numpy(), path.numpy())


def check_direction(
    direction: Direction, weights: Mapping[str, Tensor], needed: Sequence[str], label: str
) -> None:
    """Refuse what is no direction from these weights.

    Args:
        weights: name -> tensor that may move.
        needed: names that must be there.

    Raises:
        ConfigError: names, a shape or a value that does not fit, or nothing that moves.
    """
    if not isinstance(direction, Mapping):
        raise ConfigError(
            f"{label} is a {type(direction).__name__}; expected a dict name -> tensor, such as "
            "random_direction(model) returns"
        )
    if missing := [name for name in needed if name not in direction]:
        raise ConfigError(
            f"{label} lacks {_some(missing)}; give each parameter its part, zeros for one that "
            "stays"
        )
    if unknown := [name for name in direction if name not in weights]:
        raise ConfigError(
            f"{label} has {_some(unknown)}, which the model has not; expected its own names, such "
            f"as {_some(list(weights))}"
        )
    for name, part in direction.items():
        _check_part(part, weights[name], f"{label}[{name!r}]")
    if not any(bool(part.any()) for part in direction.values()):
        raise ConfigError(f"{label} is zero everywhere; expected some parameter that moves")


def _check_part(part: Tensor, weight: Tensor, label: str) -> None:
    if not isinstance(part, Tensor):
        raise ConfigError(f"{label} is a {type(part).__name__}; expected a tensor")
    if part.shape != weight.shape:
        raise ConfigError(
            f"{label} has shape {tuple(part.shape)}; expected {tuple(weight.shape)}, that of the "
            "model's"
        )
    if not bool(part.isfinite().all()):
        raise ConfigError(f"{label} holds NaN or infinity; expected finite values")


def _check_alike(first: Mapping[str, Tensor], other: Mapping[str, Tensor], label: str) -> None:
    if different := sorted(first.keys() ^ other.keys()):
        raise ConfigError(
            f"{label} has other names: {_some(different)} is in one only; expected checkpoints of "
            "one model"
        )
    for name, start in first.items():
        _check_part(other[name], start, f"{label}[{name!r}]")
        _check_part(start, start, name)


def _tensors(checkpoint: Checkpoint, *, statistics: bool = True) -> Direction:
    """Return the floating-point entries of a model or state dict."""
    if isinstance(checkpoint, nn.Module):
        checkpoint = unwrap(checkpoint).state_dict()
    if not isinstance(checkpoint, Mapping):
        raise ConfigError(
            f"a checkpoint is a {type(checkpoint).__name__}; expected a model or a state dict"
        )
    return {
        name: value.detach()
        for name, value in checkpoint.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and (statistics or name.rpartition(".")[2] not in _STATISTICS)
    }


def _rescaled(drawn: Tensor, weight: Tensor, by_filter: bool) -> Tensor:
    rows = drawn.flatten(1) if by_filter else drawn.reshape(1, -1)
    lengths = weight.reshape(rows.shape).norm(dim=1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    return (rows * torch.where(norms > 0, lengths / norms, 0.0)).reshape(drawn.shape)


def _flat(checkpoint: Direction, last: Direction) -> Tensor:
    parts = [
        (checkpoint[name].double() - end.double()).flatten().cpu() for name, end in last.items()
    ]
    return torch.cat(parts)


def _unflat(axis: Tensor, like: Direction) -> Direction:
    parts = axis.split([part.numel() for part in like.values()])
    return {
        name: part.view_as(end).to(end.device, end.dtype)
        for part, (name, end) in zip(parts, like.items(), strict=True)
    }


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
