"""``pntk report``: stores in, one HTML page out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from pntk.cli.common import JsonFlag, NeighboursOption, StoreFile, print_json
from pntk.cli.factories import load_data
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.files import check_replaceable
from pntk.report import write_report
from pntk.report.build import Source, build_report, check_build
from pntk.store import FeatureStore

NAME = "report"
EXAMPLES = (
    "pntk report train.h5 --queries test.h5 --out report.html",
    "pntk report train.h5 --data train:digits --out report.html",
)


def command(
    train: StoreFile,
    out: Annotated[Path, typer.Option(metavar="REPORT.html", help="Page to write.")],
    queries: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="STORE.h5", help="Queries; the rows themselves."
        ),
    ] = None,
    k: NeighboursOption = 5,
    num_queries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Queries in the gallery.")
    ] = 12,
    data: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="Images or texts of STORE.h5."),
    ] = None,
    query_data: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="Images or texts of the queries.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the page.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the rows that are drawn.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write a page with neighbours, a block of the kernel, its spectrum and the coverage.

    It is one file, which needs no other and no network.
    """
    check_replaceable(out)
    if query_data is not None and queries is None:
        raise ConfigError("--query-data goes with --queries; for STORE.h5 itself use --data")
    for module in ("jinja2", "matplotlib"):
        require(module)
    rows = FeatureStore(train)
    asked = None if queries is None else FeatureStore(queries)
    check_build(rows, rows if asked is None else asked, k, same=asked is None)
    report = build_report(
        Source(rows, None if data is None else load_data(data)),
        None
        if asked is None
        else Source(asked, None if query_data is None else load_data(query_data, "--query-data")),
        title=title or f"Tangent kernel of {train.name}",
        k=k,
        num_queries=num_queries,
        seed=seed,
    )
    options = {
        "--queries": queries,
        "--data": data,
        "--query-data": query_data,
        "--title": title,
        "-k": k,
        "--num-queries": num_queries,
        "--seed": seed,
        "--out": out,
    }
    report.reproduce = _command_line(train, options)
    write_report(report, out)
    if as_json:
        print_json({"report": out, "headline": dict(report.headline)})
        return
    for what, number in report.headline:
        typer.echo(f"{what}: {number}")
    typer.echo(str(out))


def _command_line(train: Path, options: dict[str, Any]) -> str:
    """Return the command that makes the page again."""
    given = [word for item in options.items() if item[1] is not None for word in item]
    return shlex.join(map(str, ["pntk", "report", train, *given]))
