"""``pntk nads``: which directions of the input a kind of network prefers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from pntk.cli.common import (
    DeviceOption,
    JsonFlag,
    ProgressFlag,
    check_out,
    choice,
    console,
    new_table,
    print_facts,
    print_json,
)
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.factories import load_object, pick_device
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import png
from pntk.files import check_results
from pntk.nads.compare import Comparison, compare
from pntk.nads.gradient_covariance import JACOBIANS, GradientCovariance
from pntk.nads.metrics import Isotropy
from pntk.nads.nads import NADs
from pntk.nads.networks import NETWORKS
from pntk.nads.search import kept_nads

NAME = "nads"
EXAMPLES = (
    "pntk nads LeNet --num-samples 2000 --out lenet.h5",
    "pntk nads LeNet --num-samples 10000 --jacobian finite_difference --published NADs",
    "pntk nads all --jacobian finite_difference --published NADs --out nads --report nads.html",
    "pntk nads train:make_net --shape 3,64,64 --json",
)
SHOWN = 10  # directions in a report
MEASURES = {
    "entropy": "entropy (nats)",
    "kl_to_uniform": "KL to uniform (nats)",
    "participation_ratio": "participation ratio",
    "effective_rank": "effective rank",
    "gini": "Gini coefficient",
    "top_share": "share of the first",
}


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"{', '.join(NETWORKS)}; all of them; or MODULE:FACTORY, which makes a new "
            "network of one output each time.",
        ),
    ],
    num_samples: Annotated[
        int, typer.Option(min=2, metavar="N", help="Random networks to draw.")
    ] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(metavar="NADS.h5", help="Directions to write; a folder with all."),
    ] = None,
    keep_gradients: Annotated[
        bool, typer.Option("--keep-gradients", help="Leave the gradients beside --out.")
    ] = False,
    shape: Annotated[
        str, typer.Option(metavar="C,H,W", help="Of the input at which gradients are taken.")
    ] = "1,32,32",
    jacobian: Annotated[
        str, typer.Option(**choice(*JACOBIANS), help="How gradients are taken.")
    ] = "autograd",
    scale: Annotated[
        float, typer.Option(metavar="S", help="Step of the finite difference.")
    ] = 100.0,
    uncentered: Annotated[
        bool, typer.Option("--uncentered", help="Do not take off the mean gradient.")
    ] = False,
    published: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            metavar="PATH",
            help="To compare with: a file of directions, or a folder of NAME_NADs.npy and "
            "NAME_eigenvals.npy. Published ones are of finite differences.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Report to write.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the networks and of the input.")
    ] = 0,
    device: DeviceOption = "auto",
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Find neural anisotropy directions: principal directions of random networks' input gradients.

    With --out the same command goes on where it was stopped. The input is drawn from the normal
    distribution. Compared are subspaces of the first directions, rank by rank, and spectra.
    """
    if keep_gradients and out is None:
        raise ConfigError("--keep-gradients without --out, beside which they are kept; add --out")
    sizes = parse_shape(shape)
    if report is not None:
        check_results(out, {"--report": report})
        for module in ("matplotlib", "jinja2"):
            require(module, "--report")
    where = pick_device(device)
    names = list(NETWORKS) if model == "all" else [model]
    files = _files(names, out, every=model == "all")
    references = [_published(published, name, sizes, every=model == "all") for name in names]
    point = torch.randn(sizes, generator=torch.Generator().manual_seed(seed))
    finders = [
        GradientCovariance(
            point,
            *_network(name, sizes),
            device=where,
            jacobian=jacobian,
            scale=scale,
            centered=not uncentered,
            seed=seed,
        )
        for name in names
    ]
    for finder in finders:
        finder.gradients(0, 1)  # so that what cannot work is said before any work
    results = []
    with explain_stop(lambda: _how_to_resume(out)):
        for finder, file, reference in zip(finders, files, references, strict=True):
            start = time.perf_counter()
            if file is None:
                nads = finder.nads(num_samples, progress=progress)
            else:
                nads = kept_nads(
                    finder, num_samples, file, keep_gradients=keep_gradients, progress=progress
                )
            seconds = time.perf_counter() - start
            compared = None if reference is None else compare(nads, reference)
            results.append(Result(nads, nads.isotropy(), reference, compared, file, seconds))
    if report is not None:
        _write_report(results, report)
    if as_json:
        print_json({"networks": [result.to_dict() for result in results], "report": report})
        return
    for number, result in enumerate(results):
        if number:
            typer.echo()
        _print(result)
    if report is not None:
        typer.echo(f"\nreport: {report}")


