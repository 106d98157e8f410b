"""NADs: directions in input space with the singular values that go with them.

Shapes: r directions; c channels; h, w pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


class NADs:
    """Neural anisotropy directions, sorted by singular value; indexing is that of ``directions``.

    Args:
        directions: [r, *shape], of unit norm.
        singular_values: [r], descending: of the n gradients, so that their covariance has the
            eigenvalues s^2 / n.
        name: of the networks.
        model_params: that the networks were drawn with.
        centered: whether the mean gradient was taken off; None if it is not known.
        num_samples: n; None if it is not known.
        info: whatever else is to be kept, as plain JSON values.

    Raises:
        DataError: shapes that do not fit, numbers that are not finite, or a direction of zeros.

    Example:
        >>> nads = NADs(torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([4.0, 3.0, 2.0, 1.0]))
        >>> nads[:2].shape, nads.shape
        (torch.Size([2, 1, 2, 2]), (1, 2, 2))
    """

    def __init__(
        self,
        directions: Tensor,
        singular_values: Tensor,
        name: str | None = None,
        model_params: Mapping[str, Any] | None = None,
        centered: bool | None = None,
        num_samples: int | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        for what, given in (("directions", directions), ("singular values", singular_values)):
            if not isinstance(given, Tensor) or not given.is_floating_point():
                kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise DataError(
                    f"{what} are {kind}; expected tensors of floating point "
                    "(NADs.from_arrays takes arrays)"
                )
        if directions.dim() < 2 or singular_values.shape != directions.shape[:1]:
            raise DataError(
                f"directions have shape {tuple(directions.shape)} and singular values "
                f"{tuple(singular_values.shape)}; expected [r, *shape] and [r]"
            )
        if not len(directions):
            raise DataError("there are no directions; expected at least one")
        if not bool(directions.isfinite().all() & singular_values.isfinite().all()):
            raise DataError("directions or singular values hold NaN or infinity")
        zero = ~directions.flatten(1).any(1)
        if bool(zero.any()):
            raise DataError(
                f"direction {int(zero.nonzero()[0])} of {len(directions)} is zero; expected "
                "directions of unit norm: leave it and its singular value out"
            )
        self.directions = directions
        self.singular_values = singular_values
        self.name = name
        self.model_params = dict(model_params or {})
        self.centered = centered
        self.num_samples = num_samples
        self.info = dict(info or {})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one direction."""
        return tuple(self.directions.shape[1:])

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, item: Any) -> Tensor:
        """Return directions, as indexing their tensor does."""
        return self.directions[item]

    def __repr__(self) -> str:
        return f"NADs({len(self)} directions of {self.shape}, {self.name or 'of unknown networks'})"

    def to(self, *args: Any, **kwargs: Any) -> NADs:
        """Return a copy on a device or of a type, as ``Tensor.to`` does."""
        return NADs(
            self.directions.to(*args, **kwargs),
            self.singular_values.to(*args, **kwargs),
            self.name,
            self.model_params,
            self.centered,
            self.num_samples,
            self.info,
        )

    def isotropy(self) -> Any:
        """Return how even the spectrum is; see :func:`pntk.nads.metrics.isotropy`."""
        from pntk.nads.metrics import isotropy

        return isotropy(self.singular_values)

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file: HDF5 (.h5, .hdf5) or safetensors (.safetensors).

        Raises:
            ConfigError: another suffix, or a path that cannot be written to.
        """
        from pntk.nads.files import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NADs:
        """Read what :meth:`save` wrote, published arrays, or a file of the ``nads`` package.

        Of published arrays (``NAME_NADs.npy``), ``NAME_eigenvals.npy`` is read beside it, and
        directions are taken as square images of one channel. No file can make code run.

        Raises:
            DataError: no such file, or none of these.
        """
        from pntk.nads.files import load

        return load(path)

    @classmethod
    def from_arrays(
        cls,
        directions: str | os.PathLike[str] | np.ndarray,
        singular_values: str | os.PathLike[str] | np.ndarray,
        shape: tuple[int, ...] | None = None,
        **about: Any,
    ) -> NADs:
        """Make NADs of arrays [r, d] and [r], or of the .npy files that hold them.

        Args:
            shape: of one direction; None for a square image of one channel, and a vector where d is
                no square.
            about: other arguments of :class:`NADs`.
        """
        from pntk.nads.files import from_arrays

        return from_arrays(directions, singular_values, shape, **about)

    # ---- pictures ----------------------------------------------------------------------------

    def visualize_nads(self, indices: Any = 10, view: str = "pixel", **options: Any) -> Figure:
        """Draw directions; see :func:`pntk.nads.plots.draw_directions`."""
        from pntk.nads.plots import draw_directions

        return draw_directions(self, indices, view, **options)

    def visualize_spectrum(self, **options: Any) -> Figure:
        """Draw singular values against rank; see :func:`pntk.nads.plots.draw_spectrum`."""
        from pntk.nads.plots import draw_spectrum

        return draw_spectrum(self, **options)


def as_nads(what: str, nads: object) -> NADs:
    """Return NADs, or say what else it is.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(nads, NADs):
        raise ConfigError(
            f"{what} is a {type(nads).__name__}; expected NADs (NADs.load reads them)"
        )
    return nads


def unit(direction: Tensor) -> Tensor:
    """Return a direction of norm 1.

    Raises:
        DataError: it is zero, or not finite.
    """
    norm = torch.linalg.vector_norm(direction)
    if not bool(norm > 0) or not bool(norm.isfinite()):
        raise DataError(f"a direction of norm {float(norm)}; expected a finite one above zero")
    return direction / norm
