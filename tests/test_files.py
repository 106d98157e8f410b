from pathlib import Path

import pytest
import torch

from pntk import FeatureStore, Featurizer
from pntk.errors import ConfigError
from pntk.files import check_replaceable, write_whole


def test_a_store_is_never_replaced(tmp_path):
    path = tmp_path / "rows.csv"  # whatever it is called
    Featurizer(torch.nn.Linear(3, 2), proj_dim=64).featurize(
        torch.randn(4, 3), path, progress=False
    ).close()
    with pytest.raises(ConfigError, match="is an HDF5 file, such as a store; choose another path"):
        write_whole(path, b"hits")
    assert FeatureStore(path).verify().ok


def test_a_device_is_never_replaced():
    with pytest.raises(ConfigError, match="/dev/null is not a regular file"):
        check_replaceable(Path("/dev/null"))


def test_whole_files(tmp_path):
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
