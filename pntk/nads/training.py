"""Train a classifier the way the experiments on directions do, and measure it.

Shapes: n samples; c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk.errors import ConfigError, DataError, ModelError
from pntk.forward import explained
from pntk.nads.data import check_number
from pntk.nads.drawing import name_of


@dataclass(frozen=True)
class Training:
    """SGD whose rate falls linearly from ``lr`` to 0, with gradients clipped.

    Args:
        epochs: passes over the data.
        lr: rate at the start.
        momentum: of SGD.
        weight_decay: of SGD.
        clip: longest gradient of a step; longer ones are shortened to it. None for no limit.
        batch_size: samples of a step.

    Raises:
        ConfigError: one of them cannot work.

    Source:
        Defaults for directions: https://github.com/LTS4/neural-anisotropy-directions,
        ``directional_bias.py``.
    """

    epochs: int = 20
    lr: float = 0.5
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = 0.5
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected an integer of at least 1")
        check_number("lr", self.lr)
        check_number("momentum", self.momentum, zero=True)
        check_number("weight_decay", self.weight_decay, zero=True)
        if self.clip is not None:
            check_number("clip", self.clip)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)


def make_classifier(
    model_cls: Callable[..., nn.Module],
    model_params: Mapping[str, Any] | None,
    example: Tensor,
    classes: int,
    *,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """Return a fresh network, drawn by a seed, after one look at its outputs.

    Args:
        model_cls: class or function that makes a network.
        model_params: its keyword arguments.
        example: [1, *shape], an input.
        classes: that its outputs must tell apart.
        seed: of the weights; the generators of torch are left as they were.
        device: of the network.

    Raises:
        ModelError: the network cannot be made, takes no such input, or has other outputs.
    """
    params = dict(model_params or {})
    name = name_of(model_cls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = model_cls(**params)
        except Exception as error:
            raise ModelError(
                f"{name}(**{params}) raised {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name}(**{params}) returned {type(model).__name__}; expected a torch.nn.Module"
        )
    model = model.to(device).eval()
    try:
        with torch.no_grad():
            found = model(example.to(device))
    except Exception as error:
        raise ModelError(
            f"{name}(**{params}) cannot take inputs of shape {tuple(example.shape[1:])}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] < classes:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"{name}(**{params}) returned {shape} for 1 input; expected [1, c] with c of at least "
            f"{classes}: give it {classes} classes, such as model_params={{'num_classes': "
            f"{classes}}}"
        )
    return model


def check_training(training: Any, seed: Any) -> None:
    """Refuse settings and seeds of another kind.

    Raises:
        ConfigError: naming it.
    """
    if not isinstance(training, Training):
        raise ConfigError(
            f"training is a {type(training).__name__}; expected Training(...), or None"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed is {seed!r}; expected an integer")


def train_classifier(
    model: nn.Module, x: Tensor, y: Tensor, training: Training, *, seed: int
) -> nn.Module:
    """Train a network by cross entropy; it ends in eval mode.

    Args:
        model: [n, *shape] -> logits [n, c].
        x: [n, *shape], on the device of the network.
        y: int64 [n], there too.
        training: settings.
        seed: of the order of the samples and of dropout.
    """
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    steps = training.epochs * -(-len(x) // training.batch_size)
    devices = [x.device] if x.device.type == "cuda" else []
    done = 0
    model.train()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for _ in range(training.epochs):
            for batch in torch.randperm(len(x)).to(x.device).split(training.batch_size):
                done += 1
                optimizer.param_groups[0]["lr"] = training.lr * (1 - done / steps)
                with explained(model, x[batch]):
                    outputs = model(x[batch])
                loss = F.cross_entropy(outputs, y[batch])
                optimizer.zero_grad()
                loss.backward()
                if training.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), training.clip)
                optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 512) -> float:
    """Return the share of samples whose largest logit is that of their class.

    NaN where outputs are not finite, as those of a training that diverged.
    """
    right = 0
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        logits = model(images)
        if not torch.isfinite(logits).all():
            return float("nan")
        right += int((logits.argmax(1) == labels).sum())
    return right / len(x)


def as_classes(name: str, data: Any) -> tuple[Tensor, Tensor]:
    """Return labelled inputs as float32 [n, *shape] and int64 [n], both on the CPU.

    Args:
        name: for messages.
        data: (x, y) of tensors, or a data set whose items are (tensor, integer).

    Raises:
        DataError: it is something else, empty, not finite, or has other labels than 0, 1, ...
    """
    try:
        if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
            x, y = data
        else:
            items = [data[index] for index in range(len(data))]
            x = torch.stack([item[0] for item in items])
            y = [int(item[1]) for item in items]
        x, y = torch.as_tensor(x).detach().cpu(), torch.as_tensor(y).detach().cpu()
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
        raise DataError(
            f"{name} is {type(data).__name__} ({error}); expected tensors (x [n, ...], y [n]), or "
            "a data set of (tensor, integer) whose tensors have one shape"
        ) from error
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        raise DataError(
            f"{name} has inputs {x.dtype} {tuple(x.shape)}; expected floating point [n, ...], at "
            "least one: scale bytes with x.float() / 255"
        )
    if y.shape != (len(x),) or y.is_floating_point() or int(y.min()) < 0:
        raise DataError(
            f"{name} has labels {y.dtype} {tuple(y.shape)} for {len(x)} inputs; expected an "
            "integer of at least 0 for each"
        )
    if not torch.isfinite(x).all():
        raise DataError(f"{name} has inputs that are NaN or infinite; drop those samples")
    return x.float(), y.long()
