"""Sketches of one parameter, and how far two sets of rows are apart."""

from functools import lru_cache

import pytest
import torch

from pntk.projection import ProjectionSpec
from pntk.projection.dispatch import Projector
from pntk.projection.reference import projection_matrix

NAME = "block.0.weight"


@pytest.fixture(scope="session")
def make_sketch():
    def make(spec, shape, dtype=torch.float64, device="cpu", name=NAME, **options):
        projector = Projector(
            spec, {name: shape}, dtype=dtype, device=torch.device(device), **options
        )
        return projector.sketch(name)

    return make


@pytest.fixture(scope="session")
def reference():
    """The float64 matrix A_{w,c} [k, n] as a tensor."""

    @lru_cache(maxsize=64)
    def matrix(family, k, shape, output=0, seed=0, name=NAME):
        spec = ProjectionSpec(family, k, seed)
        return torch.from_numpy(projection_matrix(spec, name, shape, output))

    return matrix


@pytest.fixture(scope="session")
def distance():
    """|found - expected| / |expected|, over all rows."""

    def relative(found, expected):
        difference = (found.cpu().double() - expected.cpu().double()).norm()
        return float(difference / expected.double().norm().clamp(min=1e-30))

    return relative
