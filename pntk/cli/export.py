"""``pntk export``: rows of a store to another file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pntk.cli.common import JsonFlag, StoreFile, format_bytes, print_json
from pntk.cli.topk import parse_rows
from pntk.export import SUFFIXES, export
from pntk.store import FeatureStore

NAME = "export"
EXAMPLES = (
    "pntk export train.h5 --out train.npy",
    "pntk export train.h5 --rows 0:1000 --out some.h5",
    "pntk export joined.h5 --out single.h5 --storage fp16",
)


def command(
    store: StoreFile,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help=f"What to write; one of {', '.join(SUFFIXES)}.")
    ],
    rows: Annotated[
        str | None, typer.Option(metavar="ROWS", help="Such as 0,5,7 or 0:10; all unless told.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="full|fp16", help="Of a store; as it is, unless told.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare rows with their checksums while reading.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy rows to a store of one file (.h5), NumPy (.npy, .npz), safetensors or FAISS.

    That merges joined shards, cuts a part out of a store, and hands rows to other programs.
    """
    opened = FeatureStore(store, check=check)
    numbers = None if rows is None else parse_rows(rows, len(opened))
    path = export(opened, out, rows=numbers, storage=storage)
    found = {
        "path": path,
        "rows": len(opened) if numbers is None else len(numbers),
        "bytes": path.stat().st_size,
    }
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{path}: {found['rows']:,} rows, {format_bytes(path.stat().st_size)}")
