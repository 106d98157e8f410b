"""Read what TRAK and projection_ntk have kept in a save_dir, as stores.

A save_dir holds ``metadata.json``, ``id_{m}.json`` and for each model m ``{m}/grads.mmap`` [n, k],
``{m}/features.mmap``, ``{m}/out_to_loss.mmap`` [n, 1], ``{m}/_is_featurized.mmap`` and for each
experiment ``{m}/{experiment}_grads.mmap``; projection_ntk adds ``{m}/grads_{c}.mmap`` for each
class c. All arrays are .npy files despite the suffix. They may come from anywhere: nothing in them
is believed, and nothing is ever unpickled.

Scale: with P of unit entries, their rows are P^T g / sqrt(p), so that <a, b> has the expectation
k / p <g, g'>. Times sqrt(p / k) they are rows of pntk's scale; p is not in a save_dir.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from xxhash import xxh3_64

from pntk._version import __version__
from pntk.errors import ConfigError, DataError, PntkWarning
from pntk.projection.spec import MAX_PROJ_DIM
from pntk.store import FeatureStore, RowWriter, StoreHeader
from pntk.store.layout import Array

WHAT = ("grads", "features")
KINDS = ("trace", "pntk")
_FLOATS = ("float16", "float32", "float64")
_JSON_BYTES = 2**20
_BLOCK_BYTES = 2**24
_MAX_ROWS, _MAX_CLASSES = 2**40, 2**17
_UNREADABLE = (  # what numpy's reader of headers has been seen to raise
    ValueError, OSError, EOFError, SyntaxError, TokenError, TypeError, KeyError, RecursionError,
    MemoryError, OverflowError,
)  # fmt: skip


def read_trak(
    save_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    experiment: str | None = None,
    what: str = "grads",
    num_params: int | None = None,
    output: str = "margin",
    model_ids: Sequence[int] | None = None,
) -> list[FeatureStore]:
    """Copy the rows of a TRAK save_dir to stores, one a checkpoint.

    Training rows get a column ``reweighting``, TRAK's Q, so that they go right into
    :func:`pntk.attribution.attribute`. Rows that TRAK has not made are missing; those with NaN or
    infinity, which its float16 may have, are marked as skipped.

    Args:
        save_dir: folder that TRAK has written.
        out: folder for ``{m}.h5``, or ``{m}-{experiment}.h5``; made if absent. Copies that are
            there are gone on with.
        experiment: name of the targets to read; None for the training samples.
        what: ``grads``, the rows, or ``features``, Phi (Phi^T Phi)^-1 but for a factor.
        num_params: p, the number of parameters that TRAK took gradients of, to bring rows to
            pntk's scale; None leaves them at TRAK's. Where p = k (no projection), times sqrt(p).
        output: name of what was differentiated, which a save_dir does not say.
        model_ids: None for all.

    Returns:
        Stores, in the order of the models' numbers.

    Raises:
        ConfigError: an argument that cannot work.
        DataError: no such folder, or not what TRAK writes; names the file.
        StoreError: a store cannot be written, or holds other rows.
    """
    _one_of("what", what, WHAT)
    if experiment is not None and what == "features":
        raise ConfigError("what='features' is of training samples; leave experiment out")
    if experiment is not None and not re.fullmatch(r"[^/\\\0]{1,200}", experiment):
        raise ConfigError(f"experiment is {experiment!r}; expected the name of an experiment")
    source = _Source(save_dir)
    scale = _scale(num_params, source.width)
    name = f"{what}.mmap" if experiment is None else f"{experiment}_grads.mmap"
    suffix = "" if experiment is None else f"-{experiment}"

    def read(model_id: int, folder: Path) -> tuple[StoreHeader, list[Array], dict[str, Array]]:
        rows = source.rows if experiment is None else None
        array = _array(folder / name, (rows, source.width), _FLOATS)
        columns = {}
        if experiment is None:
            columns["reweighting"] = source.reweighting(folder)
        described = {"name": output, **({"what": what} if what != "grads" else {})}
        header = source.header(
            len(array), source.width, described, num_params, source.weights(folder), columns
        )
        return header, [array], columns

    return _copy(source, out, suffix, model_ids, scale, read, experiment is None)


def read_projection_ntk(
    save_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str | None = None,
    num_params: int | None = None,
    model_ids: Sequence[int] | None = None,
) -> list[FeatureStore]:
    """Copy the rows of a projection_ntk save_dir to stores, one a checkpoint.

    Of the trace NTK there are matrices ``grads_{c}.mmap`` for each class, whose kernels are summed:
    the store has their rows side by side, [n, C k]. (They share one projection, so their sum would
    be the pNTK.)

    Args:
        kind: ``trace`` or ``pntk``; None for the one whose rows are not zero.
        save_dir, out, num_params, model_ids: see :func:`read_trak`.

    Returns:
        Stores, in the order of the models' numbers.

    Raises:
        ConfigError, DataError, StoreError: see :func:`read_trak`; also where both kinds are there
            and ``kind`` is None.
    """
    if kind is not None:
        _one_of("kind", kind, KINDS)
    source = _Source(save_dir)
    scale = _scale(num_params, source.width)
    shape = (source.rows, source.width)

    def read(model_id: int, folder: Path) -> tuple[StoreHeader, list[Array], dict[str, Array]]:
        found = kind or _filled(source, folder)
        if found == "pntk":
            arrays = [_array(folder / "grads.mmap", shape, _FLOATS)]
        else:
            arrays = [
                _array(folder / f"grads_{c}.mmap", shape, _FLOATS) for c in range(source.classes)
            ]
        width = source.width * len(arrays)
        weights = source.weights(folder)
        header = source.header(source.rows, width, {"name": found}, num_params, weights, {})
        return header, arrays, {}

    return _copy(source, out, "", model_ids, scale, read, True)


# ---- a save_dir --------------------------------------------------------------------------------


class _Source:
    """A save_dir and what its metadata says.

    Attributes:
        folder: the save_dir.
        rows, width: n, k.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        self.folder = Path(os.path.abspath(save_dir))
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is no folder; expected a save_dir of TRAK")
        self._path = self.folder / "metadata.json"
        self._metadata = _json(self._path)
        self.width = self._integer("JL dimension", MAX_PROJ_DIM)
        self.rows = self._integer("train set size", _MAX_ROWS)
        self._matrix = str(self._metadata.get("JL matrix type"))[:100]

    @property
    def classes(self) -> int:
        """C, of projection_ntk."""
        classes = self._integer("number classes", _MAX_CLASSES)
        if classes * self.width > MAX_PROJ_DIM:
            raise DataError(
                f"{self._path}: {classes} classes of {self.width} columns are more than the "
                f"{MAX_PROJ_DIM} that a row may have"
            )
        return classes

    @property
    def has_classes(self) -> bool:
        return self._metadata.get("number classes") is not None

    def model_ids(self, given: Sequence[int] | None) -> list[int]:
        """Return the numbers of the models, ascending."""
        found = sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if re.fullmatch("0|[1-9][0-9]{0,9}", path.name) and path.is_dir()
        )
        if given is not None:
            absent = sorted(set(given) - set(found))
            if absent or not given:
                raise ConfigError(
                    f"model_ids is {list(given)!r}; {self.folder} has the models {found}"
                )
            return list(given)
        if not found:
            raise DataError(f"{self.folder} holds no models; expected folders such as 0 and 1")
        return found

    def reweighting(self, folder: Path) -> Array:
        """Return Q, float32 [n]."""
        return _array(folder / "out_to_loss.mmap", (self.rows, 1), _FLOATS)[:, 0].astype("f4")

    def present(self, folder: Path) -> Array:
        """Return which training rows have been made, bool [n]."""
        path = folder / "_is_featurized.mmap"
        return np.array(_array(path, None, ("int32", "int64"), self.rows)).reshape(-1) == 1

    def weights(self, folder: Path) -> str:
        """Return what tells models apart, as far as a save_dir does: their number and Q."""
        digest = xxh3_64(json.dumps(self._metadata, sort_keys=True).encode())
        path = folder / "out_to_loss.mmap"
        if path.exists():
            digest.update(self.reweighting(folder).tobytes())
        return f"save_dir model {folder.name} {digest.hexdigest()}"

    def header(
        self,
        rows: int,
        width: int,
        output: dict[str, Any],
        num_params: int | None,
        weights: str,
        columns: dict[str, Array],
    ) -> StoreHeader:
        """Return the header of a copy."""
        return StoreHeader(
            rows=rows,
            width=width,
            dtype="float32",
            projection={
                "family": f"trak {self._matrix}",
                "proj_dim": self.width,
                "scale": "trak" if num_params is None else "pntk",
            },
            output=output,
            params=() if num_params is None else (("all", (num_params,)),),
            weights=weights,
            precision="unknown",
            columns=dict.fromkeys(columns, "float32"),
            info={"imported_from": str(self.folder), "pntk": __version__},
        )

    def _integer(self, name: str, most: int) -> int:
        value = self._metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise DataError(
                f"{self._path}: {name!r} is {str(value)[:50]!r}; expected an integer from 1 to "
                f"{most}"
            )
        return value


