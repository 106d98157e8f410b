import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import FeatureStore, Featurizer, products, retrieval, topk
from pntk.errors import ConfigError
from pntk.retrieval import Sizes, largest, largest_in_torch
from pntk.rows import as_rows
from pntk.store import RowWriter, StoreHeader

NAN, INF = float("nan"), float("inf")
CUTS = [  # queries, block, tile, scores, first
    Sizes(1, 32, 32, 32, 32),
    Sizes(7, 64, 32, 512, 100),
    Sizes(3, 96, 96, 300, 64),
    Sizes(1000, 4096, 2048, 2**21, 2**19),
]


@pytest.fixture
def cut(monkeypatch):
    """Have a search use these sizes."""

    def use(sizes):
        monkeypatch.setattr(retrieval, "_sizes", lambda *_: sizes)

    return use


def rows(n, d=6, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def integers(n, d, seed, high=3):
    """Rows whose products are exact, with many ties."""
    return torch.randint(0, high, (n, d), generator=torch.Generator().manual_seed(seed)).double()


def by_sorting(scores, k):
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), order


def write_store(path, values, skipped=()):
    header = StoreHeader(
        rows=len(values),
        width=values.shape[1],
        dtype="float32",
        projection={},
        output={},
        params=(),
        weights="",
        precision="fp32",
    )
    with RowWriter.open(path, header) as writer:
        places = np.arange(len(values))
        writer.write(places, values.numpy(), {}, skipped=np.isin(places, skipped))
    return FeatureStore(path)


@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("k", [1, 5, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dot(cut, sizes, k, dtype):
    cut(sizes)
    queries, store = rows(20, seed=1, dtype=dtype), rows(300, dtype=dtype)
    found = topk(queries, store, k, metric="dot")
    values, indices = by_sorting(queries.double() @ store.double().T, k)
    torch.testing.assert_close(found.values, values.to(dtype), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.indices, indices)
    assert found.values.shape == (20, k) and found.indices.dtype == torch.int64


@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine(cut, sizes, dtype):
    cut(sizes)
    queries, store = rows(20, seed=1, dtype=dtype), rows(300, dtype=dtype)
    found = topk(queries, store, 4)
    unit = [r.double() / r.double().norm(dim=1, keepdim=True) for r in (queries, store)]
    values, indices = by_sorting(unit[0] @ unit[1].T, 4)
    torch.testing.assert_close(found.values, values.to(dtype))
    assert torch.equal(found.indices, indices)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 129), (129, 63), (1025, 70), (63, 5001)])
def test_awkward_sizes(m, n):
    queries, store = integers(m, 3, 1).float(), integers(n, 3, 0).float()
    found = topk(queries, store, min(n, 9), metric="dot")
    values, indices = by_sorting(queries @ store.T, min(n, 9))
    assert torch.equal(found.values, values) and torch.equal(found.indices, indices)


