"""``pntk landscape``: the loss around the weights of a network."""

from __future__ import annotations

import glob
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
    print_facts,
    print_json,
    say,
)
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.factories import load_data, load_model, pick_device
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.files import check_results
from pntk.representation.directions import Direction, between, random_direction, trajectory_pca
from pntk.representation.landscape import loss_landscape
from pntk.representation.landscape_file import Landscape

NAME = "landscape"
EXAMPLES = (
    "pntk landscape --model train:net --checkpoint net.pt --data train:digits --out land.npz"
    " --plot contour.png",
    "pntk landscape --model train:net --checkpoint a.pt --toward b.pt --range 0 1"
    " --data train:digits --out line.npz",
    "pntk landscape --model train:net --trajectory 'epochs/*.pt' --data train:digits"
    " --out run.npz --plot run.png",
)
NORMALIZE = {"filter": "filter", "layer": "layer", "none": None}


def command(
    model: Annotated[
        str, typer.Option(metavar="MODULE:FACTORY", help="Function or class that makes the model.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="Function that makes the data, with targets."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="LAND.npz", help="Landscape to create or to resume.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Weights to load."),
    ] = None,
    toward: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="OTHER.pt", help="A line to other weights, at 1."
        ),
    ] = None,
    trajectory: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB", help="Checkpoints of a run, by name: the plane of its two main axes."
        ),
    ] = None,
    line: Annotated[
        bool, typer.Option("--line", help="One random direction instead of two.")
    ] = False,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range",
            metavar="LOW HIGH",
            help="Of the steps along each direction; -1 1, or what a --trajectory spans.",
        ),
    ] = None,
    points: Annotated[int, typer.Option(min=2, metavar="N", help="Along each direction.")] = 21,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of random directions.")] = 0,
    normalize: Annotated[
        str, typer.Option(**choice(*NORMALIZE), help="Lengths of random directions.")
    ] = "filter",
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Count right predictions, too.")
    ] = False,
    recompute_batchnorm: Annotated[
        bool,
        typer.Option("--recompute-batchnorm", help="Statistics of BatchNorm anew at each point."),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples a batch.")
    ] = None,
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="What points at once may take, such as 2GB.")
    ] = "1GB",
    device: DeviceOption = "auto",
    plot: Annotated[
        Path | None, typer.Option(metavar="CONTOUR.png", help="Contours to draw.")
    ] = None,
    surface: Annotated[
        Path | None, typer.Option(metavar="SURFACE.png", help="Surface to draw.")
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="Draw the logarithm of the loss.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Page with plots and numbers.")
    ] = None,
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Compute the loss (cross entropy) on a line or a plane through the weights of a network.

    Along two random directions with the lengths of the network's filters, unless --toward or
    --trajectory says otherwise; the last checkpoint of a trajectory is the centre. Stopped at any
    moment, the same command goes on where it was.
    """
    _check(toward, trajectory, line, checkpoint, surface)
    check_results(out, {"--plot": plot, "--surface": surface, "--report": report})
    if any((plot, surface, report)):
        require("matplotlib", "plots")
    if report is not None:
        require("jinja2", "--report")
    where = pick_device(device)
    files = _checkpoints(trajectory)
    network = load_model(model, files[-1] if files else checkpoint, where, keep_mode=False)
    path_drawn = None
    y: Direction | None = None
    if toward is not None:
        x = between(network, load_model(model, toward, where, keep_mode=False))
    elif files:
        run = trajectory_pca(
            [load_model(model, file, where, keep_mode=False).state_dict() for file in files]
        )
        named = dict(network.named_parameters())
        x, y = ({name: d[name] for name in named} for d in (run.x, run.y))
        path_drawn = run.path
        say(f"two axes hold {run.explained.sum():.1%} of the run's squared distances")
    else:
        x = random_direction(network, seed, normalize=NORMALIZE[normalize])
        y = None if line else random_direction(network, seed + 1, normalize=NORMALIZE[normalize])
    x_range, y_range = _ranges(range_, path_drawn, y is not None)
    with explain_stop(lambda: _how_to_resume(out)):
        found = loss_landscape(
            network,
            load_data(data),
            x,
            y,
            x_range=x_range,
            y_range=y_range,
            points=points,
            accuracy=accuracy,
            recompute_batchnorm=recompute_batchnorm,
            trajectory=path_drawn,
            path=out,
            batch_size=batch_size,
            memory_budget=memory_budget,
            progress=progress,
        )
    if plot is not None:
        found.plot_contour(plot, log=log)
    if surface is not None:
        found.plot_surface(surface, log=log)
    facts = _facts(found)
    if report is not None:
        about = {
            "model": model,
            "checkpoint": str(checkpoint or toward or trajectory),
            "data": data,
        }
        _write_report(found, facts, report, log, about)
    if as_json:
        print_json({"out": out, **facts, "plot": plot, "surface": surface, "report": report})
    else:
        print_facts({name: fact(value) for name, value in facts.items()})
        written = {"landscape": out, "plot": plot, "surface": surface, "report": report}
        typer.echo("\n" + ", ".join(f"{k}: {v}" for k, v in written.items() if v is not None))


def _how_to_resume(out: Path) -> str:
    if not out.exists():
        return f"no point is in {out} yet; begin again with: {this_command()}"
    return f"the points so far are in {out}; go on with: {this_command()}"


def _check(
    toward: Path | None,
    trajectory: str | None,
    line: bool,
    checkpoint: Path | None,
    surface: Path | None,
) -> None:
    if toward is not None and trajectory is not None:
        raise ConfigError("--toward beside --trajectory; choose one")
    if line and (toward is not None or trajectory is not None):
        raise ConfigError("--line is of a random direction; leave it out")
    if checkpoint is not None and trajectory is not None:
        raise ConfigError(
            "--checkpoint beside --trajectory, whose last checkpoint is the centre; leave it out"
        )
    if surface is not None and (line or toward is not None):
        raise ConfigError("--surface of a line; use --plot")


def _ranges(
    given: tuple[float, float] | None, path: Any, plane: bool
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Return the ranges along x and y: as given, or what a path [T, 2] spans and a fifth more."""
    if given is None and path is not None:
        low, high = np.min(path, axis=0), np.max(path, axis=0)
        spare = 0.2 * float((high - low).max())
        x, y = ((float(a) - spare, float(b) + spare) for a, b in zip(low, high, strict=True))
        return x, y
    both = (-1.0, 1.0) if given is None else given
    return both, both if plane else None


