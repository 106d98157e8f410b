"""What is computed in a rectangle is what the whole images would give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pntk.nads.local import LocalImages, Memo, NotLocalError

SPANS = [(3, 6), (0, 2)]


def images(b=4, c=4, h=11, w=9, spans=SPANS):
    base = torch.randn(1, c, h, w, dtype=torch.float64)
    patch = torch.randn(b, c, *(stop - start for start, stop in spans), dtype=torch.float64)
    return LocalImages(base, patch, list(spans), Memo())


LAYERS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 3, padding=1, bias=False),
    nn.Conv2d(4, 6, (5, 3), stride=(2, 3), padding=(2, 0), groups=2),
    nn.Conv2d(4, 6, 3, dilation=2, padding=3),
    nn.Conv2d(4, 6, 1, stride=4),  # does not see the rectangle
    nn.BatchNorm2d(4).eval(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.GELU(),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d((2, 3), dilation=(1, 2)),
    nn.AvgPool2d(2),
    nn.AvgPool2d((3, 2), stride=1),
]
ELSEWHERE = [  # on whole images
    nn.AvgPool2d(3, 2, 1),
    nn.ConvTranspose2d(4, 2, 2),
    nn.AdaptiveAvgPool2d(2),
    nn.GroupNorm(2, 4),
    nn.Softmax2d(),
    nn.Flatten(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_in_its_rectangle(layer):
    local = images()
    whole = local.whole()
    with torch.no_grad():
        found, expected = layer.double()(local), layer(whole)
    assert isinstance(found, LocalImages)
    assert found.shape == expected.shape
    assert found.patch.shape[2:].numel() < expected.shape[2:].numel()
    torch.testing.assert_close(found.whole(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", ELSEWHERE, ids=str)
def test_a_layer_on_whole_images(layer):
    local = images()
    with torch.no_grad():
        found = layer.double()(local)
        torch.testing.assert_close(found, layer(local.whole()), rtol=1e-12, atol=1e-12)


def test_padding_is_no_maximum():
    local = images(spans=[(0, 3), (7, 9)])
    local = LocalImages(-local.base.abs(), -local.patch.abs(), local.rectangle, Memo())
    with torch.no_grad():
        assert torch.equal(
            F.max_pool2d(local, 3, 2, 1).whole(), F.max_pool2d(local.whole(), 3, 2, 1)
        )


def test_branches_meet_in_the_smallest_rectangle_around_both():
    local, conv = images(), nn.Conv2d(4, 4, 3, padding=1).double()

    def run(x):
        y = conv(x)
        y += 2 * x
        z = torch.cat([y, F.relu(x)], 1)
        return z - conv(conv(x)).repeat(1, 2, 1, 1) if type(x) is torch.Tensor else z

    with torch.no_grad():
        found, whole = run(local), local.whole()
        expected = torch.cat([conv(whole) + 2 * whole, F.relu(whole)], 1)
    assert found.rectangle == [(2, 7), (0, 3)]
    torch.testing.assert_close(found.whole(), expected, rtol=1e-12, atol=1e-12)


def test_one_dimension_and_a_rectangle_at_the_end():
    local = LocalImages(torch.randn(1, 2, 9), torch.randn(3, 2, 2), [(7, 9)], Memo())
    layer = nn.Conv1d(2, 3, 3, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(layer(local).whole(), layer(local.whole()))


def test_the_base_goes_through_once():
    local, layer = images(), nn.Conv2d(4, 6, 3).double()
    other = LocalImages(local.base, local.patch + 1, SPANS, local.memo)
    with torch.no_grad():
        assert layer(local).base is layer(other).base
        changed = nn.Conv2d(4, 6, 3).double()
        assert changed(local).base is not layer(local).base


def test_a_change_in_place_that_is_not_known_is_refused():
    with torch.no_grad(), pytest.raises(NotLocalError, match="fill_"):
        images().fill_(0)
