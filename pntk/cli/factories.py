"""Models and data from ``module:factory``, weights from a checkpoint, and where to run."""

from __future__ import annotations

import difflib
import importlib
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pntk.errors import ConfigError

SHOWN_KEYS = 5


def load_object(spec: str, option: str) -> Any:
    """Return what ``module:factory`` makes, called without arguments.

    The current directory is on the import path, as with ``python -m``. What is no function and no
    class is taken as it is.

    Args:
        spec: such as ``train:make_model``.
        option: name of the option, for messages.

    Raises:
        ConfigError: says which part of it was wrong.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(
            f"{option} is {spec!r}; expected module:factory, such as train:make_model"
        )
    module = _import(module_name, option)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{option}: module {module_name!r} ({module.__file__}) has no attribute {name!r}{hint}"
        )
    found = getattr(module, name)
    if not callable(found) or isinstance(found, nn.Module):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigError(f"{option}: {spec} raised {_describe(error)}") from error


def _import(module_name: str, option: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: the user's own modules are meant
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):  # the module or one of its packages
            raise ConfigError(
                f"{option}: there is no module {error.name!r} in {here} or on the import path; "
                "give its dotted name, without .py, or run from the folder that holds it"
            ) from error
        raise ConfigError(
            f"{option}: importing {module_name!r} raised {_describe(error)}"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{option}: importing {module_name!r} raised {_describe(error)}"
        ) from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error} (pntk --debug ... shows where)"


def load_data(spec: str, option: str = "--data") -> Any:
    """Return the data that a factory makes.

    Raises:
        ConfigError: the factory is wrong, or returned nothing.
    """
    data = load_object(spec, option)
    if data is None:
        raise ConfigError(
            f"{option}: {spec} returned None; expected a data set, tensors or a loader"
        )
    return data


def load_model(
    spec: str, checkpoint: Path | None, device: torch.device, *, keep_mode: bool
) -> nn.Module:
    """Return the model that a factory makes, with its weights, on a device.

    Raises:
        ConfigError: the factory or the checkpoint is wrong.
    """
    model = load_object(spec, "--model")
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"--model: {spec} returned a {type(model).__name__}; expected a torch.nn.Module"
        )
    if checkpoint is not None:
        load_weights(model, checkpoint)
    model = model.to(device)
    return model if keep_mode else model.eval()


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint into a model, every weight of both.

    Raises:
        ConfigError: the file is no checkpoint, or holds weights of another model.
    """
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"--checkpoint {checkpoint} cannot be read as a state dict: it is none, or holds "
            "objects that pntk does not load because that can run code; save model.state_dict() "
            "with torch.save"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"--checkpoint {checkpoint} cannot be read: {reason}; expected a state dict that "
            "torch.save wrote"
        ) from error
    state = _state_dict(loaded, checkpoint)
    _check_keys(model, state, checkpoint)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"--checkpoint {checkpoint} does not fit: {error}") from error


def _state_dict(loaded: Any, checkpoint: Path) -> Mapping[str, Any]:
    """Return the state dict itself, or the one that a training script has wrapped."""
    if isinstance(loaded, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(loaded.get(key), Mapping):
                return loaded[key]
        if loaded and any(isinstance(value, Tensor) for value in loaded.values()):
            return loaded
    held = (
        f"a dict with {', '.join(map(repr, loaded))}"
        if isinstance(loaded, Mapping)
        else (f"a {type(loaded).__name__}")
    )
    raise ConfigError(
        f"--checkpoint {checkpoint} holds {held}; expected a state dict, or a dict that holds one "
        "under 'state_dict' or 'model'"
    )


def _check_keys(model: nn.Module, state: Mapping[str, Any], checkpoint: Path) -> None:
    own = model.state_dict()
    problems = []
    if missing := [key for key in own if key not in state]:
        problems.append(f"missing {_some(missing)}")
    if unexpected := [key for key in state if key not in own]:
        problems.append(f"unexpected {_some(unexpected)}")
    if problems:
        raise ConfigError(
            f"--checkpoint {checkpoint} does not fit {type(model).__name__}: "
            f"{'; '.join(problems)}; expected the state dict of this very model"
        )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more


def pick_device(name: str) -> torch.device:
    """Return the device that a name stands for; ``auto`` is a GPU if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # torchrun's
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}; expected auto, cpu, cuda, or one such as cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device is {name!r} and PyTorch sees {torch.cuda.device_count()} CUDA devices; use "
            "--device cpu, or see `pntk info`"
        )
    return device
