"""What the commands share: options, tables, messages and JSON."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pntk.errors import ConfigError, PntkWarning

PIPE_WIDTH = 200  # columns where there is no terminal to tell
NORMALIZE: dict[str, bool | str] = {"cosine": True, "none": False, "trntk0": "trntk0"}

StoreFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, metavar="STORE.h5", help="A store.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
ProgressFlag = Annotated[
    bool, typer.Option("--progress/--no-progress", help="Show rate and remaining time.")
]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")]
NeighboursOption = Annotated[
    int, typer.Option("-k", "--neighbours", min=1, metavar="N", help="How many.")
]


def examples(*lines: str) -> str:
    """Return an epilog that shows commands, one a line."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  $ {line}" for line in lines)])


def choice(*allowed: str) -> dict[str, Any]:
    """Return the arguments of an option that takes one of some words."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}")
        return value

    return {"metavar": "|".join(allowed), "callback": check}


def read_probs(path: Path, rows: int) -> np.ndarray:
    """Return the array of ``--probs``, [rows, c]."""
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"--probs {path} is no array of NumPy ({error}); write it with np.save"
        ) from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or len(found) != rows:
        shape = getattr(found, "shape", "several arrays")
        raise ConfigError(
            f"--probs {path} has shape {shape}; expected [{rows}, c], a row for each of the store"
        )
    return found


def numbers(option: str, text: str | None, expected: str) -> list[float] | None:
    """Return the numbers of an option that takes some, separated by commas."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected {expected}") from None


def fact(value: Any) -> str:
    """Return a number, or a list of some, as facts show it."""
    if isinstance(value, list):
        return ", ".join(map(fact, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- printing ----------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """Return a console; without a terminal it has no colours and does not cut lines."""
    found = Console(stderr=stderr, highlight=False)
    if not found.is_terminal:
        found.width = max(found.width, PIPE_WIDTH)
    return found


def say(message: str) -> None:
    """Print a message for the person who watches, on stderr."""
    print(message, file=sys.stderr, flush=True)


def print_json(values: Any) -> None:
    """Print values as JSON; what is not finite becomes null."""
    typer.echo(json.dumps(plain(values), indent=2, allow_nan=False))


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, "bold"), Text(str(value)))
    console().print(table)


def new_table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in the style of all tables here."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column), header_style="bold")
    return table


def plain(values: Any) -> Any:
    """Return values as JSON can hold them; what is not finite becomes None."""
    if isinstance(values, Mapping):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return str(values) if isinstance(values, Path) else values


def short_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Write a warning of pntk as one line, and any other with the place it comes from."""
    if issubclass(category, PntkWarning):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def format_bytes(size: int) -> str:
    """Write a number of bytes.

    >>> format_bytes(512), format_bytes(23_543_808)
    ('512 B', '23.5 MB')
    """
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{size} B" if unit == "B" else f"{number:.1f} {unit}"


# ---- paths -------------------------------------------------------------------------------------


def check_out(path: Path, *, suffixes: tuple[str, ...] = (), new: bool = False) -> None:
    """Refuse a path that cannot be written to, before any work.

    Raises:
        ConfigError: it is a folder, lies in none, has another suffix, or exists and must not.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"--out {path} is not a regular file; choose another path")
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; expected the path of a file in it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: the folder {path.parent} does not exist; create it first")
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"--out {path} ends in {path.suffix!r}; expected {', '.join(suffixes)}")
    if new and path.exists():
        raise ConfigError(f"--out {path} exists; choose another path, or delete it")


def hit_cell(hit: Mapping[str, Any], own: int | None) -> Text:
    """Return ``row (label) score``; green where its label is ``own``, red where it is another."""
    cell = Text(str(hit["row"]))
    if hit["label"] is not None:
        style = "" if own is None else "green" if own == hit["label"] else "red"
        cell.append(f" ({hit['label']})", style)
    return cell.append(f" {hit['score']:.4g}")
