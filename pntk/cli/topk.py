"""``pntk topk``: the nearest rows of a store."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text
from torch import Tensor

from pntk.cli.common import (
    JsonFlag,
    NeighboursOption,
    StoreFile,
    check_out,
    choice,
    console,
    hit_cell,
    new_table,
    plain,
    print_json,
    say,
)
from pntk.errors import ConfigError
from pntk.faiss_index import EXACT_KINDS, KINDS, FaissIndex, build_index, load_index
from pntk.files import check_replaceable, write_whole
from pntk.memory import parse_bytes
from pntk.retrieval import METRICS, TopK, topk
from pntk.rows import check_same_map
from pntk.store import FeatureStore

NAME = "topk"
EXAMPLES = (
    "pntk topk test.h5 train.h5 -k 5",
    "pntk topk test.h5 train.h5 --rows 0,5,7 --out hits.csv",
    "pntk topk test.h5 train.h5 --index hnsw --index-file train.hnsw",
)
EXACT = "exact"
SUFFIXES = (".npz", ".csv", ".json")
SHOWN = 20


def command(
    queries: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, metavar="QUERIES.h5", help="Store of queries."),
    ],
    store: StoreFile,
    k: NeighboursOption = 5,
    metric: Annotated[str, typer.Option(**choice(*METRICS), help="What is largest.")] = "cosine",
    rows: Annotated[
        str | None, typer.Option(metavar="LIST", help="Queries, such as 0,5,7 or 0:10; all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write hits to .npz, .csv or .json.")
    ] = None,
    index: Annotated[
        str,
        typer.Option(**choice(EXACT, *KINDS), help="Compare all rows, or ask an index of FAISS."),
    ] = EXACT,
    index_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Load the index from here; build it and save it if absent."
        ),
    ] = None,
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for the search, such as 500MB.")
    ] = "1GB",
    as_json: JsonFlag = False,
) -> None:
    """Find, for each query, the rows with the largest kernel entries."""
    if out is not None:
        check_out(out, suffixes=SUFFIXES)
        check_replaceable(out)
    parse_bytes(memory_budget)
    if index_file is not None:
        if index == EXACT:
            raise ConfigError(
                f"--index-file {index_file} needs --index, one of {', '.join(KINDS)}; an exact "
                "search has no index"
            )
        if not index_file.exists():
            check_replaceable(index_file)
    asked, searched = FeatureStore(queries), FeatureStore(store)
    check_same_map(asked, searched)
    if k > len(searched):
        raise ConfigError(f"-k is {k}; expected 1 to {len(searched)}, the rows of {store}")
    places = parse_rows(rows, len(asked))
    asked.require_complete()
    chosen = asked if rows is None else asked[places]
    found = _search(chosen, searched, k, metric, index, index_file, memory_budget)
    unusable = np.isin(places, asked.skipped)
    found.values[unusable], found.indices[unusable] = float("-inf"), -1
    hits = _hits(asked, searched, places, found.values.numpy(), found.indices.numpy(), index)
    if out is not None:
        _write(hits, out)
        say(f"wrote {len(places):,} x {k} neighbours to {out}")
    if as_json:
        print_json(_records(hits))
    elif out is None:
        _print(hits)


def _search(
    queries: FeatureStore | Tensor,
    store: FeatureStore,
    k: int,
    metric: str,
    kind: str,
    file: Path | None,
    memory_budget: str,
) -> TopK:
    if kind == EXACT:
        return topk(queries, store, k, metric=metric, memory_budget=memory_budget)
    found = _index(store, kind, metric, file, memory_budget).search(queries, k)
    if not is_exact(kind):
        say(f"approximate: an {kind} index can miss neighbours; --index exact finds all")
    return found


def _index(
    store: FeatureStore, kind: str, metric: str, file: Path | None, memory_budget: str
) -> FaissIndex:
    """Return the index of a file, or a new one, which is saved there."""
    if file is not None and file.exists():
        return load_index(file, store, kind=kind, metric=metric)
    made = build_index(store, kind, metric=metric, memory_budget=memory_budget)
    if file is not None:
        made.save(file)
        say(f"wrote the index of {len(made):,} rows to {file}")
    return made


def is_exact(kind: str) -> bool:
    """Whether a search of this kind finds all neighbours."""
    return kind == EXACT or kind in EXACT_KINDS


def parse_rows(text: str | None, length: int) -> np.ndarray:
    """Return the rows that a list such as ``0,5,7`` or ``0:10`` names, int64.

    >>> parse_rows("7,0:3", 10)
    array([7, 0, 1, 2])

    Raises:
        ConfigError: not such a list, or a row that is not there.
    """
    if text is None:
        return np.arange(length)
    found: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            start = int(first) if first or not colon else 0
            stop = (int(last) if last else length) if colon else start + 1
        except ValueError:
            raise ConfigError(
                f"--rows is {text!r}; expected numbers and ranges, such as 0,5,7 or 0:10"
            ) from None
        if not 0 <= start < stop <= length:
            raise ConfigError(
                f"--rows names {part.strip()!r}; expected rows from 0 to {length - 1}, a range "
                "start:end with the start before the end"
            )
        found += range(start, stop)
    return np.array(found, dtype=np.int64)


def _hits(
    asked: FeatureStore,
    searched: FeatureStore,
    places: np.ndarray,
    scores: np.ndarray,
    indices: np.ndarray,
    index: str,
) -> dict[str, np.ndarray]:
    hits = {"queries": places, "indices": indices, "scores": scores, "index": np.array(index)}
    if asked.labels is not None:
        hits["query_labels"] = asked.labels[places]
    if searched.labels is not None:
        hits["labels"] = np.where(indices < 0, -1, searched.labels[indices])
    return hits


def _records(hits: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the hits as one record a query."""
    records = []
    index = str(hits["index"])
    for i, query in enumerate(hits["queries"].tolist()):
        records.append(
            {
                "query": query,
                "label": _label(hits.get("query_labels"), i),
                "index": index,
                "approximate": not is_exact(index),
                "neighbours": [
                    {"row": row, "label": _label(hits.get("labels"), (i, j)), "score": score}
                    for j, (row, score) in enumerate(
                        zip(hits["indices"][i].tolist(), hits["scores"][i].tolist(), strict=True)
                    )
                ],
            }
        )
    return records


