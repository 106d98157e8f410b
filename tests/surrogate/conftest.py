import numpy as np
import pytest
import torch


@pytest.fixture
def blobs():
    """Rows [n, k] of classes that overlap, float64, and their labels; more of them for a test."""

    def make(n=60, k=8, classes=3, seed=0, spread=1.0):
        generator = np.random.default_rng(seed)
        centres = np.random.default_rng(99).normal(size=(classes, k))
        labels = np.arange(n) % classes
        rows = centres[labels] + spread * generator.normal(size=(n, k))
        return torch.from_numpy(rows), labels

    return make
