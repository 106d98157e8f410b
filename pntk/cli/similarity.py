"""``pntk similarity``: how alike the layers of two networks are, or the rows of two stores."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

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
    say,
)
from pntk.cli.factories import load_data, load_model, pick_device
from pntk.errors import ConfigError
from pntk.extras import require
from pntk.files import check_results, write_whole
from pntk.ntk.opening import open_file
from pntk.report import write_report
from pntk.report.similarity_page import COLUMNS, best_rows, facts, similarity_report
from pntk.representation.feature_maps import NEURONS, POOLINGS
from pntk.representation.layers import (
    LayerSimilarity,
    check_similarity_path,
    layer_similarity,
)
from pntk.representation.similarity import (
    MEASURES,
    SHAPING,
    find_measure,
    similarity,
    split_options,
)
from pntk.store import FeatureStore

NAME = "similarity"
EXAMPLES = (
    "pntk similarity --model train:net --checkpoint a.pt --checkpoint-b b.pt --data train:digits",
    "pntk similarity --model train:net --data train:digits --layers 'conv*' --measure svcca"
    " --neurons filter --size 4 --plot layers.png",
    "pntk similarity a.h5 b.h5 --measure rbf_cka --option debiased=True",
)
MOST_COLUMNS = 10  # layers of the other model up to which the whole matrix is printed


def command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            exists=True, dir_okay=False, metavar="[A.h5 B.h5]", help="Two stores, and no model."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="Function or class that makes the model."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Weights to load."),
    ] = None,
    model_b: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="The other model; --model unless told."),
    ] = None,
    checkpoint_b: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.pt", help="Weights of the other."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="Function that makes the data.")
    ] = None,
    measure: Annotated[str, typer.Option(**choice(*MEASURES), help="What to compute.")] = "cka",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the measure; repeatable."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Layers of both; repeatable. All with parameters."),
    ] = None,
    layers_b: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Layers of the other model, if not --layers."),
    ] = None,
    neurons: Annotated[
        str, typer.Option(**choice(*NEURONS), help="What a neuron of a map is.")
    ] = "activation",
    size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Down-sample maps to this side.")
    ] = None,
    pooling: Annotated[str, typer.Option(**choice(*POOLINGS), help="How.")] = "avg_pool",
    minibatch: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Samples whose kernels are compared; 0 for all."),
    ] = 256,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples a forward.")
    ] = None,
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="For activations that are kept, such as 4GB.")
    ] = "1GB",
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="SIM.npz", help="Matrix and names to write.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="HEAT.png", help="Plot to write.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="Page to write.")] = None,
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Compare the layers of two networks, or of one with themselves, or the rows of two stores.

    The same samples go through both networks. With no --model-b and no --checkpoint-b the layers of
    one network are compared with each other. cka and rbf_cka are averaged over minibatches and keep
    no activations; --minibatch 0 and all other measures keep them.
    """
    options = _options(option or [])
    given = {"neurons": neurons, "size": size, "pooling": pooling, **options}
    find_measure(measure, split_options(given)[1])
    if files:
        named = {
            "--model": model,
            "--checkpoint": checkpoint,
            "--model-b": model_b,
            "--checkpoint-b": checkpoint_b,
            "--data": data,
            "--layers": layers or None,
            "--layers-b": layers_b or None,
            "--size": size,
            "--out": out,
            "--plot": plot,
            "--report": report,
        }
        _stores(files, measure, options, named, as_json)
        return
    if model is None or data is None:
        raise ConfigError(
            "there are no stores and no --model with --data; expected either two stores, or "
            "--model MODULE:FACTORY --data MODULE:FACTORY"
        )
    _check_files(out, plot, report)
    where = pick_device(device)
    first = load_model(model, checkpoint, where, keep_mode=False)
    second = None
    if model_b is not None or checkpoint_b is not None:
        second = load_model(model_b or model, checkpoint_b, where, keep_mode=False)
    found = layer_similarity(
        first,
        second,
        load_data(data),
        layers_a=layers or None,
        layers_b=layers_b or (layers or None),
        measure=measure,
        minibatch=minibatch or None,
        batch_size=batch_size,
        memory_budget=memory_budget,
        progress=progress,
        **given,
    )
    names = _names(model, checkpoint), _names(model_b or model, checkpoint_b)
    names = names if second is not None else (names[0], names[0])
    if out is not None:
        found.save(out)
    if plot is not None:
        write_whole(plot, found.png(name_a=names[0], name_b=names[1]))
    if report is not None:
        again = {
            "--model": model,
            "--checkpoint": checkpoint,
            "--model-b": model_b,
            "--checkpoint-b": checkpoint_b,
            "--data": data,
            "--measure": measure,
            "--option": option,
            "--layers": layers,
            "--layers-b": layers_b,
            "--neurons": neurons,
            "--size": size,
            "--pooling": pooling,
            "--minibatch": minibatch,
            "--report": report,
        }
        page = similarity_report(found, *names, run={"data": data}, reproduce=_command_line(again))
        write_report(page, report)
    if as_json:
        print_json({**found.to_dict(), "out": out, "plot": plot, "report": report})
    else:
        _print(found, {"matrix": out, "plot": plot, "report": report})


