import tempfile

import pytest
import torch

from pntk.attribution import Extremes, attribute
from pntk.errors import ConfigError, NonFiniteError, OutOfMemoryError, StoreError
from pntk.ntk.kernel_file import KernelWriter, open_kernel

NARROW = "34MB"  # hardly more than the least, so that there are many tiles


def trak_of(rows, ridge=0.0):
    """The formula, written out."""
    total = 0
    for train, test, _ in rows:
        inverse = torch.linalg.inv(train.T @ train + ridge * torch.eye(train.shape[1]).double())
        total = total + train @ inverse @ test.T
    q = torch.stack([q for _, _, q in rows]).mean(0)
    return total / len(rows) * q[:, None]


def lists(rows):
    return tuple([one[i] for one in rows] for i in range(3))


def cosine_of(train, test):
    return (
        torch.nn.functional.normalize(train, dim=1) @ torch.nn.functional.normalize(test, dim=1).T
    )


@pytest.mark.parametrize("ridge", [None, 0.7])
def test_trak_is_its_formula(rows, ridge):
    train, test, q = lists(rows)
    found = attribute(train, test, reweighting=q, ridge=ridge)
    assert torch.allclose(found, trak_of(rows, ridge or 0.0), rtol=0, atol=1e-10)


def test_one_checkpoint_without_a_list(rows):
    train, test, q = rows[0]
    found = attribute(train, test, reweighting=q)
    assert torch.allclose(found, trak_of(rows[:1]), rtol=0, atol=1e-10)


def test_float32_rows_are_near(rows):
    train, test, q = lists(rows)
    found = attribute([x.float() for x in train], [x.float() for x in test], reweighting=q)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), trak_of(rows), rtol=0, atol=1e-5)


def test_kernels(rows):
    train, test, _ = lists(rows)
    dot = sum(a @ b.T for a, b in zip(train, test, strict=True)) / 2
    cosine = sum(cosine_of(a, b) for a, b in zip(train, test, strict=True)) / 2
    assert torch.allclose(attribute(train, test, "dot"), dot, atol=1e-12)
    assert torch.allclose(attribute(train, test, "cosine"), cosine, atol=1e-12)


def test_tracin(rows):
    train, test, _ = lists(rows)
    expected = 0.1 * train[0] @ test[0].T + 0.01 * train[1] @ test[1].T
    assert torch.allclose(attribute(train, test, "tracin", weights=[0.1, 0.01]), expected)
    assert torch.allclose(
        attribute(train[0], test[0], "tracin", weights=2.0), 2 * train[0] @ test[0].T
    )


def test_influence(rows):
    train, test, _ = lists(rows)
    expected = 0
    for a, b in zip(train, test, strict=True):
        fisher = a.T @ a / len(a) + 0.3 * torch.eye(a.shape[1]).double()
        expected = expected + a @ torch.linalg.solve(fisher, b.T) / 2
    assert torch.allclose(attribute(train, test, "influence", ridge=0.3), expected, atol=1e-10)


def test_influence_is_the_change_by_removal():
    """Least squares, whose Fisher matrix at noise 1 is its Hessian: n times the change."""
    torch.manual_seed(1)
    x, target = torch.randn(400, 3).double(), torch.randn(3).double()
    y = x @ torch.ones(3).double() + torch.randn(400).double()
    theta = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    residual = y - x @ theta

    def change(i):
        keep = torch.arange(400) != i
        less = torch.linalg.lstsq(x[keep], y[keep][:, None]).solution[:, 0]
        return ((1.5 - target @ less) ** 2 - (1.5 - target @ theta) ** 2) / 2

    gradients = -residual[:, None] * x
    at_target = -(1.5 - target @ theta) * target
    found = attribute(gradients, at_target[None], "influence")[:, 0]
    true = torch.stack([change(i) for i in range(50)]) * 400
    # E[r^2 x x^T] is sigma^2 E[x x^T] but for chance
    assert torch.corrcoef(torch.stack([found[:50], true]))[0, 1] > 0.95
    assert float((found[:50] * true).mean()) > 0


