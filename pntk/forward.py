"""Say what a model was given when it cannot run on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pntk.batch import tensors
from pntk.errors import ModelError, PntkError, is_out_of_memory


@contextmanager
def explained(model: nn.Module, inputs: Any, which: str = "") -> Iterator[None]:
    """Make whatever a model raises within the block an error that names it and its inputs.

    Args:
        model: that is called in the block.
        inputs: a nesting of tensors.
        which: what messages call the model, beside its class.

    Raises:
        ModelError: it raised something; what pntk raises on purpose, and out of memory, pass.
    """
    try:
        yield
    except PntkError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        name = type(model).__name__
        given = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors(inputs))
        types = {str(p.dtype) for p in model.parameters() if p.is_floating_point()}
        own = f", whose parameters are {', '.join(sorted(types))}," if types else ""
        raise ModelError(
            f"{which and which + ': '}{name}{own} raised {type(error).__name__}: {error}; its "
            f"inputs were {given or 'no tensors'}: expected ones of the shape and type that it "
            "takes"
        ) from error
