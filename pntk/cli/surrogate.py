"""``pntk surrogate``: whether a kernel machine does what the network does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pntk.cli.common import (
    NORMALIZE,
    JsonFlag,
    StoreFile,
    choice,
    console,
    new_table,
    print_facts,
    print_json,
    read_probs,
    say,
)
from pntk.errors import ConfigError, DataError
from pntk.extras import require
from pntk.rows import check_same_map
from pntk.store import FeatureStore
from pntk.surrogate import KernelSurrogate, SurrogateReport, evaluate
from pntk.surrogate.fitting import KINDS
from pntk.surrogate.labels import check_labels, encode
from pntk.surrogate.metrics import check_probabilities

NAME = "surrogate"
EXAMPLES = (
    "pntk surrogate train.h5 test.h5 --probs test_probs.npy",
    "pntk surrogate train.h5 test.h5 --probs test_probs.npy --kind ridge --alpha 0.1",
    "pntk surrogate train.h5 test.h5 --probs test_probs.npy --legacy --json",
)


def command(
    train: StoreFile,
    test: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, metavar="TEST.h5", help="Store to compare on."),
    ],
    probs: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="PROBS.npy",
            help="Probabilities of the network for the rows of TEST.h5, a column for each class.",
        ),
    ],
    kind: Annotated[str, typer.Option(**choice(*KINDS), help="What to fit.")] = "glm",
    alpha: Annotated[
        float | None, typer.Option(min=0, metavar="A", help="Regularisation; chosen unless told.")
    ] = None,
    normalize: Annotated[
        str, typer.Option(**choice(*NORMALIZE), help="Scale of the kernel.")
    ] = "cosine",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Let rare classes count as much as common ones.")
    ] = False,
    legacy: Annotated[
        bool, typer.Option("--legacy", help="Fit the kGLM as it was published (Engel 2023).")
    ] = False,
    of: Annotated[
        str, typer.Option(metavar="own|N", help="Compare p of the row's own class, or of class N.")
    ] = "own",
    bootstrap: Annotated[
        int, typer.Option(min=0, metavar="N", help="Samples for intervals; 0 for none.")
    ] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of folds and of the bootstrap.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Fit a kernel machine to the rows of one store, and compare it with the network on another.

    Both stores need labels. Rows of the test store that were skipped are left out. Columns of
    --probs are the classes, in ascending order of their labels.
    """
    require("scipy.stats", "the comparison with a network")
    if of != "own" and not of.isdecimal():
        raise ConfigError(f"--of is {of!r}; expected 'own' or the number of a column of --probs")
    column = of if of == "own" else int(of)
    fitted_to, asked = FeatureStore(train), FeatureStore(test)
    check_same_map(fitted_to, asked)
    network = read_probs(probs, len(asked))
    if column != "own" and column >= network.shape[1]:
        raise ConfigError(f"--of is {of} and --probs has {network.shape[1]} columns, 0 and up")
    labels = _labels(asked)
    kept = np.setdiff1d(np.arange(len(asked)), asked.skipped)
    if len(kept) < len(asked):
        say(f"{test}: {len(asked) - len(kept):,} rows were skipped and are left out")
    classes = encode(check_labels(_labels(fitted_to), len(fitted_to), f"labels of {train}"))[0]
    if network.shape[1] != len(classes):
        raise ConfigError(
            f"--probs {probs} has {network.shape[1]} columns and {train} has rows of "
            f"{len(classes)} classes; expected a column for each"
        )
    known = check_labels(labels[kept], len(kept), f"labels of {test}")
    numbers = encode(known, classes)[1]
    check_probabilities(network[kept], f"--probs {probs}")
    surrogate = KernelSurrogate(
        kind,
        alpha=alpha,
        normalize=NORMALIZE[normalize],
        class_weight="balanced" if balanced else None,
        legacy=legacy,
        seed=seed,
    ).fit(fitted_to)
    ours = surrogate.predict_proba(asked if len(kept) == len(asked) else asked[kept])
    report = evaluate(ours, network[kept], numbers, of=column, bootstrap=bootstrap, seed=seed)
    if as_json:
        print_json({**_about(surrogate, fitted_to), **report.to_dict()})
    else:
        _print(surrogate, fitted_to, report)


def _labels(store: FeatureStore) -> np.ndarray:
    if store.labels is None:
        raise DataError(f"{store.path} has no labels; featurize data that has some")
    return np.array(store.labels)


def _about(surrogate: KernelSurrogate, store: FeatureStore) -> dict[str, Any]:
    return {
        "kind": surrogate.kind,
        "legacy": surrogate.legacy,
        "normalize": surrogate.normalize,
        "class_weight": surrogate.class_weight,
        "alpha": surrogate.alpha_,
        "train_rows": len(store),
        "classes": surrogate.classes_.tolist(),
    }


def _print(surrogate: KernelSurrogate, store: FeatureStore, report: SurrogateReport) -> None:
    chosen = ", chosen" if surrogate.scores_ is not None else ""
    published = ", as published" if surrogate.legacy else ""
    print_facts(
        {
            "surrogate": f"{surrogate.kind}{published}, alpha {surrogate.alpha_:.3g}{chosen}",
            "fit to": f"{len(store):,} rows of {len(surrogate.classes_)} classes",
            "compared on": f"{report.examples:,} rows",
        }
    )
    typer.echo()
    table = new_table("", "value", "95 % interval")
    for row in report.rows():
        table.add_row(*row)
    console().print(table)