def _checkpoints(pattern: str | None) -> list[Path]:
    """Return the files of a trajectory, numbers in names counting as numbers.

    Raises:
        ConfigError: fewer than three.
    """
    if pattern is None:
        return []
    found = sorted(glob.glob(pattern), key=_natural)
    if len(found) < 3:
        raise ConfigError(
            f"--trajectory {pattern!r} matches {len(found)} files; expected at least 3 (quote it, "
            "so that the shell leaves it alone)"
        )
    return [Path(name) for name in found]


def _natural(name: str) -> list[Any]:
    """Return a key that sorts epoch9 before epoch10."""
    key, digits = [], ""
    for letter in [*name, ""]:
        if letter.isdecimal():
            digits += letter
            continue
        if digits:
            key.append((0, int(digits), ""))
        key.append((1, 0, letter))
        digits = ""
    return key


def _facts(found: Landscape) -> dict[str, Any]:
    losses = found.losses[np.isfinite(found.losses)]
    return {
        "points": list(found.losses.shape),
        "lowest": float(losses.min()) if losses.size else None,
        "lowest at": list(found.lowest) if losses.size else None,
        "highest": float(losses.max()) if losses.size else None,
        "not finite": int(found.losses.size - losses.size),
        "samples": found.about["samples"],
    }


def _write_report(
    found: Landscape, facts: dict[str, Any], path: Path, log: bool, run: dict[str, str]
) -> None:
    from pntk.report import Panel, Report, write_report

    kind = "line" if found.y is None else "plane"
    rows = [(name, fact(value)) for name, value in facts.items()]
    panels = [
        Panel(
            "Loss landscape",
            figure=found.plot_contour(log=log),
            caption=f"Mean loss on a {kind} through the weights.",
            columns=("measure", "value"),
            rows=rows,
        )
    ]
    if found.y is not None:
        panels.append(
            Panel("Surface", figure=found.plot_surface(log=log), caption="The same as a surface.")
        )
    if found.accuracies is not None:
        figure = found.plot_contour(values="accuracy")
        panels.append(Panel("Accuracy", figure=figure, caption="Share of right predictions."))
    page = Report(title="Loss landscape", run=run, panels=panels, reproduce=this_command())
    write_report(page, path)
