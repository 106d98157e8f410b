"""Pictures: what is drawn, for any shape and number of channels."""

import io

import numpy as np
import pytest
import torch

from pntk.errors import ConfigError, DataError
from pntk.nads import NADs
from pntk.nads.plots import image_of

pytest.importorskip("matplotlib")


def nads_of(*shape, r=7, name="LeNet"):
    return NADs(torch.randn(r, *shape), torch.arange(r, 0, -1.0), name)


def shown(figure):
    """Return the axes that have a picture, after drawing everything."""
    figure.savefig(io.BytesIO(), format="png")
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.parametrize("view", ["pixel", "fourier"])
@pytest.mark.parametrize("shape", [(1, 6, 9), (3, 8, 5), (2, 4, 4), (5, 7), (11,)])
def test_any_shape(shape, view):
    axes = shown(nads_of(*shape).visualize_nads(3, view))
    assert len(axes) == 3
    sizes = shape[-2:] if len(shape) > 1 else (1, *shape)
    assert axes[0].images[0].get_array().shape[:2] == sizes
    assert [a.get_title() for a in axes] == ["0", "1", "2"]


def test_which_are_drawn():
    nads = nads_of(1, 4, 4)
    assert len(shown(nads.visualize_nads())) == 7
    figure = nads.visualize_nads([5, -1], title="some")
    assert [axes.get_title() for axes in shown(figure)] == ["5", "6"]
    assert figure.get_suptitle() == "some"
    found = shown(nads.visualize_nads(slice(2, 4)))[0].images[0].get_array()
    assert np.allclose(found, nads[2, 0].numpy())


@pytest.mark.parametrize("bad", [0, -1, True, [7], [], "all", [0.5]])
def test_directions_that_are_not_there(bad):
    with pytest.raises(ConfigError, match=r"indices are .*numbers below 7"):
        nads_of(1, 4, 4).visualize_nads(bad)


def test_bad_views_and_shapes():
    with pytest.raises(ConfigError, match="view is 'wave'; expected one of pixel, fourier"):
        nads_of(1, 4, 4).visualize_nads(view="wave")
    with pytest.raises(DataError, match=r"expected \[c, h, w\]"):
        nads_of(1, 2, 4, 4).visualize_nads()


def test_a_wave_has_two_points_of_power():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (2 * y / 8 + x / 6))
    power = image_of(wave[None], "fourier")
    assert {tuple(place) for place in np.argwhere(power > 1e-6)} == {(4 + 2, 3 + 1), (4 - 2, 3 - 1)}


def test_the_spectrum():
    figure = nads_of(1, 4, 4).visualize_spectrum()
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [7, 6, 5, 4, 3, 2, 1]
    assert line.get_xdata().tolist() == list(range(1, 8))
    assert figure.axes[0].get_yscale() == "log"


def test_spectra_to_compare():
    from pntk.nads.plots import draw_spectrum

    figure = draw_spectrum([nads_of(4), nads_of(4, name=None)], normalize=True)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["LeNet", "set 2"]
    assert np.linalg.norm(figure.axes[0].lines[1].get_ydata()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="no NADs to draw"):
        draw_spectrum([])
