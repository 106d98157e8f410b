"""``pntk ntk``: the kernel of the rows of stores, or the exact one of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from rich.text import Text

from pntk.cli.common import (
    DeviceOption,
    JsonFlag,
    ProgressFlag,
    check_out,
    choice,
    console,
    format_bytes,
    new_table,
    print_facts,
    print_json,
    say,
)
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.exact import Asked, check_mix, exact_kernel
from pntk.cli.factories import pick_device
from pntk.errors import ConfigError
from pntk.ntk.columns import KINDS
from pntk.ntk.exact import METHODS, PRECISIONS
from pntk.ntk.exact_sinks import Kernels
from pntk.ntk.kernel_file import open_kernel, partial_path, tiles_there
from pntk.ntk.projected import ntk
from pntk.store import FeatureStore

NAME = "ntk"
EXAMPLES = (
    "pntk ntk train.h5 --out kernel.h5",
    "pntk ntk test.h5 train.h5 --normalize --out kernel.h5",
    "pntk ntk huge.h5 --memory-budget 8GB --out kernel.h5",
    "pntk ntk --exact --model train:net --checkpoint net.pt --data train:digits --out kernel.h5",
)
LARGEST_IN_MEMORY = 4096 * 4096  # entries of a kernel that is not written
BLOCK_BYTES = 2**24  # of a block of rows that is summarized at a time


def command(
    a: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, metavar="STORE.h5", help="A store; none with --exact."
        ),
    ] = None,
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
    exact: Annotated[
        bool, typer.Option("--exact", help="The kernel of a model's gradients, not of rows.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="Exact: what makes the model.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Exact: its weights."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="Exact: samples of the rows.")
    ] = None,
    other_data: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="Exact: those of the columns; --data itself."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(**choice(*KINDS), help="Exact: what of the outputs; trace unless told."),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(**choice("parameter", "module"), help="Exact: a kernel for each of them."),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Exact: which parameters; repeatable. All that train."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(**choice(*PRECISIONS), help="Exact: of the sums; fp32.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(**choice(*METHODS), help="Exact: how; the cheapest way.")
    ] = None,
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="What the work may take, such as 500MB.")
    ] = "1GB",
    check: Annotated[
        bool, typer.Option("--check", help="Compare rows with their checksums when reading them.")
    ] = False,
    device: DeviceOption = "auto",
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Compute the kernel of the rows of one store, or between those of two.

    Entry i, j is the inner product of rows i and j. It is written tile by tile, so that it may be
    larger than memory, and so may the rows. Stopped at any moment, the same command goes on where
    it was. Without --out only a summary of a small kernel is printed.

    With --exact there is no store: the entries are inner products of the gradients themselves, of
    a model and samples that factories make, as for pntk featurize.
    """
    asked = Asked(model, checkpoint, data, other_data, kind, components, params, precision, method)
    check_mix(asked, exact=exact, store=a, normalize=normalize, check=check)
    place = pick_device(device)
    stores = [FeatureStore(path, check=check) for path in (a, b) if path is not None]
    if out is not None:
        check_out(out, new=True)
        if there := tiles_there(out):
            say(f"resuming: {there[0]:,} of {there[1]:,} tiles are in {partial_path(out)}")
    elif stores and len(stores[0]) * len(stores[-1]) > LARGEST_IN_MEMORY:
        raise ConfigError(
            f"the kernel is {len(stores[0]):,} x {len(stores[-1]):,}, too large to only summarize; "
            "write it with --out kernel.h5"
        )
    work: dict[str, Any] = {"out": out, "memory_budget": memory_budget, "progress": progress}
    with explain_stop(lambda: out and how_to_resume(out)):
        if exact:
            kernel = exact_kernel(asked, device=device, **work)
        else:
            kernel = ntk(*stores, normalize=normalize, device=place, **work)
    summary = _summary_of(kernel, symmetric=b is None and other_data is None, kind=kind)
    if out is not None:
        summary |= {"out": out, "bytes": out.stat().st_size}
    if exact:
        summary = {"exact": True, "kind": kind or "trace", **summary}
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


