"""Tell callables apart by what they do, as far as that can be seen, for a store's header."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

from torch import Tensor, nn

from pntk.naming import fingerprint

_PLAIN = (str, int, float, bool, type(None))


def describe(thing: Any) -> str:
    """Return a text that is the same for callables that do the same, in any process.

    A callable may say itself what it is, by a method ``describe() -> str``. Otherwise a function
    is its name, its compiled code and what it closes over; a module its class, plain settings and
    a hash of its tensors; any other object its class and plain settings.
    """
    own = getattr(thing, "describe", None)
    if callable(own) and not isinstance(thing, type):
        return str(own())
    if isinstance(thing, functools.partial):
        keywords = {key: describe(value) for key, value in sorted(thing.keywords.items())}
        return f"partial({describe(thing.func)}, {[describe(a) for a in thing.args]}, {keywords})"
    if isinstance(thing, types.MethodType):
        return f"{describe(thing.__self__)}.{thing.__name__}"
    if isinstance(thing, types.FunctionType):
        return _function(thing)
    if isinstance(thing, Tensor):
        return f"tensor {_digest(thing.detach().cpu().numpy().tobytes())}"
    if isinstance(thing, _PLAIN):
        return repr(thing)
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is thing:
        return name
    settings = {
        key: value
        for key, value in sorted(getattr(thing, "__dict__", {}).items())
        if isinstance(value, _PLAIN) and not key.startswith("_") and key != "training"
    }
    tensors = f", tensors {fingerprint(thing)}" if isinstance(thing, nn.Module) else ""
    return f"{name}({settings}{tensors})"


def _function(function: types.FunctionType) -> str:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    closed = [describe(c) if not isinstance(c, types.FunctionType) else _function(c) for c in cells]
    parts = [_code(function.__code__), closed, [describe(d) for d in function.__defaults__ or ()]]
    name = f"{function.__module__}.{function.__qualname__}"
    return f"{name} {_digest(repr(parts).encode())}"


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
