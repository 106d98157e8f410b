"""How much memory the passes of autograd hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_FLOWING = 4  # tensors as large as the largest saved one, in a backward pass


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Give what tells the bytes that passes of autograd hold at a time, beside the model."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        # and the gradients that flow: of a layer's output, its input, and what is made of them
        yield lambda: sum(sizes.values()) + _FLOWING * max(sizes.values(), default=0)
