"""``pntk spectrum``: eigenvalues and alignment of kernels and stores."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pntk.cli.common import JsonFlag, console, new_table, print_facts, print_json, say
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.files import check_replaceable, write_whole
from pntk.ntk.alignment import centered_alignment, target_alignment
from pntk.ntk.opening import as_source, open_file
from pntk.ntk.sources import Source
from pntk.ntk.spectral_numbers import Spectrum
from pntk.ntk.spectrum import spectrum_of
from pntk.store import FeatureStore

NAME = "spectrum"
EXAMPLES = (
    "pntk spectrum kernel.h5",
    "pntk spectrum train.h5 --num 100 --labels",
    "pntk spectrum epoch1.h5 epoch9.h5 --labels --plot spectrum.png",
)


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="FILE.h5...",
            help="Kernels that 'pntk ntk' wrote, or stores.",
        ),
    ],
    num: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the largest ones; all unless told.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Alignment with the labels of the store.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="SPECTRUM.png", help="Plot to write.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Describe the eigenvalues of kernels, and compare kernels of the same samples.

    A store stands for the kernel of its rows, which is never made. With --labels each kernel is
    compared with that of the labels; a kernel has none, so give its store beside it. Several files
    of as many samples are compared with each other, by centred alignment.
    """
    if plot is not None:
        check_replaceable(plot)
        require("matplotlib", "--plot")
    opened = [open_file(file) for file in files]
    sources = [as_source(found) for found in opened]
    wanted = _labels(files, opened, sources) if labels else None
    spectra: dict[str, Spectrum] = {}
    results: list[dict[str, Any]] = []
    for file, found, source in zip(files, opened, sources, strict=True):
        spectrum = spectrum_of(source, num)
        spectra[_label(file, spectra)] = spectrum
        result = {
            "file": str(file),
            "kind": "store" if isinstance(found, FeatureStore) else "kernel",
            **spectrum.summary(),
        }
        if isinstance(found, FeatureStore) and len(found.skipped):
            say(f"{file}: {len(found.skipped):,} rows were skipped and count as zeros")
        if wanted is not None:
            result["target_alignment"] = target_alignment(source, wanted)
            result["target_alignment_centered"] = target_alignment(source, wanted, centered=True)
        results.append(result)
    pairs = [
        {"a": str(files[i]), "b": str(files[j]), "centered_alignment": value}
        for i, j in combinations(range(len(files)), 2)
        if sources[i].size == sources[j].size
        for value in [centered_alignment(sources[i], sources[j])]
    ]
    if plot is not None:
        from pntk.report.spectrum_plots import spectra_plot

        write_whole(plot, spectra_plot(spectra))
    if as_json:
        values = [spectrum.values.tolist() for spectrum in spectra.values()]
        for result, numbers in zip(results, values, strict=True):
            result["values"] = numbers
        print_json({"files": results, "pairs": pairs, "plot": plot})
    else:
        _print(results, pairs, plot)


def _labels(files: list[Path], opened: list[Any], sources: list[Source]) -> np.ndarray | None:
    """Return the labels of the first store that has some, which must fit all kernels.

    Raises:
        ConfigError: there are none, some are missing, or kernels are of other samples.
    """
    labelled = (
        (file, found)
        for file, found in zip(files, opened, strict=True)
        if isinstance(found, FeatureStore) and found.labels is not None
    )
    file, store = next(labelled, (None, None))
    if store is None:
        raise ConfigError(
            f"--labels: none of {', '.join(map(str, files))} is a store with labels; give the "
            "store that the kernel was made of beside it"
        )
    labels = np.array(store.labels)
    unknown = int((labels < 0).sum())
    if unknown:
        raise ConfigError(
            f"--labels: {unknown:,} of {len(labels):,} rows of {file} have none; leave those rows "
            "out with pntk export --rows"
        )
    for other, source in zip(files, sources, strict=True):
        if source.size != len(labels):
            raise ConfigError(
                f"--labels: {file} has {len(labels):,} rows and {other} is of {source.size:,} "
                "samples; expected the same samples"
            )
    return labels


def _label(file: Path, taken: dict[str, Spectrum]) -> str:
    """Return the name of a line: that of the file, or its path where two are named alike."""
    name = file.name if file.name not in taken else str(file)
    return name if name not in taken else f"{name} ({len(taken) + 1})"


# ---- printing ----------------------------------------------------------------------------------


def _print(results: list[dict[str, Any]], pairs: list[dict[str, Any]], plot: Path | None) -> None:
    for number, result in enumerate(results):
        if number:
            typer.echo()
        print_facts(_facts(result))
    if pairs:
        typer.echo()
        table = new_table("kernel", "other", "centred alignment", "drift")
        for pair in pairs:
            value = pair["centered_alignment"]
            table.add_row(pair["a"], pair["b"], f"{value:.4f}", f"{1 - value:.4f}")
        console().print(table)
    if plot is not None:
        typer.echo(f"\nplot: {plot}")


def _facts(result: dict[str, Any]) -> dict[str, str]:
    partial = result["rank"] is None
    facts = {
        result["kind"]: result["file"],
        "samples": f"{result['samples']:,}",
        "eigenvalues": f"the largest {result['eigenvalues']:,}"
        if partial
        else f"{result['rank']:,} that are not zero",
        "trace": f"{result['trace']:.6g}",
        "largest": f"{result['largest']:.6g}, {result['share_of_first']:.2%} of the trace",
    }
    if result["share_of_ten"] is not None:
        facts["ten largest"] = f"{result['share_of_ten']:.2%} of the trace"
    if not partial:
        condition = result["condition_number"]
        facts["smallest"] = f"{result['smallest']:.6g}"
        facts["condition number"] = (
            f"{condition:.6g}" if math.isfinite(condition) else "infinite (rank below samples)"
        )
        facts["effective rank"] = f"{result['effective_rank']:.2f}"
    if result["participation_ratio"] is not None:
        facts["participation"] = f"{result['participation_ratio']:.2f}"
    if "target_alignment" in result:
        facts["with labels"] = (
            f"{result['target_alignment']:.4f}, centred {result['target_alignment_centered']:.4f}"
        )
    return facts
