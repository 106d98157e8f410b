import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.format import open_memmap

from pntk.attribution import attribute
from pntk.errors import ConfigError, DataError, PntkWarning, StoreError
from pntk.imports import read_projection_ntk, read_trak

N, M, K, P = 20, 4, 6, 50


def put(path, values, dtype="f4"):
    """Write as TRAK does."""
    values = np.asarray(values)
    array = open_memmap(path, mode="w+", shape=values.shape, dtype=dtype)
    array[:] = values
    array.flush()


@pytest.fixture
def save_dir(tmp_path):
    """What TRAK leaves: two models and the targets ``test``."""
    folder = tmp_path / "trak"
    random = np.random.default_rng(0)
    for m in (0, 10):
        (folder / str(m)).mkdir(parents=True)
        put(folder / str(m) / "grads.mmap", random.standard_normal((N, K)))
        put(folder / str(m) / "features.mmap", random.standard_normal((N, K)))
        put(folder / str(m) / "out_to_loss.mmap", random.random((N, 1)))
        put(folder / str(m) / "_is_featurized.mmap", np.ones((N, 1)), "i4")
        put(folder / str(m) / "test_grads.mmap", random.standard_normal((M, K)))
    (folder / "scores").mkdir()
    about = {"JL dimension": K, "JL matrix type": "normal", "train set size": N}
    (folder / "metadata.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def classes(save_dir):
    """What projection_ntk leaves, of the trace NTK with three classes; ``grads`` stay zeros."""
    random = np.random.default_rng(1)
    about = json.loads((save_dir / "metadata.json").read_text())
    (save_dir / "metadata.json").write_text(json.dumps({**about, "number classes": 3}))
    for m in (0, 10):
        put(save_dir / str(m) / "grads.mmap", np.zeros((N, K)))
        put(save_dir / str(m) / "out_to_loss.mmap", np.zeros((N, 1)))
        for c in range(3):
            put(save_dir / str(m) / f"grads_{c}.mmap", random.standard_normal((N, K)))
    return save_dir


def test_rows_and_reweighting(save_dir, tmp_path):
    stores = read_trak(save_dir, tmp_path / "out")
    assert [store.path.name for store in stores] == ["0.h5", "10.h5"]
    for store, m in zip(stores, (0, 10), strict=True):
        assert np.array_equal(store.numpy(), np.load(save_dir / str(m) / "grads.mmap"))
        q = np.load(save_dir / str(m) / "out_to_loss.mmap")[:, 0]
        assert np.array_equal(store.column("reweighting"), q)
        assert store.verify().ok


def test_scores_are_those_of_the_arrays(save_dir, tmp_path):
    train = read_trak(save_dir, tmp_path / "out")
    test = read_trak(save_dir, tmp_path / "out", experiment="test")
    assert test[1].path.name == "10-test.h5"
    arrays = [
        [torch.from_numpy(np.load(save_dir / str(m) / name)) for m in (0, 10)]
        for name in ("grads.mmap", "test_grads.mmap", "out_to_loss.mmap")
    ]
    expected = attribute(arrays[0], arrays[1], reweighting=[q[:, 0] for q in arrays[2]])
    assert torch.allclose(attribute(train, test), expected)


def test_models_are_told_apart(save_dir, tmp_path):
    train = read_trak(save_dir, tmp_path / "out")
    test = read_trak(save_dir, tmp_path / "out", experiment="test")
    with pytest.raises(ConfigError, match="differ in weights"):
        attribute(train, test[::-1])


def test_scale(save_dir, tmp_path):
    """TRAK's rows are P^T g / sqrt(p); ours estimate <g, g'>."""
    random = np.random.default_rng(2)
    gradients = random.standard_normal((N, P))
    kernel = 0
    for draw in range(400):
        rows = gradients @ random.standard_normal((P, K)) / np.sqrt(P)
        if draw < 2:
            put(save_dir / "0" / "grads.mmap", rows)
            out = tmp_path / f"out{draw}"
            [store] = read_trak(save_dir, out, num_params=P, model_ids=[0])
            assert np.allclose(store.numpy(), rows * np.sqrt(P / K), rtol=1e-5)
        kernel = kernel + rows @ rows.T * P / K / 400
    exact = gradients @ gradients.T
    assert np.linalg.norm(kernel - exact) < 0.2 * np.linalg.norm(exact)


def test_unprojected_rows(save_dir, tmp_path):
    [store] = read_trak(save_dir, tmp_path / "out", num_params=K, model_ids=[0])
    expected = np.load(save_dir / "0" / "grads.mmap") * np.sqrt(K)
    assert np.allclose(store.numpy(), expected, rtol=1e-6)


def test_scales_are_not_mixed(save_dir, tmp_path):
    train = read_trak(save_dir, tmp_path / "a", num_params=P)
    test = read_trak(save_dir, tmp_path / "b", experiment="test")
    with pytest.raises(ConfigError, match="differ in projection"):
        attribute(train, test)


def test_features(save_dir, tmp_path):
    stores = read_trak(save_dir, tmp_path / "out", what="features")
    assert np.array_equal(stores[0].numpy(), np.load(save_dir / "0" / "features.mmap"))


def test_half_precision_and_rows_that_overflowed(save_dir, tmp_path):
    rows = np.random.default_rng(3).standard_normal((N, K))
    rows[4, 2] = np.inf
    put(save_dir / "0" / "grads.mmap", rows, "f2")
    with pytest.warns(PntkWarning, match="1 rows of .* hold NaN or infinity and are marked"):
        [store] = read_trak(save_dir, tmp_path / "out", model_ids=[0])
    assert store.skipped.tolist() == [4]
    assert np.array_equal(store.numpy()[5:], rows[5:].astype("f2").astype("f4"))


def test_rows_that_were_not_made_are_missing(save_dir, tmp_path):
    marks = np.ones((N, 1))
    marks[[3, 9]] = 0
    put(save_dir / "0" / "_is_featurized.mmap", marks, "i4")
    stores = read_trak(save_dir, tmp_path / "out")
    assert np.flatnonzero(stores[0].done == 0).tolist() == [3, 9]
    with pytest.raises(StoreError, match="2 of 20 rows are missing"):
        attribute(stores[0], stores[0])
    put(save_dir / "0" / "_is_featurized.mmap", np.ones(N), "i4")
    assert read_trak(save_dir, tmp_path / "out")[0].complete


def test_trace_kernels_add_up(classes, tmp_path):
    stores = read_projection_ntk(classes, tmp_path / "out")
    assert stores[0].header.output == {"name": "trace"} and stores[0].shape == (N, 3 * K)
    parts = [np.load(classes / "10" / f"grads_{c}.mmap") for c in range(3)]
    rows = stores[1].numpy()
    assert np.allclose(rows @ rows.T, sum(part @ part.T for part in parts), atol=1e-5)


def test_pntk_rows(classes, tmp_path):
    rows = np.random.default_rng(4).standard_normal((N, K)).astype("f4")
    put(classes / "0" / "grads.mmap", rows)
    with pytest.raises(DataError, match="holds both kinds of rows; pass kind="):
        read_projection_ntk(classes, tmp_path / "out", model_ids=[0])
    [store] = read_projection_ntk(classes, tmp_path / "out", model_ids=[0], kind="pntk")
    assert np.array_equal(store.numpy(), rows)
    for c in range(3):
        put(classes / "0" / f"grads_{c}.mmap", np.zeros((N, K)))
    [found] = read_projection_ntk(classes, tmp_path / "again", model_ids=[0], num_params=P)
    assert found.header.output == {"name": "pntk"}
    assert np.allclose(found.numpy(), rows * np.sqrt(P / K), rtol=1e-5)


def test_nothing_was_featurized(classes, tmp_path):
    for c in range(3):
        put(classes / "0" / f"grads_{c}.mmap", np.zeros((N, K)))
    with pytest.raises(DataError, match="holds no rows that are not zero"):
        read_projection_ntk(classes, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"what": "scores"}, "what is 'scores'; expected grads or features"),
        ({"what": "features", "experiment": "test"}, "leave experiment out"),
        ({"experiment": "../../etc"}, "experiment is '../../etc'; expected the name"),
        ({"experiment": ""}, "experiment is ''"),
        ({"num_params": 0}, "num_params is 0; expected an integer of at least 1"),
        ({"num_params": True}, "num_params is True"),
        ({"model_ids": [3]}, r"model_ids is \[3\]; .* has the models \[0, 10\]"),
        ({"model_ids": []}, r"model_ids is \[\]"),
    ],
)
def test_refused(save_dir, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_trak(save_dir, tmp_path / "out", **arguments)


def test_kind_is_checked(classes, tmp_path):
    with pytest.raises(ConfigError, match="kind is 'em'; expected trace or pntk"):
        read_projection_ntk(classes, tmp_path / "out", kind="em")


def test_out_is_a_folder(save_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file, which is no folder"):
        read_trak(save_dir, tmp_path / "file")


def test_other_rows_are_not_gone_on_with(save_dir, tmp_path):
    read_trak(save_dir, tmp_path / "out")
    with pytest.raises(StoreError, match="cannot resume"):
        read_trak(save_dir, tmp_path / "out", num_params=P)


# ---- hostile folders ---------------------------------------------------------------------------


def metadata(**changes):
    return json.dumps({"JL dimension": K, "train set size": N, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metadata.json cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (" " * 2**21, "is larger than 1,048,576 bytes"),
        ("[1]", "holds a list; expected a JSON object"),
        (metadata(**{"JL dimension": "6"}), "'JL dimension' is '6'; expected an integer from 1"),
        (metadata(**{"JL dimension": 2**60}), "expected an integer from 1 to 268435456"),
        (metadata(**{"JL dimension": True}), "'JL dimension' is 'True'"),
        (metadata(**{"train set size": -1}), "'train set size' is '-1'"),
        (metadata(**{"train set size": 1e300}), "'train set size' is '1e\\+300'"),
        ('{"JL dimension": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        (metadata(**{"train set size": N + 1}), r"has shape \(20, 6\); expected \[21, 6\]"),
    ],
)
def test_hostile_metadata(save_dir, tmp_path, text, message):
    (save_dir / "metadata.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_trak(save_dir, tmp_path / "out")


def test_too_many_classes(classes, tmp_path):
    about = {"JL dimension": 2**20, "train set size": N, "number classes": 2**16}
    (classes / "metadata.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="65536 classes of 1048576 columns are more than"):
        read_projection_ntk(classes, tmp_path / "out", kind="trace")


def test_no_folder(tmp_path, save_dir):
    with pytest.raises(DataError, match="none is no folder; expected a save_dir of TRAK"):
        read_trak(tmp_path / "none", tmp_path / "out")
    with pytest.raises(DataError, match=r"metadata\.json cannot be read"):
        read_trak(tmp_path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.json").write_text(metadata())
    with pytest.raises(DataError, match="holds no models; expected folders such as 0"):
        read_trak(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match=r"other_grads\.mmap cannot be read"):
        read_trak(save_dir, tmp_path / "out", experiment="other")


class Boom:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(save_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(save_dir / "0" / "grads.mmap", "wb") as file:
        np.save(file, np.array([[Boom()] * K] * N, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="holds object; expected float16 or float32 or float64"):
        read_trak(save_dir, tmp_path / "out")
    assert not (tmp_path / "unpickled").exists()


def npy(header, version=b"\x01\x00"):
    header = header.encode()
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .npy file"),
        (b"PK\x03\x04" * 100, "is no .npy file"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (20, 6)}\n"), "is truncated"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (20, 7)}\n"), "expected .20, 6."),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-20, -6)}\n"), "has shape"),
        (npy("{'descr': '<c8', 'fortran_order': False, 'shape': (20, 6)}\n"), "holds complex64"),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (20, 6)}"), "holds"),
        (npy("{'descr': '<f4', 'shape': (20, 6)}\n"), "is no .npy file"),
        (npy("__import__('os').mkdir('evil')"), "is no .npy file"),
        (npy("(" * 9000), "is no .npy file"),
        (npy("x" * 60000), "is no .npy file"),
        (npy("{}", b"\x03\x00"), r"version \(3, 0\)"),
        (npy("", b"\x02\x00")[:8] + b"\xff\xff\xff\xff", "is no .npy file"),
    ],
)
def test_hostile_arrays(save_dir, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (save_dir / "0" / "grads.mmap").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_trak(save_dir, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_pipes_are_not_waited_for(save_dir, tmp_path):
    (save_dir / "0" / "grads.mmap").unlink()
    os.mkfifo(save_dir / "0" / "grads.mmap")
    with pytest.raises(DataError, match="is not a regular file"):
        read_trak(save_dir, tmp_path / "out")


def test_marks_of_another_size(save_dir, tmp_path):
    put(save_dir / "0" / "_is_featurized.mmap", np.ones(N + 1), "i4")
    with pytest.raises(DataError, match="expected 20 numbers"):
        read_trak(save_dir, tmp_path / "out")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200), st.integers(0, 255))
def test_damaged_bytes_never_do_worse_than_an_error(save_dir, tmp_path, place, value):
    path = save_dir / "0" / "grads.mmap"
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:place] + bytes([value]) + kept[place + 1 :])
        for old in (tmp_path / "out").glob("*"):
            old.unlink()
        try:
            read_trak(save_dir, tmp_path / "out", model_ids=[0])
        except DataError:
            pass
        except PntkWarning:  # the byte made a number infinite
            pass
    finally:
        path.write_bytes(kept)
