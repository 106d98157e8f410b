import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pntk.errors import ConfigError, DataError, ModelError
from pntk.nads import poison
from pntk.nads.poison import class_marks, poison_along, poison_experiment
from pntk.nads.training import Training


@pytest.fixture
def images():
    return torch.rand(40, 3, 4, 4), torch.arange(40) % 10


def test_colour_images_as_the_paper_marks_them(images):
    x, y = images
    v = torch.linalg.qr(torch.randn(16, 16)).Q.view(16, 1, 4, 4)
    found = poison_along((x, y), v, epsilon=0.3, index=5).tensors
    assert torch.equal(found[1], y)
    for image, before, label in zip(found[0], x, y.tolist(), strict=True):
        vector = v[5 + label // 6].flatten()
        sign = 1 if label % 2 else -1
        expected = before.clone()
        plane = expected[label % 3].view(-1)
        plane += (sign * 0.3 - plane @ vector) * vector
        torch.testing.assert_close(image, expected)


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_marks_differ(channels):
    marks = class_marks(23, index=4, channels=channels)
    assert len(set(marks)) == 23
    assert {mark.direction for mark in marks} == set(range(4, 4 + -(-23 // (2 * (channels or 1)))))


def test_directions_of_whole_images(images):
    x, y = images
    v = torch.randn(6, 3, 4, 4)
    found = poison_along(TensorDataset(x, y), v, epsilon=2).tensors[0]
    for image, before, label in zip(found, x, y.tolist(), strict=True):
        vector = v[label // 2] / v[label // 2].norm()
        sign = 1 if label % 2 else -1
        assert float((image * vector).sum()) == pytest.approx(2 * sign, abs=1e-5)
        rest = image - before - ((image - before) * vector).sum() * vector
        torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-6, rtol=0)


def test_add_instead_of_replace(images):
    x, y = images[0][:, :1], images[1] % 2
    v = torch.randn(3, 4, 4)
    found = poison_along(x, v, y, epsilon=0.5, index=2, replace=False).tensors[0]
    step = (0.5 * v[2] / v[2].norm()).expand(40, 1, 4, 4)
    signs = (2.0 * y - 1)[:, None, None, None]
    torch.testing.assert_close(found - x, signs * step, atol=1e-6, rtol=0)


def test_the_data_given_is_left_alone(images):
    x, y = images
    before = x.clone()
    poison_along((x, y), torch.randn(9, 1, 4, 4))
    assert torch.equal(x, before)


def test_absent_classes_keep_their_marks(images):
    x, y = images
    v = torch.randn(9, 3, 4, 4)
    full = poison_along((x, y), v).tensors[0]
    few = poison_along((x[y == 3], y[y == 3]), v, num_classes=10).tensors[0]
    torch.testing.assert_close(few, full[y == 3])


@pytest.mark.parametrize(
    ("directions", "options", "match"),
    [
        (torch.ones(9, 3, 5, 4), {}, r"shape \(9, 3, 5, 4\); expected \[r, 3, 4, 4\], or \[r, 1,"),
        (torch.zeros(9, 3, 4, 4), {}, r"direction 0 of shape \(3, 4, 4\) has length 0.0"),
        (torch.ones(4, 3, 4, 4), {}, "10 classes take 5; expected an index of at most -1, or more"),
        (torch.ones(6, 1, 4, 4), {"index": 5}, "index is 5 of 6 directions, and 10 classes take 2"),
        (torch.ones(6, 1, 4, 4), {"index": -1}, "index is -1; expected an integer of at least 0"),
        (torch.ones(6, 1, 4, 4), {"epsilon": -1}, "epsilon is -1"),
        (torch.ones(6, 1, 4, 4), {"num_classes": 3}, "num_classes is 3 and the labels go up to 9"),
        (torch.ones(6, 1, 4, 4).int(), {}, "expected a tensor of floating point"),
        ("nads", {}, "directions is str; expected a tensor"),
    ],
)
def test_arguments_that_are_refused(images, directions, options, match):
    with pytest.raises(ConfigError, match=match):
        poison_along(images, directions, **options)


class Half(nn.Module):
    """A linear classifier that sees the upper half of an image."""

    def __init__(self, classes=2):
        super().__init__()
        self.linear = nn.Linear(8, classes)

    def forward(self, x):
        return self.linear(x[:, :, :2].flatten(1))


def halves(count, seed):
    """Classes that differ in the first pixel, with noise elsewhere."""
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 4, 4, generator=random), torch.arange(count) % 2
    x[:, 0, 0, 0] = (2.0 * y - 1) * 2
    return x, y


FAST = {"epsilon": 10, "training": Training(epochs=3, lr=0.3), "progress": False}


def test_a_mark_that_is_seen_hides_the_data(tmp_path, monkeypatch):
    train, test = halves(400, 0), halves(400, 1)
    v = torch.eye(16).view(16, 1, 4, 4)
    path = tmp_path / "poison.json"
    found = poison_experiment(Half, train, test, v, [7, 15], **FAST, path=path)
    seen, unseen = found.poisoned
    assert found.clean > 0.95 and found.indices == [7, 15]
    assert seen < found.clean - 0.2 and unseen == found.clean
    # what is known is not trained again
    monkeypatch.setattr(poison, "train_classifier", None)
    again = poison_experiment(Half, train, test, v, [15, 7], **FAST, path=path)
    assert again.poisoned.tolist() == [unseen, seen]
    with pytest.raises(ConfigError, match="measurements with other test"):
        poison_experiment(Half, train, halves(400, 2), v, [7], **FAST, path=path)


def test_experiments_that_are_refused():
    train, test = halves(8, 0), halves(8, 1)
    v = torch.eye(16).view(16, 1, 4, 4)
    with pytest.raises(ConfigError, match="index is 16 of 16 directions"):
        poison_experiment(Half, train, test, v, [0, 16])
    with pytest.raises(DataError, match=r"test has inputs of shape \(16,\) and train of"):
        poison_experiment(Half, train, (test[0].flatten(1), test[1]), v, [0])
    with pytest.raises(ModelError, match="give it 2 classes"):
        poison_experiment(Half, train, test, v, [0], {"classes": 1})