def _label(labels: np.ndarray | None, at: Any) -> int | None:
    return None if labels is None or labels[at] < 0 else int(labels[at])


def _write(hits: dict[str, np.ndarray], out: Path) -> None:
    if out.suffix == ".npz":
        packed = io.BytesIO()
        np.savez(packed, **hits)  # type: ignore[arg-type]  # its stub takes no unpacked arrays
        write_whole(out, packed.getvalue())
    elif out.suffix == ".json":
        write_whole(out, (json.dumps(plain(_records(hits)), indent=2) + "\n").encode())
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["query", "query_label", "rank", "row", "label", "score", "index"])
        for record in _records(hits):
            for rank, hit in enumerate(record["neighbours"], 1):
                place = [record["query"], record["label"], rank]
                writer.writerow([*place, *hit.values(), record["index"]])
        write_whole(out, text.getvalue().encode())


def _print(hits: dict[str, np.ndarray]) -> None:
    records = _records(hits)
    labelled = "query_labels" in hits
    index = str(hits["index"])
    title = None if is_exact(index) else f"approximate neighbours ({index} index)"
    table = new_table("query", *(["label"] if labelled else []), title=title)
    for rank in range(1, hits["indices"].shape[1] + 1):
        table.add_column(f"#{rank}", header_style="bold")
    for record in records[:SHOWN]:
        own = record["label"]
        cells = [hit_cell(hit, own) for hit in record["neighbours"]]
        label = [Text("" if own is None else str(own))] if labelled else []
        table.add_row(Text(str(record["query"])), *label, *cells)
    console().print(table)
    say("a neighbour: its row, (its label), its score")
    if len(records) > SHOWN:
        say(f"{len(records) - SHOWN:,} more queries; choose with --rows, or write all with --out")
