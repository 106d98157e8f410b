"""Keep ``torch.compile`` out of the way: hooks do not fire, or break, inside a compiled graph."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def as_written() -> AbstractContextManager[Any]:
    """Return a context in which compiled modules and functions run as they were written."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    if set_stance is None or not _compiler_loaded():
        return nullcontext()
    return set_stance("force_eager")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run as plain Python also where a compiled function calls it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _compiler_loaded():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def _compiler_loaded() -> bool:
    """Whether anything can have been compiled; the import takes a second, and is not ours to do."""
    return "torch._dynamo" in sys.modules
