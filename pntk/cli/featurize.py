"""``pntk featurize``: a model and data in, a store of rows out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from pntk.cli.common import (
    DeviceOption,
    JsonFlag,
    ProgressFlag,
    check_out,
    choice,
    format_bytes,
    print_json,
    say,
)
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.factories import load_data, load_model, pick_device
from pntk.distributed import launched
from pntk.errors import ConfigError
from pntk.featurizer import ON_NONFINITE, PRECISIONS, STORAGE, Featurizer
from pntk.memory import parse_bytes
from pntk.outputs import OUTPUTS, Output, Trace, resolve_output
from pntk.projection.dispatch import IMPLEMENTATIONS
from pntk.projection.spec import FAMILIES, MAX_SEED, ProjectionSpec
from pntk.store import FeatureStore
from pntk.store.shards import find_shards, shard_path

NAME = "featurize"
EXAMPLES = (
    "pntk featurize --model train:net --data train:digits --out train.h5",
    "pntk featurize --model train:net --checkpoint net.pt --data train:digits"
    " --output trace --probes 8 --params 'layer4.*' --out train.h5",
    "torchrun --nproc-per-node 8 -m pntk featurize --model train:net --data train:digits"
    " --out train.h5",
    "pntk featurize --model train:net --data train:digits --out train.h5 --shard 3/16",
)


def command(
    model: Annotated[
        str, typer.Option(metavar="MODULE:FACTORY", help="Function or class that makes the model.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="Function that makes the data: tensors, a data set, or a loader in fixed order.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="STORE.h5", help="Store to create or to resume.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Weights to load."),
    ] = None,
    output: Annotated[
        str, typer.Option(**choice(*OUTPUTS), help="What is differentiated.")
    ] = "pntk",
    probes: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="For trace: sign combinations of classes; 0 for each class."
        ),
    ] = 0,
    projection: Annotated[
        str, typer.Option(**choice(*FAMILIES), help="Random map from gradients to rows.")
    ] = "hadamard",
    proj_dim: Annotated[
        int | None, typer.Option(metavar="N", help="Width k of a row; 4096 unless told.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED - 1, metavar="N", help="Of the projection.")
    ] = 0,
    params: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Parameters to featurize; repeatable. All that train, unless told."
        ),
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Parameters to differentiate by torch.func; repeatable."),
    ] = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        str,
        typer.Option(**choice(*PRECISIONS), help="Of the sums; bf16: of the model, rows are fp32."),
    ] = "fp32",
    impl: Annotated[
        str,
        typer.Option(**choice("auto", *IMPLEMENTATIONS), help="Implementation; see pntk info."),
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples a batch; 64, or the loader's own."),
    ] = None,
    num_rows: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Length of data that has none of its own."),
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What a batch may take, such as 2GB.")
    ] = None,
    on_nonfinite: Annotated[
        str, typer.Option(**choice(*ON_NONFINITE), help="On a row with NaN or infinity.")
    ] = "raise",
    sync_interval: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Seconds between syncs: the work that a kill can lose."
        ),
    ] = 5.0,
    storage: Annotated[
        str,
        typer.Option(
            **choice(*STORAGE), help="fp16 keeps 11 bits of a number, and half the space."
        ),
    ] = "full",
    shards: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Files to write to; one a process, unless told."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Write the I-th of N shards alone (0 to N-1); then join."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with a store that exists.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Check the first batch's gradients.")
    ] = True,
    progress: ProgressFlag = True,
    keep_mode: Annotated[
        bool, typer.Option("--keep-mode", help="Leave the mode of modules; otherwise eval().")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write each sample's projected gradient to a store.

    The factories are called without arguments; the current folder is on the import path. Stopped
    at any moment, the same command goes on where it was.

    Several processes share the work under torchrun, each with a GPU if there are enough. Jobs that
    do not talk to each other take a shard each (--shard), and pntk join makes one store of them.
    """
    with launched() if shard is None else nullcontext(0) as rank:
        spec = ProjectionSpec(projection, proj_dim, seed)
        differentiated = _output(output, probes)
        parse_bytes(memory_budget)
        one = None if shard is None else parse_shard(shard)
        before = _rows_there(out, one, resume, loud=rank == 0)
        network = load_model(model, checkpoint, pick_device(device), keep_mode=keep_mode)
        examples = load_data(data)
        featurizer = Featurizer(
            network,
            differentiated,
            spec,
            params=params or None,
            impl=impl,
            precision=precision,
            memory_budget=memory_budget,
            fallback=fallback or (),
            check=check,
            on_nonfinite=on_nonfinite,
        )
        start = time.perf_counter()
        with explain_stop(lambda: how_to_resume(out, one) if rank == 0 else None):
            store = featurizer.featurize(
                examples,
                out,
                batch_size=batch_size,
                resume=resume,
                progress=progress and rank == 0,
                num_rows=num_rows,
                sync_interval=sync_interval,
                storage=storage,
                shards=shards,
                shard=one,
            )
    if rank == 0:
        result = _result(store, before, time.perf_counter() - start)
        print_json(result) if as_json else _print(result)


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) for a text such as ``3/16``.

    Raises:
        ConfigError: it is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--shard is {text!r}; expected I/N, from 0/16 to 15/16 of 16 shards")
    return int(index), int(count)


