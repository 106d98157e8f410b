"""Files of directions: HDF5 and safetensors to write; also published arrays and pickles to read.

No pickle is ever written, and none is read by running what it asks for. Shapes: r directions; d
numbers in each.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError, PntkError
from pntk.extras import require
from pntk.files import write_whole
from pntk.nads.nads import NADs
from pntk.store.create import describe
from pntk.store.hdf5 import check_format, open_hdf5, read_extent, read_text

FORMAT = "pntk-nads"
FORMAT_VERSION = 1
_ARRAYS = ("directions", "singular_values")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_PICKLES = (b"PK\x03\x04", b"\x80")  # zip files of torch.save, and what came before them


def save(nads: NADs, path: str | os.PathLike[str]) -> None:
    """Write NADs; see :meth:`NADs.save`."""
    file = Path(os.path.abspath(path))
    about = {
        "name": nads.name,
        "model_params": nads.model_params,
        "centered": nads.centered,
        "num_samples": nads.num_samples,
        "info": nads.info,
    }
    text = json.dumps(about, sort_keys=True, default=repr)
    tensors = {name: getattr(nads, name).detach().cpu().contiguous() for name in _ARRAYS}
    if file.suffix in (".h5", ".hdf5"):
        if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):
            raise ConfigError(
                f"{file}: HDF5 has no bfloat16; use .safetensors, or nads.to(torch.float32)"
            )
        write_whole(file, _to_hdf5(tensors, text, nads.shape))
    elif file.suffix == ".safetensors":
        module = require("safetensors.torch", f"{file.name}", "search")
        _check_ours(file)
        write_whole(file, module.save(tensors, {"format": FORMAT, "header": text}))
    else:
        raise ConfigError(f"{file}: suffix {file.suffix!r}; expected .h5, .hdf5 or .safetensors")


def _check_ours(file: Path) -> None:
    """Refuse a file that is there and holds no directions."""
    if file.is_file():
        try:
            load(file)
        except PntkError as error:
            raise ConfigError(
                f"{file} is there and holds no directions ({error}); choose another path, or "
                "delete it"
            ) from error


def load(path: str | os.PathLike[str]) -> NADs:
    """Read NADs; see :meth:`NADs.load`."""
    file = Path(os.path.abspath(path))
    try:
        with open(file, "rb") as opened:
            start = opened.read(16)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); check the path") from error
    if start.startswith(_HDF5):
        return _from_hdf5(file)
    if start.startswith(_NPY):
        return _from_published(file)
    if start.startswith(_PICKLES):
        return _from_pickle(file)
    if start[8:9] == b"{":
        return _from_safetensors(file)
    raise DataError(
        f"{file}: expected HDF5, safetensors, a published NAME_NADs.npy, or a file of the nads "
        f"package; it starts with {start[:8]!r}"
    )


def from_arrays(
    directions: Any, singular_values: Any, shape: tuple[int, ...] | None = None, **about: Any
) -> NADs:
    """Make NADs of arrays; see :meth:`NADs.from_arrays`."""
    vectors, values = _array("directions", directions), _array("singular values", singular_values)
    if vectors.ndim < 2 or values.ndim != 1:
        raise DataError(
            f"directions have shape {vectors.shape} and singular values {values.shape}; expected "
            "[r, d] or [r, *shape], and [r]"
        )
    numbers = math.prod(vectors.shape[1:])
    if shape is None:
        side = math.isqrt(numbers)
        square = vectors.ndim == 2 and side * side == numbers
        shape = (1, side, side) if square else vectors.shape[1:]
    sizes = shape if isinstance(shape, (tuple, list)) else ()
    whole_sizes = sizes and all(isinstance(size, int) and size > 0 for size in sizes)
    if not whole_sizes or math.prod(sizes) != numbers:
        raise DataError(
            f"directions have {numbers} numbers each and shape is {shape!r}; expected one of as "
            "many, such as (1, 32, 32)"
        )
    whole = torch.from_numpy(np.array(vectors)).reshape(-1, *shape)
    return NADs(whole, torch.from_numpy(np.array(values)), **about)


def _array(what: str, given: Any) -> np.ndarray:
    """Return an array of numbers, read from a .npy file if a path is given."""
    if isinstance(given, (str, os.PathLike)):
        try:
            with open(given, "rb") as file:
                given = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{given}: no .npy file of {what} ({error})") from error
    if isinstance(given, Tensor):
        given = given.detach().cpu()
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are no array ({error}); expected numbers [r, d] or [r]") from error
    if array.dtype.kind != "f":
        raise DataError(f"{what} are {array.dtype}; expected floating-point numbers")
    return array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)


def _from_published(file: Path) -> NADs:
    name, suffix, _ = file.name.partition("_NADs.npy")
    values = file.with_name(f"{name}_eigenvals.npy")
    if not suffix or not values.is_file():
        raise DataError(
            f"{file}: expected NAME_NADs.npy with NAME_eigenvals.npy beside it; use "
            "NADs.from_arrays(directions, singular_values, shape) for other arrays"
        )
    return from_arrays(file, values, name=name)


def _to_hdf5(tensors: dict[str, Tensor], text: str, shape: tuple[int, ...]) -> bytes:
    header = {"about": json.loads(text), "shape": [len(tensors["directions"]), *shape]}
    header["dtypes"] = {name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items()}
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        describe(file, FORMAT, FORMAT_VERSION, json.dumps(header, sort_keys=True))
        for name, tensor in tensors.items():
            array = tensor.numpy()
            file.create_dataset(name, data=array, dtype=array.dtype.newbyteorder("<"))
    return packed.getvalue()


def _from_hdf5(file: Path) -> NADs:
    with open_hdf5(file) as opened:
        check_format(file, opened, FORMAT, "directions", FORMAT_VERSION)
        header = json.loads(read_text(file, opened, "header"))
        arrays = []
        for name in _ARRAYS:
            shape = tuple(header["shape"] if name == "directions" else header["shape"][:1])
            dtype = np.dtype(header["dtypes"][name]).newbyteorder("<")
            read_extent(file, opened, name, shape, dtype)
            arrays.append(torch.from_numpy(opened[name][()].astype(dtype.newbyteorder("="))))
    return NADs(arrays[0], arrays[1], **header["about"])


def _from_safetensors(file: Path) -> NADs:
    module = require("safetensors", f"{file.name}", "search")
    try:
        with module.safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {}).get("header", "{}"))
            arrays = [opened.get_tensor(name) for name in _ARRAYS]
        return NADs(arrays[0], arrays[1], **about)
    except (module.SafetensorError, json.JSONDecodeError, TypeError) as error:
        raise DataError(
            f"{file}: no safetensors file of {' and '.join(_ARRAYS)} ({error})"
        ) from error


def _from_pickle(file: Path) -> NADs:
    """Read a file of the ``nads`` package, which torch.save wrote, without running code."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{file}: refused: a pickle that is damaged, or that holds more than tensors and plain "
            "values, and could run code; ask for HDF5 or safetensors instead"
        ) from error
    try:
        directions, values = found["nads"], found["eigen_values"]
        if not isinstance(directions, Tensor) or not isinstance(values, Tensor):
            raise TypeError
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{file}: expected a file of the nads package, with tensors nads and eigen_values"
        ) from error
    params = found.get("model_params")
    return NADs(
        directions,
        values,
        name=found.get("name"),
        model_params=params if isinstance(params, dict) else None,
        centered=False,
    )
