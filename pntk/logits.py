"""From a model and a batch to logits and checked labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pntk.batch import split
from pntk.errors import DataError, OutputError

Model = Callable[..., Any]


def logits_of(model: Model, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Run the model and return (logits [b, c] in at least float32, labels or None).

    Raises:
        OutputError: the model returned something that is not one row of logits a sample.
    """
    args, kwargs, labels = split(batch)
    result = model(*args, **kwargs)
    logits = tensor_of(result)
    if logits.dim() < 2:  # one logit a sample; a squeezed batch of one has no axis left
        logits = logits.reshape(-1, 1)
    if logits.dim() != 2:
        raise OutputError(
            f"the model returned logits of shape {tuple(logits.shape)}; expected [b] or [b, c]: "
            "pass output=callable(model, batch) that reduces them"
        )
    if 0 in logits.shape:
        raise OutputError(
            f"the model returned logits of shape {tuple(logits.shape)}; expected at least one"
        )
    if not logits.is_floating_point():
        raise OutputError(f"the model returned {logits.dtype} logits; expected floating point")
    return at_least_float32(logits), labels


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor as it is, or what is in half precision as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def tensor_of(result: Any) -> Tensor:
    """Return the logits in what a model returned: a tensor, ``.logits``, or first of a tuple.

    Raises:
        OutputError: there is none of these.
    """
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else None
    if logits is None:
        logits = getattr(result, "logits", None)
    if logits is None and isinstance(result, (tuple, list)) and result:
        logits = result[0]
    if not isinstance(logits, Tensor):
        raise OutputError(
            f"the model returned a {type(result).__name__}; expected logits as a tensor, as "
            ".logits, or first in a tuple: pass output=callable(model, batch) otherwise"
        )
    return logits


def class_labels(labels: Any, logits: Tensor, name: str, ignored: int | None = None) -> Tensor:
    """Check class labels against logits [b, c] and return them as int64 [b].

    Raises:
        DataError: no labels, wrong shape or type, or a label outside [0, c).
    """
    if labels is None:
        raise DataError(
            f"output {name!r} needs labels and the batch has none; pass (inputs, labels), or a "
            "dict with 'labels'"
        )
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or (labels.is_complex() or labels.dim() != 1)
    ):
        seen = (
            f"{labels.dtype} of shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise DataError(f"labels are {seen}; output {name!r} expects integer classes [b]")
    labels = labels.long()
    wrong = (labels < 0) | (labels >= logits.shape[1])
    if ignored is not None:
        wrong = wrong & (labels != ignored)
    # inside vmap a value cannot be read; the batch has been checked outside by then
    if not torch._C._functorch.is_functorch_wrapped_tensor(wrong) and bool(wrong.any()):
        at = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"label {int(labels[at])} of sample {at} in the batch is out of range; the model has "
            f"{logits.shape[1]} classes, so labels go from 0 to {logits.shape[1] - 1}"
        )
    return labels
