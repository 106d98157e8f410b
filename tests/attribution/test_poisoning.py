import numpy as np
import pytest
import torch

from pntk.errors import ConfigError
from pntk.lds import Trigger, poison, stamp


@pytest.fixture
def images():
    return torch.rand(30, 2, 6, 8)


@pytest.mark.parametrize(
    ("at", "rows", "columns"),
    [((-1, -1), (4, 6), (5, 8)), ((0, 0), (0, 2), (0, 3)), ((1, -2), (1, 3), (4, 7))],
)
def test_stamp(images, at, rows, columns):
    before = images.clone()
    found = stamp(images, Trigger(0.5, size=(2, 3), at=at))
    expected = images.clone()
    expected[:, :, slice(*rows), slice(*columns)] = 0.5
    assert torch.equal(found, expected) and torch.equal(images, before)
    whole = stamp(np.zeros((2, 1, 6, 8), np.uint8), Trigger(255, size=(2, 3), at=at))
    assert whole.dtype == np.uint8 and whole.sum() == 2 * 6 * 255


def test_patterns(images):
    chequered = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = stamp(images, Trigger(chequered))
    assert torch.equal(found[:, :, -2:, -2:], chequered.expand(30, 2, 2, 2))
    coloured = torch.arange(8.0).view(2, 2, 2)
    assert torch.equal(stamp(images, Trigger(coloured))[3, :, -2:, -2:], coloured)


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_poison(images, kind):
    given = images if kind is torch.Tensor else images.numpy()
    labels = torch.arange(30) % 3
    trigger = Trigger(9.0, size=(1, 1))
    found = poison(given, labels, 1, 0.25, trigger, seed=4)
    assert isinstance(found.images, kind) and found.images.dtype == given.dtype
    assert found.is_poisoned.sum() == 5  # of 20 of other classes
    assert not (labels.numpy()[found.is_poisoned] == 1).any()
    assert np.array_equal(found.labels, np.where(found.is_poisoned, 1, labels))
    stamped = np.asarray(stamp(given, trigger))
    bad = found.is_poisoned[:, None, None, None]
    assert np.array_equal(np.asarray(found.images), np.where(bad, stamped, images))
    assert float(np.asarray(given).max()) < 9  # what was given stays
    again, other = (poison(given, labels, 1, 0.25, trigger, seed=seed) for seed in (4, 5))
    assert np.array_equal(again.is_poisoned, found.is_poisoned)
    assert not np.array_equal(other.is_poisoned, found.is_poisoned)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.rand(30, 6, 8)}, "images is .* expected a tensor or array"),
        ({"images": [1]}, "images is list"),
        ({"labels": [0, 1]}, r"labels is int64 \(2,\) for 30 images"),
        ({"labels": np.ones(30)}, "labels is float64"),
        ({"target": -1}, "target is -1; expected the number of a class"),
        ({"target": 1.5}, "target is 1.5"),
        ({"fraction": 0}, "fraction is 0 of 20 images of other classes"),
        ({"fraction": 0.001}, "and one image at least"),
        ({"fraction": 1.1}, "fraction is 1.1"),
        ({"trigger": Trigger(size=(7, 1))}, "takes rows -1 to 5 and the images have 6"),
        ({"trigger": Trigger(at=(0, 6))}, "takes columns 6 to 8 and the images have 8"),
        ({"trigger": Trigger(torch.ones(3, 2, 2))}, "has 3 channels and the images 2"),
        ({"trigger": Trigger(torch.ones(4))}, r"the trigger is float32 of shape \(4,\)"),
        ({"trigger": Trigger("red")}, "the trigger is <U3"),
    ],
)
def test_refused(images, changes, message):
    given = {"images": images, "labels": np.arange(30) % 3, "target": 1}
    with pytest.raises(ConfigError, match=message):
        poison(**{**given, **changes})
