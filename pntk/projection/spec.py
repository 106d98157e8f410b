"""Which random linear map makes the rows: family, dimension and seed."""

from __future__ import annotations

import json
import operator
from dataclasses import asdict, dataclass

from pntk.errors import ConfigError

FAMILIES = ("hadamard", "rademacher", "normal", "identity")
DEFAULT_PROJ_DIM = 4096
MIN_TILE_COLUMNS = 8
MAX_SEED = 2**64
MAX_PROJ_DIM = 2**28  # a row of 1 GiB


@dataclass(frozen=True)
class ProjectionSpec:
    """Name a projection; equal specs make equal maps on every device.

    Args:
        family: ``hadamard`` (tile-Hadamard sketch, the default), ``rademacher`` or ``normal``
            (dense, independent entries), or ``identity`` (no projection).
        proj_dim: k, the width of a row. A power of two, at least 8, for ``hadamard``; at least 1
            for the dense families; ``None`` for ``identity``, whose width is that of the gradient.
            ``None`` means 4096 for the others.
        seed: 0 to 2^64 - 1.

    Raises:
        ConfigError: a value that cannot work, with the nearest that can.

    >>> ProjectionSpec("hadamard", 1024, seed=1).to_json()
    '{"family": "hadamard", "proj_dim": 1024, "seed": 1}'
    """

    family: str = "hadamard"
    proj_dim: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(
                f"unknown projection {self.family!r}; expected one of {', '.join(FAMILIES)}"
            )
        object.__setattr__(self, "seed", _integer("seed", self.seed, "from 0 to 2^64 - 1"))
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; expected 0 to 2^64 - 1")
        if self.family == "identity":
            if self.proj_dim is not None:
                raise ConfigError(
                    f"proj_dim is {self.proj_dim} for the identity; its rows are as wide as the "
                    "gradient, so leave proj_dim out (None)"
                )
            return
        if self.proj_dim is None:
            object.__setattr__(self, "proj_dim", DEFAULT_PROJ_DIM)
        proj_dim = _integer("proj_dim", self.proj_dim, "of at least 1")
        object.__setattr__(self, "proj_dim", proj_dim)
        _check_proj_dim(self.family, proj_dim)

    def to_dict(self) -> dict[str, object]:
        """Return the three fields as plain JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the spec as one line of JSON, keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ProjectionSpec:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: the text is not JSON, or its fields are not a spec's.
        """
        try:
            fields = json.loads(text)
            return cls(**fields)
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(
                f"cannot read a projection spec from {text[:80]!r}: {error}; expected the JSON "
                "that ProjectionSpec.to_json() writes"
            ) from None


def _integer(what: str, value: object, expected: str) -> int:
    """Return an int of any integer type (NumPy's too), but not of a bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # what has no index raises
    except TypeError:
        raise ConfigError(f"{what} is {value!r}; expected an integer {expected}") from None


def _check_proj_dim(family: str, proj_dim: int) -> None:
    if not 1 <= proj_dim <= MAX_PROJ_DIM:
        raise ConfigError(f"proj_dim is {proj_dim}; expected at least 1 and at most {MAX_PROJ_DIM}")
    if family != "hadamard":
        return
    if proj_dim < MIN_TILE_COLUMNS:
        raise ConfigError(
            f"proj_dim is {proj_dim}; hadamard needs a power of two, at least {MIN_TILE_COLUMNS} "
            "(rademacher and normal take any)"
        )
    if proj_dim & (proj_dim - 1):
        below = 1 << (proj_dim.bit_length() - 1)
        raise ConfigError(
            f"proj_dim is {proj_dim}; hadamard needs a power of two: {below} or {2 * below} "
            "(rademacher and normal take any)"
        )
