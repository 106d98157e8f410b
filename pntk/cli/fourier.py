"""``pntk fourier``: how much a network minds each wave that is added to its images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pntk.cli.common import (
    DeviceOption,
    JsonFlag,
    ProgressFlag,
    choice,
    fact,
    numbers,
    print_facts,
    print_json,
)
from pntk.cli.errors import this_command
from pntk.cli.factories import load_data, load_model, pick_device
from pntk.extras import require
from pntk.files import check_results
from pntk.representation.fourier import SIGNS, fourier_map
from pntk.representation.fourier_file import FourierMap, check_map_path

NAME = "fourier"
EXAMPLES = (
    "pntk fourier --model train:net --checkpoint net.pt --data train:digits --out map.npz"
    " --plot map.png",
    "pntk fourier --model train:net --data train:mnist --norm 2 --size 15 --sign random"
    " --mean 0.1307 --std 0.3081 --out map.npz",
)


def command(
    model: Annotated[
        str, typer.Option(metavar="MODULE:FACTORY", help="Function or class that makes the model.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="Function that makes images and labels."),
    ],
    out: Annotated[Path, typer.Option(metavar="MAP.npz", help="Map to write.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Weights to load."),
    ] = None,
    norm: Annotated[
        float, typer.Option(min=0, metavar="X", help="Length of what is added to a channel.")
    ] = 4.0,
    criterion: Annotated[
        str, typer.Option(**choice("error", "loss"), help="Share of errors, or cross entropy.")
    ] = "error",
    size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of the map; the size of the images unless told."),
    ] = None,
    sign: Annotated[
        str, typer.Option(**choice(*SIGNS), help="Of what is added to each image and channel.")
    ] = "fixed",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of random signs.")] = 0,
    mean: Annotated[
        str | None, typer.Option(metavar="X[,X...]", help="Of the images' normalisation.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="X[,X...]", help="Of the images' normalisation.")
    ] = None,
    clamp: Annotated[
        bool, typer.Option("--clamp/--no-clamp", help="Keep pixels within 0 and 1.")
    ] = True,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images a batch.")
    ] = None,
    device: DeviceOption = "auto",
    plot: Annotated[Path | None, typer.Option(metavar="MAP.png", help="Heat map to draw.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Page with the map and numbers.")
    ] = None,
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Add each wave of the Fourier basis to images, and see how often the network errs."""
    check_map_path(out)
    check_results(out, {"--plot": plot, "--report": report})
    if any((plot, report)):
        require("matplotlib", "plots")
    if report is not None:
        require("jinja2", "--report")
    expected = "a number, or one a channel, such as 0.49,0.48,0.45"
    scale = numbers("--mean", mean, expected), numbers("--std", std, expected)
    network = load_model(model, checkpoint, pick_device(device), keep_mode=False)
    found = fourier_map(
        network,
        load_data(data),
        norm,
        criterion=criterion,
        size=size,
        sign=sign,
        seed=seed,
        mean=scale[0],
        std=scale[1],
        clamp=(0.0, 1.0) if clamp else None,
        batch_size=batch_size,
        progress=progress,
    )
    found.save(out)
    if plot is not None:
        found.plot(plot)
    facts = _facts(found)
    if report is not None:
        run = {"model": model, "checkpoint": str(checkpoint), "data": data}
        _write_report(found, facts, report, run)
    if as_json:
        values = {"values": found.values.tolist(), "out": out, "plot": plot, "report": report}
        print_json({**facts, **values})
    else:
        print_facts({name: fact(value) for name, value in facts.items()})
        written = {"map": out, "plot": plot, "report": report}
        typer.echo("\n" + ", ".join(f"{k}: {v}" for k, v in written.items() if v is not None))


def _facts(found: FourierMap) -> dict[str, Any]:
    values = np.where(np.isfinite(found.values), found.values, -np.inf)
    place = np.unravel_index(int(values.argmax()), values.shape)
    assert found.frequencies is not None
    return {
        "criterion": found.about["criterion"],
        "norm": found.about["norm"],
        "images": found.about["images"],
        "map": list(found.values.shape),
        "clean": found.clean,
        "mean": float(found.values.mean()),
        "highest": float(found.values[place]),
        "highest at": found.frequencies[place].tolist(),
    }


def _write_report(
    found: FourierMap, facts: dict[str, Any], path: Path, run: dict[str, str]
) -> None:
    from pntk.report import Panel, Report, write_report

    what = {"error": "Share of wrong predictions", "loss": "Cross entropy"}
    panel = Panel(
        "Fourier map",
        figure=found.plot(),
        caption=f"{what[facts['criterion']]} with each wave added; frequency zero in the centre.",
        columns=("measure", "value"),
        rows=[(name, fact(value)) for name, value in facts.items()],
    )
    page = Report(title="Fourier map", run=run, panels=[panel], reproduce=this_command())
    write_report(page, path)
