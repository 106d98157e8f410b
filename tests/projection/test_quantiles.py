from statistics import NormalDist

import numpy as np
import pytest
import torch

from pntk.projection.quantiles import LEVEL_SCALE, NORMAL_MEAN_SQUARE, NORMAL_TABLE

LEVELS = torch.from_numpy(NORMAL_TABLE)


def test_levels_are_rounded_normal_quantiles():
    for t in (0, 1, 100, 127, 128, 200, 255):
        exact = LEVEL_SCALE * NormalDist().inv_cdf((t + 0.5) / 256)
        assert abs(int(NORMAL_TABLE[t]) - exact) <= 0.5


def test_levels_are_antisymmetric_integers_up_to_254():
    assert np.issubdtype(NORMAL_TABLE.dtype, np.integer)
    assert np.array_equal(NORMAL_TABLE, -NORMAL_TABLE[::-1])
    assert np.all(np.diff(NORMAL_TABLE) >= 0)
    assert NORMAL_TABLE.max() == 254 and NORMAL_TABLE.min() == -254


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_are_exact_in_half_precision(dtype):
    assert torch.equal(LEVELS.to(dtype).to(torch.int16), LEVELS)


def test_scaled_levels_have_unit_variance_and_normal_tails():
    scaled = LEVELS.double() / NORMAL_MEAN_SQUARE**0.5
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-15)
    assert float((scaled**2).mean()) == pytest.approx(1, abs=1e-12)
    assert 2.7 < float((scaled**4).mean()) < 3
