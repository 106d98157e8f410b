"""Arguments that cannot work, refused with what was seen and what was expected."""

import pytest
import torch
from torch import nn

from pntk.errors import ConfigError, DataError, ModelError
from pntk.nads import GradientCovariance, NADs, directional_bias
from pntk.nads.training import Training

EYE = torch.eye(4).reshape(4, 1, 2, 2)
VALUES = torch.tensor([4.0, 3.0, 2.0, 1.0])


def classifier():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_directions():
    for given, message in (
        (EYE.numpy(), "directions are ndarray"),
        (EYE.long(), "directions are torch.int64"),
        (EYE * torch.tensor([1, 1, 0, 1.0])[:, None, None, None], "direction 2 of 4 is zero"),
    ):
        with pytest.raises(DataError, match=message):
            NADs(given, VALUES)
    for shape in (4, "ab", (-2, -2), (3, 3)):
        with pytest.raises(DataError, match="4 numbers each and shape is"):
            NADs.from_arrays(EYE.flatten(1), VALUES, shape)
    with pytest.raises(DataError, match="directions are no array"):
        NADs.from_arrays([[1.0], [1.0, 2.0]], VALUES)
    assert len(NADs.from_arrays(EYE.flatten(1).requires_grad_(), VALUES)) == 4


def test_files(tmp_path):
    with pytest.raises(ConfigError, match="HDF5 has no bfloat16"):
        NADs(EYE, VALUES).to(torch.bfloat16).save(tmp_path / "nads.h5")
    save = pytest.importorskip("safetensors.torch").save_file
    theirs = tmp_path / "theirs.safetensors"
    save({"w": EYE}, theirs)
    with pytest.raises(ConfigError, match="is there and holds no directions"):
        NADs(EYE, VALUES).save(theirs)
    save({"directions": EYE, "singular_values": VALUES}, theirs, {"header": '{"x": 1}'})
    with pytest.raises(DataError, match="no safetensors file of directions"):
        NADs.load(theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nope"}, "device is 'nope', which cannot be used"),
        ({"model_params": [1]}, r"model_params is \[1\]; expected a dict"),
        ({"model_params": {"a": {(1, 2): 3}}}, "cannot be written down"),
    ],
)
def test_finder(options, message):
    with pytest.raises(ConfigError, match=message):
        GradientCovariance(EYE[0], classifier, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nope"}, "device is 'nope'"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"training": {"epochs": 1}}, "training is a dict; expected Training"),
    ],
)
def test_directional_bias(options, message):
    with pytest.raises(ConfigError, match=message):
        directional_bias(classifier, EYE, **options, progress=False)


def test_a_last_batch_of_one_sample():
    training = Training(epochs=1, batch_size=4)
    with pytest.raises(ModelError, match="more than 1 value per channel"):
        directional_bias(
            classifier, EYE[:1], num_train=5, num_test=2, training=training, progress=False
        )
