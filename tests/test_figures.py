import sys

import pytest

from pntk.errors import MissingExtraError
from pntk.figures import new_figure, png


def test_figures_have_their_own_canvas_and_the_same_bytes_each_time():
    pytest.importorskip("matplotlib")
    pngs = []
    for _ in range(2):
        figure = new_figure(2, 1)
        figure.subplots().plot([1, 2])
        pngs.append(png(figure))
    assert pngs[0] == pngs[1] and b"Software" not in pngs[0]
    assert type(figure.canvas).__name__ == "FigureCanvasAgg"
    assert figure.get_size_inches().tolist() == [2, 1]


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="a plot needs matplotlib"):
        new_figure()
