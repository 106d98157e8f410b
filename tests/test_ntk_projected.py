import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import Featurizer, ntk
from pntk.errors import ConfigError, StoreError
from pntk.ntk import projected

TILES = [1, 7, 16, 63, 64, 1000]


def rows(n, k=9, dtype=torch.float64, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("n", [1, 63, 64, 65])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("normalize", [False, True])
def test_symmetric_kernel(n, tile, normalize):
    a = rows(n)
    found = ntk(a, tile=tile, normalize=normalize)
    unit = a / a.norm(dim=1, keepdim=True) if normalize else a
    torch.testing.assert_close(found, unit @ unit.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.T)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-10


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("normalize", [False, True])
def test_rectangular_kernel(tile, normalize):
    a, b = rows(33), rows(65, seed=1)
    found = ntk(a, b, tile=tile, normalize=normalize)
    x, y = (r / r.norm(dim=1, keepdim=True) if normalize else r for r in (a, b))
    torch.testing.assert_close(found, x @ y.T, rtol=1e-12, atol=1e-12)


@given(n=st.integers(1, 20), m=st.integers(1, 20), tile=st.integers(1, 25))
def test_any_tile_gives_the_same_integers(n, m, tile):
    a, b = (rows(n, seed=n) * 4).round(), (rows(m, seed=m + 50) * 4).round()
    assert torch.equal(ntk(a, b, tile=tile), a @ b.T)
    assert torch.equal(ntk(a, tile=tile), a @ a.T)


def test_float32_is_symmetric_to_the_bit():
    a = rows(130, 257, torch.float32)
    found = ntk(a, tile=48, normalize=True)
    assert found.dtype == torch.float32 and torch.equal(found, found.T)


def test_types_are_promoted():
    assert ntk(rows(3).float(), rows(4)).dtype == torch.float64
    assert ntk(rows(3).half(), rows(4).bfloat16()).dtype == torch.float32
    assert ntk(rows(3).numpy(), rows(4).float().numpy()).dtype == torch.float64


def test_rows_of_zeros_have_cosine_zero():
    a = torch.cat([torch.zeros(1, 9, dtype=torch.float64), rows(3)])
    for found in (ntk(a, normalize=True, tile=2), ntk(a, a, normalize=True, tile=2)):
        assert found.isfinite().all()
        assert not found[0].any() and not found[:, 0].any()
        torch.testing.assert_close(found.diag()[1:], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tile", [1, 16, 100])
def test_kernel_on_disk(tmp_path, symmetric, tile):
    a, b = rows(33), None if symmetric else rows(20, seed=1)
    path = ntk(a, b, out=tmp_path / "kernel.h5", tile=tile, normalize=True)
    assert path == tmp_path / "kernel.h5" and list(tmp_path.iterdir()) == [path]
    with h5py.File(path) as file:
        found = file["ntk"][:]
    assert np.array_equal(found, ntk(a, b, tile=tile, normalize=True).numpy())


def test_kernels_on_disk_are_never_overwritten(tmp_path):
    path = tmp_path / "kernel.h5"
    path.write_text("mine")
    with pytest.raises(StoreError, match=r"kernel.h5 exists; give another path for the kernel"):
        ntk(rows(3), out=path)
    assert path.read_text() == "mine"
    with pytest.raises(StoreError, match="missing does not exist; create it first"):
        ntk(rows(3), out=tmp_path / "missing" / "kernel.h5")


def test_an_interrupted_kernel_leaves_no_file(tmp_path, monkeypatch):
    def fail(block):
        raise KeyboardInterrupt

    monkeypatch.setattr(projected, "_mirrored", fail)
    with pytest.raises(KeyboardInterrupt):
        ntk(rows(3), out=tmp_path / "kernel.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_block_is_larger_than_a_tile(tmp_path, monkeypatch, symmetric):
    blocks = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self: blocks.append(tuple(self.shape)) or original(self)
    )
    a, b = rows(33), None if symmetric else rows(20, seed=1)
    ntk(a, b, out=tmp_path / "kernel.h5", tile=8)
    assert len(blocks) == 15  # 5 x 3, or the upper triangle of 5 x 5
    assert max(map(max, blocks)) <= 8


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((rows(3),), {"tile": 0}, "tile is 0; expected a positive number of rows"),
        ((rows(3), rows(3, 8)), {}, "rows are 9 and 8 wide"),
        ((rows(3)[0],), {}, r"rows is torch.float64 of shape \(9,\)"),
        (("rows.h5",), {}, "rows is a str; expected a tensor or array"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        ntk(*arguments, **options)


class TestStores:
    X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))

    def store(self, path, seed=0, output="pntk", model_seed=0):
        torch.manual_seed(model_seed)
        model = nn.Linear(5, 3)
        featurizer = Featurizer(model, output, proj_dim=64, seed=seed)
        return featurizer.featurize(self.X, path, progress=False)

    def test_stores_are_rows(self, tmp_path):
        a, b = self.store(tmp_path / "a.h5"), self.store(tmp_path / "b.h5")
        expected = a.torch() @ a.torch().T
        torch.testing.assert_close(ntk(a), expected)
        torch.testing.assert_close(ntk(a, b, tile=3), expected)
        torch.testing.assert_close(ntk(a, b.torch()), expected)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"seed": 1}, "projection"),
            ({"output": "trace"}, "output"),
            ({"model_seed": 1}, "weights"),
        ],
    )
    def test_stores_that_do_not_match_are_refused(self, tmp_path, change, field):
        a, b = self.store(tmp_path / "a.h5"), self.store(tmp_path / "b.h5", **change)
        with pytest.raises(ConfigError, match=f"a.h5 and .*b.h5 differ in {field}"):
            ntk(a, b)


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("cublas", "impl is 'cublas'; expected 'torch' or 'triton'"),
        ("triton", r"impl='triton' cannot be used: .*the model is on cpu.*; use impl='torch'"),
    ],
)
def test_an_implementation_that_cannot_be_used(impl, message):
    with pytest.raises(ConfigError, match=message):
        ntk(torch.ones(2, 3), impl=impl)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_kernel():
    a = rows(65)
    torch.testing.assert_close(ntk(a, tile=16, device="cuda"), a @ a.T)
