"""``pntk report``: stores in, one HTML page out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from pntk.cli.common import (
    NORMALIZE,
    JsonFlag,
    NeighboursOption,
    StoreFile,
    choice,
    print_json,
    read_probs,
    say,
)
from pntk.cli.factories import load_data
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.files import check_replaceable
from pntk.report import write_report
from pntk.report.build import NUM_QUERIES, Source, build_report, check_build
from pntk.report.influence import FORMULAS, Influence
from pntk.report.samples import samples_of
from pntk.report.surrogates import check_probs, compare
from pntk.store import FeatureStore

NAME = "report"
EXAMPLES = (
    "pntk report train.h5 --queries test.h5 --out report.html",
    "pntk report train.h5 --data train:digits --out report.html",
    "pntk report train.h5 --queries test.h5 --probs test_probs.npy --influence cosine --out r.html",
)

_NEEDS = {
    "--query-data": "goes with --queries; for STORE.h5 itself use --data",
    "--probs": "goes with --queries; a surrogate is compared on samples that it was not fit to",
    "--influence": "goes with --queries; each training row would influence itself most",
    "--normalize": "is for the surrogate, which needs --probs; leave it out",
    "--alpha": "is for the surrogate, which needs --probs; leave it out",
}


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
    ] = NUM_QUERIES,
    data: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="Images or texts of STORE.h5."),
    ] = None,
    query_data: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="Images or texts of the queries.")
    ] = None,
    probs: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="PROBS.npy",
            help="The network's probabilities for the queries, a column for each class: adds its "
            "mistakes, and a surrogate.",
        ),
    ] = None,
    normalize: Annotated[
        str | None, typer.Option(**choice(*NORMALIZE), help="Kernel of the surrogate; cosine.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, metavar="A", help="Of the surrogate; chosen unless told."),
    ] = None,
    influence: Annotated[
        str | None,
        typer.Option(**choice(*FORMULAS), help="Adds the most influential samples, by a method."),
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the page.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the rows that are drawn.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write a page with neighbours, possible wrong labels, a block of the kernel, and its spectrum.

    It is one file, which needs no other and no network. With --probs (columns in ascending order of
    the labels) it shows first what the network gets wrong, and compares a kernel machine with it.
    --influence takes rows of any output for dot and cosine, of margin or text for trak, and of loss
    for influence.
    """
    check_replaceable(out)
    _check_given(queries, {"--query-data": query_data, "--probs": probs, "--influence": influence})
    _check_given(probs, {"--normalize": normalize, "--alpha": alpha})
    for module in ("jinja2", "matplotlib"):
        require(module)
    rows = FeatureStore(train)
    asked = None if queries is None else FeatureStore(queries)
    check_build(rows, rows if asked is None else asked, k, same=asked is None)
    source = Source(rows, _loaded(data, "--data", rows))
    of_queries, scores, surrogates = None, None, []
    if asked is not None:
        theirs = _loaded(query_data, "--query-data", asked)
        if influence is not None:
            scores = Influence(influence, rows, asked)
            scores.check(rows, asked)
        predictions = None
        if probs is not None:
            network = read_probs(probs, len(asked))
            predictions = check_probs(rows, asked, network)[network.argmax(1)]
            scale = NORMALIZE[normalize or "cosine"]
            surrogates = [compare(rows, asked, network, normalize=scale, alpha=alpha, seed=seed)]
        of_queries = Source(asked, theirs, predictions)
    report = build_report(
        source,
        of_queries,
        title=title or f"Tangent kernel of {train.name}",
        k=k,
        num_queries=num_queries,
        influence=scores,
        surrogates=surrogates,
        seed=seed,
    )
    options = {
        "--queries": queries,
        "--data": data,
        "--query-data": query_data,
        "--probs": probs,
        "--normalize": normalize,
        "--alpha": alpha,
        "--influence": influence,
        "--title": title,
        "-k": k,
        "--num-queries": num_queries,
        "--seed": seed,
        "--out": out,
    }
    report.reproduce = _command_line(train, options)
    write_report(report, out)
    if as_json:
        compared = {surrogate.name: surrogate.report.to_dict() for surrogate in surrogates}
        numbers = {"headline": dict(report.headline), "warning": report.warning}
        print_json({"report": out, **numbers, "surrogates": compared})
        return
    for what, number in report.headline:
        typer.echo(f"{what}: {number}")
    if report.warning:
        say(report.warning)
    typer.echo(str(out))


def _check_given(needed: Any, options: dict[str, Any]) -> None:
    """Refuse options without the one that they need."""
    for name, value in options.items():
        if value is not None and needed is None:
            raise ConfigError(f"{name} {_NEEDS[name]}")


def _loaded(factory: str | None, option: str, store: FeatureStore) -> Any:
    """Return the data of a factory, once it is known to be that of the store."""
    if factory is None:
        return None
    data = load_data(factory, option)
    samples_of(data, [0], len(store))
    return data


def _command_line(train: Path, options: dict[str, Any]) -> str:
    """Return the command that makes the page again."""
    given = [word for item in options.items() if item[1] is not None for word in item]
    return shlex.join(map(str, ["pntk", "report", train, *given]))
