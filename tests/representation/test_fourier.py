import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pntk.errors import ConfigError, DataError, PntkWarning, StoreError
from pntk.models import LeNet
from pntk.representation.fourier import fourier_map
from pntk.representation.fourier_basis import conjugate_pairs, fourier_basis, frequency_grid
from pntk.representation.fourier_file import FourierMap
from pntk.representation.inference import fast_layers

SIZES = [(4, 4), (5, 5), (3, 6), (6, 1), (1, 1), (2, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_waves_are_of_their_pair_alone(size):
    h, w = size
    for phase in (0.0, 0.7):
        waves = fourier_basis(size, phase=phase)
        assert torch.allclose(waves.flatten(1).norm(dim=1), torch.ones(h * w).double())
        spectra = torch.fft.fft2(waves).abs()
        for (i, j), spectrum in zip(frequency_grid(size).reshape(-1, 2), spectra, strict=True):
            support = torch.zeros(h, w, dtype=torch.bool)
            support[i % h, j % w] = support[-i % h, -j % w] = True
            assert (spectrum[~support] < 1e-12).all() and (spectrum[support] > 0.1).all()


@pytest.mark.parametrize("size", SIZES)
def test_basis_is_orthonormal_and_complete(size):
    h, w = size
    half, inverse = conjugate_pairs(frequency_grid(size).reshape(-1, 2), size)
    cosines, sines = fourier_basis(size, half), fourier_basis(size, half, phase=-np.pi / 2)
    other = [k for k, (i, j) in enumerate(half) if (2 * i % h, 2 * j % w) != (0, 0)]
    rows = torch.cat([cosines, sines[other]]).flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(h * w).double(), atol=1e-12)
    full = fourier_basis(size)
    assert torch.allclose(full, cosines[inverse], atol=1e-12)


def test_linear_model_in_closed_form():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 20, 1, bias=False)).double()
    net.requires_grad_(False)
    images = torch.randn(6, 2, 4, 5, dtype=torch.float64)
    mean = lambda outputs, targets: outputs.mean()  # noqa: E731
    found = fourier_map(
        net, (images, torch.zeros(6)), 3.0, criterion=mean, clamp=None, progress=False
    )
    weight = net[1].weight.detach().view(2, 4, 5).sum(0)
    expected = net(images).mean() + 3 * (fourier_basis((4, 5)) * weight).sum((1, 2)).view(4, 5)
    assert np.allclose(found.values, expected.numpy(), rtol=1e-10)
    assert found.clean == pytest.approx(float(net(images).mean()))
    assert found.frequencies[2, 2].tolist() == [0, 0]


def network(channels=1):
    torch.manual_seed(0)
    return LeNet(in_channels=channels, image_size=8).double().eval()


def data(n=11, channels=1):
    torch.manual_seed(1)
    return torch.rand(n, channels, 8, 8).double(), torch.randint(10, (n,))


def test_against_a_plain_loop():
    model, (images, labels) = network().train(), data()
    found = fourier_map(model, (images, labels), 2.0, criterion="loss", progress=False)
    error = fourier_map(model, (images, labels), 2.0, progress=False)
    assert model.training and error.values.shape == (8, 8)
    model.eval()
    for r, c in ((0, 0), (4, 4), (3, 6), (5, 2), (0, 7)):
        wave = fourier_basis((8, 8), [[r - 4, c - 4]])[0]
        with torch.no_grad():
            outputs = model((images + 2 * wave).clamp(0, 1))
        assert found.values[r, c] == pytest.approx(float(F.cross_entropy(outputs, labels)))
        assert error.values[r, c] == pytest.approx(
            float((outputs.argmax(1) != labels).double().mean())
        )
    assert np.array_equal(found.values[1:, 1:], found.values[:0:-1, :0:-1])


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_independent_of_batches_also_with_random_signs(batch_size):
    options = {"criterion": "loss", "sign": "random", "seed": 4, "progress": False}
    expected = fourier_map(network(2), data(channels=2), 2.0, **options).values
    found = fourier_map(network(2), data(channels=2), 2.0, batch_size=batch_size, **options)
    assert np.allclose(found.values, expected, rtol=1e-10)
    for change in ({"seed": 5}, {"per_channel": False}, {"sign": "fixed"}):
        other = fourier_map(network(2), data(channels=2), 2.0, **{**options, **change}).values
        assert not np.allclose(other, expected, rtol=1e-4)


def test_smaller_maps_are_the_middle_of_the_whole():
    whole = fourier_map(network(), data(), progress=False)
    small = fourier_map(network(), data(), size=(3, 4), progress=False)
    assert np.array_equal(small.values, whole.values[3:6, 2:6])
    assert np.array_equal(small.frequencies, whole.frequencies[3:6, 2:6])


