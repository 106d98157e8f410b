import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import Featurizer, retrieval, topk
from pntk.errors import ConfigError
from pntk.retrieval import stable_topk


def rows(n, d=6, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def integers(n, d, seed, high=3):
    """Rows whose products are exact, with many ties."""
    return torch.randint(0, high, (n, d), generator=torch.Generator().manual_seed(seed)).double()


def by_sorting(scores, k):
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), order


@pytest.mark.parametrize(("query_tile", "tile"), [(1, 1), (3, 7), (64, 64), (512, 4096)])
@pytest.mark.parametrize("k", [1, 5, 65])
def test_dot(query_tile, tile, k):
    queries, store = rows(20, seed=1), rows(65)
    found = topk(queries, store, k, metric="dot", query_tile=query_tile, tile=tile)
    values, indices = by_sorting(queries @ store.T, k)
    torch.testing.assert_close(found.values, values)
    assert torch.equal(found.indices, indices)
    assert found.values.shape == (20, k) and found.indices.dtype == torch.int64


@pytest.mark.parametrize("tile", [1, 7, 4096])
def test_cosine(tile):
    queries, store = rows(20, seed=1), rows(65)
    found = topk(queries, store, 4, tile=tile)
    unit = [r / r.norm(dim=1, keepdim=True) for r in (queries, store)]
    values, indices = by_sorting(unit[0] @ unit[1].T, 4)
    torch.testing.assert_close(found.values, values)
    assert torch.equal(found.indices, indices)


@given(
    n=st.integers(1, 40),
    m=st.integers(1, 5),
    tile=st.integers(1, 45),
    query_tile=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_ties_go_to_the_lower_index_across_tiles(n, m, tile, query_tile, seed, data):
    k = data.draw(st.integers(1, n))
    queries, store = integers(m, 2, seed), integers(n, 2, seed + 1)
    found = topk(queries, store, k, metric="dot", tile=tile, query_tile=query_tile)
    values, indices = by_sorting(queries @ store.T, k)
    assert torch.equal(found.values, values) and torch.equal(found.indices, indices)


@given(n=st.integers(1, 30), seed=st.integers(0, 10**6), data=st.data())
def test_stable_topk(n, seed, data):
    scores = integers(4, n, seed)
    k = data.draw(st.integers(1, n))
    found = stable_topk(scores, k)
    values, indices = by_sorting(scores, k)
    assert torch.equal(found.values, values) and torch.equal(found.indices, indices)


def test_all_equal_scores_come_in_order():
    found = topk(torch.ones(1, 2), torch.ones(100, 2), 40, metric="dot", tile=7)
    assert found.indices[0].tolist() == list(range(40))


def test_rows_of_zeros_have_cosine_zero():
    store = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = topk(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), store, 3)
    assert found.indices.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert found.values.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_the_score_matrix_is_never_formed(monkeypatch):
    seen = []
    original = retrieval.stable_topk

    def watch(scores, k):
        seen.append(tuple(scores.shape))
        return original(scores, k)

    monkeypatch.setattr(retrieval, "stable_topk", watch)
    topk(rows(20), rows(65, seed=1), 3, query_tile=8, tile=16)
    assert len(seen) == 3 * 5
    assert max(m for m, _ in seen) == 8 and max(n for _, n in seen) == 16


@pytest.mark.parametrize("k", [0, -1, 66, 2.0, True, None])
def test_k_out_of_range(k):
    with pytest.raises(ConfigError, match=r"k is .*; expected 1 to 65, the rows of the store"):
        topk(rows(2), rows(65), k)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (rows(2), rows(3)),
            {"k": 1, "metric": "l2"},
            "unknown metric 'l2'; expected one of cosine",
        ),
        ((rows(2), rows(3, 5)), {"k": 1}, "rows are 6 and 5 wide"),
        ((rows(2)[0], rows(3)), {"k": 1}, "queries is torch.float64 of shape"),
        ((rows(2), [1]), {"k": 1}, "store is a list; expected"),
        ((rows(2), rows(3)), {"k": 1, "tile": 0}, "tiles are 512 and 0"),
        ((rows(2), rows(3)), {"k": 1, "query_tile": -1}, "tiles are -1 and 4096"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        topk(*arguments, **options)


def test_arrays_and_mixed_types():
    queries, store = rows(3, seed=1), rows(9)
    expected = topk(queries, store, 2)
    for found in (topk(queries.numpy(), store.numpy(), 2), topk(queries, store.float(), 2)):
        assert torch.equal(found.indices, expected.indices)


def test_stores(tmp_path):
    x = torch.randn(9, 5)
    model = nn.Linear(5, 3)
    stores = [
        Featurizer(model, proj_dim=64, seed=seed).featurize(
            x, tmp_path / f"{seed}.h5", progress=False
        )
        for seed in (0, 1)
    ]
    found = topk(stores[0], stores[0], 2)
    assert found.indices[:, 0].tolist() == list(range(9))
    assert torch.equal(topk(stores[0].torch(), stores[0], 2).indices, found.indices)
    with pytest.raises(ConfigError, match="differ in projection"):
        topk(stores[0], stores[1], 2)


@pytest.mark.gpu
def test_the_gpu_finds_the_same():
    queries, store = integers(5, 3, 0), integers(50, 3, 1)
    expected = topk(queries, store, 9, metric="dot")
    found = topk(queries, store, 9, metric="dot", tile=8, device="cuda")
    assert torch.equal(found.indices, expected.indices)


def test_rows_that_are_not_finite_are_never_found():
    rows = torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [2.0, 0.0]])
    found = topk(rows, rows, k=3, metric="dot")
    assert found.indices[0].tolist() == [2, 0, -1]
    assert found.indices[1].tolist() == [-1, -1, -1]


def test_skipped_rows_are_never_found(tmp_path):
    x = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [-1.0, 1.0]])
    f = Featurizer(torch.nn.Linear(2, 3), proj_dim=64, on_nonfinite="skip")
    with f.featurize(x, tmp_path / "rows.h5", progress=False) as store:
        found = f.topk(-store[0][None], store, k=3)
        assert 1 not in found.indices and found.indices[0, 2] == -1
        assert f.topk(store, store, k=1).indices[:, 0].tolist() == [0, -1, 2]


def test_cosines_of_tiny_and_huge_rows():
    for size in (1e-24, 1e20):
        rows = torch.full((1, 4), size)
        assert topk(rows, rows, k=1).values.item() == pytest.approx(1.0)