@pytest.mark.parametrize("method", ["trak", "cosine"])
def test_tiles_do_not_change_scores(rows, method, monkeypatch):
    monkeypatch.setattr("pntk.attribution.tiles.Plan._choose_tile", lambda self: 3)
    train, test, q = lists(rows)
    q = q if method == "trak" else None
    tiled = attribute(train, test, method, reweighting=q)
    monkeypatch.undo()
    assert torch.allclose(tiled, attribute(train, test, method, reweighting=q), atol=1e-12)


def test_stores_bring_their_reweighting(rows, put):
    stores = [
        (
            put(f"train{c}.h5", a, columns={"reweighting": q}, seed=c, weights=str(c)),
            put(f"test{c}.h5", b, columns={"reweighting": q[: len(b)]}, seed=c, weights=str(c)),
        )
        for c, (a, b, q) in enumerate(rows)
    ]
    found = attribute([a for a, _ in stores], [b for _, b in stores])
    expected = trak_of([(a, b, q.float().double()) for a, b, q in rows])
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("method", ["trak", "dot"])
def test_top_is_the_matrix_sorted(rows, method, monkeypatch):
    train, test, q = lists(rows)
    q = q if method == "trak" else None
    scores = attribute(train, test, method, reweighting=q)
    monkeypatch.setattr("pntk.attribution.tiles.Plan._choose_tile", lambda self: 3)
    found = attribute(train, test, method, reweighting=q, top=5, both=True)
    assert isinstance(found, Extremes)
    for part, descending in ((found.highest, True), (found.lowest, False)):
        values, order = scores.T.sort(dim=1, descending=descending, stable=True)
        assert torch.allclose(part.values, values[:, :5], atol=1e-12)
        assert torch.equal(part.indices, order[:, :5])
    alone = attribute(train, test, method, reweighting=q, top=5)
    assert torch.equal(alone.indices, found.highest.indices)


def test_equals_are_in_the_order_of_the_samples(monkeypatch):
    monkeypatch.setattr("pntk.attribution.tiles.Plan._choose_tile", lambda self: 3)
    found = attribute(torch.ones(10, 1), torch.ones(2, 1), "dot", top=4, both=True)
    for part in found:
        assert part.indices.tolist() == [[0, 1, 2, 3]] * 2


def test_skipped_samples_are_never_found(rows, put):
    train, test, _ = rows[0]
    stores = put("train.h5", train, skipped=[0, 5]), put("test.h5", test, skipped=[2])
    assert not attribute(*stores, "dot")[[0, 5]].any()
    found = attribute(*stores, "dot", top=len(train), both=True)
    for part, last in ((found.highest, -torch.inf), (found.lowest, torch.inf)):
        assert not {0, 5} & set(part.indices[0].tolist())
        assert part.indices[0, -2:].tolist() == [-1, -1]
        assert part.values[0, -2:].tolist() == [last] * 2
        assert (part.indices[2] == -1).all() and (part.values[2] == last).all()


def test_scores_on_disk_resume(rows, tmp_path, monkeypatch):
    train, test, q = lists(rows)
    expected = attribute(train, test, reweighting=q)
    monkeypatch.setattr("pntk.attribution.tiles.Plan._choose_tile", lambda self: 9)
    write, written = KernelWriter.write, []

    def stop(self, i, j, tile):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append((i, j))
        write(self, i, j, tile)

    monkeypatch.setattr(KernelWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        attribute(train, test, reweighting=q, out=tmp_path / "scores.h5")
    written.append(None)
    assert attribute(train, test, reweighting=q, out=tmp_path / "scores.h5") == (
        tmp_path / "scores.h5"
    )
    assert len(written) == 6  # five tiles, three of which were there
    kernel = open_kernel(tmp_path / "scores.h5")
    kernel.check()
    assert kernel.header.rows["method"] == "trak"
    assert torch.allclose(torch.from_numpy(kernel.values.copy()), expected, atol=1e-12)
    with pytest.raises(StoreError, match=r"scores\.h5 exists"):
        attribute(train, test, reweighting=q, out=tmp_path / "scores.h5")


def test_the_beginning_of_other_scores_is_not_gone_on_with(rows, tmp_path, monkeypatch):
    train, test, q = rows[0]
    monkeypatch.setattr("pntk.attribution.tiles.Plan._run", lambda *_: 1 / 0)
    for ridge in (1.0, 2.0):
        error = ZeroDivisionError if ridge == 1 else StoreError
        with pytest.raises(error, match=None if ridge == 1 else "rows.ridge is 1.0 there"):
            attribute(train, test, reweighting=q, ridge=ridge, out=tmp_path / "scores.h5")


def test_targets_that_were_solved_may_be_larger_than_the_budget(rows, put, monkeypatch):
    files, make = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(make()) or files[-1])
    train, test, q = lists(rows)
    expected = attribute(train, test, reweighting=q, memory_budget="80MB")
    assert not files
    # what is left of the half for solving is less than the targets take
    monkeypatch.setattr("pntk.attribution.targets.solver_bytes", lambda k, ridge: 40_000_000 - 9)
    found = attribute(train, test, reweighting=q, memory_budget="80MB")
    assert len(files) == 2 and all(file.closed for file in files)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["trak", "influence", "cosine"])
