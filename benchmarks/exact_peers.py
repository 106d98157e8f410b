"""The exact trace kernel, sum over outputs, as peers of ``empirical_ntk`` compute it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.registry import Unavailable

Call = Callable[[], Tensor]

JACOBIAN_BYTES = 2**31  # that torch.func holds at a time, and a fourth of them beside
VMAP_BATCH = 16  # vmap_ntk_loader does batch-size times the work, with fewer calls
TORCHNTK, JAX_PYTHON = "PNTK_TORCHNTK", "PNTK_JAX_PYTHON"  # variables of the environment
_JAX_SCRIPT = Path(__file__).with_name("jax_peer.py")


class Problem(NamedTuple):
    """A model in eval mode with c outputs, and images [n, ...].

    Attributes:
        layers: the model as ``benchmarks/jax_peer.py`` reads it; empty where it cannot.
    """

    name: str
    model: nn.Module
    images: Tensor
    outputs: int
    layers: str = ""


def reference(problem: Problem) -> Tensor:
    """Return the kernel in float64, by a loop of ``torch.autograd.grad``."""
    model, rows = problem.model.double(), []
    params = list(model.parameters())
    for image in problem.images.double():
        grads = [
            torch.autograd.grad(output, params, retain_graph=True)
            for output in model(image[None])[0]
        ]
        rows.append(torch.cat([g.flatten() for grad in grads for g in grad]))
    model.float()
    stacked = torch.stack(rows)  # [n, c p]
    return stacked @ stacked.T


# ---- torch.func ----------------------------------------------------------------------------------


def jacobian_contraction(problem: Problem) -> Tensor:
    """Return the kernel by Jacobians of as many outputs at a time as fit.

    K = sum over outputs and parameters of J J^T, so no Jacobian is computed twice.
    """
    model, x = problem.model, problem.images
    params = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(params: dict[str, Tensor], image: Tensor, columns: Tensor) -> Tensor:
        return functional_call(model, params, (image[None],))[0, columns]

    each = 4 * len(x) * sum(p.numel() for p in params.values())
    at_once = max(1, JACOBIAN_BYTES // each)
    kernel = torch.zeros(len(x), len(x))
    for columns in torch.arange(problem.outputs).split(at_once):
        jacobians = vmap(jacrev(outputs), (None, 0, None))(params, x, columns)
        for name in params:
            rows = jacobians.pop(name).flatten(1)  # [n, columns p]
            kernel.addmm_(rows, rows.T)
    return kernel


# ---- TorchNTK ------------------------------------------------------------------------------------


class Column(nn.Module):
    """One output of a model, [b, 1]: TorchNTK takes no more."""

    def __init__(self, model: nn.Module, column: int) -> None:
        super().__init__()
        self.model, self.column = model, column

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return outputs[:, self.column, None]


class TorchNTK:
    """Kernels by the functions of ``torchntk.autograd``, one call an output.

    Raises:
        Unavailable: its source is not there.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.autograd = problem, _torchntk()

    def whole(self) -> Tensor:
        """``autograd_ntk``: a backward pass of the batch for each image, output and parameter."""
        return sum(self._plain("autograd_ntk", c) for c in range(self.problem.outputs))

    def components(self) -> Tensor:
        """``autograd_components_ntk``: the same, with one kernel a parameter."""
        found = (self._plain("autograd_components_ntk", c) for c in range(self.problem.outputs))
        return sum(sum(components.values()) for components in found)

    def some_rows(self, rows: int) -> Tensor:
        """``autograd_ntk`` of the first rows of one output; a whole kernel takes n c / rows."""
        return self._plain("autograd_ntk", 0, rows)

    def old(self) -> Tensor:
        """``old_autograd_ntk``: a backward pass for each batch of one image, and each output."""
        columns, loader = self._columns(), self._loader(1)
        return sum(self.autograd.old_autograd_ntk(loader, column) for column in columns)

    def vmapped(self) -> Tensor:
        """``vmap_ntk_loader``: one vmapped backward pass for each batch, output and parameter."""
        columns, loader = self._columns(), self._loader(VMAP_BATCH)
        make = self.autograd.vmap_ntk_loader
        return sum(sum(make(column, loader, device="cpu").values()) for column in columns)

    def naive(self) -> Tensor:
        """``naive_ntk``: the only one that takes several outputs; n c backward passes at once."""
        return self.autograd.naive_ntk(self.problem.model, self.problem.images)

    def _plain(self, function: str, column: int, rows: int | None = None) -> Any:
        model = self.problem.model
        outputs = model(self.problem.images)[:, column]
        with warnings.catch_warnings():  # of its create_graph=True, which keeps graphs alive
            warnings.simplefilter("ignore")
            found = getattr(self.autograd, function)(model, outputs[:rows])
        model.zero_grad(set_to_none=True)
        return found

    def _columns(self) -> list[Column]:
        return [Column(self.problem.model, c) for c in range(self.problem.outputs)]

    def _loader(self, batch: int) -> DataLoader[Any]:
        images = self.problem.images
        return DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=batch)