def how_to_resume(path: Path, shard: tuple[int, int] | None = None) -> str:
    """Say how many rows there are, and with which command to make the others."""
    files = _files(path, shard)
    if not files:
        return f"no row was written; start again with: {this_command()}"
    done, rows = _count(files, shard)
    return f"{done:,} of {rows:,} rows are in {path}; go on from there with: {this_command()}"


def _files(path: Path, shard: tuple[int, int] | None) -> list[Path]:
    """Files with rows of a store that there are."""
    if shard is not None:
        path = shard_path(path, *shard)
    return (find_shards(path) if shard is None else []) or ([path] if path.exists() else [])


def _count(files: list[Path], shard: tuple[int, int] | None) -> tuple[int, int]:
    """Rows that are there, and rows of the whole or of the shard."""
    stores = [FeatureStore(file) for file in files]
    header = stores[0].header
    rows = (header.whole() if shard is None else header).rows
    return sum(store.num_done for store in stores), rows


def _output(name: str, probes: int) -> Output:
    if probes and name != "trace":
        raise ConfigError(f"--probes is {probes} for output {name!r}; it goes with --output trace")
    return Trace(probes) if name == "trace" else resolve_output(name)


def _rows_there(out: Path, shard: tuple[int, int] | None, resume: bool, *, loud: bool) -> int:
    """Return the rows that there are already, after checking that they may be added to."""
    check_out(out, new=not resume)
    files = _files(out, shard)
    if not files:
        return 0
    done, rows = _count(files, shard)
    if loud and done < rows:
        say(f"resuming: {done:,} of {rows:,} rows are in {out}")
    return done


def _result(store: FeatureStore, before: int, seconds: float) -> dict[str, Any]:
    return {
        "path": store.path,
        "rows": len(store),
        "width": store.header.width,
        "dtype": store.header.dtype,
        "bytes": sum(file.stat().st_size for file in store.files),
        "computed": store.num_done - before,
        "skipped": store.skipped.tolist(),
        "seconds": round(seconds, 3),
    }


def _print(result: Mapping[str, Any]) -> None:
    if not result["computed"]:
        typer.echo("nothing to do: every row is there")
    else:
        seconds = result["seconds"]
        rate = result["computed"] / max(seconds, 1e-9)
        typer.echo(f"computed {result['computed']:,} rows in {seconds:.1f} s, {rate:,.0f} a second")
    if skipped := result["skipped"]:
        more = " ..." if len(skipped) > 10 else ""
        shown = ", ".join(map(str, skipped[:10]))
        typer.echo(f"skipped {len(skipped):,} rows with NaN or infinity: {shown}{more}")
    typer.echo(
        f"{result['path']}: {result['rows']:,} rows of {result['width']:,} {result['dtype']}, "
        f"{format_bytes(result['bytes'])}"
    )
