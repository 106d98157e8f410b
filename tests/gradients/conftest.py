"""Per-sample gradients by the plainest road: one sample and one output at a time."""

import pytest
import torch

from pntk.batch import batch_size, take
from pntk.outputs import check_values, resolve_output


@pytest.fixture(scope="session")
def loop_rows():
    """Gradients [b, c * p] of each output by torch.autograd.grad, in the model's order."""

    def rows(model, batch, output="pntk"):
        output = resolve_output(output)
        params = [p for p in model.parameters() if p.requires_grad]
        found = []
        for n in range(batch_size(batch)):
            values = check_values(output(model, take(batch, slice(n, n + 1))), 1)[0]
            row = []
            for value in values:
                grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
                row += [
                    torch.zeros(p.numel(), dtype=p.dtype) if g is None else g.to_dense().flatten()
                    for p, g in zip(params, grads, strict=True)
                ]
            found.append(torch.cat(row))
        return torch.stack(found)

    return rows


@pytest.fixture(scope="session")
def distance():
    """|found - expected| / |expected|, over all rows."""

    def relative(found, expected):
        difference = (found.cpu().double() - expected.cpu().double()).norm()
        return float(difference / expected.double().norm().clamp(min=1e-30))

    return relative
