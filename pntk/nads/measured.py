"""Numbers that took long to measure, kept in a JSON file from which the same call goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pntk.errors import ConfigError, StoreError
from pntk.files import check_replaceable, write_whole


class Measured:
    """A number for each key, written to a file as soon as it is known.

    Args:
        path: JSON file; None keeps nothing beyond the object.
        about: what the numbers depend on beside the key, as JSON can hold it.

    Raises:
        ConfigError: the file is about something else, or the path cannot be written.
        StoreError: the file is damaged, or not of this kind.
    """

    def __init__(self, path: str | os.PathLike[str] | None, about: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(os.path.abspath(path))
        self.about = json.loads(json.dumps(about))
        self.values: dict[str, float] = {}
        if self.path is None:
            return
        check_replaceable(self.path)
        if self.path.exists():
            self.values = self._read(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> float:
        return self.values[key]

    def add(self, key: str, value: float) -> None:
        """Keep a number; NaN too."""
        self.values[key] = value
        if self.path is not None:
            values = {name: None if math.isnan(v) else v for name, v in self.values.items()}
            content = json.dumps({"about": self.about, "values": values}, indent=1)
            write_whole(self.path, content.encode())

    def _read(self, path: Path) -> dict[str, float]:
        try:
            found = json.loads(path.read_bytes())
            about = found["about"]
            values = {
                str(key): math.nan if value is None else float(value)
                for key, value in found["values"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} holds no measurements, or is damaged ({type(error).__name__}: "
                f"{str(error)[:200]}); choose another path, or delete it"
            ) from None
        if about != self.about:
            names = sorted({*about, *self.about}) if isinstance(about, dict) else ["about"]
            differ = [
                n for n in names if not isinstance(about, dict) or about.get(n) != self.about.get(n)
            ]
            raise ConfigError(
                f"{path} holds measurements with other {', '.join(differ)}; use the same, or "
                "another path"
            )
        return values


def digest(tensor: Tensor) -> str:
    """Return a fingerprint of a tensor's shape and values."""
    array = tensor.detach().cpu().contiguous().numpy()
    text = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(text + array.tobytes()).hexdigest()[:32]
