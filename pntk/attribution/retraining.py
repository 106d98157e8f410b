"""Retrain on subsets of the training samples, or without those that scored highest.

Shapes: n training samples; m targets; s subsets; scores [n, m]: positive raises the output.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pntk.attribution.arrays import Bools, Floats, as_matrix, as_numpy
from pntk.errors import ConfigError, DataError, StoreError
from pntk.files import check_replaceable, write_whole

Train = Callable[[npt.NDArray[np.int64], int], Any]

ORDERS = ("highest", "lowest", "random")


class Retrained(NamedTuple):
    """Outputs of models that were trained on subsets.

    Attributes:
        subsets: bool [s, n].
        outputs: float64 [s, m].
    """

    subsets: Bools
    outputs: Floats


def subset(n: int, size: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """Return the samples of a random subset, ascending; the same for the same arguments."""
    random = np.random.default_rng([seed, number])
    return np.sort(random.permutation(n)[:size])


def retrain_on_subsets(
    train_fn: Train,
    n: int,
    fraction: float = 0.5,
    count: int = 100,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Retrained:
    """Train a model on each of many random subsets, and keep the outputs of the targets.

    Args:
        train_fn: ``(indices, number) -> outputs [m]``: trains on the samples ``indices`` (int64,
            ascending) and returns the outputs of the targets. ``number`` counts the models, to seed
            them. Average over several models there for less noise.
        n: number of training samples.
        fraction: of the samples in a subset, between 0 and 1.
        count: models. More than last time go on from there.
        seed: of the subsets.
        path: .npz file that has the outputs of each model once it is trained; the same call goes on
            where an earlier one stopped. None keeps nothing.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: an argument that cannot work, or a file of other subsets.
        DataError: ``train_fn`` returned something else than finite numbers, as many each time.
        StoreError: the file is damaged.
    """
    if not 0 < fraction < 1 or not 1 <= round(fraction * n) < n:
        raise ConfigError(
            f"fraction is {fraction!r} of {n} samples; expected between 0 and 1, some in and some "
            "out"
        )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"count is {count!r}; expected an integer of at least 1")
    size = round(fraction * n)
    file = None if path is None else Path(os.path.abspath(path))
    about = {"n": n, "size": size, "seed": seed}
    outputs = [] if file is None else _load_outputs(file, about)
    for number in tqdm(
        range(len(outputs), count),
        initial=min(len(outputs), count),
        total=count,
        unit="model",
        desc="retrain",
        disable=not progress,
    ):
        found = _outputs(train_fn(subset(n, size, seed, number), number), outputs)
        outputs.append(found)
        if file is not None:
            _save_outputs(file, about, outputs)
    return Retrained(_masks(n, size, seed, count), np.stack(outputs[:count]))


def read_retrained(path: str | os.PathLike[str]) -> Retrained:
    """Return what :func:`retrain_on_subsets` wrote, of all models that are trained so far.

    Files of arrays ``subsets`` (bool [s, n]) and ``outputs`` ([s, m]) can be read too, for models
    that were trained elsewhere.

    Args:
        path: .npz file.

    Raises:
        StoreError: there is no such file, it holds something else, or it is damaged.
    """
    file = Path(os.path.abspath(path))
    outputs, about, subsets = _read(file)
    if subsets is not None:
        return Retrained(subsets, outputs)
    try:
        n, size, seed = (int(about[name]) for name in ("n", "size", "seed"))
        return Retrained(_masks(n, size, seed, len(outputs)), outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, error) from None


def _masks(n: int, size: int, seed: int, count: int) -> Bools:
    masks = np.zeros((count, n), dtype=bool)
    for number in range(count):
        masks[number, subset(n, size, seed, number)] = True
    return masks


class RemovalCurve(NamedTuple):
    """Outputs after removing samples.

    Attributes:
        removed: int64 [c], how many.
        outputs: float64 [c, m].
    """

    removed: npt.NDArray[np.int64]
    outputs: Floats


def removal_curve(
    train_fn: Train,
    scores: Any,
    counts: Sequence[int],
    *,
    order: str = "highest",
    seed: int = 0,
    progress: bool = True,
) -> RemovalCurve:
    """Remove the samples that scored highest, retrain, and see what happens to the targets.

    If scores are right, outputs fall with the number removed, and faster than by ``random``.

    Args:
        train_fn: see :func:`retrain_on_subsets`; ``number`` is the place in ``counts``.
        scores: [n], or [n, m] of which the sums over targets count.
        counts: how many to remove, each less than n; 0 for the whole training set.
        order: ``highest``, ``lowest`` or ``random`` first.
        seed: of ``random``.
        progress: whether to show a progress bar.

    Raises:
        ConfigError, DataError: see :func:`retrain_on_subsets`.
    """
    values = as_matrix("scores", scores).sum(1)
    n = len(values)
    if order not in ORDERS:
        raise ConfigError(f"order is {order!r}; expected one of {', '.join(ORDERS)}")
    removed = np.asarray(counts)
    if (
        removed.ndim != 1
        or not len(removed)
        or removed.dtype.kind not in "iu"
        or not ((removed >= 0) & (removed < n)).all()
    ):
        raise ConfigError(f"counts is {counts!r}; expected integers from 0 to {n - 1}")
    if order == "random":
        places = np.random.default_rng(seed).permutation(n)
    else:
        places = np.argsort(-values if order == "highest" else values, kind="stable")
    outputs: list[Floats] = []
    for number, many in enumerate(tqdm(removed, unit="model", desc=order, disable=not progress)):
        outputs.append(_outputs(train_fn(np.sort(places[many:]), number), outputs))
    return RemovalCurve(removed.astype(np.int64), np.stack(outputs))


def _outputs(found: Any, before: Sequence[Floats]) -> Floats:
    """Return what ``train_fn`` returned as float64 [m]."""
    array = as_numpy("what train_fn returned", found)
    expected = before[0].shape if before else array.shape
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "fiu":
        raise DataError(
            f"train_fn returned {array.dtype} of shape {array.shape}; expected the outputs [m]"
        )
    if array.shape != expected:
        raise DataError(
            f"train_fn returned {len(array)} outputs; expected {expected[0]}, as the time before"
        )
    if not np.isfinite(array).all():
        raise DataError("train_fn returned NaN or infinity; expected finite outputs")
    return array.astype(np.float64)


def _save_outputs(path: Path, about: dict[str, Any], outputs: Sequence[Floats]) -> None:
    packed, values = io.BytesIO(), np.stack(outputs)
    text = json.dumps({**about, "checksum": hashlib.sha256(values.tobytes()).hexdigest()})
    np.savez(packed, outputs=values, about=np.array(text))
    write_whole(path, packed.getvalue())


def _load_outputs(path: Path, about: dict[str, Any]) -> list[Floats]:
    """Return the outputs of an earlier call.

    Raises:
        ConfigError: they are of other subsets, or the path cannot be written.
        StoreError: the file is damaged.
    """
    check_replaceable(path)
    if not path.exists():
        return []
    outputs, found, _ = _read(path)
    if found != about:
        raise ConfigError(
            f"{path} holds outputs for {found}, and asked was for {about}; use the same n, "
            "fraction and seed, or another path"
        )
    return list(outputs)


def _read(path: Path) -> tuple[Floats, dict[str, Any], Bools | None]:
    """Return the outputs in a file, of which subsets they are, and those of a file that lists them.

    Raises:
        StoreError: it cannot be read, holds something else, or is damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            outputs = archive["outputs"]
            subsets = None if "about" in archive else archive["subsets"]
            text = None if subsets is not None else str(archive["about"])
        if outputs.ndim != 2 or not len(outputs) or outputs.dtype.kind not in "fiu":
            raise ValueError(f"outputs are {outputs.dtype} {outputs.shape}")
        if text is None:
            assert subsets is not None
            if subsets.dtype != bool or subsets.ndim != 2 or len(subsets) != len(outputs):
                raise ValueError(f"subsets are {subsets.dtype} {subsets.shape}")
            return outputs.astype(np.float64), {}, subsets
        found = json.loads(text)
        checksum = found.pop("checksum")
        if checksum != hashlib.sha256(np.ascontiguousarray(outputs).tobytes()).hexdigest():
            raise ValueError("the checksum does not match")
    except (
        ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise _unreadable(path, error) from None
    return outputs, found, None


def _unreadable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} holds no outputs of retrain_on_subsets, or is damaged ({str(error)[:200]}); "
        "choose another path, or delete it"
    )