def test_on_a_device(rows, device, method, tmp_path):
    train, test, q = rows[0]
    options = {"reweighting": q} if method == "trak" else {}
    expected = attribute(train, test, method, **options)
    found = attribute(train, test, method, device=device, **options)
    assert found.device.type == "cpu" and torch.allclose(found, expected, rtol=1e-9)
    best = attribute(train, test, method, top=3, device=device, **options)
    assert best.indices.device.type == "cpu"
    assert torch.equal(best.indices, attribute(train, test, method, top=3, **options).indices)
    out = attribute(train, test, method, out=tmp_path / "s.h5", device=device, **options)
    assert torch.allclose(torch.from_numpy(open_kernel(out).values.copy()), expected, rtol=1e-9)
    there = [rows.to(device) for rows in (train, test)]  # rows may lie on it, too
    assert torch.allclose(attribute(*there, method, device=device, **options), expected, rtol=1e-9)


def test_auto_ridge_makes_wide_rows_usable():
    torch.manual_seed(0)
    train, test = torch.randn(20, 50), torch.randn(3, 50)
    scores = attribute(train, test, reweighting=torch.ones(20), ridge="auto")
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "shapley"}, "unknown method 'shapley'; expected one of trak, dot"),
        ({"ridge": -1}, "ridge is -1; expected a number of at least 0"),
        ({"ridge": "gcv"}, "ridge is 'gcv'"),
        ({"ridge": True}, "ridge is True"),
        ({"method": "dot", "ridge": 1.0}, "ridge is for method trak or influence"),
        ({"weights": [0.1]}, "weights is for method tracin, and method is 'trak'"),
        ({"method": "dot", "reweighting": torch.ones(4)}, "reweighting is for method trak"),
        ({"top": 0}, "top is 0; expected 1 to 40"),
        ({"top": 41}, "top is 41; expected 1 to 40"),
        ({"top": True}, "top is True"),
        ({"both": True}, "both=True is for top="),
        ({"top": 1, "out": "x.h5"}, "top=1 and out='x.h5': out is for all scores"),
        ({"memory_budget": None}, "memory_budget is None"),
        ({"device": "cuda:999"}, "device is 'cuda:999', which cannot be used"),
        (
            {"method": "dot", "memory_budget": "1MB"},
            "memory_budget is 1,000,000 bytes; .*use memory_budget=",
        ),
        ({"method": "tracin"}, r"needs weights, .*weights=\[0.1\]"),
        ({"method": "tracin", "weights": [1.0, 2.0]}, "for 1 checkpoints; expected one positive"),
        ({"method": "tracin", "weights": [0.0]}, "expected one positive learning rate"),
        ({"method": "tracin", "weights": [float("nan")]}, "expected one positive learning rate"),
        ({}, "tensors have none: pass reweighting="),
        ({"reweighting": torch.ones(3)}, r"reweighting has shape \(3,\).*expected 40 finite"),
        ({"reweighting": torch.full((40,), torch.nan)}, "or NaN or infinity"),
        ({"reweighting": [torch.ones(40)] * 3}, "reweighting has 3 entries for 1 checkpoints"),
    ],
)
def test_refused(rows, arguments, message):
    train, test, _ = rows[0]
    with pytest.raises(ConfigError, match=message):
        attribute(train, test, **arguments)


