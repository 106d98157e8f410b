import pytest
import torch

from pntk.gradients.hooks import CallLayout, layout_of


@pytest.mark.parametrize(
    ("two", "three", "expected"),
    [
        ((2, 5), (3, 5), CallLayout(0)),
        ((7, 2, 5), (7, 3, 5), CallLayout(1)),
        ((8, 5), (12, 5), CallLayout(0)),  # four entries a sample
        ((2,), (3,), CallLayout(0)),
        ((7, 5), (7, 5), CallLayout(shared=True, insert=True)),
        ((1, 7), (1, 7), CallLayout(shared=True)),
        ((), (), CallLayout(shared=True, insert=True)),
        ((2, 2), (3, 3), None),
        ((2, 5), (4, 5), None),
        ((2, 5), (5,), None),
    ],
)
def test_layout_of(two, three, expected):
    assert layout_of(torch.Size(two), torch.Size(three)) == expected


def test_samples_come_first():
    x = torch.arange(24.0).view(4, 2, 3)
    found = CallLayout(axis=1).samples_first(x, 2)
    assert torch.equal(found, x.transpose(0, 1))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(CallLayout(shared=True, insert=True), (4, 5)), (CallLayout(shared=True), (1, 5))],
)
def test_shared_tensors_are_views_for_every_sample(layout, shape):
    x = torch.randn(shape)
    found = layout.samples_first(x, 3)
    assert found.shape == ((3, 4, 5) if shape[0] == 4 else (3, 5))
    assert found.data_ptr() == x.data_ptr()
    assert all(torch.equal(one, x if shape[0] == 4 else x[0]) for one in found)
