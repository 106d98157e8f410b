"""``pntk study``: how far cosines of projected gradients are from the exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pntk.cli.common import DeviceOption, JsonFlag, ProgressFlag, choice, print_json
from pntk.cli.factories import load_data, load_model, pick_device
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.files import check_replaceable, write_whole
from pntk.ntk.residuals import KINDS, check_study, residual_study
from pntk.projection.spec import FAMILIES

NAME = "study"
EXAMPLES = (
    "pntk study --model train:net --checkpoint net.pt --data train:digits",
    "pntk study --model train:net --data train:digits --kind pntk --proj-dims 256,1024,4096,16384"
    " --seeds 10 --plot study.png",
)


def command(
    model: Annotated[
        str, typer.Option(metavar="MODULE:FACTORY", help="Function or class that makes the model.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="Function that makes the data, shuffled."),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Weights to load."),
    ] = None,
    kind: Annotated[str, typer.Option(**choice(*KINDS), help="Which kernel.")] = "trace",
    projection: Annotated[
        str,
        typer.Option(**choice(*FAMILIES[:-1]), help="Random map from gradients to rows."),
    ] = "hadamard",
    proj_dims: Annotated[
        str, typer.Option(metavar="K,K,...", help="Widths of rows to compare.")
    ] = "256,1024,4096",
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Projections of each width, at least 2.")
    ] = 5,
    samples: Annotated[
        int, typer.Option(metavar="N", help="First samples of the data to use, at least 8.")
    ] = 100,
    params: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Parameters to use; repeatable. All that train."),
    ] = None,
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="What a pass may take, such as 500MB.")
    ] = "1GB",
    device: DeviceOption = "auto",
    plot: Annotated[Path | None, typer.Option(metavar="STUDY.png", help="Plot to write.")] = None,
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Measure how far cosines of projected gradients are from the exact ones.

    For each width k and several seeds: mean and quantiles of |cos_projected - cos_exact| over all
    pairs of the samples, the laws that might describe them, and the exponent b of mean ~ k^-b.
    Standard errors, in parentheses, are over seeds.
    """
    widths = parse_widths(proj_dims)
    check_study(kind, projection, widths, seeds, samples)
    if plot is not None:
        check_replaceable(plot)
        require("matplotlib", "--plot")
    found = residual_study(
        load_model(model, checkpoint, pick_device(device), keep_mode=False),
        load_data(data),
        kind=kind,
        projection=projection,
        proj_dims=widths,
        seeds=seeds,
        samples=samples,
        params=params or None,
        memory_budget=memory_budget,
        progress=progress,
    )
    if plot is not None:
        from pntk.report.residual_plot import residual_plot

        write_whole(plot, residual_plot(found))
    if as_json:
        print_json({**found.to_dict(), "plot": plot})
        return
    typer.echo(str(found))
    if plot is not None:
        typer.echo(f"\nplot: {plot}")


def parse_widths(text: str) -> list[int]:
    """Return the integers of a text such as ``256,1024``.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--proj-dims is {text!r}; expected integers with commas, such as 256,1024,4096"
        ) from None
