"""``pntk lds``: how well scores predict models that were trained on parts of the data."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from pntk.attribution.arrays import Floats
from pntk.cli.common import JsonFlag, ProgressFlag, check_out, choice, print_facts, print_json, say
from pntk.cli.errors import explain_stop, this_command
from pntk.cli.factories import load_object
from pntk.errors import ConfigError
from pntk.lds import LDS, RESAMPLE, Retrained, lds, read_retrained, retrain_on_subsets
from pntk.ntk.kernel_file import open_kernel

NAME = "lds"
EXAMPLES = (
    "pntk attribute train.h5 test.h5 --ridge auto --out scores.h5",
    "pntk lds scores.h5 --train train:make --out retrained.npz",
    "pntk lds other.h5 retrained.npz",
)
COUNT, FRACTION = 100, 0.5


def command(
    scores: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="SCORES",
            help="All scores: .h5 of pntk attribute, or .npy.",
        ),
    ] = None,
    retrained: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="RETRAINED.npz",
            help="Outputs of models on subsets, as --out writes them.",
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="Train models: what makes a function (indices, number) -> outputs.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="--train: training samples; those of SCORES."),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, metavar="N", help="--train: models, in all.")
    ] = COUNT,
    fraction: Annotated[
        float, typer.Option(metavar="F", help="--train: share of the samples in a subset.")
    ] = FRACTION,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of subsets and intervals.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RETRAINED.npz", help="--train: file to write, or to go on with."),
    ] = None,
    resample: Annotated[
        str, typer.Option(**choice(*RESAMPLE), help="What the interval is over.")
    ] = "targets",
    progress: ProgressFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Correlate scores with retrained models: the linear datamodeling score (LDS).

    With SCORES and RETRAINED.npz, print the score. With --train, train models on random subsets
    first; every finished one is kept in --out, and the same command goes on after a stop.
    """
    if train is None and (scores is None or retrained is None):
        raise ConfigError(
            "expected SCORES and RETRAINED.npz, or --train and --out to make the latter"
        )
    if train is not None and (retrained is not None or out is None):
        raise ConfigError("--train writes what it trains to --out; give it, and no RETRAINED.npz")
    if train is None and (out is not None or samples is not None):
        raise ConfigError("--out and --samples are for --train; leave them out, or add it")
    read = None if scores is None else _read_scores(scores)
    if train is not None:
        assert out is not None
        found = _train(train, out, read, samples, (fraction, count, seed), progress)
    else:
        assert retrained is not None
        found = read_retrained(retrained)
    about = {
        "models": len(found.subsets),
        "samples": found.subsets.shape[1],
        "targets": found.outputs.shape[1],
    }
    if out is not None:
        say(f"{len(found.subsets):,} models are in {out}")
        about["out"] = str(out)
    score = (
        None if read is None else lds(read, *_fitting(read, found), resample=resample, seed=seed)
    )
    if as_json:
        print_json({**about, **_numbers(score)})
    elif score is not None:
        interval = f"{score.low:.3f} to {score.high:.3f}"
        over = f"{about['targets']:,} targets, {about['models']:,} models"
        print_facts({"LDS": f"{score.mean:.3f}", "95 % interval": interval, "over": over})


def _train(
    spec: str,
    out: Path,
    scores: Floats | None,
    samples: int | None,
    options: tuple[float, int, int],
    progress: bool,
) -> Retrained:
    check_out(out, suffixes=(".npz",))
    if scores is None and samples is None:
        raise ConfigError("how many training samples there are is not known; give --samples")
    n = len(scores) if scores is not None else samples
    if samples not in (None, n):
        raise ConfigError(f"--samples is {samples} and SCORES have {n} rows; expected the same")
    train_fn = load_object(spec, "--train")
    if not callable(train_fn):
        raise ConfigError(
            f"--train: {spec} returned a {type(train_fn).__name__}; expected a function "
            "(indices, number) -> outputs [m]"
        )
    assert n is not None
    fraction, count, seed = options

    def train_one(indices: npt.NDArray[np.int64], number: int) -> Any:
        try:
            return train_fn(indices, number)
        except Exception as error:
            raise ConfigError(
                f"--train: {spec} raised {type(error).__name__}: {error} (pntk --debug ... shows "
                f"where); {_how_to_resume(out, count)}"
            ) from error

    with explain_stop(lambda: _how_to_resume(out, count)):
        first = retrain_on_subsets(train_one, n, fraction, 1, seed, path=out, progress=False)
        if scores is not None:
            _fitting(scores, first)  # before all others are trained
        return retrain_on_subsets(train_one, n, *options, path=out, progress=progress)


def _how_to_resume(out: Path, count: int) -> str:
    there = len(read_retrained(out).outputs) if out.exists() else 0
    return f"{there:,} of {count:,} models are in {out}; go on from there with: {this_command()}"


def _fitting(scores: Floats, found: Retrained) -> tuple[Floats, Any]:
    """Return outputs and subsets, which must be of as many samples and targets as scores are."""
    n, m = found.subsets.shape[1], found.outputs.shape[1]
    if scores.shape != (n, m):
        raise ConfigError(
            f"scores are of {scores.shape[0]:,} samples and {scores.shape[1]:,} targets, and the "
            f"models of {n:,} and {m:,}; expected the same, in the same order"
        )
    return found.outputs, found.subsets


def _numbers(score: LDS | None) -> dict[str, Any]:
    if score is None:
        return {}
    return {
        "lds": score.mean,
        "low": score.low,
        "high": score.high,
        "per_target": score.per_target.tolist(),
    }


def _read_scores(path: Path) -> Floats:
    """Return scores [n, m].

    Raises:
        ConfigError: the file is none of scores.
        StoreError: a damaged or unfinished kernel file.
    """
    if path.suffix == ".h5":
        values = open_kernel(path).values
    else:
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path} holds no scores ({error}); expected .h5 of pntk attribute, or .npy"
            ) from None
        if not isinstance(values, np.ndarray):
            with values as archive:
                if "indices" in archive:
                    raise ConfigError(
                        f"{path} holds the best samples of each target alone, and all scores are "
                        "needed; write them with: pntk attribute ... --out scores.h5"
                    )
                if "scores" not in archive:
                    raise ConfigError(
                        f"{path} holds {', '.join(archive) or 'nothing'}; expected scores [n, m]"
                    )
                values = archive["scores"]
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ConfigError(
            f"{path} holds {values.dtype} of shape {values.shape}; expected scores [n, m]"
        )
    return values