def test_normalised_images():
    model, (images, labels) = network(), data()

    class Scaled(nn.Module):
        def forward(self, x):
            return model(x * 0.3 + 0.5)

    options = {"criterion": "loss", "size": 3, "progress": False}
    expected = fourier_map(model, (images, labels), **options).values
    found = fourier_map(Scaled(), ((images - 0.5) / 0.3, labels), mean=0.5, std=[0.3], **options)
    assert np.allclose(found.values, expected, rtol=1e-10)


def test_a_basis_of_ones_own():
    model, given = network(), data()
    waves = fourier_basis((8, 8), [[0, 1], [2, 3]]).view(2, 1, 8, 8)
    found = fourier_map(model, given, 1.5, basis=waves, criterion="loss", progress=False)
    whole = fourier_map(model, given, 1.5, criterion="loss", progress=False).values
    assert found.values.shape == (2, 1) and found.frequencies is None
    assert np.allclose(found.values[:, 0], whole[[4, 6], [5, 7]])
    with pytest.raises(ConfigError, match="basis beside size"):
        fourier_map(model, given, basis=waves, size=3)


@pytest.mark.parametrize("window", [2, (2, 3), 3])
def test_fast_layers_give_what_the_ordinary_give(window):
    torch.manual_seed(0)
    images, rows = torch.randn(3, 5, 9, 8), torch.randn(40, 6)
    images[0, 0, 0, 0], images[1, 0, 2, 2] = torch.nan, -torch.inf
    pool, line = nn.MaxPool2d(window), nn.Linear(6, 7)
    odd = nn.MaxPool2d(3, stride=2, padding=1)
    with torch.no_grad():
        expected = pool(images), odd(images), line(rows)
        with fast_layers(images.device):
            found = pool(images), odd(images), line(rows)
    assert torch.equal(found[0].nan_to_num(9), expected[0].nan_to_num(9))
    assert torch.equal(found[1].nan_to_num(9), expected[1].nan_to_num(9))
    assert torch.allclose(found[2], expected[2], atol=1e-6)


def test_saved_whole_and_drawn(tmp_path):
    found = fourier_map(network(), data(), progress=False)
    found.save(tmp_path / "map.npz")
    again = FourierMap.load(tmp_path / "map.npz")
    assert np.array_equal(again.values, found.values) and again.about == found.about
    assert np.array_equal(again.frequencies, found.frequencies) and again.clean == found.clean
    with pytest.raises(ConfigError, match=r"ends in '\.h5'"):
        found.save(tmp_path / "map.h5")
    (tmp_path / "map.npz").write_bytes(b"mine")
    with pytest.raises(StoreError, match="holds no Fourier map, or is damaged"):
        FourierMap.load(tmp_path / "map.npz")
    pytest.importorskip("matplotlib")
    assert found.plot(tmp_path / "map.png") == (tmp_path / "map.png").read_bytes()
    with pytest.raises(ConfigError, match=r"shape \(3,\) and 3 finite values"):
        FourierMap(np.ones(3), None, 0.0).plot()


def test_values_that_are_not_finite_are_said():
    bad = lambda outputs, targets: outputs.mean() * torch.nan  # noqa: E731
    with pytest.warns(PntkWarning, match="9 of 9 values are NaN"):
        fourier_map(network(), data(), size=3, criterion=bad, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": -1.0}, "norm is -1.0; expected a finite number"),
        ({"sign": "both"}, "sign is 'both'; expected 'fixed' or 'random'"),
        ({"seed": -2}, "seed is -2"),
        ({"clamp": (1, 0)}, r"clamp is \(1, 0\)"),
        ({"criterion": "mse"}, "criterion is 'mse'; expected 'error', 'loss' or a callable"),
        ({"size": 9}, "size is 9; expected one or two numbers from 1 to 8 and 8"),
        ({"size": 0}, "size is 0"),
        ({"phase": np.nan}, "phase is nan"),
        ({"mean": 0.5}, "one of mean and std was given"),
        ({"mean": 0.5, "std": 0.0}, "std is 0.0; expected positive"),
        ({"mean": [0.1, 0.2], "std": 1.0}, "mean is .*one for each of 1 channels"),
        ({"basis": torch.ones(2, 3, 3)}, r"basis has shape \(2, 3, 3\).* expected finite"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        fourier_map(network(), data(), progress=False, **options)


def test_errors_of_data_and_bases():
    images, labels = data()
    with pytest.raises(DataError, match=r"pixels run from .* give mean= and std="):
        fourier_map(network(), (images - 0.5, labels), progress=False)
    with pytest.raises(DataError, match="expected images"):
        fourier_map(network(), (images.flatten(1), labels), progress=False)
    with pytest.raises(DataError, match="the data has no targets"):
        fourier_map(network(), images, progress=False)
    with pytest.raises(ConfigError, match=r"size is \(0, 2\)"):
        fourier_basis((0, 2))
    with pytest.raises(ConfigError, match="expected integers"):
        fourier_basis((2, 2), [[0.5, 1]])
