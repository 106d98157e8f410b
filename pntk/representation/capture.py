"""What the layers of a model put out for a batch.

Shapes: b samples of a batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import batch_size, plain, split, tensors, to_device
from pntk.errors import ConfigError, ModelError
from pntk.forward import explained

_GLOB = "*?["
_NEAR = 3  # names to propose


class LayerOutputs:
    """Layers of a model, and what they put out for one batch after the other.

    Args:
        model: in eval mode.
        batch: some samples, to see which layers are called.
        layers: names of modules, or patterns such as ``encoder.*.mlp``, which stand for those that
            put out a row a sample; None for all modules without children that have parameters of
            their own, in the order of their calls.
        which: what messages call the model.

    Raises:
        ConfigError: no such layers.
        ModelError: in train mode; it cannot take the batch; layers that are not called, called more
            than once, or that put out no tensor with a row a sample.
    """

    def __init__(
        self, model: nn.Module, batch: Any, layers: Sequence[str] | None, which: str = "the model"
    ) -> None:
        if any(module.training for module in model.modules()):
            raise ModelError(f"{which} is in train mode; expected eval mode: call model.eval()")
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self._model, self._which = model, which
        self.names: list[str] = []
        if layers is not None:
            self.names = find_layers(model, layers, which)
            called = self._forward(batch)
            self.names = [name for name in self.names if name in called or name in layers]
            found = self.run(batch)
        else:
            self.names = [
                name
                for name, module in model.named_modules()
                if next(module.children(), None) is None
                and next(module.parameters(recurse=False), None) is not None
            ]
            found = self._forward(batch)
            self.names = list(found)
        if not found:
            raise ModelError(
                f"{which} ({type(model).__name__}) calls no layer "
                f"{'with parameters' if layers is None else f'of {list(layers)}'} that puts out a "
                "row a sample; name other modules"
            )
        self.shapes = {name: tuple(value.shape[1:]) for name, value in found.items()}
        self.bytes_per_sample = sum(v[0].numel() * v.element_size() for v in found.values())

    def run(self, batch: Any) -> dict[str, Tensor]:
        """Return the activations [b, ...] of each layer, on the device of the model.

        Raises:
            ModelError: a layer that is not called, or puts out no row a sample.
        """
        found = self._forward(batch)
        for name in self.names:
            if name not in found:
                raise ModelError(
                    f"layer {name!r} of {self._which} puts out no tensor with a row for each of "
                    f"{batch_size(batch)} samples, or is not called; name another"
                )
        return found

    @torch.no_grad()
    def _forward(self, batch: Any) -> dict[str, Tensor]:
        size, found = batch_size(batch), dict[str, Tensor]()

        def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            value = first_tensor(output)
            if value is None or value.dim() < 2 or value.shape[0] != size:
                return
            if name in found:
                raise ModelError(
                    f"layer {name!r} of {self._which} is called more than once in a forward, so "
                    "that it has no one representation; name other layers"
                )
            found[name] = value.clone()  # layers may go on in place

        args, kwargs, _ = split(to_device(plain(batch), self._device))
        hooks = {name: partial(keep, name) for name in self.names}
        with hooked(self._model, hooks), explained(self._model, (args, kwargs), self._which):
            self._model(*args, **kwargs)
        return found


def find_layers(model: nn.Module, wanted: Sequence[str], which: str = "the model") -> list[str]:
    """Return the names of modules that names and patterns stand for, in the order given.

    Raises:
        ConfigError: none of that name; says which come near.
    """
    if isinstance(wanted, str) or not wanted:
        raise ConfigError(f"layers are {wanted!r}; expected a list of names of modules")
    known = [name for name, _ in model.named_modules() if name]
    found: list[str] = []
    for name in wanted:
        if name in known:
            matches = [name]
        elif any(sign in name for sign in _GLOB):
            matches = [each for each in known if fnmatchcase(each, name)]
        else:
            matches = []
        if not matches:
            near = difflib.get_close_matches(name, known, n=_NEAR, cutoff=0.4) or known[:_NEAR]
            raise ConfigError(
                f"{which} ({type(model).__name__}) has no layer {name!r}; near it: "
                f"{', '.join(near) or 'none, since it has no modules'}"
            )
        found += matches
    return list(dict.fromkeys(found))


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor that a module put out, if any."""
    if isinstance(output, Mapping):
        output = dict(output)
    return next(tensors(output), None)


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Have functions called with what modules put out, within the block."""
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
