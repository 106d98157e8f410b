"""Models that FSDP2 has spread over processes: whole while they are featurized, else refused.

Told apart by names and methods, so that nothing of ``torch.distributed`` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pntk.errors import ModelError

# where the forward hooks of fully_shard are defined, since torch 2.6 and before
_FSDP2 = ("torch.distributed.fsdp._fully_shard.", "torch.distributed._composable.fsdp.")
# and those of tensor parallelism, since torch 2.5 and before
_TENSOR_PARALLEL = ("torch.distributed.tensor.", "torch.distributed._tensor.")
_LOAD = (
    "gather a full state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
    "StateDictOptions(full_state_dict=True), or full_tensor() of each parameter) and load it into "
    "a plain model"
)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Hold a model's parameters whole on every process, so that it can be featurized.

    Of what ``fully_shard`` has spread, each process has the full parameters inside, plain and in
    the type they are trained in. Nothing is sent until the end, so processes may featurize
    different numbers of batches. Then the sharded parameters are back, the same objects as before,
    and training goes on. What is done inside to the full ones (training, ``model.to``) is lost.

    All processes of the mesh enter together. A Featurizer is made, used and dropped inside: it
    keeps the full parameters alive.

    Args:
        model: any module; one without FSDP2 modules is left alone.

    Raises:
        ModelError: it is spread in another way (FSDP1, tensor parallelism).

    Example:
        >>> from pntk import Featurizer
        >>> model = nn.Linear(3, 1)  # fully_shard(model) in a process of several
        >>> with unsharded(model):
        ...     rows = Featurizer(model, projection="identity")(torch.ones(2, 3))
        >>> rows.shape
        torch.Size([2, 4])
    """
    _refuse_other_shards(model)
    modules = [m for m in model.modules() if _is_fsdp2(m) and not _stands_aside(m)]
    for module in modules:
        if not _hooks(module, _FSDP2):
            raise ModelError(
                f"{type(module).__name__} has no forward hooks that pntk knows to be those of "
                f"fully_shard in torch {torch.__version__}; expected them: {_LOAD}"
            )
    for module in modules:
        module.reshard()  # type: ignore[operator]  # a module may be whole since a forward pass
    places = [
        (module, key, p)
        for module in model.modules()
        for key, p in module._parameters.items()
        if p is not None and _is_dtensor(p)
    ]
    whole: dict[int, nn.Parameter] = {}  # id of a sharded parameter -> what stands in for it
    for _, _, p in places:
        if id(p) not in whole:
            whole[id(p)] = _gathered(p)
    try:
        for module, key, p in places:
            setattr(module, key, whole[id(p)])
        with _hooks_aside(modules):
            yield
    finally:
        for module, key, p in places:
            setattr(module, key, p)


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model that is spread over processes, unless ``unsharded`` holds it whole.

    Raises:
        ModelError: with the remedy.
    """
    _refuse_other_shards(model)
    for name, module in model.named_modules():
        if _is_fsdp2(module) and not _stands_aside(module):
            p = next((p for p in module.parameters() if _is_dtensor(p)), None)
            seen = "an FSDP2 module" if p is None else f"an FSDP2 module with {_described(p)}"
            raise ModelError(
                f"{_where(module, name)} is {seen}; expected whole, plain parameters: make and use "
                "the Featurizer inside `with pntk.unsharded(model):`, on all processes"
            )


def _refuse_other_shards(model: nn.Module) -> None:
    """Refuse a model that is spread over processes in a way that ``unsharded`` cannot undo.

    Raises:
        ModelError: with the remedy.
    """
    by_fsdp2: set[int] = set()
    for name, module in model.named_modules():
        if _is_a(module, "FullyShardedDataParallel"):
            raise ModelError(
                f"{_where(module, name)} is an FSDP1 module, which gathers and frees its "
                "parameters in every pass; expected plain ones, or fully_shard (FSDP2) and "
                f"pntk.unsharded: {_LOAD}"
            )
        if _hooks(module, _TENSOR_PARALLEL):
            raise ModelError(
                f"{_where(module, name)} is tensor parallel; expected a model that each process "
                f"can hold whole: {_LOAD}"
            )
        if _is_fsdp2(module):
            by_fsdp2.update(map(id, module.parameters()))
    for name, p in model.named_parameters():
        if _is_dtensor(p) and not (id(p) in by_fsdp2 and _is_data_parallel(p)):
            raise ModelError(
                f"parameter {name} is {_described(p)} that is not of fully_shard alone; expected "
                f"a plain tensor: {_LOAD}"
            )


# ---- what is what -----------------------------------------------------------------------------


def _is_a(module: nn.Module, name: str) -> bool:
    """Whether a class of this name in ``torch.distributed`` is among a module's."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("torch.distributed")
        for kind in type(module).__mro__
    )


def _is_fsdp2(module: nn.Module) -> bool:
    return _is_a(module, "FSDPModule")


def _is_dtensor(p: Tensor) -> bool:
    return hasattr(p, "full_tensor")


def _is_data_parallel(p: Any) -> bool:
    """Whether a DTensor lies as fully_shard alone lays one: [replicated,] sharded or replicated."""
    return len(p.placements) <= 2 and all(placed.is_replicate() for placed in p.placements[:-1])


def _where(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__} {name!r}" if name else type(module).__name__


def _described(p: Any) -> str:
    return f"a DTensor {tuple(p.placements)} on a mesh of {p.device_mesh.size()}"


# ---- whole parameters -------------------------------------------------------------------------


@torch.inference_mode(False)
def _gathered(p: Any) -> nn.Parameter:
    """Return the full parameter that a sharded one is a part of; all processes call this."""
    held = p.detach()
    if held.device.type != p.device_mesh.device_type:  # offloaded, where the mesh cannot send it
        held = held.to(p.device_mesh.device_type)
    return nn.Parameter(held.full_tensor(), requires_grad=p.requires_grad)


# ---- hooks ------------------------------------------------------------------------------------

Place = tuple[dict[int, Callable[..., Any]], int, Callable[..., Any]]


def _hooks(module: nn.Module, sources: tuple[str, ...]) -> list[Place]:
    """Return the forward hooks that are defined below some packages, each with its place."""
    return [
        (hooks, key, hook)
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for key, hook in hooks.items()
        if (getattr(hook, "__module__", None) or "").startswith(sources)
    ]


def _aside(*args: Any) -> None:
    """Stand in for a hook of fully_shard, and do nothing."""


def _stands_aside(module: nn.Module) -> bool:
    return _aside in module._forward_pre_hooks.values()


@contextmanager
def _hooks_aside(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keep fully_shard out of the passes through its modules.

    Its hooks would gather again, and average the gradients of an ordinary backward pass over the
    processes. ``register_fsdp_forward_method`` calls them as methods of the module's state.
    """
    places = [place for module in modules for place in _hooks(module, _FSDP2)]
    states = [module._get_fsdp_state() for module in modules]  # type: ignore[operator]
    try:
        for hooks, key, _ in places:
            hooks[key] = _aside
        for state in states:
            state._pre_forward = lambda module, args, kwargs: (args, kwargs)
            state._post_forward = lambda module, args, result: result
        yield
    finally:
        for hooks, key, hook in places:
            hooks[key] = hook
        for state in states:
            vars(state).pop("_pre_forward", None)
            vars(state).pop("_post_forward", None)
