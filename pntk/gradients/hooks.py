"""Watch the layers of a model during a forward pass, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pntk.compiled import as_written
from pntk.gradients.rules import Rule


@dataclass(frozen=True)
class CallLayout:
    """Where the samples lie in the tensors of one call of a layer.

    Attributes:
        axis: the axis that holds b * m entries, a sample's m in a row.
        shared: no axis does: the input is the same for all samples, and the result is expanded.
        insert: whether the expansion adds an axis in front, or widens a leading axis of one.
    """

    axis: int = 0
    shared: bool = False
    insert: bool = False

    def samples_first(self, x: Tensor, batch: int) -> Tensor:
        """Return an input with its samples in front, [b * m, ...]."""
        return self.expand(x, batch) if self.shared else x.movedim(self.axis, 0)

    def expand(self, x: Tensor, batch: int) -> Tensor:
        """Return a shared tensor as a view [b, ...]."""
        if self.insert:
            return x.unsqueeze(0).expand(batch, *x.shape)
        return x.expand(batch, *x.shape[1:])


def layout_of(two: torch.Size, three: torch.Size) -> CallLayout | None:
    """Return the layout of a call from its input's shape for two and for three samples.

    None when the samples cannot be told apart.

    >>> layout_of(torch.Size([7, 2, 5]), torch.Size([7, 3, 5]))
    CallLayout(axis=1, shared=False, insert=False)
    """
    if len(two) != len(three):
        return None
    changed = [axis for axis, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if not changed:
        return CallLayout(shared=True, insert=not two or two[0] != 1)
    if len(changed) > 1 or 2 * three[changed[0]] != 3 * two[changed[0]]:
        return None
    return CallLayout(axis=changed[0])


@dataclass
class Use:
    """A module that a rule serves, and which of its parameters are wanted.

    Attributes:
        params: attribute name (``weight``) -> canonical parameter name.
        layout: where the samples lie, the same for all calls; set by the probe.
    """

    name: str
    module: nn.Module
    rule: Rule
    params: dict[str, str]
    layout: CallLayout = field(default_factory=CallLayout)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Let nothing but our hooks matter, and restore everything on the way out.

    No parameter asks for gradients, fused attention paths and compiled graphs that would skip the
    hooks are off, and the random state is put back (that of a GPU lies on the host: no wait).
    """
    params = list(model.parameters())
    flags = [p.requires_grad for p in params]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({p.device.index for p in params if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), as_written():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for p in params:
                p.requires_grad_(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for p, flag in zip(params, flags, strict=True):
                p.requires_grad_(flag)


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast does not lower our own arithmetic."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


OnCall = Callable[[Use, Tensor, Tensor], Tensor]


@contextmanager
def tapped(uses: Iterable[Use], on_call: OnCall) -> Iterator[None]:
    """Call ``on_call(use, input, output)`` after each use; what it returns is the output.

    Our hook comes before the user's own, so that it sees what the layer itself returned.
    """
    handles = []

    def hook_for(use: Use) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            return on_call(use, args[0] if args else kwargs["input"], output)

        return hook

    try:
        for use in uses:
            handles.append(
                use.module.register_forward_hook(hook_for(use), prepend=True, with_kwargs=True)
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