def _summary_of(kernel: Kernels | Path, *, symmetric: bool, kind: str | None) -> dict[str, Any]:
    """Summarize a kernel in memory, or in the file that it was written to."""
    names: tuple[str, ...] = ()
    read: Callable[[int, int], Any]
    if isinstance(kernel, Path):
        opened = open_kernel(kernel)
        shape, names, read = opened.values.shape, opened.header.components, opened.read
    else:
        if isinstance(kernel, dict):
            names, kernel = tuple(kernel), torch.stack(list(kernel.values()), dim=2)
        values = np.asarray(kernel)
        shape, read = values.shape, lambda start, stop: values[start:stop]
    return summarize(shape, read, symmetric=symmetric, components=names, paired=kind == "full")


def summarize(
    shape: tuple[int, ...],
    read: Callable[[int, int], Any],
    *,
    symmetric: bool,
    components: tuple[str, ...] = (),
    paired: bool = False,
) -> dict[str, Any]:
    """Return shape, range and mean of a kernel [n, m, *entry], and of a symmetric one the trace.

    Range and mean are of all numbers in all entries. The trace is the sum of the squared norms of
    the gradients of all samples and outputs.

    Args:
        shape: (n, m, *entry).
        read: returns rows i to j of the kernel [b, m, *entry].
        symmetric: whether rows and columns are the same samples.
        components: names along the first axis of an entry, whose means and traces are told too.
        paired: whether an entry ends in all pairs of outputs, [*outputs, *outputs].
    """
    rows, columns, *entry = shape
    parts, each = max(1, len(components)), math.prod(entry)
    outputs = math.isqrt(each // parts) if paired else each // parts
    own = np.arange(outputs) * (outputs + 1 if paired else 1)  # where an output meets itself
    low, high, totals, traces = np.inf, -np.inf, np.zeros(parts), np.zeros(parts)
    step = max(1, BLOCK_BYTES // (8 * columns * each))
    for start in range(0, rows, step):
        block = np.asarray(read(start, start + step), dtype=np.float64)
        low, high = float(np.minimum(low, block.min())), float(np.maximum(high, block.max()))
        block = block.reshape(len(block), columns, parts, -1)
        totals += block.sum((0, 1, 3))
        if symmetric:
            i = np.arange(len(block))
            traces += block[i, start + i][..., own].sum((0, 2))
    count = rows * columns * (each // parts)  # numbers of a component
    found: dict[str, Any] = {
        "shape": [rows, columns],
        "min": low,
        "max": high,
        "mean": float(totals.sum()) / (count * parts),
    }
    if entry:
        found["entry"] = entry
    if symmetric:
        trace = float(traces.sum())
        found |= {"trace": trace, "diagonal_mean": trace / rows}
    if components:
        found["components"] = {
            name: {"mean": float(total) / count} | ({"trace": float(t)} if symmetric else {})
            for name, total, t in zip(components, totals, traces, strict=True)
        }
    return found


def _print(summary: dict[str, Any]) -> None:
    rows, columns = summary["shape"]
    facts = {
        "shape": f"{rows:,} x {columns:,}",
        "range": f"{summary['min']:.6g} to {summary['max']:.6g}, mean {summary['mean']:.6g}",
    }
    if "kind" in summary:
        facts = {"kernel": f"exact, {summary['kind']}", **facts}
    if "entry" in summary:
        of_each = " x ".join(map(str, summary["entry"]))
        facts["shape"] += f", each of {of_each} numbers"
        facts["range"] += ", of all of them"
    if "trace" in summary:
        facts["trace"] = f"{summary['trace']:.6g}, diagonal mean {summary['diagonal_mean']:.6g}"
        if "entry" in summary:
            facts["trace"] += ", summed over what a pair of samples has"
    if "out" in summary:
        facts["written"] = f"{summary['out']} ({format_bytes(summary['bytes'])}, data set 'ntk')"
    print_facts(facts)
    if "components" in summary:
        typer.echo()
        console().print(_components_table(summary))


def _components_table(summary: dict[str, Any]) -> Table:
    traced = "trace" in summary
    table = new_table("component", "mean", *(("trace", "share") if traced else ()))
    for name, numbers in summary["components"].items():
        cells = [name, f"{numbers['mean']:.6g}"]
        if traced:
            share = numbers["trace"] / summary["trace"] if summary["trace"] else math.nan
            cells += [f"{numbers['trace']:.6g}", f"{share:.1%}"]
        table.add_row(*map(Text, cells))
    return table
