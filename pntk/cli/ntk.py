"""``pntk ntk``: the kernel of the rows of stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pntk.cli.common import (
    JsonFlag,
    StoreFile,
    check_out,
    format_bytes,
    print_facts,
    print_json,
    say,
)
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.factories import pick_device
from pntk.errors import ConfigError
from pntk.ntk.kernel_file import open_kernel, partial_path, tiles_there
from pntk.ntk.projected import ntk
from pntk.store import FeatureStore

NAME = "ntk"
EXAMPLES = (
    "pntk ntk train.h5 --out kernel.h5",
    "pntk ntk test.h5 train.h5 --normalize --out kernel.h5",
    "pntk ntk huge.h5 --memory-budget 8GB --out kernel.h5",
)
LARGEST_IN_MEMORY = 4096 * 4096  # entries of a kernel that is not written
BLOCK_BYTES = 2**24  # of a block of rows that is summarized at a time


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
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="What the work may take, such as 500MB.")
    ] = "1GB",
    check: Annotated[
        bool, typer.Option("--check", help="Compare rows with their checksums when reading them.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to multiply.")
    ] = "auto",
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Show rate and remaining time.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Compute the kernel of the rows of one store, or between those of two.

    Entry i, j is the inner product of rows i and j. It is written tile by tile, so that it may be
    larger than memory, and so may the rows. Stopped at any moment, the same command goes on where
    it was. Without --out only a summary of a small kernel is printed.
    """
    place = pick_device(device)
    rows = FeatureStore(a, check=check)
    columns = None if b is None else FeatureStore(b, check=check)
    shape = (len(rows), len(rows if columns is None else columns))
    if out is not None:
        check_out(out, new=True)
        if there := tiles_there(out):
            say(f"resuming: {there[0]:,} of {there[1]:,} tiles are in {partial_path(out)}")
    elif shape[0] * shape[1] > LARGEST_IN_MEMORY:
        raise ConfigError(
            f"the kernel is {shape[0]:,} x {shape[1]:,}, too large to only summarize; write it "
            "with --out kernel.h5"
        )
    with explain_stop(lambda: out and how_to_resume(out)):
        kernel = ntk(
            rows,
            columns,
            normalize=normalize,
            out=out,
            memory_budget=memory_budget,
            device=place,
            progress=progress,
        )
    if out is None:
        values = np.asarray(kernel)
        summary = summarize(shape, lambda i, j: values[i:j], symmetric=columns is None)
    else:
        summary = summarize(shape, open_kernel(out).read, symmetric=columns is None)
        summary |= {"out": out, "bytes": out.stat().st_size}
    print_json({"normalized": normalize, **summary}) if as_json else _print(summary)


def how_to_resume(out: Path) -> str:
    """Say how many tiles of a kernel there are, and with which command to make the others."""
    there = tiles_there(out)
    if out.exists():
        return f"the kernel is whole, in {out}"
    if there is None:
        return f"no tile was written; start again with: {this_command()}"
    return (
        f"{there[0]:,} of {there[1]:,} tiles are in {partial_path(out)}; go on from there with: "
        f"{this_command()}"
    )


def summarize(
    shape: tuple[int, int], read: Callable[[int, int], Any], *, symmetric: bool
) -> dict[str, Any]:
    """Return shape, range and mean of a kernel [n, m], and of a symmetric one the trace.

    Args:
        shape: (n, m).
        read: returns rows i to j of the kernel [b, m].
        symmetric: whether rows and columns are the same samples.
    """
    rows, columns = shape
    low, high, total, trace = np.inf, -np.inf, 0.0, 0.0
    step = max(1, BLOCK_BYTES // (8 * columns))
    for start in range(0, rows, step):
        block = np.asarray(read(start, start + step), dtype=np.float64)
        low, high = float(np.minimum(low, block.min())), float(np.maximum(high, block.max()))
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