@dataclass(frozen=True)
class Result:
    """Directions of one kind of network, and how they compare."""

    nads: NADs
    isotropy: Isotropy
    published: NADs | None
    comparison: Comparison | None
    file: Path | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the directions, as JSON can hold it."""
        nads = self.nads
        return {
            "network": nads.name,
            "num_samples": nads.num_samples,
            "shape": list(nads.shape),
            "directions": len(nads),
            "jacobian": nads.info["jacobian"],
            "centered": nads.centered,
            "seed": nads.info["seed"],
            "isotropy": self.isotropy._asdict(),
            "singular_values": nads.singular_values.tolist(),
            "comparison": None if self.comparison is None else self.comparison._asdict(),
            "file": self.file,
            "seconds": round(self.seconds, 3),
        }

    def facts(self) -> dict[str, str]:
        """Return what is shown of it, in words."""
        nads, values = self.nads, self.nads.singular_values
        step = f", step {nads.info['scale']:g}" if "scale" in nads.info else ""
        facts = {
            "network": f"{nads.name}, inputs {list(nads.shape)}",
            "gradients": f"{nads.num_samples:,}, {nads.info['jacobian']}{step}, "
            f"{'centred' if nads.centered else 'not centred'}, seed {nads.info['seed']}",
            "directions": f"{len(nads):,}",
            "singular values": f"{float(values[0]):.4g} to {float(values[-1]):.4g}",
        }
        facts |= {words: f"{value:.4g}" for words, value in self.measures().items()}
        if self.file is not None:
            facts["file"] = str(self.file)
        return {**facts, "seconds": f"{self.seconds:.1f}"}

    def measures(self) -> dict[str, float]:
        """Return how even the spectrum is, by the names shown."""
        return {words: getattr(self.isotropy, name) for name, words in MEASURES.items()}

    def overlaps(self) -> list[tuple[str, str, str]]:
        """Return the rows of the table of overlaps: rank, overlap, chance."""
        assert self.comparison is not None
        found = self.comparison
        return [
            (str(rank), f"{value:.3f}", f"{found.chance[rank]:.3f}")
            for rank, value in found.overlap.items()
        ]

    def spectra(self) -> str:
        """Say how the spectrum compares."""
        assert self.comparison is not None
        return (
            f"spectra: Pearson {self.comparison.pearson:.4f} of the logarithms, "
            f"median ratio of shares {self.comparison.spectrum_ratio:.3f}"
        )


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the sizes of a text such as ``1,32,32``.

    Raises:
        ConfigError: they are no three positive integers.
    """
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 1:
        raise ConfigError(
            f"--shape is {text!r}; expected channels, height and width, such as 1,32,32"
        )
    return sizes


def _files(names: list[str], out: Path | None, *, every: bool) -> list[Path | None]:
    """Return the file of each network, in a folder where there are several."""
    if out is None:
        return [None] * len(names)
    if not every:
        check_out(out, suffixes=(".h5", ".hdf5"))
        return [out]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder for all networks")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    out.mkdir(exist_ok=True)
    return [out / f"{name}.h5" for name in names]


