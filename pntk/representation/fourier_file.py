"""A Fourier map: its numbers and its file."""

from __future__ import annotations

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

FORMAT = "pntk-fourier-map 1"


@dataclass(frozen=True, eq=False)
class FourierMap:
    """Error or loss for each frequency.

    Attributes:
        values: float64 [h, w], frequency zero in the centre; or as the basis that was given.
        frequencies: int64 [h, w, 2], (i, j) of each; None for a basis that was given.
        clean: error or loss without any wave.
        about: norm, criterion and other settings.
    """

    values: npt.NDArray[np.float64]
    frequencies: npt.NDArray[np.int64] | None
    clean: float
    about: dict[str, Any] = field(default_factory=dict)

    def plot(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """Draw a heat map as the bytes of a PNG; see ``fourier_plots``."""
        from pntk.representation.fourier_plots import heat_map

        png = heat_map(self)
        if path is not None:
            write_whole(Path(path), png)
        return png

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file, whole or not at all.

        Raises:
            ConfigError: the path cannot be written to.
        """
        file = Path(path)
        check_map_path(file)
        header = {"format": FORMAT, "clean": self.clean, "about": self.about}
        arrays: dict[str, Any] = {"values": self.values}
        if self.frequencies is not None:
            arrays["frequencies"] = self.frequencies
        packed = io.BytesIO()
        np.savez(packed, **arrays, header=np.array(json.dumps(header)))
        write_whole(file, packed.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FourierMap:
        """Read what :meth:`save` wrote.

        Raises:
            StoreError: there is no such file, or it is damaged.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is {header['format']!r}, expected {FORMAT!r}")
                frequencies = archive["frequencies"] if "frequencies" in archive.files else None
                return cls(archive["values"], frequencies, header["clean"], header["about"])
        except (
            ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile,
        ) as error:  # fmt: skip
            raise StoreError(
                f"{path} holds no Fourier map, or is damaged ({str(error)[:200]})"
            ) from None


def check_map_path(path: Path) -> None:
    """Refuse a path that a map cannot be written to.

    Raises:
        ConfigError: another suffix, a file of something else, or see
            :func:`pntk.files.check_replaceable`.
    """
    if path.suffix != ".npz":
        raise ConfigError(f"{path} ends in {path.suffix!r}; a Fourier map is kept in an .npz file")
    check_replaceable(path)
    if path.exists():
        try:
            FourierMap.load(path)
        except StoreError as error:
            raise ConfigError(f"{error}; choose another path, or delete it") from None
