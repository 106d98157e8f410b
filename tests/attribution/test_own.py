import pytest
import torch

from pntk.attribution import attribute, self_scores
from pntk.errors import ConfigError, NonFiniteError

OPTIONS = {
    "trak": {"ridge": 0.3},
    "influence": {"ridge": "auto"},
    "dot": {},
    "tracin": {"weights": [0.1, 0.02]},
}


def diagonal(train, method, **options):
    return attribute(train, train, method, **options).diagonal()


@pytest.mark.parametrize("method", OPTIONS)
def test_is_the_diagonal(rows, method, monkeypatch):
    train, options = [one[0] for one in rows], dict(OPTIONS[method])
    if method == "trak":
        options["reweighting"] = [one[2] for one in rows]
    found = self_scores(train, method, **options)
    expected = diagonal(train, method, **options)
    assert found.dtype == torch.float64 and found.shape == (40,)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    monkeypatch.setattr("pntk.attribution.own.block_rows", lambda k, room: 7)
    assert torch.allclose(self_scores(train, method, **options), found, rtol=1e-12, atol=0)


def test_one_checkpoint_of_float32(rows):
    train, _, q = rows[0]
    found = self_scores(train.float(), reweighting=q)
    assert found.dtype == torch.float32
    assert torch.allclose(found, self_scores(train, reweighting=q).float(), rtol=1e-5)


def test_checkpoints_of_other_widths(rows):
    (a, _, q), (b, _, _) = rows
    trains = [a, b[:, :5]]
    found = self_scores(trains, reweighting=q, ridge="auto")
    assert torch.allclose(found, diagonal(trains, "trak", reweighting=q, ridge="auto"), rtol=1e-12)


def test_stores(rows, put):
    train, _, q = rows[0]
    store = put("train.h5", train, columns={"reweighting": q}, skipped=[4, 9])
    found = self_scores(store)
    assert torch.allclose(found, diagonal(store, "trak"), rtol=1e-12, atol=0)
    assert found[[4, 9]].tolist() == [0, 0] and (found > 0).sum() == 38
    with pytest.raises(ConfigError, match="'influence' needs gradients of the loss"):
        self_scores(store, "influence")


def test_on_a_device(rows, device):
    train, _, q = rows[0]
    for method, options in (("trak", {"reweighting": q}), ("dot", {})):
        found = self_scores(train, method, device=device, **options)
        assert found.device.type == "cpu"
        assert torch.allclose(found, self_scores(train, method, **options), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "cosine"}, "gives every sample a score of 1 for itself; use 'dot'"),
        ({"method": "shapley"}, "unknown method 'shapley'"),
        ({"method": "dot", "ridge": 1.0}, "ridge is for method trak or influence"),
        ({"weights": [0.1]}, "weights is for method tracin"),
        ({"method": "tracin"}, "needs weights"),
        ({}, "tensors have none: pass reweighting="),
        ({"ridge": -1}, "ridge is -1"),
        ({"device": "gpu"}, "device is 'gpu', which cannot be used .*; use 'cpu'"),
        ({"reweighting": torch.ones(40), "memory_budget": "1kB"}, r"to invert \[12, 12\]"),
    ],
)
def test_refused(rows, arguments, message):
    with pytest.raises(ConfigError, match=message):
        self_scores(rows[0][0], **arguments)


def test_wide_rows_need_a_ridge():
    with pytest.raises(ConfigError, match="50 wide and there are 20"):
        self_scores(torch.randn(20, 50), reweighting=torch.ones(20))


def test_nonfinite_rows_are_named(rows):
    train = rows[0][0]
    train[33, 4] = torch.nan
    with pytest.raises(NonFiniteError, match="row 33 of the training rows"):
        self_scores(train, "influence")


def test_rows_that_are_not_finite():
    rows = torch.ones(4, 2)
    rows[2, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="row 2 of the training rows holds NaN"):
        self_scores(rows, "dot")
