"""The face of the library: a model and a batch in, one row of k numbers a sample out."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pntk._version import __version__
from pntk.batch import batch_size as size_of
from pntk.batch import check_device, plain, take, to_device
from pntk.compiled import outside_graphs
from pntk.distributed import is_distributed
from pntk.errors import ConfigError, is_out_of_memory
from pntk.gradients.capture import RowSink, capture
from pntk.gradients.check import check_alone, check_sum, tolerance
from pntk.gradients.coverage import Coverage
from pntk.gradients.fallback import Fallback
from pntk.gradients.plan import Plan, make_plan
from pntk.gradients.probe import probe
from pntk.gradients.rules import refuse
from pntk.loading import Batches
from pntk.memory import batch_that_fits, out_of_memory, parse_bytes
from pntk.naming import (
    ParamFilter,
    canonical,
    check_parameters,
    fingerprint,
    model_device,
    select_parameters,
    unwrap,
)
from pntk.ntk.proj_dim import ProjDim, suggest_proj_dim
from pntk.ntk.projected import ntk
from pntk.outputs import Output, Values, joined, resolve_output
from pntk.precision import Autocast, check_autocast
from pntk.projection.dispatch import Projector, resolve_impl, workspace_bytes
from pntk.projection.signs import SIGN_CACHE_BYTES
from pntk.projection.spec import ProjectionSpec
from pntk.retrieval import TopK, topk
from pntk.sharding import checked_shard, featurize_shards, one_shard
from pntk.store import FeatureStore, RowWriter, StoreHeader
from pntk.store.shards import find_shards
from pntk.writing import checked_indices, raise_if_nonfinite, write_rows

log = logging.getLogger("pntk")

PRECISIONS = ("fp32", "fp64", "bf16")
STORAGE = ("full", "fp16")
ON_NONFINITE = ("raise", "skip", "keep")
CHECKED_SAMPLES = 8

T = TypeVar("T")


class Featurizer:
    """Project each sample's gradient to k numbers.

    phi(x) = sum over parameters w and outputs c of A_{w,c} grad_w f_c(x), with
    E<phi(x), phi(x')> = sum_c <grad f_c(x), grad f_c(x')>.

    Args:
        model: any module; its mode, gradients, flags, hooks and random state are left as found.
            What torch.compile made of it, or of a part, runs as it was written.
        output: what is differentiated: ``pntk``, ``trace``, ``margin``, ``loss``, ``text``, an
            object of ``pntk.outputs``, or a callable ``(model, batch) -> [b]`` or ``[b, c]``.
        projection: ``hadamard``, ``rademacher``, ``normal``, ``identity``, or a ProjectionSpec.
        proj_dim: k; None means 4096, and the gradient's size for the identity.
        seed: of the projection, 0 to 2^64 - 1.
        params: which parameters: None for those that require gradients, a glob, several, or a
            predicate ``(name, parameter) -> bool``.
        device: ``auto``, or where the model must be.
        impl: ``auto`` or an implementation of ``pntk info``; an explicit one never falls back.
        precision: ``fp32`` or ``fp64``, of the sums; a float64 model is always fp64. ``bf16`` has
            the model run under bfloat16 autocast; rows are float32 sums.
        memory_budget: bytes, or a text such as ``"2GB"``, that one batch may take beyond the
            model; larger batches are cut.
        fallback: globs of parameters to differentiate by ``torch.func`` whatever rules there are.
        check: whether the first batch runs the self-checks of :meth:`check`.
        on_nonfinite: what to do with a row that holds NaN or infinity: ``raise``, ``skip`` (a store
            marks it skipped) or ``keep``.

    Raises:
        ConfigError, ModelError: bad arguments or a model that mixes samples, before any work.
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | Output | Callable[[Any, Any], Any] = "pntk",
        projection: str | ProjectionSpec = "hadamard",
        proj_dim: int | None = None,
        seed: int = 0,
        *,
        params: ParamFilter = None,
        device: str | torch.device = "auto",
        impl: str = "auto",
        precision: str = "fp32",
        memory_budget: int | str | None = None,
        fallback: str | Sequence[str] = (),
        check: bool = True,
        on_nonfinite: str = "raise",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        _one_of("precision", precision, PRECISIONS)
        _one_of("on_nonfinite", on_nonfinite, ON_NONFINITE)
        self.model = unwrap(model)
        self.output = resolve_output(output)
        if isinstance(projection, ProjectionSpec):
            if proj_dim is not None or seed:
                raise ConfigError(
                    f"proj_dim={proj_dim} and seed={seed} beside {projection}; a ProjectionSpec "
                    "holds both: give them there"
                )
            self.spec = projection
        else:
            self.spec = ProjectionSpec(projection, proj_dim, seed)
        self.precision = precision
        self.memory_budget = parse_bytes(memory_budget)
        self.on_nonfinite = on_nonfinite
        self.params = select_parameters(self.model, params)
        self.device = model_device(self.model, device)
        self.impl = resolve_impl(
            impl,
            self.spec.family,
            dtype=self.dtype,
            device=self.device,
            proj_dim=self.spec.proj_dim,
        )
        if precision == "bf16":
            check_autocast(self.model, self.device)
        self._output = Autocast(self.output, self.device) if precision == "bf16" else self.output
        self._check_first = check
        forced = [fallback] if isinstance(fallback, str) else fallback
        if not isinstance(forced, (list, tuple)) or not all(isinstance(g, str) for g in forced):
            raise ConfigError(f"fallback is {fallback!r}; expected a glob or a list of globs")
        self._plan: Plan = make_plan(self.model, self.params, forced)
        self._projector: Projector | None = None
        self._fallback: Fallback | None = None

    # ---- rows --------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Type in which rows are summed and returned."""
        double = any(p.dtype == torch.float64 for p in self.params.values())
        return torch.float64 if double or self.precision == "fp64" else torch.float32

    @outside_graphs
    def __call__(self, batch: Any) -> Tensor:
        """Return the rows [b, k] of a batch, on the model's device.

        Args:
            batch: a tensor, or a tuple, list, mapping or dataclass of tensors on the model's
                device. The last entry of a tuple, and ``labels`` or ``label``, are labels.

        Raises:
            DataError, OutputError: the batch or the output does not fit.
            CheckError: this is the first batch and its rows fail :meth:`check`.
            NonFiniteError: a row holds NaN or infinity and ``on_nonfinite`` is ``raise``.
            OutOfMemoryError: with the size of a batch that would fit.
        """
        rows, _ = self.rows_and_values(batch)
        if self.on_nonfinite == "raise":
            raise_if_nonfinite(rows, np.arange(len(rows)))
        return rows

    @outside_graphs
    @torch.inference_mode(False)
    def rows_and_values(self, batch: Any) -> tuple[Tensor, Values]:
        """Return rows [b, k], finite or not, and what the output said of the batch."""
        count = size_of(batch)
        batch = self._within_memory(count, self._prepared, batch)
        if self._check_first:
            some = take(batch, slice(0, CHECKED_SAMPLES))
            self._within_memory(size_of(some), self._check, some)
            self._check_first = False
        step = batch_that_fits(self._plan, self._ready, count, self.memory_budget)
        return self._within_memory(step, self._in_pieces, batch, step)

    @outside_graphs
    @torch.inference_mode(False)
    def check(self, batch: Any) -> None:
        """Check the rows of a batch against the model's ordinary gradient, and each other.

        The map is linear, so each parameter's rows must add up to the sketch of the batch's
        gradient; and a sample's row must be the same in other company. The first batch runs this
        on a few samples by itself. Samples whose rows are not finite are left out.

        Raises:
            CheckError: naming the parameter, or the sample whose row depends on its batch.
        """
        count = size_of(batch)
        batch = self._within_memory(count, self._prepared, batch)
        self._within_memory(count, self._check, batch)

    def coverage(self) -> Coverage:
        """Return which rule serves each parameter; prints as a table.

        Complete after the first batch, which shows how the model calls its layers.
        """
        return Coverage(self._plan.coverage())

    def _within_memory(self, count: int, work: Callable[..., T], *args: Any) -> T:
        """Return ``work(*args)``, or say what would fit of a batch of ``count``."""
        try:
            return work(*args)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # here, where no frame of the failed pass holds its tensors any more
        raise out_of_memory(self._plan, self._projector, count, self.device)

    def _in_pieces(self, batch: Any, step: int) -> tuple[Tensor, Values]:
        count = size_of(batch)
        if step >= count:
            return self._one_pass(batch)
        pieces = [self._one_pass(take(batch, slice(i, i + step))) for i in range(0, count, step)]
        rows = torch.cat([rows for rows, _ in pieces])
        return rows, joined([values for _, values in pieces])

    def _one_pass(self, batch: Any) -> tuple[Tensor, Values]:
        rows = self._ready.empty_rows(size_of(batch))
        values = self._add_gradients(batch, lambda name: rows)
        return rows, values

    def _add_gradients(self, batch: Any, rows_for: Callable[[str], Tensor]) -> Values:
        sink = RowSink(self._ready, rows_for)
        values = capture(self._plan, self.model, self._output, batch, sink)
        if self._fallback is not None:
            self._fallback.add(batch, self._ready, rows_for)
        return values

    def _check(self, batch: Any) -> None:
        shares = {name: self._ready.empty_rows(size_of(batch)) for name in self.params}
        values = self._add_gradients(batch, shares.__getitem__).values
        rows = torch.stack(list(shares.values())).sum(0)
        finite = rows.isfinite().all(1)
        if not bool(finite.all()):
            if bool(finite.any()):
                self._check(take(batch, finite))
            return
        check_sum(self._plan, self.model, self._output, batch, self._ready, shares)
        limit = tolerance(self.model, self._output)
        check_alone(limit, self._rows_and_raw_values, batch, rows, values)

    def _rows_and_raw_values(self, batch: Any) -> tuple[Tensor, Tensor]:
        rows, found = self._one_pass(batch)
        return rows, found.values

    # ---- preparation -------------------------------------------------------------------------

    @property
    def _ready(self) -> Projector:
        assert self._projector is not None
        return self._projector

    def _prepared(self, batch: Any) -> Any:
        """Check a batch and return it without history; learn from the first how layers are called.

        Raises:
            DataError: no samples, or not on the model's device.
        """
        size_of(batch)
        check_device(batch, self.device)
        batch = plain(batch)
        for name, module in self.model.named_modules():
            refuse(module, canonical(name))
        check_parameters(self.model, self.params, self.device)
        if self._projector is not None:
            return batch
        probe(self._plan, self.model, self._output, batch)
        workspace, cache = workspace_bytes(self.impl), SIGN_CACHE_BYTES
        if self.memory_budget is not None:
            workspace = max(1, min(workspace, self.memory_budget // 4))
            cache = min(cache, self.memory_budget // 4)
        self._projector = Projector(
            self.spec,
            {name: tuple(p.shape) for name, p in self.params.items()},
            dtype=self.dtype,
            device=self.device,
            impl=self.impl,
            precision="bf16" if self.precision == "bf16" else "fp32",
            outputs=self._plan.outputs,
            workspace=workspace,
            cache=cache,
        )
        if self._plan.fallback:
            self._fallback = Fallback(self._plan, self.model, self._output, workspace)
        log.info("projection %s by impl=%s", self.spec.to_json(), self.impl)
        return batch

    # ---- stores ------------------------------------------------------------------------------

    @outside_graphs
    def featurize(
        self,
        data: Any,
        path: str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        resume: bool = True,
        progress: bool = True,
        num_rows: int | None = None,
        indices: Sequence[int] | Tensor | np.ndarray | None = None,
        sync_interval: float = 5.0,
        storage: str = "full",
        shards: int | None = None,
        shard: tuple[int, int] | None = None,
    ) -> FeatureStore:
        """Write the rows of a data set to a store; run again, it goes on where it stopped.

        Where torch.distributed has been initialised with several ranks, all of them call this, and
        share the rows: each writes shards of its own, and rank 0 joins them.

        Args:
            data: a tensor, a tuple or mapping of tensors, a map-style data set, or a DataLoader
                that does not shuffle; batches are moved to the model's device.
            path: HDF5 file to create, or to resume.
            batch_size: samples a batch; None for the loader's own, or 64.
            resume: False refuses an existing file.
            progress: whether to show a progress bar.
            num_rows: length of an iterable data set.
            indices: what to record as each row's index in a larger data set, [n].
            sync_interval: seconds between syncs to disk; a power cut loses at most this much work.
            storage: ``full``, or ``fp16``: 11 bits and a scale a row, half the space.
            shards: number of files to write the rows to; None for one a rank, or those that are
                there: any number of ranks can go on with them.
            shard: (i, n) writes the i-th of n shards alone, counted from 0, for processes that do
                not talk to each other; ``pntk.join`` makes the store of them.

        Returns:
            The store, open for reading; with ``shard``, that of the shard.

        Raises:
            DistributedError: the ranks differ, or another one has ended; its rows are kept.
            StoreError: the file has other rows, is locked, damaged, or does not fit on the disk.
            DataError, OutputError, NonFiniteError: bad data; rows made before are kept.
            OutOfMemoryError: with the batch size that would fit; rows made before are kept.
        """
        _one_of("storage", storage, STORAGE)
        if storage == "fp16" and self.dtype == torch.float64:
            raise ConfigError(
                "storage='fp16' is for rows of float32, these are float64: use 'full'"
            )
        batches = Batches(data, batch_size, num_rows)
        recorded = checked_indices(indices, batches.length)
        first = batches.first()
        self._within_memory(size_of(first), self._prepared, self._moved(first))
        batch_that_fits(self._plan, self._ready, batches.batch_size, self.memory_budget)
        header = self.header(batches.length, with_indices=recorded is not None)
        if storage == "fp16":
            header = replace(header, dtype="float16")

        def fill(file: Path, header: StoreHeader, resume: bool) -> None:
            with RowWriter.open(file, header, resume=resume, sync_interval=sync_interval) as writer:
                write_rows(
                    lambda batch: self.rows_and_values(self._moved(batch)),
                    batches,
                    writer,
                    device=self.device,
                    on_nonfinite=self.on_nonfinite,
                    indices=recorded,
                    progress=progress,
                )

        path = Path(os.path.abspath(path))
        size = batches.batch_size
        if shard is not None:
            path, header = one_shard(path, header, size, *checked_shard(shard, shards))
            fill(path, header, resume)
        elif shards is not None or is_distributed() or find_shards(path):
            featurize_shards(path, header, size, shards, fill, resume=resume)
        else:
            fill(path, header, resume)
        return FeatureStore(path)

    def _moved(self, batch: Any) -> Any:
        return self._within_memory(size_of(batch), to_device, batch, self.device)

    def header(self, rows: int, *, with_indices: bool = False) -> StoreHeader:
        """Return the header of a store for rows of this map, to be written with a RowWriter.

        Args:
            rows: how many there will be.
            with_indices: whether a column says which sample of the data each row is.
        """
        columns = {"labels": "int64"}
        if with_indices:
            columns["indices"] = "int64"
        if self._plan.reweights:
            columns["reweighting"] = "float32"
        return StoreHeader(
            rows=rows,
            width=self._ready.width,
            dtype=str(self.dtype).removeprefix("torch."),
            projection=self.spec.to_dict(),
            output=self.output.describe(),
            params=tuple((name, tuple(p.shape)) for name, p in self.params.items()),
            weights=fingerprint(self.model),
            precision=self._described_precision(),
            columns=columns,
            info={
                "model": type(self.model).__name__,
                "impl": self.impl,
                "pntk": __version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
                "coverage": [{**row, "shape": list(row["shape"])} for row in self._plan.coverage()],
            },
        )

    def _described_precision(self) -> str:
        """Return the precision of the sums, and of an autocast that the model runs under."""
        if self.precision == "bf16":
            return "bf16"
        sums = "fp64" if self.dtype == torch.float64 else "fp32"
        if not torch.is_autocast_enabled(self.device.type):
            return sums
        return f"{sums}, autocast {torch.get_autocast_dtype(self.device.type)}"

    # ---- kernels -----------------------------------------------------------------------------

    def ntk(
        self, store: Any, other: Any = None, *, normalize: bool = False, **options: Any
    ) -> Tensor | Path:
        """Return the kernel of rows of this featurizer; see :func:`pntk.ntk`."""
        self._check_ours(store, other)
        return ntk(store, other, normalize=normalize, **options)

    def topk(self, queries: Any, store: Any, k: int = 5, **options: Any) -> TopK:
        """Return the nearest rows of a store; see :func:`pntk.topk`."""
        self._check_ours(queries, store)
        return topk(queries, store, k, **options)

    def suggest_proj_dim(self, data: Any, tolerance: float, **options: Any) -> ProjDim:
        """Return the width that keeps cosines within a tolerance of the exact ones.

        See :func:`pntk.ntk.proj_dim.suggest_proj_dim`.
        """
        return suggest_proj_dim(self, data, tolerance, **options)

    def nad_covariance(
        self, data: Any, checkpoints: Iterable[Mapping[str, Tensor]] | None = None, **options: Any
    ) -> Tensor:
        """Return the covariance [k, k] of projected input gradients, over checkpoints if given.

        See :func:`pntk.nads.input_covariance.input_gradient_covariance`.
        """
        from pntk.nads.input_covariance import (
            input_gradient_covariance,
        )  # keeps `import pntk` light

        where: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "impl": self.impl}
        return input_gradient_covariance(
            self.model, self._output, data, self.spec, checkpoints=checkpoints, **where, **options
        )

    def _check_ours(self, *stores: Any) -> None:
        """Refuse a store whose rows this featurizer would not make."""
        shapes = tuple((name, tuple(p.shape)) for name, p in self.params.items())
        ours = {
            "projection": self.spec.to_dict(),
            "output": self.output.describe(),
            "params": shapes,
            "weights": fingerprint(self.model),
        }
        for store in stores:
            for field, value in ours.items() if isinstance(store, FeatureStore) else ():
                theirs = getattr(store.header, field)
                if theirs != value:
                    shown = f"{theirs}; expected {value}" if field != "params" else "others"
                    raise ConfigError(
                        f"{store.path} was made with another {field} than this featurizer's: "
                        f"{shown}: use pntk.ntk or pntk.topk for rows made elsewhere"
                    )


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} is {value!r}; expected one of {', '.join(allowed)}")
