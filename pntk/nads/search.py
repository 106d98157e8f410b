"""NADs of every architecture of a grid, and the most isotropic one.

Shapes: g architectures.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.nads.gradient_covariance import GradientCovariance
from pntk.nads.metrics import Isotropy
from pntk.nads.nads import NADs

METHODS = ("grid", "optuna")
BETTER = {  # whether a larger value of a metric is the more isotropic one
    "kl_to_uniform": False,
    "entropy": True,
    "participation_ratio": True,
    "effective_rank": True,
    "gini": False,
    "top_share": False,
}


class GridPoint(NamedTuple):
    """An architecture and what was found of it.

    Attributes:
        params: those of the grid.
        nads: its directions.
        isotropy: of its spectrum.
    """

    params: dict[str, Any]
    nads: NADs
    isotropy: Isotropy


class Search(NamedTuple):
    """Outcome of a search.

    Attributes:
        best: the most isotropic architecture; the first of equal ones.
        value: its criterion.
        points: [g] the architectures that were tried, each once, in that order.
    """

    best: GridPoint
    value: float
    points: list[GridPoint]


def grid_of(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations, the last name changing fastest.

    Raises:
        ConfigError: no names, or one without values.

    Example:
        >>> grid_of({"width": [8, 16], "depth": [2]})
        [{'width': 8, 'depth': 2}, {'width': 16, 'depth': 2}]
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ConfigError(f"grid is {grid!r}; expected names and lists, such as {{'width': [8]}}")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"grid[{name!r}] is {values!r}; expected a list of at least 1 value")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def nads_grid(
    model_cls: Callable[..., nn.Module],
    grid: Mapping[str, Sequence[Any]],
    eval_point: Tensor,
    num_samples: int = 1000,
    path: str | os.PathLike[str] | None = None,
    *,
    model_params: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> list[GridPoint]:
    """Find the NADs of all combinations of some parameters of a model.

    Args:
        model_cls: class or function that makes a network.
        grid: values of each parameter.
        eval_point: one input, such as [c, h, w], at which gradients are taken.
        num_samples: networks of each combination.
        path: folder that keeps a file of each combination; the same call goes on where an earlier
            one stopped, and one of another grid uses what is there. None keeps nothing.
        model_params: parameters that all have in common.
        progress: whether to show a progress bar of each combination.
        **options: of :class:`~pntk.nads.gradient_covariance.GradientCovariance`.

    Returns:
        [g], in the order of :func:`grid_of`.

    Raises:
        ConfigError: an argument that cannot work; also those of
            :meth:`~pntk.nads.gradient_covariance.GradientCovariance.nads`, before long work.
    """
    folder = _folder(path)
    points = grid_of(grid)
    finders = [_finder(model_cls, point, eval_point, model_params, options) for point in points]
    for finder in finders:
        finder.gradients(0, 1)  # so that what cannot work is said before any work
    return [
        _solve(finder, point, num_samples, folder, progress)
        for finder, point in zip(finders, points, strict=True)
    ]


def most_isotropic(
    model_cls: Callable[..., nn.Module],
    grid: Mapping[str, Sequence[Any]],
    eval_point: Tensor,
    num_samples: int = 1000,
    path: str | os.PathLike[str] | None = None,
    *,
    criterion: str = "kl_to_uniform",
    method: str = "grid",
    trials: int = 20,
    model_params: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Search:
    """Search a grid for the architecture whose spectrum is the most even.

    Compare architectures over as many networks each: a spectrum of few networks looks less even
    than it is. Over inputs of several sizes compare ``kl_to_uniform`` or ``gini``.

    Args:
        model_cls, grid, eval_point, num_samples, path, model_params, progress, **options: see
            :func:`nads_grid`.
        criterion: a metric of :class:`~pntk.nads.metrics.Isotropy`.
        method: ``grid`` tries all; ``optuna`` tries ``trials`` of them, chosen by what those before
            have shown (tree-structured Parzen estimator).
        trials: of ``optuna``; one that repeats an architecture costs nothing.
        seed: of the networks, and of optuna.

    Raises:
        ConfigError: an argument that cannot work.
        MissingExtraError: ``method="optuna"`` and optuna is not installed.
    """
    if criterion not in BETTER:
        raise ConfigError(f"criterion is {criterion!r}; expected one of {', '.join(BETTER)}")
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    options = {**options, "seed": seed}
    if method == "grid":
        points = nads_grid(
            model_cls, grid, eval_point, num_samples, path,
            model_params=model_params, progress=progress, **options,
        )  # fmt: skip
    else:
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise ConfigError(f"trials is {trials!r}; expected an integer of at least 1")
        folder = _folder(path)

        def try_one(params: dict[str, Any]) -> GridPoint:
            finder = _finder(model_cls, params, eval_point, model_params, options)
            return _solve(finder, params, num_samples, folder, progress)

        points = _by_optuna(try_one, grid, criterion, trials, seed)
    sign = 1 if BETTER[criterion] else -1
    best = max(points, key=lambda point: sign * float(getattr(point.isotropy, criterion)))
    return Search(best, float(getattr(best.isotropy, criterion)), points)


def _by_optuna(
    try_one: Callable[[dict[str, Any]], GridPoint],
    grid: Mapping[str, Sequence[Any]],
    criterion: str,
    trials: int,
    seed: int,
) -> list[GridPoint]:
    optuna = require("optuna", "method='optuna'", "nads")
    grid_of(grid)
    found: dict[tuple[int, ...], GridPoint] = {}

    def objective(trial: Any) -> float:
        # places in the lists, since optuna takes only plain values
        places = {
            name: trial.suggest_categorical(name, list(range(len(values))))
            for name, values in grid.items()
        }
        key = tuple(places.values())
        if key not in found:
            found[key] = try_one({name: grid[name][place] for name, place in places.items()})
        return float(getattr(found[key].isotropy, criterion))

    study = optuna.create_study(
        direction="maximize" if BETTER[criterion] else "minimize",
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    study.optimize(objective, n_trials=trials)
    return list(found.values())


# ---- one architecture --------------------------------------------------------------------------


def kept_nads(
    finder: GradientCovariance,
    num_samples: int,
    path: str | os.PathLike[str],
    *,
    keep_gradients: bool = False,
    progress: bool = True,
) -> NADs:
    """Return the NADs that a file holds, or find them and write it.

    While they are looked for, gradients are in :func:`gradients_beside` it, from which the same
    call goes on after a stop.

    Args:
        finder: of the gradients.
        num_samples: networks.
        path: .h5 or .hdf5 file of the directions.
        keep_gradients: whether to leave the gradients there in the end.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: the file holds NADs of something else.
    """
    file = Path(os.path.abspath(path))
    if file.suffix not in (".h5", ".hdf5"):
        raise ConfigError(f"{file} ends in {file.suffix!r}; expected .h5 or .hdf5")
    beside = gradients_beside(file)
    if file.exists():
        found = NADs.load(file)
        held = {**found.info, "networks": found.num_samples, "centered": found.centered}
        asked = _asked(finder, num_samples)
        differ = sorted(name for name in {*held, *asked} if held.get(name) != asked.get(name))
        if differ:
            seen = ", ".join(f"{name} = {str(held.get(name))[:60]}" for name in differ)
            wanted = ", ".join(str(asked.get(name))[:60] for name in differ)
            raise ConfigError(
                f"{file} holds NADs with {seen}, and {wanted} was asked for; use the same, or "
                "another path"
            )
        if not keep_gradients or beside.exists():
            return found
    found = finder.nads(num_samples, beside, progress)
    if not file.exists():
        found.save(file)
    if not keep_gradients:
        beside.unlink()
    return found


def gradients_beside(path: Path) -> Path:
    """Return where gradients are kept while the NADs of a file are looked for."""
    return path.with_name(f"{path.stem}.gradients.h5")


def _finder(
    model_cls: Callable[..., nn.Module],
    params: Mapping[str, Any],
    eval_point: Tensor,
    model_params: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> GradientCovariance:
    both = sorted(set(params) & set(model_params or {}))
    if both:
        raise ConfigError(f"{', '.join(both)} in both grid and model_params; expected one of them")
    return GradientCovariance(eval_point, model_cls, {**(model_params or {}), **params}, **options)


def _solve(
    finder: GradientCovariance,
    params: dict[str, Any],
    num_samples: int,
    folder: Path | None,
    progress: bool,
) -> GridPoint:
    if folder is None:
        nads = finder.nads(num_samples, progress=progress)
    else:
        nads = kept_nads(
            finder, num_samples, folder / _file_name(finder, num_samples), progress=progress
        )
    return GridPoint(params, nads, nads.isotropy())


def _asked(finder: GradientCovariance, num_samples: int) -> dict[str, Any]:
    """Return what NADs depend on, under the names by which a difference is told."""
    about = {**finder._described(), "sketch": None}
    return {**about, "networks": num_samples, "centered": finder.centered}


def _file_name(finder: GradientCovariance, num_samples: int) -> str:
    """Return a name that tells the parameters, and differs where anything does."""
    about = _asked(finder, num_samples)
    said = ",".join(f"{name}={value}" for name, value in finder.model_params.items())
    said = re.sub(r"[^A-Za-z0-9_.,=-]+", "_", said)[:80]
    digest = hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()[:8]
    return f"{finder.name}-{said}-{digest}.h5"


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    folder = Path(os.path.abspath(path))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"path {folder} is a file; expected a folder, which may not exist yet")
    if not folder.parent.is_dir():
        raise ConfigError(f"path {folder}: the folder {folder.parent} does not exist; create it")
    folder.mkdir(exist_ok=True)
    return folder
