import base64
import io
import subprocess
import sys

import numpy as np
import pytest

from pntk.report import plots
from pntk.report.summary import cosine_kernel

matplotlib = pytest.importorskip("matplotlib")
matplotlib_image = pytest.importorskip("matplotlib.image")


def decode(png):
    """Pixels [h, w, 3] in 0 to 255."""
    return np.rint(255 * matplotlib_image.imread(io.BytesIO(png), format="png")[..., :3])


@pytest.fixture
def cosine():
    rows = np.random.default_rng(0).normal(size=(6, 4))
    return cosine_kernel(rows @ rows.T)


def test_kernel_is_sorted_by_class(cosine, figures):
    labels = np.array([1, 0, 2, 0, 1, 0])
    plots.kernel_plot(cosine, labels, ["cat", "dog", "bird"])
    axes = figures[0].axes[0]
    order = [1, 3, 5, 0, 4, 2]
    np.testing.assert_array_equal(axes.images[0].get_array(), cosine[np.ix_(order, order)])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog", "bird"]
    np.testing.assert_allclose(axes.get_yticks(), [1, 3.5, 5])
    edges = [line.get_ydata()[0] for line in axes.lines[::2]]
    np.testing.assert_allclose(edges, [2.5, 4.5])


def test_kernel_without_labels_keeps_the_order(cosine, figures):
    plots.kernel_plot(cosine, None, None)
    axes = figures[0].axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), cosine)
    assert axes.get_xlabel() == "sample"
    assert not axes.lines


@pytest.mark.parametrize("samples", [1, 2])
def test_smallest_kernels_are_drawn(samples):
    assert decode(plots.kernel_plot(np.eye(samples), np.arange(samples), None)).size


def test_many_classes_are_named_without_crowding(figures):
    plots.kernel_plot(np.eye(200), np.arange(200), [f"class {i}" for i in range(200)])
    assert 20 <= len(figures[0].axes[0].get_yticks()) <= plots.TICK_LABELS + 1


def test_class_names_are_never_mathematics(figures):
    plots.kernel_plot(np.eye(2), np.arange(2), ["$5 to $10", "a name that goes on and on"])
    names = [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()]
    assert names == [r"\$5 to \$10", "a name that g…"]


def test_spectrum_axes_and_share(figures):
    plots.spectrum_plot(np.array([1.0, 6.0, 3.0, 0.0]))
    top, bottom = figures[0].axes
    assert (top.get_xscale(), top.get_yscale(), bottom.get_yscale()) == ("log", "log", "linear")
    np.testing.assert_array_equal(top.lines[0].get_ydata(), [6, 3, 1])
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), [60, 90, 100])


def test_a_single_eigenvalue_is_drawn():
    assert decode(plots.spectrum_plot(np.array([2.0]))).size


def test_plots_ignore_the_users_style_and_stay_deterministic(cosine):
    before = plots.kernel_plot(cosine, None, None)
    with matplotlib.rc_context({"text.color": "white", "axes.labelcolor": "white"}):
        assert plots.kernel_plot(cosine, None, None) == before


def test_pyplot_is_not_imported():
    program = (
        "import sys, numpy\n"
        "from pntk.report import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.spectrum_plot(numpy.ones(2)); plots.thumbnail(numpy.ones((2, 2)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.array([[0, 100, 200]], np.uint8), [0, 100, 200]),
        (np.array([[0.2, 0.4, 0.6]]), [51, 102, 153]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 8, 16]]), [0, 128, 255]),
        (np.array([[-2.0, 0.0, 2.0]], np.float32), [0, 128, 255]),
        (np.array([[7.0, 7.0]]), [0, 0]),
        (np.array([[0.2, np.nan, np.inf]]), [51, 0, 0]),
        (np.array([[np.nan]]), [0]),
    ],
)
def test_thumbnail_of_any_range(image, expected):
    pixels = decode(plots.thumbnail(image))
    np.testing.assert_array_equal(pixels, np.repeat(expected, 3).reshape(1, -1, 3))


def test_thumbnail_keeps_colours():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(plots.thumbnail(image)), image)
    grey = image[..., :1]
    np.testing.assert_array_equal(decode(plots.thumbnail(grey)), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("shape", [(193, 70), (500, 400, 3), (192, 192), (4000, 1)])
def test_large_thumbnails_are_averaged(shape):
    image = np.random.default_rng(0).random(shape)
    pixels = decode(plots.thumbnail(image))
    assert max(pixels.shape[:2]) <= plots.THUMBNAIL_SIDE
    factor = -(-max(shape[:2]) // plots.THUMBNAIL_SIDE)
    block = image[:factor, :factor].mean(axis=(0, 1))
    np.testing.assert_allclose(pixels[0, 0], 255 * np.broadcast_to(block, 3), atol=0.51)


def test_data_uri():
    head, _, body = plots.data_uri(b"png").partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == b"png"
