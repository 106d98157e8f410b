"""``pntk verify``: every row of a store against its checksum."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pntk.cli.common import JsonFlag, StoreFile, print_json, say
from pntk.cli.errors import FAILED
from pntk.errors import StoreError
from pntk.store import FeatureStore

NAME = "verify"
EXAMPLES = ("pntk verify train.h5", "pntk verify train.h5 --json | jq .bad_rows")


def command(
    store: StoreFile,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Read a whole store and compare each row with its checksum.

    Exit codes: 0 all rows are as they were written (missing rows are no damage); 1 rows are
    damaged, and named, or the file is no store that can be read.
    """
    try:
        opened = FeatureStore(store)
    except StoreError as error:
        if as_json:
            print_json({"path": store, "ok": False, "messages": [str(error)]})
        say(f"error: {error}")
        raise typer.Exit(FAILED) from error
    found = opened.verify(progress=progress)
    if as_json:
        print_json({"path": opened.path, **asdict(found)})
    else:
        typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(FAILED)
