"""Measures of isotropy against closed forms."""

import numpy as np
import pytest
import torch

from pntk.errors import DataError
from pntk.nads import NADs, compare, isotropy


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_an_isotropic_spectrum(scale):
    found = isotropy(torch.full((8,), scale, dtype=torch.float64))
    assert found.kl_to_uniform == pytest.approx(0, abs=1e-12)
    assert found.entropy == pytest.approx(np.log(8))
    assert found.participation_ratio == pytest.approx(8)
    assert found.effective_rank == pytest.approx(8)
    assert found.gini == pytest.approx(0, abs=1e-12)
    assert found.top_share == pytest.approx(1 / 8)


def test_one_direction():
    found = isotropy([0.0, 3.0, 0.0, 0.0])
    assert found.kl_to_uniform == pytest.approx(np.log(4))
    assert found.entropy == 0
    assert found.participation_ratio == found.effective_rank == found.top_share == 1
    assert found.gini == pytest.approx(1 - 1 / 4)


def test_against_definitions():
    s = np.random.default_rng(0).random(20)
    p = s**2 / (s**2).sum()
    found = isotropy(s)
    assert found.kl_to_uniform == pytest.approx((p * np.log(20 * p)).sum())
    assert found.participation_ratio == pytest.approx(1 / (p**2).sum())
    assert found.gini == pytest.approx(np.abs(p[:, None] - p).sum() / (2 * 20 * p.sum()))


def test_metrics_of_nads():
    nads = NADs(torch.eye(4), torch.tensor([2.0, 1, 1, 1]))
    assert nads.isotropy() == isotropy([2, 1, 1, 1])


@pytest.mark.parametrize("bad", [[], [[1.0]], [1, -1], [0, 0], [1, float("nan")]])
def test_bad_spectra(bad):
    with pytest.raises(DataError, match="singular values"):
        isotropy(bad)


def rotated(angle):
    turn = torch.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = c, s, -s, c
    return NADs(turn.reshape(4, 2, 2), torch.tensor([8.0, 4.0, 2.0, 1.0]))


def test_overlap_of_subspaces():
    found = compare(rotated(0.0), rotated(0.3), ranks=(1, 2, 3, 9))
    c = np.cos(0.3) ** 2
    assert found.overlap == pytest.approx({1: c, 2: (1 + c) / 2, 3: 1.0}, abs=1e-6)
    assert found.chance == {1: 0.25, 2: 0.5, 3: 0.75}
    assert (found.pearson, found.spearman) == pytest.approx((1, 1))
    assert found.spectrum_ratio == pytest.approx(1)


def test_correlation_of_spectra():
    ours = NADs(torch.eye(3), torch.tensor([3.0, 2.0, 1.0]))
    flat = NADs(torch.eye(3), torch.tensor([5.0, 5.0, 2.5]))
    found = compare(ours, flat, [1])
    expected = np.corrcoef(np.log([3, 2, 1]), np.log([5, 5, 2.5]))[0, 1]
    assert found.pearson == pytest.approx(expected, abs=1e-6)
    assert found.spearman == pytest.approx(np.corrcoef([3, 2, 1], [2.5, 2.5, 1])[0, 1])


def test_what_cannot_be_compared():
    from pntk.errors import ConfigError

    with pytest.raises(ConfigError, match="expected as many numbers in each"):
        compare(rotated(0), NADs(torch.eye(3), torch.ones(3)))
    with pytest.raises(ConfigError, match="expected some of 1 to 4"):
        compare(rotated(0), rotated(0), [5])
    with pytest.raises(ConfigError, match="published is a Tensor; expected NADs"):
        compare(rotated(0), torch.eye(4))
