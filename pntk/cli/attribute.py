"""``pntk attribute``: which training samples raise or lower the output of each target."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.text import Text

from pntk.attribution import METHODS, Extremes, attribute
from pntk.cli.common import (
    DeviceOption,
    JsonFlag,
    ProgressFlag,
    check_out,
    choice,
    console,
    hit_cell,
    new_table,
    numbers,
    plain,
    print_json,
    say,
)
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.factories import pick_device
from pntk.errors import ConfigError
from pntk.files import check_replaceable, write_whole
from pntk.ntk.kernel_file import partial_path, tiles_there
from pntk.retrieval import TopK
from pntk.store import FeatureStore

NAME = "attribute"
EXAMPLES = (
    "pntk attribute train.h5 test.h5 --top 10",
    "pntk attribute a.h5,b.h5 a-test.h5,b-test.h5 --ridge auto --out scores.h5",
    "pntk attribute train.h5 test.h5 --method tracin --learning-rates 0.1",
)
SUFFIXES = (".h5", ".npz", ".json")
TOP, SHOWN = 5, 20
_TrainList = Annotated[
    str,
    typer.Argument(metavar="TRAIN.h5[,...]", help="Stores of training samples, one a checkpoint."),
]
_TestList = Annotated[
    str, typer.Argument(metavar="TARGETS.h5[,...]", help="Stores of targets, in the same order.")
]


def command(
    train: _TrainList,
    test: _TestList,
    method: Annotated[str, typer.Option(**choice(*METHODS), help="How to score.")] = "trak",
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples a target; 5 unless told.")
    ] = None,
    both: Annotated[bool, typer.Option("--both", help="The lowest scores too.")] = False,
    ridge: Annotated[
        str | None,
        typer.Option(metavar="auto|NUMBER", help="trak, influence: lambda; none unless told."),
    ] = None,
    reweighting: Annotated[
        bool,
        typer.Option("--reweighting/--no-reweighting", help="trak: weigh samples by Q = 1 - p."),
    ] = True,
    learning_rates: Annotated[
        str | None, typer.Option(metavar="LIST", help="tracin: of each checkpoint.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="All scores to .h5 (data set 'ntk'), the best to .npz or .json."
        ),
    ] = None,
    device: DeviceOption = "cpu",
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="What the work may take, such as 500MB.")
    ] = "1GB",
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Score training samples for each target; of several checkpoints scores are averaged.

    Give the stores of training samples and those of targets, separated by commas, one of each for
    every checkpoint. TRAK takes rows of output margin or text, tracin and influence of output
    loss.
    """
    whole = out is not None and out.suffix == ".h5"
    if out is not None:
        check_out(out, suffixes=SUFFIXES, new=whole)
        if not whole:
            check_replaceable(out)
    if whole and both and top is None:
        raise ConfigError(f"--both is of the best, and {out} is for all scores; add --top")
    trains, tests = _opened(train), _opened(test)
    options: dict[str, Any] = {
        "ridge": _number_or_auto(ridge),
        "weights": numbers("--learning-rates", learning_rates, "numbers, such as 0.1,0.01"),
        "memory_budget": memory_budget,
        "device": pick_device(device),
        "progress": progress,
    }
    if not reweighting:
        options["reweighting"] = torch.ones(len(trains[0]))
    if whole:
        assert out is not None
        with explain_stop(lambda: _how_to_resume(out)):
            attribute(trains, tests, method, out=out, **options)
        n, m = len(trains[0]), len(tests[0])
        say(f"wrote {n:,} x {m:,} scores to {out}")
        if top is None:
            if as_json:
                print_json({"method": method, "shape": [n, m], "out": out})
            return
    found = attribute(trains, tests, method, top=top or min(TOP, len(trains[0])), both=both,
                      **options)  # fmt: skip
    assert isinstance(found, (TopK, Extremes))
    records = _records(method, found, trains[0], tests[0])
    if out is not None and not whole:
        _write(records, found, out)
        say(f"wrote the best of {len(records):,} targets to {out}")
    if as_json:
        print_json(records)
    elif out is None or whole:
        _print(records)


def _opened(text: str) -> list[FeatureStore]:
    """Open the stores of a list."""
    paths = [Path(part.strip()) for part in text.split(",")]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{text!r} names {str(path)!r}, which is no file; expected stores")
    return [FeatureStore(path) for path in paths]


def _number_or_auto(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--ridge is {text!r}; expected auto or a number") from None


def _how_to_resume(out: Path) -> str:
    there = tiles_there(out)
    if out.exists():
        return f"the scores are whole, in {out}"
    if there is None:
        return f"no tile was written; start again with: {this_command()}"
    return (
        f"{there[0]:,} of {there[1]:,} tiles are in {partial_path(out)}; go on from there with: "
        f"{this_command()}"
    )


def _records(
    method: str, found: TopK | Extremes, train: FeatureStore, test: FeatureStore
) -> list[dict[str, Any]]:
    """Return the best samples as one record a target."""
    ends = found._asdict() if isinstance(found, Extremes) else {"highest": found}
    return [
        {
            "target": target,
            "label": _label(test, target),
            "method": method,
            **{
                end: [
                    {"row": row, "label": _label(train, row), "score": score}
                    for row, score in zip(
                        part.indices[target].tolist(), part.values[target].tolist(), strict=True
                    )
                ]
                for end, part in ends.items()
            },
        }
        for target in range(len(test))
    ]


def _label(store: FeatureStore, row: int) -> int | None:
    if store.labels is None or row < 0 or store.labels[row] < 0:
        return None
    return int(store.labels[row])


def _write(records: list[dict[str, Any]], found: TopK | Extremes, out: Path) -> None:
    if out.suffix == ".json":
        write_whole(out, (json.dumps(plain(records), indent=2) + "\n").encode())
        return
    best = found.highest if isinstance(found, Extremes) else found
    arrays = {"indices": best.indices.numpy(), "scores": best.values.numpy()}
    if isinstance(found, Extremes):
        arrays["lowest_indices"] = found.lowest.indices.numpy()
        arrays["lowest_scores"] = found.lowest.values.numpy()
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # its stub takes no unpacked arrays
    write_whole(out, packed.getvalue())


def _print(records: list[dict[str, Any]]) -> None:
    first = records[0]
    labelled = first["label"] is not None
    ends = [end for end in ("highest", "lowest") if end in first]
    table = new_table("target", *(["label"] if labelled else []))
    for end in ends:
        for rank in range(1, len(first[end]) + 1):
            table.add_column(f"{'#' if end == 'highest' else '-'}{rank}", header_style="bold")
    for record in records[:SHOWN]:
        own = record["label"]
        cells = [hit_cell(hit, own) for end in ends for hit in record[end]]
        label = [Text("" if own is None else str(own))] if labelled else []
        table.add_row(Text(str(record["target"])), *label, *cells)
    console().print(table)
    say("a training sample: its row, (its label), its score")
    if len(records) > SHOWN:
        say(f"{len(records) - SHOWN:,} more targets; write all with --out")