def test_the_budget_that_an_error_names_is_enough(rows):
    train, test, q = rows[0]
    for least in (1, 10**6):
        with pytest.raises(ConfigError, match="memory_budget=") as refused:
            attribute(train, test, reweighting=q, memory_budget=least)
        enough = int(str(refused.value).rpartition("=")[2])
        attribute(train, test, reweighting=q, memory_budget=enough)


def test_a_budget_too_small_to_invert():
    train = torch.randn(2100, 2048)
    with pytest.raises(ConfigError, match=r"to invert \[2,048, 2,048\] takes .*use memory_budget="):
        attribute(train, train[:3], reweighting=torch.ones(2100), memory_budget="100MB")


def test_wide_rows_need_a_ridge():
    with pytest.raises(ConfigError, match=r"50 wide and there are 20 .*ridge='auto'.*at most 20"):
        attribute(torch.randn(20, 50), torch.randn(3, 50), reweighting=torch.ones(20))


def test_rows_that_repeat_need_a_ridge():
    train = torch.randn(5, 8).repeat(10, 1)
    with pytest.raises(ConfigError, match=r"is singular to rounding .*ridge='auto'"):
        attribute(train, train[:3], reweighting=torch.ones(50))


def test_zero_rows():
    with pytest.raises(ConfigError, match="all training rows are zero"):
        attribute(torch.zeros(5, 2), torch.ones(1, 2), reweighting=torch.ones(5), ridge="auto")


def test_nonfinite_rows_are_named(rows):
    train, test, q = rows[0]
    train[33, 4] = torch.inf
    with pytest.raises(NonFiniteError, match="row 33 of the training rows"):
        attribute(train, test, reweighting=q)


def test_pairs_must_match(rows, put):
    train, test, _ = rows[0]
    with pytest.raises(ConfigError, match="train has 2 checkpoints and test 1"):
        attribute([train, train], [test], "dot")
    with pytest.raises(ConfigError, match="train has 0 checkpoints"):
        attribute([], [], "dot")
    with pytest.raises(ConfigError, match=r"train has \[40, 39\] rows"):
        attribute([train, train[1:]], [test, test], "dot")
    with pytest.raises(ConfigError, match=r"test has \[7, 6\] rows"):
        attribute([train, train], [test, test[1:]], "dot")
    with pytest.raises(ConfigError, match="12 and 11 wide"):
        attribute(train, test[:, 1:], "dot")
    with pytest.raises(ConfigError, match="differ in projection"):
        attribute(put("a.h5", train), put("b.h5", test, seed=1), "dot")


def test_outputs_that_do_not_fit(rows, put):
    train, test, _ = rows[0]
    stores = put("a.h5", train, output="pntk"), put("b.h5", test, output="pntk")
    for method, weights in (("tracin", [1.0]), ("influence", None)):
        with pytest.raises(ConfigError, match=f"{method}.* needs gradients of the loss.*'pntk'"):
            attribute(*stores, method, weights=weights)
    with pytest.raises(ConfigError, match="has no column 'reweighting': featurize with output="):
        attribute(*stores)


def test_scores_larger_than_memory(rows, monkeypatch):
    monkeypatch.setattr("pntk.attribution.scores.available_memory", lambda: 100)
    with pytest.raises(OutOfMemoryError, match=r"40 samples for 7 targets take 2,240 bytes.*top="):
        attribute(rows[0][0], rows[0][1], "dot")


def test_a_begun_file_with_tiles_too_large(rows, tmp_path, monkeypatch):
    train, test = torch.randn(3000, 200), torch.randn(2000, 200)
    with monkeypatch.context() as patch:
        patch.setattr("pntk.attribution.tiles.Plan._run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            attribute(train, test, "dot", out=tmp_path / "s.h5")
    with pytest.raises(ConfigError, match="was begun with tiles of 3000 rows"):
        attribute(train, test, "dot", out=tmp_path / "s.h5", memory_budget="40MB")
