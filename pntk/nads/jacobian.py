"""Input gradients of networks at one point: by autograd, or by central finite differences.

Shapes: g networks of a group; d = c h w numbers of the point; b perturbed points.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pntk.errors import OutputError
from pntk.forward import explained
from pntk.nads.drawing import is_repeatable, scalars
from pntk.nads.local import LocalImages, Memo

log = logging.getLogger("pntk")

STACKED_NUMBERS = 2**20  # parameters of a network up to which a group is faster than a loop
# perturbed points at a time: larger networks gain more from what is local than from batches
SMALL_BATCH, BATCH = 256, 50
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def autograd_gradients(models: Sequence[nn.Module], point: Tensor) -> Tensor:
    """Return the gradients [g, *point] of scalar networks, small ones together.

    Raises:
        ModelError: a network that cannot take the point.
        OutputError: not one number, or one that no gradient leads to.
    """
    size = sum(p.numel() for p in models[0].parameters())
    if len(models) > 1 and size <= STACKED_NUMBERS and all(map(is_repeatable, models)):
        try:
            return stacked_gradients(models[0], *stack_module_state(list(models)), point)
        except OutputError:
            raise
        except (RuntimeError, ValueError) as error:
            log.info("%s cannot be grouped: %s", type(models[0]).__name__, error)
    return torch.stack([_gradient(model, point) for model in models])


def _gradient(model: nn.Module, point: Tensor) -> Tensor:
    with torch.enable_grad():
        x = point[None].detach().clone().requires_grad_()
        with explained(model, x):
            output = model(x)
        value = scalars(type(model).__name__, output, 1).sum()
        return _differentiate(type(model).__name__, value, x)[0]


def stacked_gradients(
    model: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor], point: Tensor
) -> Tensor:
    """Return the gradients [g, *point] of networks alike, given what each holds, [g, ...].

    Raises:
        OutputError: not one number, or one that no gradient leads to.
        RuntimeError, ValueError: the network cannot be grouped.
    """
    count = len(next(iter(params.values())))

    def run(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        values = functional_call(model, (params, buffers), (x[None],))
        return scalars(type(model).__name__, values, 1).sum()

    with torch.enable_grad():
        params = {name: p.detach() for name, p in params.items()}
        x = point.detach().expand(count, *point.shape).clone().requires_grad_()
        values = vmap(run)(params, buffers, x).sum()
        return _differentiate(type(model).__name__, values, x)


def _differentiate(name: str, value: Tensor, x: Tensor) -> Tensor:
    if not value.requires_grad:
        raise OutputError(
            f"the output of {name} has no gradient with respect to its input; use "
            "jacobian='finite_difference', or a network that depends on its input"
        )
    (gradient,) = torch.autograd.grad(value, x)
    return gradient.detach()


class FiniteDifference:
    """Central differences along every number of a point: (f(x + s e_i) - f(x - s e_i)) / (2 s).

    Neighbours go through a network together, and are computed where they differ from the point
    (see ``pntk.nads.local``). The first call of each network's class is compared with whole images.

    Args:
        point: [d] or [c, *s].
        scale: s.
        batch_size: perturbed points at a time, about; None chooses.
    """

    def __init__(self, point: Tensor, scale: float, batch_size: int | None = None) -> None:
        self.point, self.scale, self.batch_size = point, scale, batch_size
        self._base = point[None]
        self._local: bool | None = None if point.dim() > 1 else False

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Tensor:
        """Return the differences, of the shape of the point.

        Raises:
            ModelError: a network that cannot take the point.
            OutputError: not one number an input.
        """
        gradient, memo = torch.empty_like(self.point), Memo()
        small = sum(p.numel() for p in model.parameters()) <= STACKED_NUMBERS
        for part in self._parts(self.batch_size or (SMALL_BATCH if small else BATCH)):
            if self._local is None:
                gradient[part] = self._run(model, part, None)
                self._local = self._agrees(model, part, gradient[part])
            else:
                gradient[part] = self._run(model, part, memo if self._local else None)
        return gradient

    def _agrees(self, model: nn.Module, part: tuple[slice, ...], expected: Tensor) -> bool:
        name = type(model).__name__
        try:
            found = self._run(model, part, Memo())
        except Exception as error:  # the same images went through as whole ones
            log.info("%s runs on whole images: %s", name, error)
            return False
        apart = float((found - expected).abs().max() / expected.abs().max())
        if not apart <= TOLERANCE[self.point.dtype]:
            log.info("%s runs on whole images: otherwise %.2g apart", name, apart)
            return False
        return True

    def _run(self, model: nn.Module, part: tuple[slice, ...], memo: Memo | None) -> Tensor:
        """Return the differences of the numbers in a part of the point."""
        numbers = self.point[part]
        count = numbers.numel()
        steps = self.scale * torch.eye(count, dtype=numbers.dtype, device=numbers.device)
        steps = torch.cat([steps, -steps]).reshape(2 * count, *numbers.shape)
        if memo is None:
            images = self.point.repeat(2 * count, *[1] * self.point.dim())
            images[(slice(None), *part)] += steps
            with explained(model, images):
                outputs = model(images)
        else:
            spans = [(at.start, at.stop) for at in part[1:]]
            outputs = model(LocalImages(self._base, numbers + steps, spans, memo))
        values = scalars(type(model).__name__, outputs, 2 * count)
        if isinstance(values, LocalImages):
            values = values.whole()
        return ((values[:count] - values[count:]) / (2 * self.scale)).reshape(numbers.shape)

    def _parts(self, batch_size: int) -> Iterator[tuple[slice, ...]]:
        """Cut the point into squares over all channels."""
        channels, sizes = self.point.shape[:1], self.point.shape[1:]
        if not sizes:  # a vector
            channels, sizes = sizes, channels
        pixels = max(1, batch_size // (2 * math.prod(channels)))
        side = max(1, math.floor(pixels ** (1 / len(sizes)) + 1e-9))
        for corner in itertools.product(*(range(0, size, side) for size in sizes)):
            square = [slice(a, min(a + side, s)) for a, s in zip(corner, sizes, strict=True)]
            yield (*(slice(0, size) for size in channels), *square)