def _command_line(options: dict[str, Any]) -> str:
    """Return the command that makes the page again."""
    words = ["pntk", NAME]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [] if each is None else [name, str(each)]
    return shlex.join(words)


def _check_files(out: Path | None, plot: Path | None, report: Path | None) -> None:
    """Refuse paths that cannot be written to, and extras that are missing, before any work."""
    if out is not None:
        check_out(out, suffixes=(".npz",))
        check_similarity_path(out)
    others = {"--plot": plot, "--report": report}
    check_results(out, others)
    for name, path in others.items():
        if path is not None:
            require("matplotlib", name)
    if report is not None:
        require("jinja2", "--report")


def _options(given: list[str]) -> dict[str, Any]:
    """Return options of the measure, numbers and True as Python writes them."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals) or name in SHAPING[:3]:
            raise ConfigError(
                f"--option is {text!r}; expected name=value of the measure, such as k=5"
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _names(model: str, checkpoint: Path | None) -> str:
    return model if checkpoint is None else checkpoint.name


# ---- stores ------------------------------------------------------------------------------------


def _stores(
    files: list[Path], measure: str, options: dict[str, Any], given: dict[str, Any], as_json: bool
) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: for models only; leave out for two stores")
    if len(files) != 2:
        raise ConfigError(f"there are {len(files)} files; expected two stores")
    stores = [_open(file) for file in files]
    if len(stores[0]) != len(stores[1]):
        raise ConfigError(
            f"{files[0]} has {len(stores[0]):,} rows and {files[1]} {len(stores[1]):,}; expected "
            "the same samples in the same order"
        )
    skipped = np.union1d(*(store.skipped for store in stores))
    kept = np.setdiff1d(np.arange(len(stores[0])), skipped)
    if len(skipped):
        say(f"{len(skipped):,} rows were skipped in a store and are left out")
    rows = [store.numpy() if not len(skipped) else store[kept] for store in stores]
    value = similarity(rows[0], rows[1], measure, **options)
    result = {
        "a": str(files[0]),
        "b": str(files[1]),
        "measure": measure,
        "samples": len(kept),
        "similarity": value,
    }
    if as_json:
        print_json(result)
    else:
        print_facts({**result, "samples": f"{len(kept):,}", "similarity": f"{value:.4f}"})


def _open(file: Path) -> FeatureStore:
    found = open_file(file)
    if not isinstance(found, FeatureStore):
        raise ConfigError(
            f"{file} is a kernel; expected a store of rows: `pntk spectrum` compares kernels"
        )
    return found


# ---- printing ----------------------------------------------------------------------------------


def _print(found: LayerSimilarity, written: dict[str, Path | None]) -> None:
    print_facts(facts(found))
    typer.echo()
    if len(found.layers_b) <= MOST_COLUMNS:
        table = new_table("", *found.layers_b)
        for name, values in zip(found.layers_a, found.matrix.tolist(), strict=True):
            table.add_row(name, *(f"{value:.4f}" for value in values))
    else:
        table = new_table(*COLUMNS)
        for row in best_rows(found):
            table.add_row(*row)
    console().print(table)
    files = {name: path for name, path in written.items() if path is not None}
    if files:
        typer.echo()
        print_facts(files)
