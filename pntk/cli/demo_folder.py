"""The demo's folder: which files are its own, and whether they are of this run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pntk.errors import ConfigError

MARKER = "demo.json"
FILES = (
    "model.pt",
    "model.pt.partial",
    "train.h5",
    "train.h5.creating",
    "test.h5",
    "test.h5.creating",
    "train-margin.h5",
    "train-margin.h5.creating",
    "test-margin.h5",
    "test-margin.h5.creating",
    "kernel.h5",
    "kernel.h5.partial",
    "report.html",
)


class DemoFolder:
    """A folder that an earlier run with the same settings may have filled.

    The marker ``demo.json`` says that the files beside it are the demo's. Those of other settings
    are deleted; any other file is left alone.

    Args:
        folder: created if it is missing.
        identity: what the files depend on.

    Raises:
        ConfigError: the path is a file, or holds files of these names that the demo did not make.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder} is a file; expected a folder, which may be missing")
        if not folder.absolute().parent.is_dir():
            raise ConfigError(f"--out {folder}: the folder {folder.parent} does not exist")
        self._folder = folder
        self._identity = {"made_by": "pntk demo", **identity}
        there = [name for name in FILES if (folder / name).exists()]
        found = _read_marker(folder / MARKER)
        if found is None and (there or (folder / MARKER).exists()):
            raise ConfigError(
                f"--out {folder} holds {', '.join(there or [MARKER])}, which the demo did not "
                "make; choose another folder"
            )
        if found is not None and any(found.get(k) != v for k, v in self._identity.items()):
            for name in there:
                (folder / name).unlink()
            found = None
        folder.mkdir(exist_ok=True)
        if found is None:
            self._write({})

    def path(self, name: str) -> Path:
        """Return the path of one of the demo's files."""
        assert name in FILES
        return self._folder / name

    def finish(self, results: dict[str, Any]) -> None:
        """Record the results in the marker."""
        self._write({"results": results})

    def _write(self, more: dict[str, Any]) -> None:
        text = json.dumps({**self._identity, **more}, indent=2) + "\n"
        partial = self._folder / f"{MARKER}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self._folder / MARKER)


def _read_marker(path: Path) -> dict[str, Any] | None:
    """Return what a run of the demo wrote, or None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("made_by") == "pntk demo" else None
