import numpy as np
import pytest

from pntk.report import Surrogate
from pntk.surrogate import evaluate


@pytest.fixture
def surrogate():
    """A surrogate of three examples, of which the network gets the last wrong."""
    pytest.importorskip("scipy")
    ours = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    network = np.array([[0.99, 0.01], [0.8, 0.2], [0.6, 0.4]])
    labels = np.array([0, 0, 1])
    return Surrogate(
        name="glm",
        report=evaluate(ours, network, labels, bootstrap=0),
        ours=ours[np.arange(3), labels],
        network=network[np.arange(3), labels],
        right=np.array([True, True, False]),
    )


@pytest.fixture
def figures(monkeypatch):
    """The figures that a test draws."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = [], figure.savefig
    monkeypatch.setattr(
        figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    return drawn