def _published(path: Path | None, name: str, sizes: tuple[int, ...], *, every: bool) -> NADs | None:
    if path is None:
        return None
    if every and not path.is_dir():
        raise ConfigError(f"--published {path} is a file; expected a folder for all networks")
    file = path / f"{name}_NADs.npy" if path.is_dir() else path
    if not file.exists():
        raise ConfigError(f"--published {path} has no {file.name}; give the file itself")
    found = NADs.load(file)
    if found.directions[0].numel() != torch.Size(sizes).numel():
        raise ConfigError(
            f"--published {file} has directions of shape {list(found.shape)} and --shape is "
            f"{list(sizes)}; expected as many numbers"
        )
    return found


def _network(name: str, sizes: tuple[int, ...]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Return what draws a network, and its arguments."""
    if name in NETWORKS:
        size = sizes[1] if sizes[1] == sizes[2] else sizes[1:]
        return NETWORKS[name], {"num_channels": sizes[0], "image_size": size}
    if ":" not in name:
        raise ConfigError(
            f"MODEL is {name!r}; expected one of {', '.join(NETWORKS)}, all, or a factory such as "
            "train:make_net"
        )
    first = load_object(name, "MODEL")
    if not isinstance(first, nn.Module):
        raise ConfigError(
            f"MODEL: {name} returned a {type(first).__name__}; expected a torch.nn.Module"
        )
    if load_object(name, "MODEL") is first:
        raise ConfigError(f"MODEL: {name} is one network; expected a function that makes new ones")

    def draw() -> nn.Module:
        made: nn.Module = load_object(name, "MODEL")
        return made

    draw.__module__, _, draw.__name__ = name.rpartition(":")
    return draw, {}


def _how_to_resume(out: Path | None) -> str:
    if out is None:
        return "nothing was kept; give --out to go on after a stop"
    return f"the gradients so far are kept beside {out}; go on with: {this_command()}"


# ---- showing -----------------------------------------------------------------------------------


def _print(result: Result) -> None:
    print_facts(result.facts())
    if result.comparison is None:
        return
    typer.echo()
    table = new_table("rank", "overlap with published", "by chance")
    for row in result.overlaps():
        table.add_row(*row)
    console().print(table)
    typer.echo(result.spectra())


def _write_report(results: list[Result], path: Path) -> None:
    from pntk.nads.plots import draw_directions, draw_spectrum
    from pntk.report import Panel, Report, write_report

    panels = []
    for result in results:
        nads, name = result.nads, result.nads.name
        few = min(SHOWN, len(nads))
        panels.append(
            Panel(
                f"{name}: directions",
                figure=png(draw_directions(nads, few, title="")),
                caption=f"The first {few} of {len(nads):,} directions, by singular value.",
            )
        )
        panels.append(
            Panel(
                f"{name}: frequencies",
                figure=png(draw_directions(nads, few, "fourier", title="")),
                caption=f"Power of the Fourier transform of the first {few}, zero in the middle.",
            )
        )
        both = [nads] if result.published is None else [nads, _named(result.published)]
        panels.append(
            Panel(
                f"{name}: spectrum",
                figure=png(draw_spectrum(both, normalize=len(both) > 1, title="")),
                caption="Singular values of the gradients"
                + (", and the published ones, as shares of the norm." if len(both) > 1 else "."),
                columns=("measure", "value"),
                rows=[(words, f"{value:.4g}") for words, value in result.measures().items()],
            )
        )
        if result.comparison is not None:
            panels.append(
                Panel(
                    f"{name}: published directions",
                    caption=result.spectra(),
                    columns=("rank", "overlap", "by chance"),
                    rows=result.overlaps(),
                )
            )
    run = {}
    for result in results:
        facts = result.facts()
        run[str(result.nads.name)] = f"{facts['gradients']}; {facts['seconds']} s"
    write_report(
        Report(
            "Neural anisotropy directions",
            run=run,
            headline=[
                (f"effective rank, {result.nads.name}", f"{result.isotropy.effective_rank:.1f}")
                for result in results
            ],
            panels=panels,
            reproduce=this_command(),
        ),
        path,
    )


def _named(published: NADs) -> NADs:
    return NADs(published.directions, published.singular_values, name="published")
