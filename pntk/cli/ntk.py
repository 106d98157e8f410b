"""``pntk ntk``: the kernel of the rows of stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import typer

from pntk.cli.common import JsonFlag, StoreFile, check_out, format_bytes, print_facts, print_json
from pntk.cli.factories import pick_device
from pntk.errors import ConfigError
from pntk.ntk.projected import ntk
from pntk.store import FeatureStore

NAME = "ntk"
EXAMPLES = (
    "pntk ntk train.h5 --out kernel.h5",
    "pntk ntk test.h5 train.h5 --normalize --out kernel.h5",
)
LARGEST_IN_MEMORY = 4096 * 4096  # entries of a kernel that is not written
BLOCK = 1024


def command(
    a: StoreFile,
    b: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, metavar="[OTHER.h5]", help="Columns; STORE.h5 itself."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="KERNEL.h5", help="File to write (data set 'ntk').")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Cosines.")] = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to multiply.")
    ] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Compute the kernel of the rows of one store, or between those of two.

    Entry i, j is the inner product of rows i and j. It is written tile by tile, so that it may be
    larger than memory. Without --out only a summary of a small kernel is printed.
    """
    place = pick_device(device)
    rows = FeatureStore(a)
    columns = None if b is None else FeatureStore(b)
    shape = (len(rows), len(rows if columns is None else columns))
    if out is not None:
        check_out(out, new=True)
    elif shape[0] * shape[1] > LARGEST_IN_MEMORY:
        raise ConfigError(
            f"the kernel is {shape[0]:,} x {shape[1]:,}, too large to only summarize; write it "
            "with --out kernel.h5"
        )
    kernel = ntk(rows, columns, normalize=normalize, out=out, device=place)
    if out is None:
        summary = summarize(np.asarray(kernel), symmetric=columns is None)
    else:
        with h5py.File(out, "r") as file:
            summary = summarize(file["ntk"], symmetric=columns is None)
        summary |= {"out": out, "bytes": out.stat().st_size}
    print_json({"normalized": normalize, **summary}) if as_json else _print(summary)


def summarize(kernel: Any, *, symmetric: bool) -> dict[str, Any]:
    """Return shape, range and mean of a kernel [n, m], and of a symmetric one the trace.

    Args:
        kernel: an array, or a data set that is read a block of rows at a time.
        symmetric: whether rows and columns are the same samples.
    """
    rows, columns = kernel.shape
    low, high, total, trace = np.inf, -np.inf, 0.0, 0.0
    for start in range(0, rows, BLOCK):
        block = np.asarray(kernel[start : start + BLOCK], dtype=np.float64)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        total += float(block.sum())
        if symmetric:
            trace += float(np.trace(block, offset=start))
    found: dict[str, Any] = {
        "shape": [rows, columns],
        "min": low,
        "max": high,
        "mean": total / (rows * columns),
    }
    return found | ({"trace": trace, "diagonal_mean": trace / rows} if symmetric else {})


def _print(summary: dict[str, Any]) -> None:
    rows, columns = summary["shape"]
    facts = {
        "shape": f"{rows:,} x {columns:,}",
        "range": f"{summary['min']:.6g} to {summary['max']:.6g}, mean {summary['mean']:.6g}",
    }
    if "trace" in summary:
        facts["trace"] = f"{summary['trace']:.6g}, diagonal mean {summary['diagonal_mean']:.6g}"
    if "out" in summary:
        facts["written"] = f"{summary['out']} ({format_bytes(summary['bytes'])}, data set 'ntk')"
    print_facts(facts)
