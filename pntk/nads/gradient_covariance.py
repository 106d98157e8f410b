"""Neural anisotropy directions: principal directions of the input gradients of random networks.

Shapes: n networks; d numbers of the evaluation point; r directions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from xxhash import xxh3_64_hexdigest

from pntk._version import __version__
from pntk.errors import ConfigError, NonFiniteError, OutputError
from pntk.host import available_memory
from pntk.nads.drawing import (
    Redraw,
    builder,
    is_repeatable,
    name_of,
    own_random_state,
    usable_device,
)
from pntk.nads.jacobian import (
    STACKED_NUMBERS,
    FiniteDifference,
    autograd_gradients,
    stacked_gradients,
)
from pntk.nads.nads import NADs
from pntk.nads.principal import principal_directions
from pntk.store import FeatureStore, RowWriter, StoreHeader

JACOBIANS = ("autograd", "finite_difference")
GROUP = 64  # small networks that are differentiated together
FEWEST_REDRAWN = 4  # in a group, to be worth trying whether one network can be drawn again


class GradientCovariance:
    """Directions in which random networks of one kind change most.

    C = 1/n sum_i (g_i - m)(g_i - m)^T with g_i the gradient of the scalar output of network i with
    respect to its input at one point, and m their mean (0 unless ``centered``). Its eigenvectors
    are the neural anisotropy directions. Network i is drawn from a seed of its own, made of
    ``seed`` and i, so that neither groups nor stops change it.

    Args:
        eval_point: one input without a batch dimension, such as [c, h, w]; networks are converted
            to its type.
        model_cls: called with ``model_params`` to draw a network of one output.
        model_params: keyword arguments; None for none.
        device: where networks run.
        force_eval: whether networks are put into eval mode.
        jacobian: ``autograd``, or ``finite_difference``: (f(x + s e_j) - f(x - s e_j)) / (2 s) for
            every number j of the input, as in the published runs.
        scale: s.
        centered: whether to take off the mean (PCA, as in the published runs) or not (SVD, as in
            the ``nads`` package).
        seed: of the networks, at least 0.
        group_size: networks drawn and differentiated at a time; None chooses. Gradients are the
            same up to rounding.

    Raises:
        ConfigError: an argument that cannot work.

    Source:
        Ortiz-Jimenez, Modas, Moosavi-Dezfooli, Frossard (2020), Neural anisotropy directions,
        definition 1 and section 3, https://arxiv.org/abs/2006.09717

    Example:
        >>> from pntk.nads.networks import LogReg
        >>> finder = GradientCovariance(torch.zeros(1, 4, 4), LogReg, {"image_size": 4})
        >>> finder.nads(50, progress=False).directions.shape
        torch.Size([16, 1, 4, 4])
    """

    def __init__(
        self,
        eval_point: Tensor,
        model_cls: Callable[..., nn.Module],
        model_params: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        force_eval: bool = True,
        jacobian: str = "autograd",
        scale: float = 100.0,
        centered: bool = True,
        seed: int = 0,
        group_size: int | None = None,
    ) -> None:
        _check_point(eval_point)
        if not callable(model_cls) or isinstance(model_cls, nn.Module):
            raise ConfigError(
                f"model_cls is a {type(model_cls).__name__}; expected a class, or a function that "
                "makes a new network each time"
            )
        if jacobian not in JACOBIANS:
            raise ConfigError(f"jacobian is {jacobian!r}; expected one of {', '.join(JACOBIANS)}")
        if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ConfigError(f"scale is {scale!r}; expected a positive step")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"seed is {seed!r}; expected an integer of at least 0")
        if group_size is not None:
            _check_count("group_size", group_size, 1)
        if model_params is not None and not isinstance(model_params, Mapping):
            raise ConfigError(
                f"model_params is {model_params!r}; expected a dict of keyword arguments, or None"
            )
        try:
            json.dumps(dict(model_params or {}), default=repr)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"model_params is {model_params!r}, which cannot be written down ({error}); "
                "expected keyword arguments with names in nested dicts, too"
            ) from error
        self.device = usable_device(device)
        self.eval_point = eval_point.detach().to(self.device)
        self.model_cls = model_cls
        self.model_params = dict(model_params or {})
        self.force_eval = bool(force_eval)
        self.jacobian = jacobian
        self.scale = float(scale)
        self.centered = bool(centered)
        self.seed = seed
        self.group_size = group_size
        self._build = builder(
            model_cls,
            self.model_params,
            seed=seed,
            device=self.device,
            dtype=eval_point.dtype,
            force_eval=self.force_eval,
        )
        self._redraw: Redraw | Literal[False] | None = None
        self._difference = FiniteDifference(self.eval_point, self.scale)

    @property
    def name(self) -> str:
        """Name of the networks' class."""
        return name_of(self.model_cls)

    def network(self, number: int) -> nn.Module:
        """Draw a network again, as it was when its gradient was taken."""
        _check_count("number", number, 0)
        with own_random_state(self.device):
            return self._build(number)

    def gradients(self, start: int, stop: int) -> Tensor:
        """Return the gradients [stop - start, *eval_point] of networks ``start`` to ``stop``.

        Raises:
            ConfigError, ModelError, OutputError: the networks cannot be drawn, cannot take the
                point, or their output is no number.
            NonFiniteError: a gradient holds NaN or infinity.
        """
        _check_count("start", start, 0)
        _check_count("stop", stop, start + 1)
        with own_random_state(self.device):
            step = self._group(self._build(start))
            groups = range(start, stop, step)
            return torch.cat([self._gradients(range(i, min(i + step, stop))) for i in groups])

    def nads(
        self,
        num_samples: int = 1000,
        path: str | os.PathLike[str] | None = None,
        progress: bool = True,
        *,
        proj_dim: int | None = None,
    ) -> NADs:
        """Draw networks and return the principal directions of their input gradients.

        Args:
            num_samples: n, how many networks; at least 2 where ``centered``.
            path: HDF5 store of the gradients, a row a network, to create or to go on with after a
                stop; it is a ``pntk.FeatureStore``. None keeps them in memory.
            progress: whether to show a progress bar.
            proj_dim: solve for a sketch of the gradients of this width, a power of two, and return
                half as many directions; None solves exactly where n or d is at most 4096, and takes
                1024 otherwise.

        Raises:
            ConfigError, ModelError, OutputError, NonFiniteError: see :meth:`gradients`; before the
                others if already the first network shows it.
            DataError: all gradients are zero, or equal.
            StoreError: the file has other gradients, is locked, or does not fit on the disk.
        """
        _check_count("num_samples", num_samples, 2 if self.centered else 1)
        rows = self._rows(num_samples, path, progress)
        found = principal_directions(
            rows, centered=self.centered, proj_dim=proj_dim, seed=self.seed
        )
        dtype, shape = self.eval_point.dtype, self.eval_point.shape
        return NADs(
            found.directions.to(dtype).reshape(-1, *shape),
            found.singular_values.to(dtype),
            name=self.name,
            model_params=self.model_params,
            centered=self.centered,
            num_samples=num_samples,
            info={**self._described(), "sketch": proj_dim},
        )

    def _rows(self, count: int, path: str | os.PathLike[str] | None, progress: bool) -> Tensor:
        """Return the gradients [n, d], mapped from a file where there is one."""
        width = self.eval_point.numel()
        if path is not None:
            with RowWriter.open(path, self._header(count)) as writer:
                self._fill(writer.missing(), count, progress, writer.write)
            return FeatureStore(path).torch().to(self.device)
        needed, free = count * width * self.eval_point.element_size(), available_memory()
        if free is not None and needed > free:
            raise ConfigError(
                f"{count:,} gradients of {width:,} numbers take {needed:,} bytes and {free:,} are "
                "available; pass path= to keep them in a file"
            )
        rows = torch.empty(count, width, dtype=self.eval_point.dtype)

        def put(numbers: np.ndarray, found: Tensor) -> None:
            rows[torch.from_numpy(numbers)] = found

        self._fill(np.arange(count), count, progress, put)
        return rows.to(self.device)

    def _fill(
        self,
        missing: np.ndarray,
        count: int,
        progress: bool,
        put: Callable[[np.ndarray, Tensor], None],
    ) -> None:
        """Hand over the gradients of networks that are missing, group by group."""
        if not len(missing):
            return
        bar = tqdm(
            total=count,
            initial=count - len(missing),
            unit="network",
            desc=self.name,
            disable=not progress,
        )
        with bar, own_random_state(self.device):
            step = self._group(self._build(int(missing[0])))
            for start in range(0, len(missing), step):
                numbers = missing[start : start + step]
                found = self._gradients(numbers.tolist())
                put(numbers, found.reshape(len(numbers), -1).cpu())
                bar.update(len(numbers))

    def _group(self, model: nn.Module) -> int:
        """Return how many networks are differentiated at a time."""
        small = sum(p.numel() for p in model.parameters()) <= STACKED_NUMBERS
        return self.group_size or (GROUP if small and is_repeatable(model) else 1)

    def _gradients(self, numbers: Any) -> Tensor:
        """Return the gradients of the networks of one group, drawn within own_random_state."""
        if self.jacobian == "autograd":
            found = self._exact(numbers)
        else:
            found = torch.stack([self._difference(self._repeatable(i)) for i in numbers])
        finite = found.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            number = list(numbers)[int(finite.int().argmin())]
            raise NonFiniteError(
                f"the gradient of {self.name} number {number} holds NaN or infinity; check the "
                "initialisation, eval_point and scale"
            )
        return found

    def _exact(self, numbers: Sequence[int]) -> Tensor:
        """Return gradients by autograd: of networks drawn into one if that works, or else built."""
        if len(numbers) >= FEWEST_REDRAWN:
            if self._redraw is None:
                self._redraw = self._try_redraw()
            if self._redraw:
                try:
                    stacks = self._redraw.stacked(numbers)
                    return stacked_gradients(self._redraw.model, *stacks, self.eval_point)
                except OutputError:
                    raise
                except (RuntimeError, ValueError):
                    self._redraw = False  # what is built below is tried together, and says why not
        models = [self._build(number) for number in numbers]
        if all(map(is_repeatable, models)):
            return autograd_gradients(models, self.eval_point)
        # random: each right after its seed
        return torch.cat([autograd_gradients([self._build(i)], self.eval_point) for i in numbers])

    def _try_redraw(self) -> Redraw | Literal[False]:
        """Return what draws small networks into one, or False where it draws others."""
        model = self._build(0)
        if sum(p.numel() for p in model.parameters()) > STACKED_NUMBERS or not is_repeatable(model):
            return False
        redraw = Redraw(model, self._build, self.seed, self.device)
        return redraw if redraw.works else False

    def _repeatable(self, number: int) -> nn.Module:
        model = self._build(number)
        if not is_repeatable(model):
            raise ConfigError(
                f"{self.name} is in training mode, where perturbed inputs that go through together "
                "may change one another; use force_eval=True, or jacobian='autograd'"
            )
        return model

    def _described(self) -> dict[str, Any]:
        """Return what defines the gradients, as plain JSON values."""
        point = self.eval_point.cpu().contiguous()
        about = {
            "name": "input gradient",
            "model": f"{getattr(self.model_cls, '__module__', '')}.{self.name}",
            "model_params": json.loads(json.dumps(self.model_params, default=repr)),
            "force_eval": self.force_eval,
            "jacobian": self.jacobian,
            "seed": self.seed,
            "eval_point": xxh3_64_hexdigest(point.numpy().tobytes()),
        }
        if self.jacobian == "finite_difference":
            about["scale"] = self.scale
        return about

    def _header(self, count: int) -> StoreHeader:
        dtype = str(self.eval_point.dtype).removeprefix("torch.")
        return StoreHeader(
            rows=count,
            width=self.eval_point.numel(),
            dtype=dtype,
            projection={"family": "identity", "proj_dim": None, "seed": 0},
            output=self._described(),
            params=(("input", tuple(self.eval_point.shape)),),
            weights="drawn",
            precision="fp64" if dtype == "float64" else "fp32",
            info={"pntk": __version__, "torch": str(torch.__version__)},
        )


def _check_point(point: object) -> None:
    if not isinstance(point, Tensor) or point.dtype not in (torch.float32, torch.float64):
        found = point.dtype if isinstance(point, Tensor) else type(point).__name__
        raise ConfigError(f"eval_point is {found}; expected a float32 or float64 tensor")
    if not point.dim() or not point.numel():
        raise ConfigError(
            f"eval_point has shape {tuple(point.shape)}; expected one input, such as [c, h, w]"
        )
    if not bool(point.isfinite().all()):
        raise ConfigError("eval_point holds NaN or infinity; expected finite numbers")


def _check_count(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} is {value!r}; expected an integer of at least {least}")
