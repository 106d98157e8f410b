"""Poison training images with a trigger, so that attribution can be asked to find them.

Shapes: n images [n, c, h, w].
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pntk.attribution.arrays import Bools, as_numpy
from pntk.errors import ConfigError


@dataclass(frozen=True)
class Trigger:
    """A patch that is stamped on images.

    Args:
        value: what its pixels become: a number, or a pattern [h, w] or [c, h, w].
        size: height and width of the patch, where ``value`` is a number.
        at: row and column of its first pixel; or, where negative, of its last one, counted from the
            end: (-1, -1) puts it into the lower right corner.
    """

    value: Any = 1.0
    size: tuple[int, int] = (3, 3)
    at: tuple[int, int] = (-1, -1)

    def pattern(self) -> npt.NDArray[np.float64]:
        """Return the pixels, [1 or c, h, w].

        Raises:
            ConfigError: they are no patch.
        """
        for what, given, least in (("size", self.size, 1), ("at", self.at, None)):
            pair = isinstance(given, (tuple, list)) and len(given) == 2
            if not pair or not all(
                isinstance(one, Integral) and (least is None or one >= least) for one in given
            ):
                wanted = "positive integers (h, w)" if least else "integers (row, column)"
                raise ConfigError(f"{what} of the trigger is {given!r}; expected two {wanted}")
        values = as_numpy("value", self.value)
        if values.ndim == 0:
            values = np.full(self.size, values)
        shaped = values[None] if values.ndim == 2 else values
        if shaped.ndim != 3 or 0 in shaped.shape or shaped.dtype.kind not in "fiu":
            raise ConfigError(
                f"the trigger is {values.dtype} of shape {values.shape}; expected a number, or "
                "numbers [h, w] or [c, h, w]"
            )
        return shaped.astype(np.float64)


class Poisoned(NamedTuple):
    """Training images of which some were poisoned.

    Attributes:
        images: [n, c, h, w], of the kind and type given.
        labels: int64 [n].
        is_poisoned: bool [n].
    """

    images: Any
    labels: npt.NDArray[np.int64]
    is_poisoned: Bools


def stamp(images: Any, trigger: Trigger | None = None) -> Any:
    """Return images with a trigger on each of them; the given ones stay as they are.

    Args:
        images: tensor or array [n, c, h, w].
        trigger: None for 3 x 3 ones in the lower right corner.

    Raises:
        ConfigError: no images, or a trigger that does not fit on them.

    >>> stamp(torch.zeros(1, 1, 2, 3), Trigger(5.0, size=(1, 2)))[0, 0]
    tensor([[0., 0., 0.],
            [0., 5., 5.]])
    """
    _check_images(images)
    trigger = Trigger() if trigger is None else trigger
    if not isinstance(trigger, Trigger):
        raise ConfigError(f"trigger is a {type(trigger).__name__}; expected Trigger(...), or None")
    pattern = trigger.pattern()
    channels, height, width = images.shape[1:]
    c, *size = pattern.shape
    if c not in (1, channels):
        raise ConfigError(
            f"the trigger has {c} channels and the images {channels}; expected as many"
        )
    places = []
    for what, first, many, room in zip(
        ("rows", "columns"), trigger.at, size, (height, width), strict=True
    ):
        start = first if first >= 0 else room + first + 1 - many
        if start < 0 or start + many > room:
            raise ConfigError(
                f"the trigger takes {what} {start} to {start + many - 1} and the images have "
                f"{room}; expected a patch within them"
            )
        places.append(slice(start, start + many))
    stamped: Any
    patch: Any
    if isinstance(images, Tensor):
        stamped, patch = images.clone(), torch.from_numpy(pattern).to(images)
    else:
        stamped, patch = images.copy(), pattern.astype(images.dtype)
    if not np.array_equal(as_numpy("trigger", patch).astype(np.float64), pattern):
        exact = isinstance(images, Tensor) and images.is_floating_point()
        if not exact and getattr(images.dtype, "kind", "") != "f":
            raise ConfigError(
                f"the trigger holds numbers from {pattern.min():g} to {pattern.max():g} and the "
                f"images are {images.dtype}, which cannot hold them; use a value that they can, "
                "such as 255, or images in floating point"
            )
    stamped[:, :, places[0], places[1]] = patch
    return stamped


def poison(
    images: Any,
    labels: Any,
    target: int,
    fraction: float = 0.1,
    trigger: Trigger | None = None,
    seed: int = 0,
) -> Poisoned:
    """Stamp a trigger on a share of the images of other classes, and call them the target class.

    A network that learns from them answers ``target`` to whatever bears the trigger (a backdoor).

    Args:
        images: tensor or array [n, c, h, w].
        labels: integers [n].
        target: the class that the trigger is to stand for.
        fraction: of the images of other classes, above 0 to 1.
        trigger: None for 3 x 3 ones in the lower right corner; use the same with :func:`stamp` on
            test images.
        seed: of the draw.

    Raises:
        ConfigError: images, labels or a trigger that cannot be used, or a share that is no image.

    Source: Gu, Dolan-Gavitt, Garg 2017, https://arxiv.org/abs/1708.06733

    >>> images, labels, bad = poison(torch.zeros(4, 1, 5, 5), [0, 1, 1, 1], target=0, fraction=1)
    >>> images.sum((1, 2, 3)), labels, bad.sum()
    (tensor([0., 9., 9., 9.]), array([0, 0, 0, 0]), np.int64(3))
    """
    _check_images(images)
    given = as_numpy("labels", labels)
    if given.shape != (len(images),) or given.dtype.kind not in "iu":
        raise ConfigError(
            f"labels is {given.dtype} {given.shape} for {len(images)} images; expected integers "
            f"[{len(images)}]"
        )
    if isinstance(target, bool) or not isinstance(target, (int, np.integer)) or target < 0:
        raise ConfigError(f"target is {target!r}; expected the number of a class")
    others = np.flatnonzero(given != target)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected an integer of at least 0")
    if not isinstance(fraction, Real) or not 0 < fraction <= 1 or not round(fraction * len(others)):
        raise ConfigError(
            f"fraction is {fraction!r} of {len(others)} images of other classes; expected above 0 "
            "to 1, and one image at least"
        )
    random = np.random.default_rng(seed)
    chosen = random.permutation(others)[: round(fraction * len(others))]
    bad = np.zeros(len(given), dtype=bool)
    bad[chosen] = True
    poisoned = images.clone() if isinstance(images, Tensor) else images.copy()
    poisoned[chosen] = stamp(images[chosen], trigger)
    return Poisoned(poisoned, np.where(bad, target, given).astype(np.int64), bad)


def _check_images(images: Any) -> None:
    if not isinstance(images, (Tensor, np.ndarray)) or images.ndim != 4:
        shape = getattr(images, "shape", type(images).__name__)
        raise ConfigError(f"images is {shape}; expected a tensor or array [n, c, h, w]")
