"""Kernels of activations, which tangent kernels are compared with.

Shapes: n samples; d numbers of a sample's activations; b batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import batch_size as size_of
from pntk.batch import plain, split, to_device
from pntk.errors import ConfigError, ModelError
from pntk.loading import Batches
from pntk.memory import parse_bytes

WHICH = ("last", "all")


@torch.no_grad()
def embeddings(
    model: nn.Module,
    data: Any,
    which: str = "last",
    *,
    layers: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return activations as rows [n, d], float32 or as the model gives them.

    Their products are the conjugate kernel CK (``last``) or the embedding kernel Em (``all``) of
    Engel 2023. Activations of all layers are wide: :func:`embedding_gram` needs no rows.

    Args:
        model: in eval mode.
        data: as :meth:`pntk.Featurizer.featurize` takes it; labels are ignored.
        which: ``last`` for the inputs of the Linear layer that is called last; ``all`` for the
            outputs of all layers with parameters, flattened and joined.
        layers: names of modules whose outputs to take instead; then ``which`` is ``all``.
        batch_size: samples a batch; None for the loader's own, or 64.

    Raises:
        ConfigError: unknown ``which`` or layers.
        ModelError: in train mode, no such layer, or activations that are not one row a sample.
        DataError: data that cannot be read.

    Source: Engel, Wang, Frank, Dumitriu, Choudhury, Sarwate, Chiang (2023), section 2,
    https://arxiv.org/abs/2305.14585

    >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 3)).eval()
    >>> embeddings(net, torch.tensor([[1.0, -1.0], [-2.0, 3.0]]))
    tensor([[1., 0.],
            [0., 3.]])
    """
    source = _Activations(model, data, which, layers, batch_size)
    return torch.cat(list(source.blocks(0, source.length)))


@torch.no_grad()
def embedding_gram(
    model: nn.Module,
    data: Any,
    which: str = "all",
    *,
    layers: Sequence[str] | None = None,
    normalize: bool = False,
    batch_size: int | None = None,
    memory_budget: int | str = "1GB",
) -> Tensor:
    """Return the Gram matrix of activations [n, n], float64, without keeping all of them.

    As many batches as fit into the budget are kept, and multiplied with all later ones, which are
    computed again for each group that is kept.

    Args:
        model: in eval mode.
        data: as in :func:`embeddings`, and no stream.
        which: likewise.
        layers: likewise.
        normalize: whether to divide by the norms of the rows.
        batch_size: samples a batch.
        memory_budget: for the activations that are kept, such as ``"500MB"``.

    Raises:
        ConfigError: as in :func:`embeddings`; also where not even one batch fits into the budget.
        ModelError: as in :func:`embeddings`.

    >>> net = nn.Sequential(nn.Identity(), nn.Linear(2, 1)).eval()
    >>> embedding_gram(net, torch.tensor([[1.0, 0.0], [3.0, 4.0]]), "last")
    tensor([[ 1.,  3.],
            [ 3., 25.]], dtype=torch.float64)
    """
    source = _Activations(model, data, which, layers, batch_size)
    gram = torch.empty(source.length, source.length, dtype=torch.float64)
    per_batch = source.batch_bytes()
    budget = parse_bytes(memory_budget)
    kept = -(-source.length // source.batch_size)
    if budget is not None:
        kept = min(budget // per_batch - 1, kept)
    if budget is not None and kept < 1:
        raise ConfigError(
            f"memory_budget is {budget:,} bytes and two batches of {source.batch_size} samples "
            f"take {2 * per_batch:,}; give as much, or a smaller batch_size"
        )
    group = kept * source.batch_size
    for start in range(0, source.length, group):
        stop = min(start + group, source.length)
        left = list(source.blocks(start, stop))
        held = torch.cat(left)
        left.clear()
        square = held @ held.T
        gram[start:stop, start:stop] = (square + square.T) / 2
        column = stop
        for block in source.blocks(stop, source.length):
            part = slice(column, column + len(block))
            gram[start:stop, part] = held @ block.T
            gram[part, start:stop] = gram[start:stop, part].T
            column += len(block)
    if normalize:
        norms = gram.diagonal().sqrt()
        inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        gram.mul_(torch.outer(inverse, inverse))
    return gram


# ---- private -----------------------------------------------------------------------------------


class _Activations:
    """Activations of a data set, a batch at a time and any of them again."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        which: str,
        layers: Sequence[str] | None,
        batch_size: int | None,
    ) -> None:
        if which not in WHICH:
            raise ConfigError(f"which is {which!r}; expected 'last' or 'all'")
        if any(module.training for module in model.modules()):
            raise ModelError("the model is in train mode; expected eval mode: call model.eval()")
        self._model = model
        self._batches = Batches(data, batch_size)
        self.length, self.batch_size = self._batches.length, self._batches.batch_size
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        first = self._batches.first()
        self._inputs = which == "last" and layers is None
        self._layers = self._find(first, layers)
        self._probe = self._run(first)

    def batch_bytes(self) -> int:
        """Bytes of the activations of a batch."""
        return self.batch_size * self._probe.shape[1] * self._probe.element_size()

    def blocks(self, start: int, stop: int) -> Iterator[Tensor]:
        """Yield rows [b, d] of samples ``start`` to ``stop``, in order."""
        for begin in range(start, stop, self.batch_size):
            yield self._run(self._batches.range(begin, min(begin + self.batch_size, stop)))

    def _find(self, batch: Any, layers: Sequence[str] | None) -> list[nn.Module]:
        modules = dict(self._model.named_modules())
        wanted: list[nn.Module]
        if layers is not None:
            absent = [name for name in layers if name not in modules]
            if absent or not layers:
                raise ConfigError(
                    f"layers are {list(layers)}; expected names of modules, such as "
                    f"{[name for name in modules if name][:5]}"
                )
            return [modules[name] for name in layers]
        if self._inputs:
            wanted = [m for m in modules.values() if isinstance(m, nn.Linear)]
        else:
            wanted = [
                module
                for module in modules.values()
                if next(module.children(), None) is None
                and next(module.parameters(recurse=False), None) is not None
            ]
        called: list[nn.Module] = []
        with _hooked(wanted, lambda module, *_: called.append(module)):
            self._forward(batch)
        if not called:
            what = "Linear layer" if self._inputs else "layer with parameters"
            raise ModelError(
                f"{type(self._model).__name__} calls no {what}; name modules with layers=[...]"
            )
        return called[-1:] if self._inputs else list(dict.fromkeys(called))

    def _run(self, batch: Any) -> Tensor:
        """Return the activations of a batch [b, d]."""
        size, found = size_of(batch), []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            value = inputs[0] if self._inputs else output
            if not isinstance(value, Tensor) or value.dim() < 1 or value.shape[0] != size:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                name = next(n for n, m in self._model.named_modules() if m is module)
                raise ModelError(
                    f"{name} has {shape} for a batch of {size}; expected a tensor with a row a "
                    "sample: name other modules with layers=[...]"
                )
            found.append(value.reshape(size, -1).clone())  # layers may go on in place

        with _hooked(self._layers, keep):
            self._forward(batch)
        return torch.cat(found, dim=1).cpu()

    def _forward(self, batch: Any) -> None:
        args, kwargs, _ = split(to_device(plain(batch), self._device))
        self._model(*args, **kwargs)


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
