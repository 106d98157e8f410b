"""Watch the tangent kernel of a few samples while a model is being trained.

Shapes: n probe samples; k numbers a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pntk.batch import batch_size, split
from pntk.errors import ConfigError
from pntk.featurizer import Featurizer
from pntk.ntk.alignment import alignment, centered_alignment, drift, target_kernel
from pntk.ntk.spectrum import spectrum_of


class Writer(Protocol):
    """What takes numbers, such as ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Take the value of a tag at a step."""


class KernelMonitor:
    """Measure the kernel of a fixed batch with the model's present weights; call it with each step.

    The projection is the same at every step, so drift is that of the weights alone. Mode, gradients
    and random state of the model are left as found, and training goes on as without the monitor.

    Measured are, of the kernel K [n, n] of the rows: ``trace``, ``largest`` eigenvalue,
    ``condition_number``, ``effective_rank``, ``target_alignment`` and
    ``target_alignment_centered`` (with targets), ``drift`` since the first call that measured and
    ``drift_step`` since the last one (both 1 - centred alignment). What is undefined is NaN.

    Args:
        featurizer: a :class:`pntk.Featurizer` of the model that is trained, or that model, for one
            with the defaults of Featurizer.
        batch: the probe, n of a few hundred samples, as the featurizer takes it, on its device.
        targets: classes [n] or numbers [n] or [n, c]; None for the labels in the batch, if any.
        writer: object with ``add_scalar(tag, value, step)``, such as TensorBoard's SummaryWriter;
            it gets what is finite.
        every: measure at steps that are multiples of it.
        tag: what the writer's tags begin with.

    Attributes:
        history: what was measured, one dict a call, with its ``step``.

    Raises:
        ConfigError: wrong arguments, before any work.

    >>> model = nn.Linear(3, 2).double()
    >>> monitor = KernelMonitor(Featurizer(model, projection="identity"), torch.eye(3).double())
    >>> found = monitor(0)  # <J(x), J(x')> = 2 <x, x'> + 2, so K = 2 I + 2 1 1^T
    >>> round(found["trace"], 9), round(found["largest"], 9), round(found["drift"], 9)
    (12.0, 8.0, 0.0)
    """

    def __init__(
        self,
        featurizer: Featurizer | nn.Module,
        batch: Any,
        *,
        targets: Any = None,
        writer: Writer | None = None,
        every: int = 1,
        tag: str = "ntk",
    ) -> None:
        if type(every) is not int or every < 1:
            raise ConfigError(f"every is {every!r}; expected a positive number of steps")
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise ConfigError(
                f"writer is a {type(writer).__name__}; expected an object with add_scalar(tag, "
                "value, step), such as torch.utils.tensorboard.SummaryWriter"
            )
        if isinstance(featurizer, nn.Module):
            with evaluating(featurizer):
                featurizer = Featurizer(featurizer)
        if not isinstance(featurizer, Featurizer):
            raise ConfigError(
                f"featurizer is a {type(featurizer).__name__}; expected a pntk.Featurizer or a "
                "torch.nn.Module"
            )
        self.featurizer = featurizer
        self.batch = batch
        self.history: list[dict[str, float]] = []
        self._writer = writer
        self._every = every
        self._tag = tag
        size = batch_size(batch)
        if size < 2:
            raise ConfigError(f"the batch has {size} sample; expected at least 2 to compare")
        targets = _labels_of(batch) if targets is None else targets
        self._targets = None if targets is None else target_kernel(targets, size)
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def __call__(self, step: int) -> dict[str, float] | None:
        """Measure the kernel at a step; return what was found, or None where it is not its turn.

        Raises:
            PntkError: as :meth:`pntk.Featurizer.__call__` does.
        """
        if step % self._every:
            return None
        with evaluating(self.featurizer.model):
            rows = self.featurizer(self.batch).to("cpu", torch.float64)
        found = {"step": step, **self._measure(rows @ rows.T)}
        self.history.append(found)
        if self._writer is not None:
            for name, value in found.items():
                if name != "step" and math.isfinite(value):
                    self._writer.add_scalar(f"{self._tag}/{name}", value, step)
        return found

    def _measure(self, kernel: Tensor) -> dict[str, float]:
        """What is known of the kernel [n, n] of this call; keeps it for the next one."""
        first = kernel if self._first is None else self._first
        last = kernel if self._last is None else self._last
        spectrum = spectrum_of(kernel, method="dense")
        found = {
            "trace": spectrum.trace,
            "largest": spectrum.largest,
            "condition_number": spectrum.condition_number,
            "effective_rank": spectrum.effective_rank,
        }
        if self._targets is not None:
            found["target_alignment"] = _or_nan(alignment, kernel, self._targets)
            found["target_alignment_centered"] = _or_nan(centered_alignment, kernel, self._targets)
        found["drift"] = _or_nan(drift, kernel, first)
        found["drift_step"] = _or_nan(drift, kernel, last)
        self._first, self._last = first, kernel
        return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards each of its modules has the mode that it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _labels_of(batch: Any) -> Tensor | None:
    """The classes [n] that a batch holds, or None."""
    labels = split(batch)[2]
    fits = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labels if fits else None


def _or_nan(function: Callable[..., float], *kernels: Any) -> float:
    """Return what a comparison gives, NaN where a kernel is zero."""
    try:
        return function(*kernels)
    except ConfigError:
        return math.nan
