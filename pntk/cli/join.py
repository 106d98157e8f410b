"""``pntk join``: several stores as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pntk.cli.common import JsonFlag, print_json
from pntk.store import FeatureStore, join

NAME = "join"
EXAMPLES = (
    "pntk join train.h5                    (of train.shard-00000-of-00016.h5 and so on)",
    "pntk join all.h5 train.h5 more.h5     (more.h5's rows after those of train.h5)",
)


def command(
    out: Annotated[Path, typer.Argument(metavar="STORE.h5", help="File to write.")],
    stores: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[STORES.h5 ...]", help="What to join; the shards of STORE.h5 beside it."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make one store of several, without copying rows.

    Shards of one data set (pntk featurize --shard) are put in order and must hold each row once.
    Whole stores follow one another: that is how rows are appended. The result names the files and
    holds no rows itself, so keep them beside it; pntk export copies all into one file.
    """
    store = FeatureStore(join(out, stores or None))
    found = {
        "path": store.path,
        "rows": len(store),
        "width": store.header.width,
        "files": [file.name for file in store.files],
    }
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{store.path}: {len(store):,} rows in {len(store.files):,} files")
