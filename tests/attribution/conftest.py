"""Rows of two checkpoints, and stores of them."""

import pytest
import torch

from pntk.store import FeatureStore, RowWriter, StoreHeader

N, M, K = 40, 7, 12


@pytest.fixture
def rows():
    """Training rows, target rows and Q of two checkpoints, float64."""
    make = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    return [(draw(N, K), draw(M, K), torch.rand(N, generator=make).double()) for _ in range(2)]


@pytest.fixture
def put(tmp_path):
    """Write rows to a store and open it."""

    def write(name, values, *, output="margin", columns=None, skipped=(), seed=0, weights="ab"):
        columns = columns or {}
        header = StoreHeader(
            rows=len(values),
            width=values.shape[1],
            dtype=str(values.dtype).removeprefix("torch."),
            projection={"family": "normal", "proj_dim": values.shape[1], "seed": seed},
            output={"name": output},
            params=(("weight", (3,)),),
            weights=weights,
            precision="fp32",
            columns=dict.fromkeys(columns, "float32"),
        )
        mask = torch.zeros(len(values), dtype=torch.bool)
        mask[list(skipped)] = True
        with RowWriter.open(tmp_path / name, header) as writer:
            writer.write(torch.arange(len(values)), values, columns, mask)
        return FeatureStore(tmp_path / name)

    return write