def _copy(
    source: _Source,
    out: str | os.PathLike[str],
    suffix: str,
    model_ids: Sequence[int] | None,
    scale: float,
    read: Callable[[int, Path], tuple[StoreHeader, list[Array], dict[str, Array]]],
    with_marks: bool,
) -> list[FeatureStore]:
    """Copy the rows of each model, a block at a time."""
    numbers = source.model_ids(model_ids)
    target = Path(os.path.abspath(out))
    if target.exists() and not target.is_dir():
        raise ConfigError(f"out is {target}, which is no folder; name a folder for the stores")
    target.mkdir(parents=True, exist_ok=True)
    stores = []
    for model_id in numbers:
        folder = source.folder / str(model_id)
        header, arrays, columns = read(model_id, folder)
        there = source.present(folder) if with_marks else np.ones(header.rows, dtype=bool)
        path, bad = target / f"{model_id}{suffix}.h5", 0
        with RowWriter.open(path, header) as writer:
            wanted = writer.missing()
            wanted = wanted[there[wanted]]
            step = max(1, _BLOCK_BYTES // (4 * header.width))
            for start in range(0, len(wanted), step):
                places = wanted[start : start + step]
                with np.errstate(over="ignore", invalid="ignore"):  # such rows are found below
                    block = np.concatenate([array[places] for array in arrays], axis=1, dtype="f4")
                    block *= np.float32(scale)
                skipped = ~np.isfinite(block).all(1)
                bad += int(skipped.sum())
                cells = {name: values[places] for name, values in columns.items()}
                writer.write(places, block, cells, skipped)
        if bad:
            warnings.warn(
                PntkWarning(f"{bad} rows of {folder} hold NaN or infinity and are marked skipped"),
                stacklevel=3,
            )
        stores.append(FeatureStore(path))
    return stores


def _filled(source: _Source, folder: Path) -> str:
    """Return the kind of rows that are not all zero; projection_ntk makes files for both."""
    shape = (source.rows, source.width)
    files = {"pntk": folder / "grads.mmap"}
    if source.has_classes:
        files["trace"] = folder / "grads_0.mmap"
    found = [
        kind
        for kind, path in files.items()
        if path.exists() and _is_anything(_array(path, shape, _FLOATS))
    ]
    if len(found) != 1:
        seen = "both kinds of rows" if found else "no rows that are not zero"
        raise DataError(f"{folder} holds {seen}; pass kind='trace' or 'pntk'")
    return found[0]


def _is_anything(array: Array) -> bool:
    step = max(1, _BLOCK_BYTES // (array.shape[1] * array.itemsize))
    return any(array[i : i + step].any() for i in range(0, len(array), step))


# ---- files -------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    """Read a small JSON object."""
    try:
        _require_file(path)
        with open(path, "rb") as file:
            text = file.read(_JSON_BYTES + 1)
        if len(text) > _JSON_BYTES:
            raise DataError(
                f"{path} is larger than {_JSON_BYTES:,} bytes; expected TRAK's metadata"
            )
        values = json.loads(text)
    except DataError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({str(error)[:200]})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def _array(
    path: Path,
    shape: tuple[int | None, int] | None,
    dtypes: Sequence[str],
    size: int | None = None,
) -> Array:
    """Map an .npy file of this shape (None: any number of rows), or of this size.

    Raises:
        DataError: it is no such file.
    """
    try:
        _require_file(path)
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                found, fortran, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"version {version} of the format")
            offset, length = file.tell(), os.fstat(file.fileno()).st_size
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path} is no .npy file ({str(error)[:200]})") from None
    if dtype.hasobject or dtype.name not in dtypes:
        raise DataError(f"{path} holds {str(dtype)[:50]}; expected {' or '.join(dtypes)}")
    fits = (
        math.prod(found) == size
        if shape is None
        else len(found) == 2 and found[1] == shape[1] and shape[0] in (None, found[0])
    )
    if not fits or any(side < 1 for side in found):
        wanted = f"{size} numbers" if shape is None else "[n, k]" if None in shape else list(shape)
        raise DataError(f"{path} has shape {str(found)[:100]}; expected {wanted}")
    needed = offset + math.prod(found) * dtype.itemsize
    if length < needed:
        raise DataError(f"{path} is truncated: {length:,} bytes long, its array ends at {needed:,}")
    return np.memmap(path, dtype, "r", offset, tuple(found), order="F" if fortran else "C")


def _require_file(path: Path) -> None:
    """Refuse what is no regular file, such as a pipe that would never end."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    if not regular:
        raise DataError(f"{path} is not a regular file")


def _scale(num_params: int | None, width: int) -> float:
    """Return what rows are multiplied by."""
    if num_params is None:
        return 1.0
    if isinstance(num_params, bool) or not isinstance(num_params, int) or num_params < 1:
        raise ConfigError(f"num_params is {num_params!r}; expected an integer of at least 1")
    return math.sqrt(num_params if num_params == width else num_params / width)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; expected {' or '.join(allowed)}")
