"""TRAKer: the interface of MadryLab/trak on pntk's rows, stores and scores.

A script for TRAK runs by changing its import to ``from pntk.trak_adapter import TRAKer``. What
differs: rows are pntk's (docs/attribution.md says how scales compare), in ``{model_id}/train.h5``
and ``{model_id}/{exp_name}.h5`` of ``save_dir``, and scores in ``scores/{exp_name}.h5``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pntk.attribution import attribute
from pntk.attribution.ridge import Ridge, check_determined, check_ridge
from pntk.batch import batch_size, take, to_device
from pntk.errors import ConfigError, DataError
from pntk.featurizer import CHECKED_SAMPLES, Featurizer
from pntk.ntk.kernel_file import open_kernel, partial_path
from pntk.outputs import Output
from pntk.projection.spec import MIN_TILE_COLUMNS
from pntk.store import FeatureStore, RowWriter
from pntk.writing import raise_if_nonfinite

TASKS = {
    "image_classification": "margin",
    "iterative_image_classification": "margin",
    "text_classification": "text",
}
_TEXT_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "labels")
_SEED_STEP = 2**32  # between the seeds of checkpoints


class TRAKer:
    """Attribute outputs to training samples by TRAK, over several checkpoints.

    Args:
        model: the network, whose weights each checkpoint replaces.
        task: ``image_classification`` (batches are images and labels), ``text_classification``
            (input_ids, token_type_ids, attention_mask and labels, in that order, or a mapping), or
            an output of ``pntk.outputs`` that has a reweighting.
        train_set_size: n.
        save_dir: folder for rows and scores; work that is there is gone on with.
        load_from_save_dir: False refuses a training store that exists.
        device: ``auto``, or where the model must be.
        proj_dim: k.
        use_half_precision: whether rows are stored with 11 bits and a scale; sums are float32.
        projector_seed: of the first checkpoint's projection; every other has its own.
        grad_wrt: names of the parameters to differentiate; None for all.
        lambda_reg: TRAK's ridge, for rows of TRAK's scale: ours is p / k times that.
        ridge: lambda for rows of our scale, or "auto"; in place of ``lambda_reg``.
        projection: family; None for ``hadamard`` where k is a power of two, else ``rademacher``.
        memory_budget: of scoring.
        proj_max_batch_size, logging_level: taken, and without effect here.
        gradient_computer, projector, saver, score_computer: must be None; pntk has its own.

    Raises:
        ConfigError: an argument that cannot work.

    Attributes:
        scores: what :meth:`finalize_scores` returned last.

    Source: Park et al. 2023, https://arxiv.org/abs/2303.14186
    """

    def __init__(
        self,
        model: nn.Module,
        task: str | Output | Callable[[Any, Any], Any],
        train_set_size: int,
        save_dir: str | os.PathLike[str] = "./trak_results",
        load_from_save_dir: bool = True,
        device: str | torch.device = "auto",
        gradient_computer: None = None,
        projector: None = None,
        saver: None = None,
        score_computer: None = None,
        proj_dim: int = 2048,
        logging_level: int | None = None,
        use_half_precision: bool = False,
        proj_max_batch_size: int | None = None,
        projector_seed: int = 0,
        grad_wrt: Sequence[str] | None = None,
        lambda_reg: float = 0.0,
        *,
        ridge: Ridge = None,
        projection: str | None = None,
        memory_budget: int | str = "1GB",
    ) -> None:
        for name, given in (
            ("gradient_computer", gradient_computer),
            ("projector", projector),
            ("saver", saver),
            ("score_computer", score_computer),
        ):
            if given is not None:
                raise ConfigError(
                    f"{name} is {given!r}; pntk has its own: leave it out, and choose with "
                    "projection=, proj_dim= and grad_wrt="
                )
        if isinstance(task, str) and task not in TASKS:
            raise ConfigError(
                f"unknown task {task!r}; expected one of {', '.join(TASKS)}, or an output such as "
                "pntk.outputs.Clip(image_embeddings, text_embeddings)"
            )
        if lambda_reg and ridge is not None:
            raise ConfigError(f"lambda_reg={lambda_reg} and ridge={ridge!r}; give one of them")
        self.model = model
        self.output = TASKS[task] if isinstance(task, str) else task
        self.train_set_size = _count("train_set_size", train_set_size)
        self.save_dir = Path(os.path.abspath(save_dir))
        self.proj_dim = _count("proj_dim", proj_dim)
        power_of_two = proj_dim >= MIN_TILE_COLUMNS and not proj_dim & (proj_dim - 1)
        self.projection = projection or ("hadamard" if power_of_two else "rademacher")
        self.scores: np.ndarray | None = None
        self._resume = load_from_save_dir
        self._device = device
        self._half = use_half_precision
        self._seed = projector_seed
        self._params = None if grad_wrt is None else list(grad_wrt)
        self._lambda_reg = float(check_ridge(lambda_reg) or 0.0)
        self._ridge = check_ridge(ridge)
        self._memory_budget = memory_budget
        self._train: _Rows | None = None
        self._targets: _Rows | None = None
        self._experiment = ""
        self.save_dir.mkdir(parents=True, exist_ok=True)

    # ---- training samples ----------------------------------------------------------------------

    def load_checkpoint(self, checkpoint: Mapping[str, Tensor], model_id: int) -> None:
        """Load weights, and get ready for the rows of their training samples.

        Args:
            checkpoint: a state_dict.
            model_id: number of the checkpoint, 0 to 2^32 - 1.
        """
        self.close()
        folder = self._folder(model_id)
        folder.mkdir(exist_ok=True)
        self._train = _Rows(
            self._featurizer(checkpoint, model_id),
            folder / "train.h5",
            self.train_set_size,
            self._half,
            self._resume,
        )

    def featurize(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Write the rows of a batch of training samples; those that are there are left as they are.

        Args:
            batch: see ``task``; it is moved to the model's device.
            inds: numbers of the samples in the training set, or
            num_samples: how many they are; they follow those of the last call.

        Raises:
            ConfigError: no checkpoint is loaded, or not exactly one of both is given.
            DataError: the batch has another size, or samples that the training set has not.
        """
        if self._train is None:
            raise ConfigError("no checkpoint is loaded; call load_checkpoint before featurize")
        self._train.add(self._as_batch(batch), inds, num_samples)

    def finalize_features(
        self, model_ids: Sequence[int] | None = None, del_grads: bool = False
    ) -> None:
        """Check that the rows of all training samples are there and that they can be used.

        There is nothing else to do beforehand here, and rows are needed for scores: ``del_grads``
        must be False.

        Raises:
            ConfigError: ``del_grads``; more columns than samples without a ridge; no such model.
            StoreError: rows are missing.
        """
        if del_grads:
            raise ConfigError("del_grads=True: scores are made of these rows; delete them after")
        self.close()
        for model_id in self._model_ids(model_ids):
            with FeatureStore(self._folder(model_id) / "train.h5") as store:
                store.require_complete()
                check_determined(*store.shape, self._ridge_for(store))

    # ---- targets -------------------------------------------------------------------------------

    def start_scoring_checkpoint(
        self, exp_name: str, checkpoint: Mapping[str, Tensor], model_id: int, num_targets: int
    ) -> None:
        """Load weights, and get ready for the rows of targets.

        Args:
            exp_name: of the targets: letters, digits, dots, dashes and underscores.
            checkpoint: a state_dict.
            model_id: of a checkpoint whose training samples were featurized.
            num_targets: m.

        Raises:
            ConfigError: a name that is no file name, or a model that was not featurized.
        """
        self.close()
        path = self._folder(model_id) / _target_file(exp_name)
        if not (path.parent / "train.h5").exists():
            raise ConfigError(
                f"model_id {model_id} has no training rows in {self.save_dir}; featurize them first"
            )
        self._targets = _Rows(
            self._featurizer(checkpoint, model_id),
            path,
            _count("num_targets", num_targets),
            self._half,
            True,
        )

    def score(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Write the rows of a batch of targets; see :meth:`featurize`."""
        if self._targets is None:
            raise ConfigError("no targets are expected; call start_scoring_checkpoint before score")
        self._targets.add(self._as_batch(batch), inds, num_samples)

    def finalize_scores(
        self, exp_name: str, model_ids: Sequence[int] | None = None, allow_skip: bool = False
    ) -> np.ndarray:
        """Return the scores [n, m] of targets, float32, which lie in ``scores/{exp_name}.h5``.

        They are :func:`pntk.attribution.attribute`'s with method ``trak``. TRAK's differ by a
        positive factor a checkpoint, as it divides each inverse by the mean of its entries.

        Args:
            model_ids: None for all in ``save_dir``.
            allow_skip: whether to leave out models that have no rows of these targets.

        Raises:
            ConfigError: no rows of these targets, or rows that cannot be used.
            StoreError: rows are missing.
        """
        self.close()
        name, found = _target_file(exp_name), []
        for model_id in self._model_ids(model_ids):
            folder = self._folder(model_id)
            if (folder / name).exists():
                found.append(folder)
            elif not allow_skip:
                raise ConfigError(
                    f"model_id {model_id} has no rows of the targets {exp_name!r}; score them, or "
                    "pass allow_skip=True"
                )
        if not found:
            raise ConfigError(f"no model has rows of the targets {exp_name!r}; score them first")
        train = [FeatureStore(folder / "train.h5") for folder in found]
        test = [FeatureStore(folder / name) for folder in found]
        (self.save_dir / "scores").mkdir(exist_ok=True)
        out = self.save_dir / "scores" / name
        for old in (out, partial_path(out)):
            with suppress(FileNotFoundError):
                old.unlink()
        attribute(
            train,
            test,
            "trak",
            ridge=self._ridge_for(train[0]),
            out=out,
            memory_budget=self._memory_budget,
        )
        self.scores = open_kernel(out).values
        return self.scores

    def close(self) -> None:
        """Bring rows to disk and let go of their files; a script need not call it."""
        for rows in (self._train, self._targets):
            if rows is not None:
                rows.close()
        self._train = self._targets = None

    # ---- private -------------------------------------------------------------------------------

    def _featurizer(self, checkpoint: Mapping[str, Tensor], model_id: int) -> Featurizer:
        self.model.load_state_dict(checkpoint)
        self.model.eval()
        return Featurizer(
            self.model,
            self.output,
            self.projection,
            self.proj_dim,
            self._seed + _SEED_STEP * model_id,
            params=self._params,
            device=self._device,
            check=False,
        )

    def _as_batch(self, batch: Any) -> Any:
        if self.output == "text" and isinstance(batch, (tuple, list)):
            if len(batch) != len(_TEXT_INPUTS):
                raise DataError(
                    f"the batch has {len(batch)} entries; expected {', '.join(_TEXT_INPUTS)}, or a "
                    "mapping of what the model takes and labels"
                )
            return dict(zip(_TEXT_INPUTS, batch, strict=True))
        return tuple(batch) if isinstance(batch, list) else batch

    def _ridge_for(self, store: FeatureStore) -> Ridge:
        """Return lambda for rows of our scale: TRAK's kernel is k / p times ours."""
        if not self._lambda_reg:
            return self._ridge
        size = sum(int(np.prod(shape)) for _, shape in store.header.params)
        return self._lambda_reg * size / store.shape[1]

    def _folder(self, model_id: int) -> Path:
        if isinstance(model_id, bool) or not isinstance(model_id, int) or not 0 <= model_id < 2**32:
            raise ConfigError(f"model_id is {model_id!r}; expected an integer, 0 to 2^32 - 1")
        return self.save_dir / str(model_id)

    def _model_ids(self, given: Sequence[int] | None) -> list[int]:
        if given is None:
            folders = [path.parent.name for path in self.save_dir.glob("*/train.h5")]
            given = sorted(int(name) for name in folders if re.fullmatch("[0-9]{1,10}", name))
        for model_id in given:
            if not (self._folder(model_id) / "train.h5").exists():
                raise ConfigError(
                    f"model_id {model_id} has no training rows in {self.save_dir}; featurize them "
                    "first"
                )
        if not given:
            raise ConfigError(f"{self.save_dir} holds no model; featurize one first")
        return list(given)


class _Rows:
    """A store that is filled batch by batch.

    Args:
        path: of the store.
        count: rows.
        half: whether to store 11 bits and a scale.
        resume: whether it may exist.
    """

    def __init__(
        self, featurizer: Featurizer, path: Path, count: int, half: bool, resume: bool
    ) -> None:
        self._featurizer, self._path, self._count = featurizer, path, count
        self._half, self._resume = half, resume
        self._writer: RowWriter | None = None
        self._missing = np.ones(count, dtype=bool)
        self._next = 0

    def add(self, batch: Any, inds: Any, num_samples: int | None) -> None:
        """Write the rows of a batch that are missing."""
        size = batch_size(batch)
        places = self._places(inds, num_samples, size)
        batch = to_device(batch, self._featurizer.device)
        if self._writer is None:
            self._writer = self._open(batch)
            self._missing[:] = False
            self._missing[self._writer.missing()] = True
        wanted = self._missing[places]
        if not wanted.any():
            return
        if not wanted.all():
            batch, places = take(batch, torch.from_numpy(wanted)), places[wanted]
        rows, values = self._featurizer.rows_and_values(batch)
        raise_if_nonfinite(rows, places)
        columns: dict[str, Any] = {"labels": np.full(len(places), -1)}
        if isinstance(values.labels, Tensor):
            columns["labels"] = values.labels
        if isinstance(values.reweighting, Tensor):
            columns["reweighting"] = values.reweighting
        self._writer.write(places, rows, columns)
        self._missing[places] = False

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _open(self, batch: Any) -> RowWriter:
        self._featurizer.check(take(batch, slice(0, CHECKED_SAMPLES)))
        header = self._featurizer.header(self._count)
        if self._half:
            header = replace(header, dtype="float16")
        return RowWriter.open(self._path, header, resume=self._resume)

    def _places(self, inds: Any, num_samples: int | None, size: int) -> np.ndarray:
        if (inds is None) == (num_samples is None):
            raise ConfigError(
                f"inds is {inds!r} and num_samples is {num_samples!r}; give exactly one of them"
            )
        if inds is None:
            places = np.arange(self._next, self._next + int(num_samples or 0))
            self._next += len(places)
        else:
            places = torch.as_tensor(inds).reshape(-1).cpu().numpy()
        if len(places) != size:
            raise DataError(f"the batch has {size} samples and {len(places)} numbers were given")
        if places.dtype.kind not in "iu" or places.min() < 0 or places.max() >= self._count:
            raise DataError(
                f"samples {places.min()} to {places.max()} of {self._count}; expected integers "
                f"from 0 to {self._count - 1}: call load_checkpoint or start_scoring_checkpoint "
                "before going through the data again"
            )
        return places.astype(np.int64)


def _target_file(exp_name: str) -> str:
    if not isinstance(exp_name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", exp_name):
        raise ConfigError(
            f"exp_name is {exp_name!r}; expected letters, digits, dots, dashes and underscores, as "
            "it names files"
        )
    if exp_name == "train":
        raise ConfigError("exp_name is 'train', which names the training rows; choose another")
    return f"{exp_name}.h5"


def _count(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{what} is {value!r}; expected an integer of at least 1")
    return value


__all__ = ["TASKS", "TRAKer"]
