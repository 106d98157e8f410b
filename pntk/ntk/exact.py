"""The empirical tangent kernel itself, exact, for any architecture.

K[i, j] = sum_c <grad f_c(x_i), grad f_c(x_j)>, layer by layer: from the factors that a forward and
a backward pass leave behind where that is the cheaper way, from per-sample gradients of the layer
where it is not, and by ``torch.func`` for parameters that no rule covers. No Jacobian is made.

Shapes: n, m samples; c outputs; t samples of a tile.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from xxhash import xxh3_64_hexdigest

from pntk.batch import batch_size, plain, repeat_first, take, to_device
from pntk.compiled import outside_graphs
from pntk.errors import (
    ConfigError,
    OutOfMemoryError,
    OutputError,
    PntkWarning,
    is_out_of_memory,
)
from pntk.featurizer import CHECKED_SAMPLES, Featurizer
from pntk.gradients.capture import capture
from pntk.gradients.fallback import Fallback
from pntk.gradients.plan import Plan, make_plan
from pntk.gradients.probe import probe
from pntk.gradients.rules import refuse
from pntk.gradients.saved import saved_bytes
from pntk.host import available_memory
from pntk.loading import Batches
from pntk.memory import required_bytes
from pntk.naming import (
    ParamFilter,
    canonical,
    check_parameters,
    fingerprint,
    model_device,
    select_parameters,
    unwrap,
)
from pntk.ntk.columns import Axes, Columns
from pntk.ntk.contraction import Sides, mirror
from pntk.ntk.exact_sinks import FileSink, Kernels, MemorySink
from pntk.ntk.factors import Dense, as_matrices
from pntk.ntk.kernel_file import KernelHeader, check_new
from pntk.ntk.projected import mirror_upper
from pntk.ntk.samples import check_alike, content_of, joined, samples_of
from pntk.ntk.tile_kernel import TileKernel
from pntk.ntk.ways import Survey, Way, choose_ways

METHODS = ("auto", "factors", "gradients", "func")
COMPONENTS = (None, "parameter", "module")
PRECISIONS = ("fp32", "fp64")

_WORKSPACE = 2**26  # bytes of temporaries of one kind, at most
_KINDS_OF_TEMPORARIES = 3
_COPIES_OF_TILE = 3  # added up, put in order, and what is being added
_MARGIN = 1.25  # what layers keep from one output to the next, and what an allocator loses
_NOMINAL_TILE = 256  # by which ways are chosen, before the tile is known


class EmpiricalNTK:
    """Exact tangent kernels of a model: what is learnt from the first batch is used again.

    Args: as of :func:`empirical_ntk`.

    Attributes:
        ways: how each parameter's share is made, once there has been a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str = "trace",
        *,
        output: Any = None,
        trace_axes: tuple[int, ...] | None = None,
        components: str | None = None,
        params: ParamFilter = None,
        method: str = "auto",
        precision: str = "fp32",
        memory_budget: int | str = "1GB",
        device: torch.device | str = "auto",
        check: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        for what, value, allowed in (
            ("method", method, METHODS),
            ("components", components, COMPONENTS),
            ("precision", precision, PRECISIONS),
        ):
            if value not in allowed:
                shown = ", ".join(str(name) for name in allowed)
                raise ConfigError(f"unknown {what} {value!r}; expected one of {shown}")
        budget = required_bytes(memory_budget)
        self.model = unwrap(model)
        self.columns = Columns(kind, output, trace_axes)
        self.components = components
        self.method = method
        self.budget = budget
        self.params = select_parameters(self.model, params)
        self.device = model_device(self.model, device)
        double = any(p.dtype == torch.float64 for p in self.params.values())
        self.dtype = torch.float64 if double or precision == "fp64" else torch.float32
        self.ways: dict[str, Way] = {}
        self._sample_bytes = 0
        self._check = check
        self._shapes = {name: tuple(p.shape) for name, p in self.params.items()}
        self._component_of = {name: self._component(name) for name in self.params}
        forced = ["*"] if method == "func" else []
        self._plan: Plan = make_plan(self.model, self.params, forced)
        self._fallback: Fallback | None = None
        self._workspace = min(_WORKSPACE, max(2**20, budget // 16))

    @property
    def axes(self) -> Axes:
        """Of the outputs; known once there has been a batch."""
        assert self.columns.axes is not None
        return self.columns.axes

    @outside_graphs
    @torch.inference_mode(False)
    def __call__(
        self,
        x: Any,
        x2: Any = None,
        *,
        out: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Kernels | Path:
        """Return the kernel of samples; see :func:`empirical_ntk`."""
        left = samples_of(x)
        right = None if x2 is None else samples_of(x2)
        first = left.range(0, min(CHECKED_SAMPLES, left.length))
        if right is not None:
            check_alike(first, right.first())
        if out is not None:
            check_new(Path(out))
        self._prepare(self._moved(first))
        n, m = left.length, (left if right is None else right).length
        sink = self._file(out, left, right) if out is not None else self._memory(n, m, x2 is None)
        try:
            self._fill(sink, left, right, progress)
            return sink.finish()
        finally:
            sink.close()

    # ---- preparation -------------------------------------------------------------------------

    def _prepare(self, batch: Any) -> None:
        """Learn how layers are called, and choose the way of each parameter."""
        for name, module in self.model.named_modules():
            refuse(module, canonical(name))
        check_parameters(self.model, self.params, self.device)
        if self.ways:
            return
        if self._check:
            Featurizer(
                self.model,
                self.columns,
                proj_dim=64,
                params=lambda name, p: canonical(name) in self.params,
                fallback="*" if self.method == "func" else (),
            ).check(batch)
        probe(self._plan, self.model, self.columns, batch)
        two = take(batch, slice(0, 2)) if batch_size(batch) > 1 else repeat_first(batch, 2)
        survey = Survey(self._shapes, 2, dtype=self.dtype, device=self.device)
        with saved_bytes(self.model) as saved:
            capture(self._plan, self.model, self.columns, two, survey)
        self._sample_bytes = int(_MARGIN * saved()) // 2
        ways = choose_ways(survey, self.axes, self.method, _NOMINAL_TILE, self._component_of)
        if self._plan.fallback:
            self._fallback = Fallback(self._plan, self.model, self.columns, self._workspace)
            for name in self._plan.fallback:
                ways[name] = self._way_of_fallback(name)
        self.ways = ways

    def _way_of_fallback(self, name: str) -> Way:
        entries, axes = self.params[name].numel(), self.axes
        keep = axes.paired > 1
        sample = entries * (axes.columns if keep else 1)
        each = float(axes.summed * axes.paired**2 * entries)
        return Way(calls=1, shared=None, keep=keep, sample=sample, unfolded=0, cost=each)

    def _component(self, name: str) -> str:
        if self.components is None:
            return ""
        return name if self.components == "parameter" else name.rpartition(".")[0] or "(model)"

    def _moved(self, batch: Any) -> Any:
        return plain(to_device(batch, self.device))

    # ---- memory ------------------------------------------------------------------------------

    def _bytes_an_entry(self) -> int:
        """Return what the kernel of two samples takes."""
        parts = len(set(self._component_of.values()))
        axes = self.axes
        return self.dtype.itemsize * parts * axes.each * axes.paired**2

    def _tile(self, n: int, m: int, symmetric: bool, room: int) -> int:
        """Return the largest tile that fits into so many bytes, or one that gives as many tiles.

        Raises:
            ConfigError: none does; says what would.
        """
        most = max(n, m)

        def needed(tile: int) -> int:
            return self._work_bytes(tile, n, m, symmetric)

        if needed(most) <= room:
            return most
        if needed(1) > room:
            raise ConfigError(
                f"memory_budget leaves {room:,} bytes for the work, and two samples of this model "
                f"and kernel take about {needed(1):,}: use memory_budget="
                f"{self.budget + needed(1) - room}"
            )
        low, high = 1, most  # the first fits and the second does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if needed(middle) <= room else (low, middle)
        return -(-most // -(-most // low))

    def _work_bytes(
        self, tile: int, n: int, m: int, symmetric: bool, *, unfolds: bool = False
    ) -> int:
        """Return what the work takes with tiles of so many samples."""
        copied = 2 if any(p.dtype != self.dtype for p in self.params.values()) else 1
        kept = sum(way.sample + way.unfolded * unfolds for way in self.ways.values())
        sample = copied * self._sample_bytes + kept * self.dtype.itemsize
        alone = symmetric and tile >= n
        batch = min(tile, n) + (0 if alone else min(tile, m))
        kernels = _COPIES_OF_TILE * min(tile, n) * min(tile, m) * self._bytes_an_entry()
        return _KINDS_OF_TEMPORARIES * self._workspace + batch * sample + kernels

    def _memory(self, n: int, m: int, symmetric: bool) -> MemorySink:
        size = n * m * self._bytes_an_entry()
        if size > self.budget * 3 // 4:
            fit = int((self.budget * 3 // 4 // self._bytes_an_entry()) ** 0.5)
            entry = " x ".join(map(str, (n, m, *self.axes.entry)))
            raise ConfigError(
                f"a kernel of {entry} takes {size:,} bytes, more than three quarters of "
                f"memory_budget={self.budget:,}; {fit:,} x {fit:,} samples would fit: write it to "
                "a file with out=, or raise memory_budget"
            )
        free = available_memory()
        if free is not None and size > free:
            raise ConfigError(
                f"the kernel takes {size:,} bytes and {free:,} are available in memory; write it "
                "to a file with out="
            )
        tile = self._tile(n, m, symmetric, self.budget - size)
        named = self.components is not None
        return MemorySink((n, m), self.axes, tile, symmetric=symmetric, named=named)

    def _file(self, out: str | os.PathLike[str], left: Batches, right: Batches | None) -> FileSink:
        n, m = left.length, (right or left).length
        parts = list(dict.fromkeys(self._component_of.values())) if self.components else []
        header = KernelHeader(
            shape=(n, m),
            dtype=str(self.dtype).removeprefix("torch."),
            normalize=False,
            symmetric=right is None,
            tile=self._tile(n, m, right is None, self.budget),
            rows=self._identity(left),
            columns=None if right is None else self._identity(right),
            entry=((len(parts),) if parts else ()) + self.axes.entry,
            components=tuple(parts),
        )
        return FileSink(out, header, self.axes)

    def _identity(self, data: Batches) -> dict[str, str | int | float | None]:
        """Return what tells this kernel's rows from others: the model, the output, the samples."""
        params = [[name, list(shape)] for name, shape in self._shapes.items()]
        return {
            "rows": data.length,
            "exact": True,
            "output": xxh3_64_hexdigest(str(self.columns.describe()).encode()),
            "kind": self.columns.kind,
            "params": xxh3_64_hexdigest(str(params).encode()),
            "weights": fingerprint(self.model),
            "content": content_of(data),
        }

    # ---- tiles -------------------------------------------------------------------------------

    def _fill(
        self, sink: MemorySink | FileSink, left: Batches, right: Batches | None, bar: bool
    ) -> None:
        tile, symmetric, in_memory = sink.tile, right is None, isinstance(sink, MemorySink)
        bands = range(-(-left.length // tile))
        n, m = left.length, (right or left).length
        room = self.budget - (n * m * self._bytes_an_entry() if in_memory else 0)
        unfolds = self._work_bytes(tile, n, m, symmetric, unfolds=True) <= room
        lacking = [(i, j) for i in bands for j in sink.missing(i)]
        for i, j in tqdm(lacking, unit="tile", desc="empirical ntk", disable=not bar):
            x = left.range(i * tile, min((i + 1) * tile, left.length))
            if symmetric and i == j:
                kernels = self._within_memory(x, Sides(batch_size(x)), unfolds)
            else:
                other = right or left
                y = other.range(j * tile, min((j + 1) * tile, other.length))
                sides = Sides(batch_size(x), batch_size(y))
                kernels = self._within_memory(joined(x, y), sides, unfolds)
            _warn_of_nonfinite(kernels, i * tile, j * tile)
            sink.write(i, j, kernels)

    def _within_memory(self, batch: Any, sides: Sides, unfolds: bool) -> dict[str, Tensor]:
        try:
            return self._tile_of(self._moved(batch), sides, unfolds)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        raise OutOfMemoryError(
            f"a tile of {sides.left} x {sides.columns} samples takes more memory than "
            f"{self.device} has left; use a memory_budget below {self.budget}"
        )

    def _tile_of(self, batch: Any, sides: Sides, unfolds: bool) -> dict[str, Tensor]:
        """Return component -> kernel [n, m, *entry] of a tile."""
        work = TileKernel(
            self._shapes,
            self.ways,
            self.axes,
            sides,
            self._component_of,
            dtype=self.dtype,
            device=self.device,
            workspace=self._workspace,
            unfolds=unfolds and self.axes.columns > 1,
        )
        axes = self.axes
        capture(self._plan, self.model, self.columns, batch, work)
        if self.axes != axes:
            raise OutputError(
                f"the outputs of this batch have the axes {self.axes.kept}, those before "
                f"{axes.kept}; expected the same for every batch"
            )
        if self._fallback is not None:
            work.start_over()
            for column in range(axes.columns):
                for name, values in self._from_fallback(batch, column).items():
                    work.add(name, Dense(values))
                work.end_output()
        found = {}
        for component, kernel in work.kernels.items():
            if sides.symmetric:
                for of_output in kernel:
                    mirror(of_output, mirror_upper)
            found[component] = axes.shaped(kernel)
        return found

    def _from_fallback(self, batch: Any, column: int) -> dict[str, Tensor]:
        """Return gradients [b, O, Q] of the parameters without a rule."""
        assert self._fallback is not None
        found: dict[str, Tensor] = {}
        for part, gradients in self._fallback.gradients(batch, column):
            for name, values in gradients.items():
                matrices = as_matrices(values.to(self.dtype), self._shapes[name])
                if name not in found:
                    found[name] = matrices.new_empty(batch_size(batch), *matrices.shape[1:])
                found[name][part] = matrices
        return found


def empirical_ntk(
    model: nn.Module,
    x: Any,
    x2: Any = None,
    kind: str = "trace",
    *,
    components: str | None = None,
    output: str | Callable[[Any, Any], Any] | None = None,
    trace_axes: tuple[int, ...] | None = None,
    params: ParamFilter = None,
    method: str = "auto",
    precision: str = "fp32",
    memory_budget: int | str = "1GB",
    out: str | os.PathLike[str] | None = None,
    device: torch.device | str = "auto",
    check: bool = True,
    progress: bool = False,
) -> Kernels | Path:
    """Return the exact tangent kernel of samples, tile by tile.

    With J_c(x) the gradient of output c with respect to all parameters, and no further scaling:

    - ``trace``: sum_c <J_c(x), J_c(x')>, [n, m];
    - ``pntk``: <sum_c J_c(x), sum_c J_c(x')>, [n, m];
    - ``diagonal``: <J_c(x), J_c(x')>, [n, m, c];
    - ``full``: <J_c(x), J_c'(x')>, [n, m, c, c], the eNTK.

    Outputs with further axes, [b, c, d] say, give [n, m, c, d] and [n, m, c, d, c, d], where
    ``trace_axes`` names axes to sum over: ``trace_axes=(-1,)`` gives [n, m, c, c]. (neural-tangents
    divides by the number of outputs that it sums over; here they are summed.)

    For many kernels of one model make an :class:`EmpiricalNTK` and call that.

    Args:
        model: any module in eval mode; left as found.
        x: samples: a tensor, tuple or mapping of tensors, a map-style data set, or a DataLoader
            that does not shuffle.
        x2: samples of the columns; None for x itself, of whose kernel one triangle is computed.
        kind: as above.
        components: ``parameter`` or ``module`` for the kernels of each, which add up to the whole.
        output: what the model's outputs are: None for what it returns, or an output of
            :class:`pntk.Featurizer` such as ``margin`` or a callable ``(model, batch)``.
        trace_axes: axes of the output, of which 0 holds the samples.
        params: as of :class:`pntk.Featurizer`.
        method: ``auto`` takes the cheaper way for each parameter; ``factors``, ``gradients`` and
            ``func`` (``torch.func`` for everything) insist on one where it exists.
        precision: ``fp32`` or ``fp64``, of the sums; a float64 model is always fp64.
        memory_budget: bytes, or a text such as ``"2GB"``, that kernel and work take beside the
            model and the samples.
        out: HDF5 file to write instead of memory, as of :func:`pntk.ntk`; resumes tile by tile.
        device: ``auto``, or where the model must be.
        check: whether the first samples run the checks of :meth:`pntk.Featurizer.check`.
        progress: whether to show a progress bar.

    Returns:
        Tensor on the CPU, with ``components`` a dict of them by name, with ``out`` its path.

    Raises:
        ConfigError: bad arguments, or a kernel or model that does not fit the budget.
        OutOfMemoryError: the budget is more than the device has.
        ModelError: a model that mixes samples or draws random numbers.
        CheckError: outputs that depend on other samples.
        OutputError: outputs that are complex, of integers, or without a gradient.
        DataError: no samples, or x2 unlike x.

    Source: Novak, Sohl-Dickstein, Schoenholz (2022), https://arxiv.org/abs/2206.08720, for the
    ways to contract; the one by factors for convolutions is sums over pairs of positions.

    >>> layer = nn.Linear(2, 1)  # f(x) = w x + b, so K = <x, x'> + 1
    >>> empirical_ntk(layer, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[26.,  5.],
            [ 5.,  2.]])
    """
    work = EmpiricalNTK(
        model,
        kind,
        output=output,
        trace_axes=trace_axes,
        components=components,
        params=params,
        method=method,
        precision=precision,
        memory_budget=memory_budget,
        device=device,
        check=check,
    )
    return work(x, x2, out=out, progress=progress)


def _warn_of_nonfinite(kernels: dict[str, Tensor], rows: int, columns: int) -> None:
    """Warn of entries that are no numbers, and name a sample of which all are.

    Args:
        rows, columns: numbers of the tile's first samples.
    """
    for kernel in kernels.values():
        wrong = ~kernel.reshape(*kernel.shape[:2], -1).isfinite().all(2)
        if not bool(wrong.any()):
            continue
        which = "entries"
        for side, first, bad in (("row", rows, wrong.all(1)), ("column", columns, wrong.all(0))):
            if bool(bad.any()):
                which = f"entries of {side} {first + int(bad.nonzero()[0, 0])}"
                break
        warnings.warn(
            f"{which} of the kernel are NaN or infinite; check the samples and the model's outputs "
            "for them",
            PntkWarning,
            stacklevel=3,
        )
        return
