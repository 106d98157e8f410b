"""Give every class a mark along a direction, and see whether a network learns the mark instead.

Shapes: n samples of [C, h, w]; r directions of [c, h, w].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from pntk.errors import ConfigError, DataError
from pntk.nads.data import check_number, unit_direction
from pntk.nads.drawing import name_of, usable_device
from pntk.nads.measured import Measured, digest
from pntk.nads.training import (
    Training,
    accuracy,
    as_classes,
    check_training,
    make_classifier,
    train_classifier,
)

POISON_TRAINING = Training(epochs=50, lr=0.21, momentum=0.9, weight_decay=5e-4)


class Mark(NamedTuple):
    """What marks a class.

    Attributes:
        direction: index of the direction.
        channel: that it is laid on; None where it has all channels of the image.
        sign: -1 or 1.
    """

    direction: int
    channel: int | None
    sign: int


def class_marks(classes: int, index: int = 0, channels: int | None = None) -> list[Mark]:
    """Return a mark of its own for each class, from as few directions as possible.

    A direction marks two classes by its sign, and on each of C channels two more: with C = 3 ten
    classes take two directions, those at ``index`` and after it.

    Args:
        classes: how many.
        index: of the first direction.
        channels: C, where a direction has one channel and the images have several.

    Example:
        >>> [tuple(mark) for mark in class_marks(3, index=7)]
        [(7, None, -1), (7, None, 1), (8, None, -1)]
        >>> [tuple(mark) for mark in class_marks(4, channels=2)]
        [(0, 0, -1), (0, 1, 1), (0, 0, 1), (0, 1, -1)]
    """
    on_each = channels or 1
    marks = []
    for number in range(classes):
        direction, place = divmod(number, 2 * on_each)
        # where C is odd, the parity of the class, as in the paper's script; distinct for any C
        sign = 2 * ((place % on_each + place // on_each) % 2) - 1
        marks.append(Mark(index + direction, place % on_each if channels else None, sign))
    return marks


def poison_along(
    data: Any,
    directions: Tensor,
    labels: Any = None,
    epsilon: float = 0.05,
    *,
    index: int = 0,
    num_classes: int | None = None,
    replace: bool = True,
) -> TensorDataset:
    """Mark each sample by its class along directions that the network prefers, or does not.

    x' = x + (s epsilon - <x, v>) v, where direction v and sign s are those of the class
    (:func:`class_marks`): what the sample had along v gives way to a number that tells its class.

    Args:
        data: inputs [n, C, h, w] with ``labels``, a pair of both, or a data set of
            (tensor, integer).
        directions: [r, C, h, w], or [r, 1, h, w] and [r, h, w], which are laid on one channel at a
            time; scaled to unit length. Only those from ``index`` on that are needed are used.
        labels: integers [n] where ``data`` is inputs alone.
        epsilon: size of the mark, in units of the inputs: 0.05 of [0, 1] in the paper.
        index: of the first direction.
        num_classes: classes, if more than the labels show.
        replace: False adds s epsilon v, and leaves what the sample had along v.

    Returns:
        a data set of new tensors: float32 [n, C, h, w] and int64 [n].

    Raises:
        ConfigError: directions of another shape, zero, or too few of them.
        DataError: data of another kind, empty, or not finite.

    Source:
        Ortiz-Jimenez et al. (2020), figure 7, https://arxiv.org/abs/2006.09717;
        assignment of classes: ``poison_cifar.py`` of their repository.

    Example:
        >>> x, y = torch.zeros(2, 1, 1, 2), torch.tensor([0, 1])
        >>> v = torch.tensor([[[[0.6, 0.8]]]])
        >>> poison_along(x, v, y, epsilon=5).tensors[0].flatten(1)
        tensor([[-3., -4.],
                [ 3.,  4.]])
    """
    x, y = as_classes("data", data if labels is None else (data, labels))
    check_number("epsilon", epsilon)
    classes = _classes(y, num_classes)
    vectors, channels = _vectors(directions, tuple(x.shape[1:]))
    marks = _marks(classes, index, channels, len(vectors))
    x = x.clone()
    for number, mark in enumerate(marks):
        chosen = y == number
        carrier = _carrier(vectors, mark, tuple(x.shape[1:]))
        part = x[chosen].flatten(1)
        size = torch.full((len(part),), mark.sign * epsilon)
        if replace:
            size = size - part @ carrier
        x[chosen] = (part + size[:, None] * carrier).view(-1, *x.shape[1:])
    return TensorDataset(x, y)


class PoisonResult(NamedTuple):
    """Accuracy on clean test data of networks that were trained on poisoned data.

    Attributes:
        clean: of a network that was trained on clean data.
        indices: [r] of the first direction.
        poisoned: float64 [r].
    """

    clean: float
    indices: list[int]
    poisoned: npt.NDArray[np.float64]


def poison_experiment(
    model_cls: Callable[..., nn.Module],
    train: Any,
    test: Any,
    directions: Tensor,
    indices: Sequence[int],
    model_params: Mapping[str, Any] | None = None,
    *,
    epsilon: float = 0.05,
    training: Training | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PoisonResult:
    """Train on data poisoned along each of some directions, and test on clean data.

    A network that finds the mark before the features of the data learns nothing else, and fails on
    clean data; along directions it does not see, it learns as if there were no mark.

    Args:
        model_cls: class or function that makes a network.
        train: (x [n, C, h, w], y [n]), or a data set of (tensor, integer).
        test: the same, other samples.
        directions: see :func:`poison_along`.
        indices: of the first direction, one a network.
        model_params: keyword arguments of ``model_cls``.
        epsilon: size of the mark.
        training: how to train; None for that of the paper.
        seed: of weights and order, the same for all networks.
        device: where to train.
        path: JSON file from which the same call goes on, as in
            :func:`~pntk.nads.directional.directional_bias`.
        progress: whether to show a progress bar.

    Raises:
        ConfigError, DataError: see :func:`poison_along`; a file of other settings.
        ModelError: the network cannot be made, or has too few outputs.
        StoreError: the file is damaged.
    """
    x, y = as_classes("train", train)
    test_x, test_y = as_classes("test", test)
    if test_x.shape[1:] != x.shape[1:]:
        raise DataError(
            f"test has inputs of shape {tuple(test_x.shape[1:])} and train of "
            f"{tuple(x.shape[1:])}; expected the same"
        )
    indices = [int(index) for index in indices]
    check_number("epsilon", epsilon)
    classes = _classes(torch.cat([y, test_y]), None)
    vectors, channels = _vectors(directions, tuple(x.shape[1:]))
    for index in indices:
        _marks(classes, index, channels, len(vectors))
    training = training or POISON_TRAINING
    where = usable_device(device)
    check_training(training, seed)
    about = {
        "model": name_of(model_cls),
        "model_params": repr(dict(model_params or {})),
        "train": [digest(x), digest(y)],
        "test": [digest(test_x), digest(test_y)],
        "epsilon": epsilon,
        "training": training.to_dict(),
        "seed": seed,
    }
    measured = Measured(path, about)

    def fresh() -> nn.Module:
        return make_classifier(model_cls, model_params, x[:1], classes, seed=seed, device=where)

    fresh()
    used = -(-classes // (2 * (channels or 1)))
    keys = ["clean", *(digest(vectors[index : index + used]) for index in indices)]
    for number, key in enumerate(tqdm(keys, unit="network", disable=not progress)):
        if key in measured:
            continue
        shown = x
        if number:
            marked = poison_along(
                x, directions, y, epsilon, index=indices[number - 1], num_classes=classes
            )
            shown = marked.tensors[0]
        model = train_classifier(fresh(), shown.to(where), y.to(where), training, seed=seed)
        measured.add(key, accuracy(model, test_x.to(where), test_y.to(where)))
    return PoisonResult(measured["clean"], indices, np.array([measured[key] for key in keys[1:]]))


def _classes(y: Tensor, num_classes: int | None) -> int:
    shown = int(y.max()) + 1
    if num_classes is None:
        return shown
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < shown:
        raise ConfigError(
            f"num_classes is {num_classes!r} and the labels go up to {shown - 1}; expected an "
            f"integer of at least {shown}"
        )
    return num_classes


def _vectors(directions: Any, shape: tuple[int, ...]) -> tuple[Tensor, int | None]:
    """Return directions, and the channels of an image where each has to be laid on one of them."""
    if not isinstance(directions, Tensor) or not directions.is_floating_point():
        raise ConfigError(
            f"directions is {type(directions).__name__}; expected a tensor of floating point "
            "[r, *shape], such as NADs"
        )
    found = directions.detach().cpu()
    if found.shape[1:] == shape:
        return found, None
    plane = (1, *shape[1:])
    if len(shape) == 3 and tuple(found.shape[1:]) in (plane, plane[1:]):
        return found.reshape(-1, *plane), None if shape[0] == 1 else shape[0]
    wanted = f"[r, {', '.join(map(str, shape))}]"
    if len(shape) == 3 and shape[0] > 1:
        wanted += f", or [r, 1, {shape[1]}, {shape[2]}] for one channel at a time"
    raise ConfigError(f"directions have shape {tuple(found.shape)}; expected {wanted}")


def _marks(classes: int, index: int, channels: int | None, available: int) -> list[Mark]:
    used = -(-classes // (2 * (channels or 1)))
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise ConfigError(f"index is {index!r}; expected an integer of at least 0")
    if index + used > available:
        raise ConfigError(
            f"index is {index} of {available} directions, and {classes} classes take {used}; "
            f"expected an index of at most {available - used}, or more directions"
        )
    return class_marks(classes, index, channels)


def _carrier(vectors: Tensor, mark: Mark, shape: tuple[int, ...]) -> Tensor:
    vector = unit_direction(vectors[mark.direction], f"direction {mark.direction}")
    if mark.channel is None:
        return vector.flatten()
    carrier = torch.zeros(shape)
    carrier[mark.channel] = vector[0]
    return carrier.flatten()
