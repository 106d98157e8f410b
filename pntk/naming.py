"""Which parameters of a model are featurized, under names that no wrapper changes; and where."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pntk.errors import ConfigError, ModelError
from pntk.unsharded import refuse_sharded

ParamFilter = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None

# path segments that torch.compile, FSDP and activation checkpointing put between real names
_WRAPPER_SEGMENTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_REPLICA_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, DDP and DataParallel wrappers."""
    while True:
        if isinstance(model, _REPLICA_WRAPPERS):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]  # an OptimizedModule
        else:
            return model


def canonical(name: str) -> str:
    """Return a qualified name without the segments that wrappers add.

    >>> canonical("_fsdp_wrapped_module.layer1._orig_mod.weight")
    'layer1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return canonical name -> parameter, each shared parameter once, in the model's order."""
    return {canonical(name): p for name, p in model.named_parameters()}


def select_parameters(model: nn.Module, chosen: ParamFilter) -> dict[str, nn.Parameter]:
    """Return the parameters to featurize.

    Args:
        model: an unwrapped module.
        chosen: ``None`` for all that require gradients, a glob, several globs, or a predicate
            ``(name, parameter) -> bool``; an explicit choice also takes frozen parameters.

    Raises:
        ModelError: the model has no parameters, or is spread over processes.
        ConfigError: nothing was selected, or a glob matches nothing.
    """
    refuse_sharded(model)
    _refuse_replicas_inside(model)
    everything = named_parameters(model)
    if not everything:
        raise ModelError(
            f"{type(model).__name__} has no parameters; a tangent kernel needs at least one"
        )
    if chosen is None:
        found = {name: p for name, p in everything.items() if p.requires_grad}
        if not found:
            raise ConfigError(
                f"all {len(everything)} parameters of {type(model).__name__} are frozen "
                "(requires_grad=False); pass params='*' to featurize them all the same"
            )
        return _usable(found)
    if callable(chosen):
        found = {name: p for name, p in everything.items() if chosen(name, p)}
        if not found:
            raise ConfigError(
                f"the params predicate selected none of {len(everything)} parameters; "
                f"names look like {next(iter(everything))!r}"
            )
        return _usable(found)
    if not isinstance(chosen, (str, list, tuple, set)):
        raise ConfigError(
            f"params is {chosen!r}; expected a glob, a list of globs, a predicate, or None"
        )
    patterns = [chosen] if isinstance(chosen, str) else list(chosen)
    if not patterns:
        raise ConfigError("params is an empty list; pass globs such as 'layer4.*', or None for all")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"params holds {pattern!r}; expected globs such as 'layer4.*'")
        if not fnmatch.filter(everything, pattern):
            near = difflib.get_close_matches(pattern, everything, n=3, cutoff=0.3)
            hint = ", ".join(near or list(everything)[:3])
            raise ConfigError(f"params glob {pattern!r} matches no parameter; near it: {hint}")
    return _usable(
        {
            name: p
            for name, p in everything.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
    )


def _refuse_replicas_inside(model: nn.Module) -> None:
    """Refuse DistributedDataParallel around a part of a model, whose every pass is a collective."""
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ModelError(
                f"{canonical(name)} is a DistributedDataParallel inside the model; expected it "
                "around the whole model: put its .module in its place while featurizing"
            )


def _usable(params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the parameters that hold numbers, all of a type that has gradients."""
    for name, p in params.items():
        if not p.is_floating_point():
            raise ModelError(
                f"parameter {name} is {p.dtype}; expected a real floating point type: leave it out "
                "with params="
            )
    filled = {name: p for name, p in params.items() if p.numel()}
    if not filled:
        raise ConfigError(
            f"the selected parameters ({', '.join(list(params)[:3])}) are empty; select some "
            "that hold numbers"
        )
    return filled


def check_parameters(
    model: nn.Module, params: dict[str, nn.Parameter], device: torch.device
) -> None:
    """Refuse a model that no longer has the parameters that were selected, where they were.

    Raises:
        ModelError: they were replaced or moved.
    """
    present = named_parameters(model)
    replaced = [name for name, p in params.items() if present.get(name) is not p]
    if replaced:
        raise ModelError(
            f"parameters of the model were replaced ({', '.join(replaced[:3])}) since this was "
            "made for them; make a new one"
        )
    moved = next((p.device for p in params.values() if p.device != device), None)
    if moved is not None:
        raise ModelError(
            f"the model was moved from {device} to {moved} since this was made for it; make a new "
            "one"
        )


def fingerprint(model: nn.Module) -> str:
    """Return a hash of all weights and persistent buffers: canonical names, types and values.

    Raises:
        ModelError: the model is spread over processes.
    """
    refuse_sharded(model)
    digest = hashlib.blake2b(digest_size=16)
    tensors: dict[str, Tensor] = {canonical(k): v for k, v in model.state_dict().items()}
    for name in sorted(tensors):
        value = tensors[name]
        if not isinstance(value, Tensor):  # extra state of a module, not a weight
            continue
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_device(model: nn.Module, wanted: str | torch.device = "auto") -> torch.device:
    """Return the one device that a model is on, which must be the wanted one.

    Raises:
        ModelError: several devices, or the meta device.
        ConfigError: another device is wanted, or no such device exists.
    """
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1:
        raise ModelError(
            f"the model's parameters are on {', '.join(devices)}; expected one device: move it "
            "with model.to(...)"
        )
    device = torch.device(devices[0])
    if device.type == "meta":
        raise ModelError("the model is on the meta device; expected loaded weights")
    if str(wanted) == "auto":
        return device
    try:
        asked = torch.device(wanted)
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"device is {wanted!r}; expected 'auto', 'cpu', 'cuda' or another device of torch"
        ) from None
    if asked.type != device.type or asked.index not in (None, device.index):
        raise ConfigError(
            f"device is {str(wanted)!r} and the model is on {device}; move the model with "
            f".to({str(wanted)!r}), or use device='auto'"
        )
    return device
