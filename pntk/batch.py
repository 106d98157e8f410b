"""Batches of any nesting: tensors in tuples, lists, mappings and dataclasses.

Shapes: b is the batch size, the leading dimension that a batch's tensors share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pntk.errors import DataError

LABEL_KEYS = ("labels", "label")


def tree_map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return the same nesting with ``function`` applied to each tensor.

    Mappings become plain dicts (also Hugging Face's BatchEncoding); other leaves stay.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(function, value) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {
            field.name: tree_map(function, getattr(tree, field.name))
            for field in dataclasses.fields(tree)
            if field.init
        }
        return dataclasses.replace(tree, **fields)
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in order."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    yield from found


def batch_size(batch: Any) -> int:
    """Return b.

    Raises:
        DataError: the batch holds no tensor, or its tensors disagree about b.
    """
    sizes: list[int] = []
    for tensor in tensors(batch):
        if tensor.dim() == 0:
            raise DataError(
                "the batch holds a tensor without dimensions; expected the batch as the first "
                "dimension of every tensor (pass plain numbers for settings)"
            )
        sizes.append(tensor.shape[0])
    if not sizes:
        raise DataError(
            f"the batch is a {type(batch).__name__} without tensors; expected a tensor, or a "
            "tuple, list, dict or dataclass of tensors"
        )
    if len(set(sizes)) > 1:
        raise DataError(
            f"the batch's tensors have {sizes} as first dimensions; expected one batch size"
        )
    if sizes[0] == 0:
        raise DataError("the batch is empty; expected at least one sample")
    return sizes[0]


def take(batch: Any, part: slice | Tensor) -> Any:
    """Return some samples of a batch: a slice, or those of an index tensor."""
    return tree_map(lambda tensor: tensor[part], batch)


def repeat_first(batch: Any, times: int) -> Any:
    """Return a batch that holds the first sample ``times`` times."""
    return tree_map(lambda t: t[:1].expand(times, *t.shape[1:]).contiguous(), batch)


def plain(batch: Any) -> Any:
    """Return the batch as tensors that autograd may save: detached, none of inference mode."""
    return tree_map(lambda t: t.clone() if t.is_inference() else t.detach(), batch)


def channels_last(batch: Any) -> Any:
    """Return the batch with its float tensors of four axes in channels-last memory order."""
    return tree_map(
        lambda t: (
            t.contiguous(memory_format=torch.channels_last)
            if t.dim() == 4 and t.is_floating_point()
            else t
        ),
        batch,
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch on a device.

    A GPU gets it from page-locked memory: a copy from any other waits for all that is being
    computed.
    """
    locked = device.type == "cuda"
    return tree_map(
        lambda t: (_page_locked(t) if locked else t).to(device, non_blocking=True), batch
    )


def _page_locked(tensor: Tensor) -> Tensor:
    """Return a tensor of the CPU in memory that torch gives back only once it has been copied."""
    if tensor.device.type != "cpu" or tensor.is_pinned():
        return tensor
    return torch.empty_like(tensor, pin_memory=True).copy_(tensor)


def check_device(batch: Any, device: torch.device) -> None:
    """Refuse a batch that is not where the model is.

    Raises:
        DataError: a tensor is on another device.
    """
    for tensor in tensors(batch):
        if tensor.device != device:
            raise DataError(
                f"the batch is on {tensor.device} and the model on {device}; move the batch with "
                f".to({str(device)!r})"
            )


def split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """Return (positional inputs, keyword inputs, labels) of a batch.

    A tensor is the input. The last of two or more entries of a tuple or list is the label. A
    mapping or dataclass is passed by keyword, without its ``labels`` or ``label``.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        inputs = {str(k): v for k, v in batch.items() if k not in LABEL_KEYS}
        return (), inputs, labels
    if isinstance(batch, (tuple, list)):
        if len(batch) >= 2:
            return tuple(batch[:-1]), {}, batch[-1]
        return tuple(batch), {}, None
    raise DataError(
        f"the batch is a {type(batch).__name__}; expected a tensor, tuple, list, dict or dataclass"
    )