@given(
    n=st.integers(1, 200),
    m=st.integers(1, 5),
    cuts=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    scores=st.integers(1, 300),
    first=st.integers(1, 300),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_ties_go_to_the_lower_index_however_it_is_cut(n, m, cuts, scores, first, seed, data):
    k = data.draw(st.integers(1, n))
    queries, store = integers(m, 2, seed), integers(n, 2, seed + 1)
    sizes = Sizes(cuts[0], 32 * cuts[1], 32 * cuts[2], scores, first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_sizes", lambda *_: sizes)
        found = topk(queries, store, k, metric="dot")
    values, indices = by_sorting(queries @ store.T, k)
    assert torch.equal(found.values, values) and torch.equal(found.indices, indices)


@given(n=st.integers(1, 30), seed=st.integers(0, 10**6), data=st.data())
def test_largest(n, seed, data):
    scores = integers(4, n, seed)
    k = data.draw(st.integers(1, n))
    expected = by_sorting(scores, k)[1].sort(dim=1).values
    assert torch.equal(largest_in_torch(scores, k), expected)
    expected += n * torch.arange(4)[:, None]
    assert largest(scores.numpy(), k).tolist() == expected.flatten().tolist()


@pytest.mark.parametrize("sizes", CUTS)
def test_all_equal_scores_come_in_order(cut, sizes):
    cut(sizes)
    found = topk(torch.ones(1, 2), torch.ones(500, 2), 40, metric="dot")
    assert found.indices[0].tolist() == list(range(40))


@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("k", [1, 10])
def test_scores_that_only_get_better(cut, sizes, k):
    """Every row is a hit, more than the lists of candidates hold."""
    cut(sizes)
    store = torch.arange(3000.0)[:, None]
    found = topk(torch.tensor([[1.0], [-1.0], [2.0]]), store, k, metric="dot")
    last = torch.arange(2999, 2999 - k, -1)
    assert torch.equal(found.indices, torch.stack([last, torch.arange(k), last]))


def test_one_query_has_all_the_hits(cut):
    cut(Sizes(100, 320, 320, 32000, 3200))
    store = torch.zeros(4000, 2)
    store[:, 0] = torch.arange(4000.0)
    queries = torch.tensor([[0.0, 1.0]]).repeat(50, 1)
    queries[17] = torch.tensor([1.0, 0.0])
    found = topk(queries, store, 3, metric="dot").indices
    assert found[17].tolist() == [3999, 3998, 3997] and found[18].tolist() == [0, 1, 2]


def test_candidates_survive_a_tile_that_is_full_of_hits(cut):
    cut(Sizes(2, 128, 128, 256, 64))
    store = torch.zeros(512, 2)
    store[200, 0] = 5.0  # of the first query, found before ...
    store[256:, 1] = torch.arange(256.0)  # ... the second one has more hits than its list holds
    found = topk(torch.eye(2), store, 2, metric="dot")
    assert found.indices.tolist() == [[200, 0], [511, 510]]


def test_rows_of_zeros_have_cosine_zero():
    store = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = topk(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), store, 3)
    assert found.indices.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert found.values.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_the_score_matrix_is_never_formed(monkeypatch, cut):
    cut(Sizes(12, 64, 64, 8 * 32, 8))
    monkeypatch.setattr(retrieval, "_QUERIES", 8)
    seen = []
    original = retrieval.product

    def watch(x, y):
        seen.append((len(x), len(y)))
        return original(x, y)

    monkeypatch.setattr(retrieval, "product", watch)
    topk(rows(20), rows(65, seed=1), 3)
    # two passes of 12 and 8 queries, in tiles of 8 queries and 32 rows
    assert seen == [(8, 32), (4, 32), (8, 32), (4, 32), (8, 1), (4, 1)] + [(8, 32)] * 2 + [(8, 1)]


def test_a_store_is_read_once(tmp_path, monkeypatch):
    store = write_store(tmp_path / "a.h5", rows(70_000, 200, dtype=torch.float32))
    reads, read = [], FeatureStore.read

    def watch(self, start, stop):
        reads.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(FeatureStore, "read", watch)
    found = topk(store[:30], store, 2, memory_budget="64MB")
    assert len(reads) > 10 and reads[0][0] == 0 and reads[-1][1] == 70_000
    assert all(a[1] == b[0] for a, b in pairwise(reads))
    assert found.indices[:, 0].tolist() == list(range(30))


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
        ((rows(2), rows(3)), {"k": 1, "memory_budget": "much"}, "memory_budget is 'much'"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        topk(*arguments, **options)


@pytest.mark.parametrize(("d", "k"), [(6, 1), (6, 300), (70_000, 2)])
def test_the_smallest_budget_is_named_and_works(d, k):
    queries, store = rows(3, d, seed=1), rows(300, d)
    message = r"memory_budget is 1,000,000 bytes; rows of this width .* at least [\d,]+"
    with pytest.raises(ConfigError, match=message) as caught:
        topk(queries, store, k, memory_budget="1MB")
    smallest = int(str(caught.value).split()[-1].replace(",", ""))
    with pytest.raises(ConfigError, match="memory_budget"):
        topk(queries, store, k, memory_budget=smallest - 1)
    found = topk(queries, store, k, memory_budget=smallest)
    assert torch.equal(found.indices, topk(queries, store, k).indices)


@pytest.mark.parametrize("d", [1, 64, 4096])
@pytest.mark.parametrize("k", [1, 1000])
@pytest.mark.parametrize("budget", [10**8, 10**9, 10**11])
def test_what_is_held_fits_the_budget(d, k, budget):
    sizes = retrieval._sizes(as_rows(rows(1, d)), as_rows(rows(2000, d)), k, "dot", budget)
    lists = (2 * k + 64) * 16
    assert 0 < sizes.queries * (8 * d + lists) <= budget / 4
    assert 3 * sizes.block * 8 * d <= budget / 4
    assert sizes.tile <= sizes.block and sizes.scores * 8 <= budget / 16
    assert sizes.block % 32 == 0 and sizes.tile % 32 == 0
    assert sizes.block * d * 8 <= 2**26 and sizes.scores <= 2**21  # more would be of no use


def test_arrays_and_mixed_types():
    queries, store = rows(3, seed=1), rows(9)
    expected = topk(queries, store, 2)
    for found in (topk(queries.numpy(), store.numpy(), 2), topk(queries, store.float(), 2)):
        assert torch.equal(found.indices, expected.indices) and found.values.dtype == torch.float64
    halves = topk(queries.half(), store.bfloat16(), 2)
    wide = topk(queries.half().float(), store.bfloat16().float(), 2)
    assert halves.values.dtype == torch.float32 and torch.equal(halves.indices, wide.indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_contiguous(dtype):
    queries, store = rows(3, 12, seed=1, dtype=dtype), rows(40, 12, dtype=dtype)
    expected = topk(queries[:, ::2].contiguous(), store[:, ::2].contiguous(), 5)
    for found in (
        topk(queries[:, ::2], store[:, ::2], 5),
        topk(queries[:, ::2].T.contiguous().T, store[:, ::2].T.contiguous().T, 5),
    ):
        torch.testing.assert_close(found.values, expected.values)
        assert torch.equal(found.indices, expected.indices)


def test_nothing_is_written_to_the_rows():
    queries, store = rows(3, seed=1), rows(40)
    store[3] = NAN
    kept = queries.clone(), store.clone()
    for metric in ("cosine", "dot"):
        topk(queries, store, 5, metric=metric)
    assert torch.equal(queries, kept[0]) and torch.equal(store.nan_to_num(), kept[1].nan_to_num())


def test_no_graph_is_kept():
    assert not topk(rows(3).requires_grad_(), rows(9), 2).values.requires_grad


def test_without_onednn(monkeypatch):
    queries, store = rows(3, seed=1, dtype=torch.float32), rows(90, dtype=torch.float32)
    expected = topk(queries, store, 5)
    monkeypatch.setattr(products, "_onednn", None)
    found = topk(queries, store, 5)
    torch.testing.assert_close(found.values, expected.values)
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


@pytest.mark.parametrize("sizes", CUTS)
def test_a_store_and_a_tensor_are_searched_alike(tmp_path, cut, sizes):
    cut(sizes)
    values = rows(300, dtype=torch.float32)
    store = write_store(tmp_path / "a.h5", values)
    assert torch.equal(topk(store, store, 7).indices, topk(values, values, 7).indices)


@pytest.mark.parametrize("sizes", CUTS)
def test_what_is_done_for_a_device(cut, monkeypatch, sizes):
    """Scores of another device are reduced there; here they only say that they are of one."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda")

    def product(x, y):
        return (x @ y.T).as_subclass(Elsewhere)

    cut(sizes)
    queries, store = integers(5, 3, 0), integers(700, 3, 1)
    store[7] = NAN
    expected = topk(queries, store, 9, metric="dot")
    monkeypatch.setattr(retrieval, "product", product)
    found = topk(queries, store, 9, metric="dot")
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)


@pytest.mark.gpu
def test_the_gpu_finds_the_same():
    queries, store = integers(5, 3, 0), integers(50_000, 3, 1)
    store[7] = NAN
    expected = topk(queries, store, 9, metric="dot")
    found = topk(queries, store, 9, metric="dot", device="cuda")
    assert torch.equal(found.indices, expected.indices)
    found = topk(queries.cuda(), store.cuda(), 9, metric="dot")
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_rows_that_are_not_finite_are_never_found(bad, metric):
    rows = torch.tensor([[1.0, 1.0], [bad, 1.0], [2.0, 2.0]])
    found = topk(rows, rows, k=3, metric=metric)
    assert set(found.indices[0].tolist()) == {0, 2, -1} and found.indices[0, 2] == -1
    assert found.indices[1].tolist() == [-1, -1, -1]
    assert found.values[1].tolist() == [-INF] * 3


@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.0])
def test_what_is_not_finite_hides_nothing(cut, sizes, share):
    cut(sizes)
    queries, store = integers(5, 3, 0), integers(3000, 3, 1)
    generator = torch.Generator().manual_seed(2)
    gone = torch.rand(3000, generator=generator) < share
    store[gone] = torch.tensor([NAN, INF, -INF])[
        torch.randint(0, 3, (int(gone.sum()),), generator=generator)
    ].double()[:, None]
    found = topk(queries, store, 6, metric="dot")
    scores = queries @ store.T
    values, indices = by_sorting(torch.where(scores.isfinite(), scores, -INF), 6)
    assert torch.equal(found.values, values)
    assert torch.equal(found.indices, torch.where(values == -INF, -1, indices))


def test_skipped_rows_are_never_found(tmp_path):
    x = torch.tensor([[1.0, 2.0], [NAN, 0.0], [-1.0, 1.0]])
    f = Featurizer(torch.nn.Linear(2, 3), proj_dim=64, on_nonfinite="skip")
    with f.featurize(x, tmp_path / "rows.h5", progress=False) as store:
        found = f.topk(-store[0][None], store, k=3)
        assert 1 not in found.indices and found.indices[0, 2] == -1
        assert f.topk(store, store, k=1).indices[:, 0].tolist() == [0, -1, 2]


@pytest.mark.parametrize("sizes", CUTS)
def test_skipped_rows_of_every_block(tmp_path, cut, sizes):
    cut(sizes)
    values = rows(300, dtype=torch.float32)
    skipped = [0, 31, 32, 63, 64, 150, 298, 299]
    values[skipped] = 0
    store = write_store(tmp_path / "a.h5", values, skipped)
    found = topk(values, store, 300, metric="dot").indices
    kept = sorted(set(range(300)) - set(skipped))
    for row in found:
        assert sorted(row.tolist()) == [-1] * len(skipped) + kept


def test_cosines_of_tiny_and_huge_rows():
    for size in (1e-36, 1e-24, 1e20, 1e37):
        rows = torch.full((1, 4), size)
        assert topk(rows, rows, k=1).values.item() == pytest.approx(1.0)


MEASURE = """
import resource, sys
import torch
from pntk import FeatureStore, topk

torch.set_num_threads(2)
torch.mm(torch.ones(300, 300), torch.ones(300, 300))  # threads have started
queries = torch.randn(100, 1024, generator=torch.Generator().manual_seed(1))
store = FeatureStore(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = topk(queries, store, 10, memory_budget="64MB")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, int(found.indices.sum()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in other units")
def test_memory_stays_within_the_budget(tmp_path):
    """A store of 246 MB, and peaks of a fresh process."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60_000, 1024, generator=generator)
    write_store(tmp_path / "a.h5", values)
    queries = torch.randn(100, 1024, generator=torch.Generator().manual_seed(1))
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "a.h5")]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    finally:
        (tmp_path / "a.h5").unlink()  # pytest keeps what three runs leave
    taken, total = map(int, done.stdout.split())
    assert total == int(topk(queries, values, 10).indices.sum())
    assert taken * 1024 < 64e6
