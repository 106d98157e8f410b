"""NADs: slices, files in all formats, and files that are refused."""

import builtins
import pickle

import h5py
import numpy as np
import pytest
import torch

from pntk.errors import ConfigError, DataError, PntkError, StoreError
from pntk.nads import NADs


def example(dtype=torch.float32, shape=(3, 2, 4)):
    directions = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q[:7]
    values = torch.arange(7, 0, -1, dtype=dtype)
    return NADs(
        directions.to(dtype).reshape(7, *shape),
        values,
        "Small",
        {"width": 4},
        centered=True,
        num_samples=9,
        info={"seed": 3},
    )


def same(a, b):
    return (
        torch.equal(a.directions, b.directions)
        and torch.equal(a.singular_values, b.singular_values)
        and a.directions.dtype == b.directions.dtype
        and (a.name, a.model_params, a.centered, a.num_samples, a.info)
        == (b.name, b.model_params, b.centered, b.num_samples, b.info)
    )


def test_slices_are_those_of_the_tensor():
    nads = example()
    assert torch.equal(nads[2:4, 0], nads.directions[2:4, 0])
    assert torch.equal(nads[-1], nads.directions[6])
    assert (len(nads), nads.shape, repr(nads)) == (
        7,
        (3, 2, 4),
        "NADs(7 directions of (3, 2, 4), Small)",
    )


def test_to_returns_a_copy():
    nads = example()
    moved = nads.to(torch.float64)
    assert moved.directions.dtype == moved.singular_values.dtype == torch.float64
    assert nads.directions.dtype == torch.float32
    assert (moved.name, moved.info) == (nads.name, nads.info)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".safetensors"])
def test_a_round_trip(suffix, dtype, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    nads, path = example(dtype), tmp_path / f"nads{suffix}"
    nads.save(path)
    assert same(NADs.load(path), nads)
    assert b"pickle" not in path.read_bytes()


def test_parameters_that_json_has_no_word_for(tmp_path):
    nads = example()
    nads.model_params = {"activation": torch.nn.ReLU}
    nads.save(tmp_path / "nads.h5")
    assert "ReLU" in NADs.load(tmp_path / "nads.h5").model_params["activation"]


def test_a_folder_that_is_not_there_and_a_suffix_that_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match="create it first"):
        example().save(tmp_path / "none" / "nads.h5")
    with pytest.raises(ConfigError, match=r"suffix '.pt'; expected .h5, .hdf5 or .safetensors"):
        example().save(tmp_path / "nads.pt")


def test_published_arrays(tmp_path):
    vectors, values = np.eye(16, dtype=np.float32)[:15], np.arange(15, 0, -1, dtype=np.float32)
    np.save(tmp_path / "Net_NADs.npy", vectors)
    with pytest.raises(DataError, match=r"NAME_eigenvals.npy beside it; use NADs.from_arrays"):
        NADs.load(tmp_path / "Net_NADs.npy")
    np.save(tmp_path / "Net_eigenvals.npy", values)
    found = NADs.load(tmp_path / "Net_NADs.npy")
    assert (found.name, found.shape, len(found)) == ("Net", (1, 4, 4), 15)
    assert found[2, 0, 0, 2] == 1
    other = NADs.from_arrays(
        tmp_path / "Net_NADs.npy", values.astype(np.float64), (2, 8), centered=True
    )
    assert (other.shape, other.centered) == ((2, 8), True)
    assert NADs.from_arrays(np.eye(5), np.ones(5)).shape == (5,)
    with pytest.raises(
        DataError, match=r"have 16 numbers each and shape is \(3, 3\); expected one"
    ):
        NADs.from_arrays(vectors, values, (3, 3))
    with pytest.raises(DataError, match="directions are int64"):
        NADs.from_arrays(np.eye(4, dtype=np.int64), np.ones(4))
    with pytest.raises(DataError, match=r"expected \[r, d\]"):
        NADs.from_arrays(np.ones(4), np.ones(4))


def test_arrays_of_objects_are_refused(tmp_path):
    np.save(tmp_path / "Net_NADs.npy", np.array([[Bomb()]]), allow_pickle=True)
    np.save(tmp_path / "Net_eigenvals.npy", np.ones(1))
    with pytest.raises(DataError, match=r"no .npy file of directions"):
        NADs.load(tmp_path / "Net_NADs.npy")
    assert not hasattr(builtins, "pntk_was_here")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_the_nads_package(zipped, tmp_path):
    content = {
        "nads": torch.eye(4).reshape(4, 1, 2, 2),
        "eigen_values": torch.ones(4),
        "name": "LeNet",
        "model_params": {"num_classes": 1},
    }
    torch.save(content, tmp_path / "a.nads", _use_new_zipfile_serialization=zipped)
    found = NADs.load(tmp_path / "a.nads")
    assert (found.name, found.model_params, found.centered) == ("LeNet", {"num_classes": 1}, False)
    assert torch.equal(found.directions, content["nads"])


class Bomb:
    def __reduce__(self):
        return exec, ("import builtins; builtins.pntk_was_here = True",)


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x, 2))])
def test_a_pickle_that_runs_code_is_refused(write, tmp_path):
    path = tmp_path / "bomb.pt"
    write({"nads": torch.eye(2), "eigen_values": torch.ones(2), "name": Bomb()}, path)
    with pytest.raises(DataError, match=r"refused: a pickle.*could run code"):
        NADs.load(path)
    assert not hasattr(builtins, "pntk_was_here")


def test_files_of_something_else(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(DataError, match="cannot be read"):
        NADs.load(path)
    path.write_bytes(b"hello, world, this is text")
    with pytest.raises(DataError, match=r"expected HDF5, safetensors.*starts with b'hello"):
        NADs.load(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(DataError, match="with tensors nads and eigen_values"):
        NADs.load(path)
    with h5py.File(path, "w") as file:
        file["directions"] = np.ones((2, 2))
    with pytest.raises(StoreError, match="not directions"):
        NADs.load(path)


@pytest.mark.parametrize("suffix", [".h5", ".safetensors"])
def test_damaged_files_give_our_errors(suffix, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"nads{suffix}"
    example().save(path)
    content = path.read_bytes()
    for length in (9, 20, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(PntkError):
            NADs.load(path)


@pytest.mark.parametrize(
    ("directions", "values", "words"),
    [
        (torch.ones(3), torch.ones(3), r"expected \[r, \*shape\]"),
        (torch.ones(3, 2), torch.ones(2), r"singular values \(2,\)"),
        (torch.ones(0, 2), torch.ones(0), "there are no directions"),
        (torch.ones(1, 2), torch.ones(1) / 0, "NaN or infinity"),
    ],
)
def test_bad_directions(directions, values, words):
    with pytest.raises(DataError, match=words):
        NADs(directions, values)
