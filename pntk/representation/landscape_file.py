"""A loss landscape: its numbers, its file, and how far it has been filled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pntk.errors import ConfigError, StoreError
from pntk.files import check_replaceable, write_whole

Floats = npt.NDArray[np.float64]

FORMAT = "pntk-landscape 1"


@dataclass(frozen=True, eq=False)
class Landscape:
    """Losses on a grid.

    Attributes:
        x: float64 [nx], coordinates.
        y: float64 [ny]; None for a line.
        losses: float64 [nx, ny], or [nx]; NaN and infinity where the network gave them.
        accuracies: the same shape, share of right predictions; None if not counted.
        trajectory: float64 [T, 2], a path in the plane; None for none.
        about: what was evaluated: hashes of weights, directions and data, and settings.
    """

    x: Floats
    y: Floats | None
    losses: Floats
    accuracies: Floats | None = None
    trajectory: Floats | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def lowest(self) -> tuple[float, ...]:
        """Coordinates of the lowest finite loss.

        Raises:
            ConfigError: none is finite.
        """
        values = np.where(np.isfinite(self.losses), self.losses, np.inf)
        if not np.isfinite(values).any():
            raise ConfigError("no loss of the landscape is finite; choose a smaller range")
        place = np.unravel_index(np.argmin(values), values.shape)
        axes = [self.x] if self.y is None else [self.x, self.y]
        return tuple(float(axis[i]) for axis, i in zip(axes, place, strict=True))

    def plot_contour(
        self, path: str | os.PathLike[str] | None = None, *, values: str = "loss", log: bool = False
    ) -> bytes:
        """Draw contours, or the line, as the bytes of a PNG; see ``landscape_plots``."""
        from pntk.representation.landscape_plots import contour_plot

        return _written(contour_plot(self, values=values, log=log), path)

    def plot_surface(
        self, path: str | os.PathLike[str] | None = None, *, values: str = "loss", log: bool = False
    ) -> bytes:
        """Draw a surface in three dimensions as the bytes of a PNG; see ``landscape_plots``."""
        from pntk.representation.landscape_plots import surface_plot

        return _written(surface_plot(self, values=values, log=log), path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file, whole or not at all.

        Raises:
            ConfigError: the path cannot be written to.
        """
        file = _checked(path)
        write_whole(file, _pack(self, np.ones(self.losses.shape, dtype=bool)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Landscape:
        """Read a file that :meth:`save` or ``loss_landscape(path=...)`` wrote.

        Raises:
            StoreError: there is none, it is damaged, or points are missing.
        """
        found, done = _unpack(Path(path))
        if not done.all():
            raise StoreError(
                f"{path} has {int(done.sum()):,} of {done.size:,} points; go on with the call that "
                "began it"
            )
        return found


class Progress:
    """A landscape that is being filled, in memory or also in a file.

    Raises:
        ConfigError: the file is of another landscape, or cannot be written to.
        StoreError: the file is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        x: Floats,
        y: Floats | None,
        about: dict[str, Any],
        accuracy: bool,
        trajectory: npt.ArrayLike | None,
    ) -> None:
        shape = (len(x),) if y is None else (len(x), len(y))
        self._file = None if path is None else _checked(path)
        self._shape = shape
        losses = np.full(shape, np.nan)
        self._found = Landscape(
            x, y, losses, losses.copy() if accuracy else None, _path(trajectory, y), about
        )
        self._done = np.zeros(shape, dtype=bool)
        self._changed = False
        if self._file is not None and self._file.exists():
            self._resume(self._file)

    @property
    def total(self) -> int:
        """Number of points."""
        return self._done.size

    def missing(self) -> npt.NDArray[np.int64]:
        """Return the points without a loss, as places in the flat grid."""
        return np.flatnonzero(~self._done).astype(np.int64)

    def coordinates(self, places: npt.NDArray[np.int64]) -> tuple[Floats, Floats | None]:
        """Return x and y of points."""
        if self._found.y is None:
            return self._found.x[places], None
        i, j = np.unravel_index(places, self._shape)
        return self._found.x[i], self._found.y[j]

    def put(self, places: npt.NDArray[np.int64], losses: Floats, hits: Floats) -> None:
        """Take the losses and accuracies of points."""
        self._found.losses.flat[places] = losses
        if self._found.accuracies is not None:
            self._found.accuracies.flat[places] = hits
        self._done.flat[places] = True
        self._changed = True

    def save(self) -> None:
        """Write what there is, if there is something new and a file."""
        if self._file is not None and self._changed:
            write_whole(self._file, _pack(self._found, self._done))
            self._changed = False

    def finished(self, **facts: Any) -> Landscape:
        """Return the landscape, with more facts about it."""
        self._found.about.update(facts)
        return self._found

    def _resume(self, file: Path) -> None:
        found, done = _unpack(file)
        ours, theirs = _settings(self._found), _settings(found)
        if different := [key for key in ours if ours[key] != theirs.get(key)]:
            raise ConfigError(
                f"{file} holds a landscape with other {', '.join(different)}; use the same ones, "
                "or another path"
            )
        self._done = done
        self._found.losses[:] = found.losses
        if self._found.accuracies is not None and found.accuracies is not None:
            self._found.accuracies[:] = found.accuracies


def _settings(landscape: Landscape) -> dict[str, Any]:
    y = None if landscape.y is None else landscape.y.tolist()
    return {"x": landscape.x.tolist(), "y": y, **landscape.about}


def _checked(path: str | os.PathLike[str]) -> Path:
    file = Path(os.path.abspath(path))
    if file.suffix != ".npz":
        raise ConfigError(f"{path} ends in {file.suffix!r}; a landscape is kept in an .npz file")
    check_replaceable(file)
    return file


def _path(trajectory: npt.ArrayLike | None, y: Floats | None) -> Floats | None:
    if trajectory is None:
        return None
    try:
        found = np.asarray(trajectory, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trajectory holds no numbers ({error}); expected [T, 2]") from error
    if y is None or found.ndim != 2 or found.shape[1] != 2 or not np.isfinite(found).all():
        raise ConfigError(
            f"trajectory has shape {found.shape}; expected finite [T, 2], in a landscape of two "
            "directions"
        )
    return found


def _pack(landscape: Landscape, done: npt.NDArray[np.bool_]) -> bytes:
    arrays: dict[str, Any] = {"x": landscape.x, "losses": landscape.losses, "done": done}
    for name in ("y", "accuracies", "trajectory"):
        if getattr(landscape, name) is not None:
            arrays[name] = getattr(landscape, name)
    about = {"format": FORMAT, "about": landscape.about, "checksum": _checksum(arrays)}
    packed = io.BytesIO()
    np.savez(packed, **arrays, header=np.array(json.dumps(about)))
    return packed.getvalue()


def _unpack(path: Path) -> tuple[Landscape, npt.NDArray[np.bool_]]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {FORMAT!r}")
        if header["checksum"] != _checksum(arrays):
            raise ValueError("the checksum does not match")
        done = arrays.pop("done")
        return Landscape(
            arrays["x"], arrays.get("y"), arrays["losses"], arrays.get("accuracies"),
            arrays.get("trajectory"), header["about"],
        ), done  # fmt: skip
    except (
        ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise StoreError(
            f"{path} holds no landscape, or is damaged ({str(error)[:200]}); choose another path, "
            "or delete it"
        ) from None


def _checksum(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}{arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _written(png: bytes, path: str | os.PathLike[str] | None) -> bytes:
    if path is not None:
        write_whole(Path(path), png)
    return png
