import numpy as np
import pytest
import torch

from pntk.store import FeatureStore, RowWriter, StoreHeader


@pytest.fixture
def make_store():
    """Write rows [n, k] to a store, with labels if there are any."""

    def make(path, rows, labels=None):
        header = StoreHeader(
            rows=len(rows),
            width=rows.shape[1],
            dtype=str(rows.dtype).removeprefix("torch."),
            projection={},
            output={},
            params=(),
            weights="",
            precision="fp32",
            columns={} if labels is None else {"labels": "int64"},
        )
        columns = {} if labels is None else {"labels": labels}
        with RowWriter.open(path, header) as writer:
            writer.write(np.arange(len(rows)), rows, columns)
        return FeatureStore(path)

    return make


@pytest.fixture
def kernel_with():
    """Return Q diag(values) Q^T for a random orthogonal Q."""

    def make(values, dtype=torch.float64):
        values = torch.as_tensor(values, dtype=torch.float64)
        q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
        kernel = q * values @ q.T
        return ((kernel + kernel.T) / 2).to(dtype)

    return make