def _torchntk() -> ModuleType:
    """Import ``torchntk.autograd`` alone: the package itself would import numba."""
    where = os.environ.get(TORCHNTK)
    init = Path(where or "", "torchntk", "autograd", "__init__.py")
    if not where or not init.is_file():
        seen = f"{TORCHNTK} is {where!r}" if where else f"{TORCHNTK} is not set"
        raise Unavailable(f"{seen}; expected a checkout of github.com/pnnl/torchntk")
    name = "torchntk_autograd"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, init, submodule_search_locations=[str(init.parent)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except ImportError as error:
            del sys.modules[name]
            raise Unavailable(f"TorchNTK cannot be imported ({error})") from None
    return sys.modules[name]


# ---- neural-tangents -----------------------------------------------------------------------------


class JaxPeer:
    """The kernel by neural-tangents, compiled, in a process of its own that waits for calls.

    Args:
        folder: for weights and images on the way there, and the kernel on the way back.
        every: whether to try all implementations, or to take structured derivatives.

    Attributes:
        kernel: the kernel, by the fastest implementation.
        description: versions, and what was tried.

    Raises:
        Unavailable: the interpreter is not there, cannot import it, or found no way.
    """

    def __init__(self, problem: Problem, folder: Path, *, every: bool = True) -> None:
        python = os.environ.get(JAX_PYTHON)
        if not python:
            raise Unavailable(f"{JAX_PYTHON} is not set; expected a Python with neural-tangents")
        given, back = folder / "problem.npz", folder / "kernel.npy"
        params = {f"param{i}": p.detach().numpy() for i, p in enumerate(problem.model.parameters())}
        np.savez(given, plan=np.array(problem.layers), x=problem.images.numpy(), **params)
        limit = psutil.virtual_memory().available // 2
        command = [python, str(_JAX_SCRIPT), str(torch.get_num_threads()), str(limit)]
        self._log = (folder / "errors").open("w+")
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        except OSError as error:
            self._log.close()
            raise Unavailable(f"{JAX_PYTHON}={python} cannot be run ({error})") from None
        try:
            found = self._ask(prepare=str(given), kernel=str(back), all=every)
            if "name" not in found:
                raise Unavailable(f"no implementation succeeded: {found['tried']}")
        except Unavailable:
            self.close()
            raise
        self.kernel = torch.from_numpy(np.load(back))
        self.description = _describe(problem.name, found)

    def run(self) -> None:
        """Compute the kernel again."""
        self._ask(run=True)

    def peak(self) -> int:
        """Compute the kernel again; return the bytes that it took at its peak."""
        return int(self._ask(peak=True)["peak"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines() or ["no message"]
            raise Unavailable(f"the process of {JAX_PYTHON} ended: {lines[-1][:200]}")
        found: dict[str, Any] = json.loads(answer)
        return found


def _describe(name: str, found: dict[str, Any]) -> str:
    best: dict[str, str] = {}
    for tried in found["tried"]:
        text = tried.get("error") or f"{tried['seconds']:.3g} s in blocks of {tried['block']}"
        seconds = tried.get("seconds", float("inf"))
        best.setdefault(tried["name"], text)
        known = [
            t["seconds"] for t in found["tried"] if t["name"] == tried["name"] and "seconds" in t
        ]
        if known and seconds == min(known):
            best[tried["name"]] = text
    trials = "; ".join(f"{key} {text}" for key, text in best.items())
    return (
        f"{name}: neural-tangents {found['versions'][1]} with JAX {found['versions'][0]} ran "
        f"{found['name']} in blocks of {found['block']} (from one block each: {trials})"
    )
