import numpy as np
import pytest

from pntk.errors import StoreError
from pntk.store import DONE, MISSING, SKIPPED, FeatureStore
from pntk.store import layout as layout_module
from pntk.store.layout import datasets, is_present
from pntk.store.part import open_part


def test_states_are_far_from_each_other():
    """A flipped bit, or any three, makes no state of another."""
    states = (MISSING, DONE, SKIPPED)
    assert states == (0x00, 0x55, 0xAA)
    for state in states:
        for other in set(states) - {state}:
            assert (state ^ other).bit_count() >= 4


def test_present_are_the_two_known_states():
    every = np.arange(256, dtype=np.uint8)
    assert np.flatnonzero(is_present(every)).tolist() == [0x55, 0xAA]


@pytest.mark.parametrize(
    ("dtype", "kinds"),
    [
        ("float32", {"features": "<f4"}),
        ("float64", {"features": "<f8"}),
        ("float16", {"features": "<f2", "scales": "<f4"}),
    ],
)
def test_datasets(make_header, dtype, kinds):
    found = datasets(make_header(dtype=dtype))
    common = {"done": "|u1", "checksums": "<u8", "labels": "<i8", "reweighting": "<f4"}
    assert {name: kind.str for name, (_, kind) in found.items()} == {**kinds, **common}
    assert {name: shape for name, (shape, _) in found.items()} == {
        name: (10, 6) if name == "features" else (10,) for name in {**kinds, **common}
    }


def test_cells_are_what_stands_beside_a_row(make_store):
    layout = open_part(make_store("s.h5", dtype="float16")).layout
    assert layout.cells == ["labels", "reweighting", "scales"]


def test_map_that_fails(full_store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(layout_module.mmap, "mmap", refuse)
    with pytest.raises(StoreError, match=r"cannot map [\d,]+ bytes .*Cannot allocate memory"):
        FeatureStore(full_store)
