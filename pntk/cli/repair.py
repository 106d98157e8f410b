"""``pntk repair``: damaged rows of a store are marked, so that they are computed again."""

from __future__ import annotations

from typing import Annotated

import typer

from pntk.cli.common import JsonFlag, StoreFile, print_json, say
from pntk.store import FeatureStore
from pntk.store import repair as mark_damaged

NAME = "repair"
EXAMPLES = ("pntk repair train.h5", "pntk repair train.h5 --dry-run")


def command(
    store: StoreFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which rows are damaged.")
    ] = False,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Find damaged rows and mark exactly those as missing.

    Featurize with the same settings then computes them again. Of joined shards, the shards are
    repaired.
    """
    if dry_run:
        report = FeatureStore(store).verify(progress=progress)
    else:
        report = mark_damaged(store, progress=progress)
    bad = report.bad_rows
    if as_json:
        print_json({"path": store.absolute(), "bad_rows": bad, "marked": not dry_run})
        return
    for message in report.messages:
        say(message)
    if not bad:
        typer.echo(f"nothing to repair: {report.rows_checked:,} rows are as they were written")
    elif dry_run:
        typer.echo(f"{len(bad):,} rows are damaged; without --dry-run they are marked")
    else:
        typer.echo(
            f"marked {len(bad):,} damaged rows as missing; featurize with the same settings "
            "computes them again"
        )
