"""How well a network learns to tell two classes apart that differ along one direction alone.

Shapes: r directions; *shape of one input, such as [c, h, w].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pntk.errors import ConfigError
from pntk.nads.data import DirectionalLinearDataset, check_number, unit_direction
from pntk.nads.drawing import name_of, usable_device
from pntk.nads.measured import Measured, digest
from pntk.nads.training import (
    Training,
    accuracy,
    check_training,
    make_classifier,
    train_classifier,
)


class DirectionalBias(NamedTuple):
    """Test accuracy by direction.

    Attributes:
        accuracy: float64 [r], of 1; NaN where the training diverged.
        directions: float32 [r, *shape], of unit length.
    """

    accuracy: npt.NDArray[np.float64]
    directions: Tensor


def directional_bias(
    model_cls: Callable[..., nn.Module],
    directions: Tensor,
    model_params: Mapping[str, Any] | None = None,
    *,
    num_train: int = 10_000,
    num_test: int = 10_000,
    sigma: float = 3,
    epsilon: float = 1,
    training: Training | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DirectionalBias:
    """Train a fresh network for each direction, on data that only that direction separates.

    A network without preferences would do as well along one direction as along another; a
    convolutional one does well along its first NADs and guesses along its last. Weights, noise and
    the order of samples are drawn by the seed and are the same for all directions, so that an
    accuracy does not depend on which other directions are asked for.

    Args:
        model_cls: class or function that makes a network of at least two outputs.
        directions: [r, *shape], such as some NADs; scaled to unit length.
        model_params: its keyword arguments, such as ``{"num_classes": 2}``.
        num_train: samples to train on.
        num_test: other samples to test on.
        sigma, epsilon: see :class:`~pntk.nads.data.DirectionalLinearDataset`.
        training: how to train; None for that of the paper.
        seed: of everything random.
        device: where to train.
        path: JSON file that has each accuracy once it is known; the same call goes on where an
            earlier one stopped, and one for more directions uses what is there.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: an argument that cannot work, or a file of other settings.
        ModelError: the network cannot be made, or its outputs are not those of a classifier.
        StoreError: the file is damaged.

    Source:
        Ortiz-Jimenez et al. (2020), Neural anisotropy directions,
        https://arxiv.org/abs/2006.09717.
    """
    if not isinstance(directions, Tensor) or directions.ndim < 2 or not len(directions):
        shape = tuple(getattr(directions, "shape", ())) or type(directions).__name__
        raise ConfigError(f"directions is {shape}; expected a tensor [r, *shape], r at least 1")
    units = torch.stack([unit_direction(one, f"direction {i}") for i, one in enumerate(directions)])
    for name, value in (("num_train", num_train), ("num_test", num_test)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ConfigError(f"{name} is {value!r}; expected an integer of at least 2")
    check_number("sigma", sigma, zero=True)
    check_number("epsilon", epsilon)
    training = training or Training()
    where = usable_device(device)
    check_training(training, seed)
    about = {
        "model": name_of(model_cls),
        "model_params": repr(dict(model_params or {})),
        "num_train": num_train,
        "num_test": num_test,
        "sigma": sigma,
        "epsilon": epsilon,
        "training": training.to_dict(),
        "seed": seed,
    }
    measured = Measured(path, about)

    def fresh() -> nn.Module:
        return make_classifier(model_cls, model_params, units[:1], 2, seed=seed, device=where)

    fresh()  # so that what cannot work is said before any work
    keys = [digest(one) for one in units]
    for key, v in zip(tqdm(keys, unit="direction", disable=not progress), units, strict=True):
        if key in measured:
            continue
        train = DirectionalLinearDataset(v, num_train, sigma, epsilon, seed=2 * seed)
        model = train_classifier(
            fresh(), train.data.to(where), train.targets.to(where), training, seed=seed
        )
        test = DirectionalLinearDataset(v, num_test, sigma, epsilon, seed=2 * seed + 1)
        measured.add(key, accuracy(model, test.data.to(where), test.targets.to(where)))
    return DirectionalBias(np.array([measured[key] for key in keys]), units)
