import math

import pytest
import torch

from pntk.errors import ConfigError, StoreError
from pntk.nads.measured import Measured, digest


def test_numbers_survive(tmp_path):
    path = tmp_path / "m.json"
    about = {"seed": 1, "train": (1, 2)}
    first = Measured(path, about)
    assert "a" not in first and not path.exists()
    first.add("a", 0.25)
    first.add("b", math.nan)
    again = Measured(path, about)
    assert again["a"] == 0.25 and math.isnan(again["b"]) and "c" not in again
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]


def test_without_a_file():
    measured = Measured(None, {})
    measured.add("a", 1)
    assert measured["a"] == 1


def test_other_settings_are_refused(tmp_path):
    Measured(tmp_path / "m.json", {"seed": 1, "sigma": 3}).add("a", 1)
    with pytest.raises(ConfigError, match="measurements with other seed; use the same"):
        Measured(tmp_path / "m.json", {"seed": 2, "sigma": 3})


@pytest.mark.parametrize("content", ["{", "[]", '{"about": {}}', '{"about": {}, "values": [1]}'])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(StoreError, match="holds no measurements, or is damaged"):
        Measured(tmp_path / "m.json", {})


def test_fingerprint():
    x = torch.arange(6.0)
    assert digest(x) == digest(x.clone()) == digest(torch.arange(12.0)[:6])
    assert len({digest(x), digest(x.view(2, 3)), digest(x + 1e-6), digest(x.double())}) == 4
