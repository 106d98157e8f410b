import numpy as np
import pytest
import torch
from torch import nn

from pntk.errors import ConfigError
from pntk.representation.directions import between, random_direction, trajectory_pca


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


def lengths(tensor):
    return tensor.flatten(1).norm(dim=1)


def test_filters_have_the_lengths_of_the_weights():
    model = net()
    found = random_direction(model, 3)
    for name in ("0.weight", "4.weight"):
        weight = model.get_parameter(name)
        assert torch.allclose(lengths(found[name]), lengths(weight), rtol=1e-5)
        assert not torch.allclose(found[name], weight)
    for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
        assert not found[name].any()
    assert list(found) == [name for name, _ in model.named_parameters()]


def test_layer_none_and_vectors():
    model = net()
    layer = random_direction(model, normalize="layer", ignore_1d=False)
    for name, weight in model.named_parameters():
        assert torch.allclose(layer[name].norm(), weight.norm(), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(lengths(layer["4.weight"]), lengths(model[4].weight), rtol=1e-3)
    drawn = random_direction(model, normalize=None)
    assert drawn["4.weight"].std().item() == pytest.approx(1, abs=0.3)


def test_seeds():
    model = net()
    one, again, other = (random_direction(model, seed)["4.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_filters_of_zeros_stay():
    weight = torch.ones(2, 3)
    weight[1] = 0
    found = random_direction({"w": weight})["w"]
    assert found[0].norm().item() == pytest.approx(3**0.5) and not found[1].any()


def test_between_ends_at_the_other():
    a, b = net(), net()
    with torch.no_grad():
        for tensor in b.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    found = between(a, b)
    for name, part in found.items():
        assert torch.allclose(a.state_dict()[name] + part, b.state_dict()[name])
    assert "1.running_mean" in found and "1.num_batches_tracked" not in found
    still = between(a, b, ignore_1d=True)
    assert not still["1.bias"].any() and still["4.weight"].any()


def test_trajectory_in_a_plane_is_recovered():
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0].T
    places = torch.tensor([[5.0, 0], [3, 1], [1, -1], [0, 0]], dtype=torch.float64)
    end = torch.randn(6, dtype=torch.float64)
    run = [{"w": (end + a * u + b * v).view(2, 3)} for a, b in places]
    found = trajectory_pca(run)
    assert found.explained.sum() == pytest.approx(1)
    values = torch.linalg.svdvals(places) ** 2
    assert np.allclose(found.explained, values / values.sum())
    x, y = found.x["w"].flatten(), found.y["w"].flatten()
    gram = torch.stack([x, y]) @ torch.stack([x, y]).T
    assert torch.allclose(gram, torch.eye(2, dtype=gram.dtype))
    for (a, b), one in zip(found.path, run, strict=True):
        assert torch.allclose(end + a * x + b * y, one["w"].flatten())
    assert found.path[0, 0] > 0 and np.allclose(found.path[-1], 0)
    centred = trajectory_pca(run, center=True)
    values = torch.linalg.svdvals(places - places.mean(0)) ** 2
    assert np.allclose(centred.explained, values / values.sum())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_direction(net(), normalize="row"), "normalize is 'row'; expected 'filter'"),
        (lambda: random_direction(net(), -1), "seed is -1; expected an integer"),
        (lambda: random_direction({"b": torch.ones(3)}), "none of 1 parameters would move"),
        (lambda: between(net(), net()), "both checkpoints are the same"),
        (lambda: between(net(), nn.Linear(2, 2)), "b has other names: 0.bias"),
        (lambda: between(net(), 3), "a checkpoint is a int; expected a model"),
        (
            lambda: between({"w": torch.ones(2)}, {"w": torch.ones(3)}),
            r"b\['w'\] has shape \(3,\); expected \(2,\)",
        ),
        (
            lambda: between({"w": torch.ones(1)}, {"w": torch.full((1,), torch.nan)}),
            "holds NaN or infinity",
        ),
        (lambda: trajectory_pca([net(), net()]), "there are 2 checkpoints; expected at least 3"),
        (lambda: trajectory_pca([net()] * 3), "lie on one line, or are all the same"),
        (
            lambda: trajectory_pca([{"w": torch.full((2,), float(k))} for k in range(4)]),
            "lie on one line",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
