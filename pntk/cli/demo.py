"""``pntk demo``: the whole of it on real data, from training to the report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pntk._version import __version__
from pntk.cli import digits
from pntk.cli.common import JsonFlag, console, new_table, print_json, say
from pntk.cli.demo_folder import DemoFolder
from pntk.cli.demo_steps import (
    Settings,
    accuracies,
    featurized,
    make_page,
    surrogates,
    trained,
    write_kernel,
)
from pntk.cli.errors import explain_stop
from pntk.extras import require
from pntk.report import Surrogate, write_report
from pntk.report.neighbours import VOTERS
from pntk.report.summary import format_share

NAME = "demo"
EXAMPLES = ("pntk demo", "pntk demo --fast --seed 1 --out demo-1")
MAX_SEED = 2**63 - 1  # of torch.manual_seed


def command(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for stores, weights and the report.")
    ] = Path("demo-output"),
    fast: Annotated[bool, typer.Option("--fast", help="Fewer digits, epochs and numbers.")] = False,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, metavar="N", help="Of the network and the projection."),
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a small network on handwritten digits, and look at it through its tangent kernel.

    It trains a LeNet, writes the projected gradients of all training and test digits, computes the
    kernel of the test digits, finds the training digits nearest to each of them and those that
    influence it most, fits kernel machines and compares them with the network, and puts it all into
    a report, whose path is the last line. Run again, it goes on with what is there.
    """
    for module in ("sklearn", "jinja2", "matplotlib"):
        require(module, "the demo")
    settings = Settings(seed, 20, 1024, 800, 200) if fast else Settings(seed, 40, 4096, None, None)
    versions = {"pntk": __version__, "torch": str(torch.__version__)}
    folder = DemoFolder(out, {"settings": asdict(settings), **versions})
    with explain_stop(lambda: "run the same command again to go on"), digits.one_thread():
        results = _run(folder, settings, _reproduce(out, fast, seed))
    folder.finish(results)
    print_json(results) if as_json else _print(results)


def _run(folder: DemoFolder, settings: Settings, reproduce: str) -> dict[str, Any]:
    start = time.perf_counter()
    splits = digits.load(settings.train_rows, settings.test_rows)
    sizes = [len(split.labels) for split in splits]
    with _step(f"training a LeNet on {sizes[0]:,} digits"):
        model = trained(folder, splits[0], settings)
        probs = digits.probabilities(model, splits[1].images)
        predictions = probs.argmax(1).numpy()
    with _step(f"featurizing {sizes[0]:,} + {sizes[1]:,} digits at k = {settings.proj_dim:,}"):
        train, test = featurized(folder, model, splits, settings)
    with _step(f"kernel of {sizes[1]:,} test digits"):
        kernel = write_kernel(folder, test)
    with _step("nearest training digits of each test digit"):
        found = accuracies(train, test, predictions)
    with _step("kernel machines beside the network"):
        compared = surrogates(train, test, probs, settings)
    with _step("report"):
        report = make_page(train, test, predictions, found, compared, settings.seed)
        report.reproduce = reproduce
        path = write_report(report, folder.path("report.html"))
    return {
        "accuracy": found,
        "surrogates": [_numbers(surrogate) for surrogate in compared],
        "rows": {"train": sizes[0], "test": sizes[1]},
        "width": settings.proj_dim,
        "weights": train.store.header.weights,
        "stores": [
            str(store.path) for split in (train, test) for store in (split.store, split.margin)
        ],
        "kernel": str(kernel.absolute()),
        "report": str(path.absolute()),
        "seconds": round(time.perf_counter() - start, 2),
    }


def _numbers(surrogate: Surrogate) -> dict[str, Any]:
    names = ("kendall_tau", "r2", "tad", "agreement")
    found = {name: getattr(surrogate.report, name) for name in names}
    return {"name": surrogate.name, **found}


@contextmanager
def _step(what: str) -> Iterator[None]:
    start = time.perf_counter()
    say(f"{what} ...")
    yield
    say(f"  {time.perf_counter() - start:.1f} s")


def _reproduce(out: Path, fast: bool, seed: int) -> str:
    folder = shlex.quote(str(out))
    lines = [f"pntk demo --out {folder}{' --fast' if fast else ''} --seed {seed}"]
    if not fast:
        lines.append(
            "pntk featurize --model pntk.cli.digits:network --data pntk.cli.digits:train_data \\\n"
            f"  --checkpoint {folder}/model.pt --seed {seed} --out {folder}/train.h5"
        )
    lines.append(f"pntk topk {folder}/test.h5 {folder}/train.h5 -k {VOTERS} --rows 0:10")
    return "\n".join(lines)


def _print(results: dict[str, Any]) -> None:
    accuracy = results["accuracy"]
    table = new_table("test digits classified by", "accuracy")
    for what, key in (
        ("the network", "network"),
        (f"a vote of the {VOTERS} nearest in its kernel", "kernel_neighbours"),
        (f"a vote of the {VOTERS} nearest in pixels", "pixel_neighbours"),
    ):
        table.add_row(what, format_share(accuracy[key]))
    console().print(table)
    table = new_table("a kernel machine", "Kendall tau", "R^2", "TAD, points", "same answer")
    for numbers in results["surrogates"]:
        table.add_row(
            numbers["name"],
            f"{numbers['kendall_tau']:.3f}",
            f"{numbers['r2']:.3f}",
            f"{100 * numbers['tad']:+.1f}",
            format_share(numbers["agreement"]),
        )
    console().print()
    console().print(table)
    same = format_share(accuracy["kernel_neighbours_as_network"])
    typer.echo(f"The vote in the kernel is the network's own answer for {same} of the digits.")
    typer.echo(f"Everything took {results['seconds']:.1f} s. The report:")
    typer.echo(results["report"])
