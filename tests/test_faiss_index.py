import builtins
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pntk import Featurizer, topk
from pntk.errors import ConfigError, MissingExtraError, StoreError
from pntk.faiss_index import KINDS, _sample, build_index, load_index
from pntk.rows import as_rows
from pntk.store import FeatureStore, RowWriter, StoreHeader

faiss = pytest.importorskip("faiss", reason="needs FAISS: pip install pntk[search]")

NAN, INF = float("nan"), float("inf")
N, D, CLUSTERS = 3000, 32, 30


def clustered(n, seed, noise=0.7):
    """Rows [n, D] around centres that all seeds share."""
    centres = torch.randn(CLUSTERS, D, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(0, CLUSTERS, (n,), generator=generator)
    return centres[of] + noise * torch.randn(n, D, generator=generator)


def recall(found, expected):
    """Share of the expected rows that were found."""
    pairs = zip(found.indices.tolist(), expected.indices.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def write_store(path, values, skipped=(), **fields):
    given = {"projection": {}, "output": {}, "params": (), "weights": "", "precision": "fp32"}
    header = StoreHeader(
        rows=len(values), width=values.shape[1], dtype="float32", **(given | fields)
    )
    with RowWriter.open(path, header) as writer:
        places = np.arange(len(values))
        writer.write(places, values.numpy(), {}, skipped=np.isin(places, skipped))
    return FeatureStore(path)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_flat_finds_what_an_exact_search_finds(metric):
    rows, queries = clustered(N, 0), clustered(50, 1)
    index = build_index(rows, metric=metric)
    found, expected = index.search(queries, 10), topk(queries, rows, 10, metric=metric)
    assert index.exact and (index.kind, index.metric) == ("flat", metric)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.values, expected.values)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize(("kind", "least"), [("ivf", 0.95), ("hnsw", 0.95), ("ivfpq", 0.6)])
def test_recall(kind, least, metric):
    rows, queries = clustered(N, 0), clustered(50, 1)
    index = build_index(rows, kind, metric=metric)
    found, expected = index.search(queries, 10), topk(queries, rows, 10, metric=metric)
    assert not index.exact
    assert recall(found, expected) >= least
    assert bool((found.values[:, :-1] >= found.values[:, 1:]).all())
    scores = (rows if metric == "dot" else nn.functional.normalize(rows))[found.indices]
    asked = queries if metric == "dot" else nn.functional.normalize(queries)
    exact = (scores * asked[:, None]).sum(2)
    slack = 0.15 if kind == "ivfpq" else 1e-5  # codes give estimates
    torch.testing.assert_close(found.values, exact, rtol=slack, atol=slack * float(exact.max()))


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_learning_is_deterministic_in_the_seed(kind):
    rows, queries = clustered(N, 0), clustered(50, 1)
    options = {"nlist": 20, "nprobe": 1} | ({"pq_m": 4, "pq_bits": 4} if kind == "ivfpq" else {})
    a, b, c = (build_index(rows, kind, seed=seed, **options) for seed in (3, 3, 4))
    assert torch.equal(a.search(queries, 9).values, b.search(queries, 9).values)
    assert not torch.equal(a.search(queries, 9).values, c.search(queries, 9).values)


def test_the_sample_is_drawn_by_the_seed():
    rows = as_rows(torch.arange(200.0)[:, None])
    a, b, c = (_sample(rows, "dot", 50, seed, 1)[:, 0].tolist() for seed in (3, 3, 4))
    assert a == b != c
    assert len(set(a)) == 50 and set(a) <= set(range(200))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", ["1GB", "300kB"])
def test_rows_are_numbered_however_they_are_cut(tmp_path, kind, budget):
    """Skipped rows and rows that are not finite have no place, and the others keep theirs."""
    values = clustered(700, 0)
    values[[5, 699]] = 0
    values[8], values[9, 3], values[500, 0] = NAN, INF, -INF
    options = {"nlist": 4, "nprobe": 4} if "ivf" in kind else {}
    options |= {"pq_m": 16, "pq_bits": 4} if kind == "ivfpq" else {}
    index = build_index(values, kind, memory_budget=budget, **options)
    assert len(index) == 697
    stored = write_store(tmp_path / "a.h5", values.nan_to_num(0, 0, 0), [5, 8, 9, 500, 699])
    index = build_index(stored, kind, memory_budget=budget, **options)
    assert len(index) == 695
    found = index.search(stored, 695).indices
    assert not np.isin(found, [5, 8, 9, 500, 699]).any()
    assert found[[5, 8, 9, 500, 699]].eq(-1).all()
    if kind != "ivfpq":
        kept = np.setdiff1d(np.arange(700), [5, 8, 9, 500, 699])
        assert found[kept, 0].tolist() == kept.tolist()


def test_lists_that_are_too_short_leave_places_empty():
    index = build_index(clustered(600, 0), "ivf", nlist=10, nprobe=1)
    found = index.search(clustered(5, 1), 600)
    empty = found.indices == -1
    assert bool(empty[:, -1].all()) and not bool(empty[:, 0].any())
    assert torch.equal(empty, found.values == -INF)


def test_queries_that_are_not_finite_find_nothing():
    index = build_index(clustered(50, 0))
    queries = clustered(3, 1)
    queries[1, 0] = NAN
    found = index.search(queries, 2)
    assert found.indices[1].tolist() == [-1, -1] and found.values[1].tolist() == [-INF, -INF]
    assert (found.indices[[0, 2]] >= 0).all()


def test_rows_of_zeros_have_cosine_zero():
    index = build_index(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    found = index.search(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), 3)
    assert found.indices.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert found.values.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_types():
    rows, queries = clustered(200, 0), clustered(9, 1)
    expected = build_index(rows).search(queries, 3)
    for other in (rows.double(), rows.numpy()):
        found = build_index(other).search(queries.double(), 3)
        assert found.values.dtype == torch.float32 and found.indices.dtype == torch.int64
        assert torch.equal(found.indices, expected.indices)
    assert build_index(rows.half()).search(queries.half(), 3).values.shape == (9, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(tmp_path, kind):
    rows, queries = clustered(700, 0), clustered(20, 1)
    index = build_index(rows, kind, **({"nprobe": 3} if "ivf" in kind else {}))
    index.save(tmp_path / "a.faiss")
    assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]
    again = load_index(tmp_path / "a.faiss", rows, kind=kind, metric="cosine")
    assert (again.kind, again.metric, len(again)) == (kind, "cosine", 700)
    assert again.made_of == index.made_of and again.exact is index.exact
    found, expected = again.search(queries, 5), index.search(queries, 5)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    assert faiss.read_index(str(tmp_path / "a.faiss")).ntotal == 700  # FAISS reads it as its own


def test_an_index_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    index = build_index(clustered(50, 0))
    index.save(tmp_path / "a.faiss")
    before = (tmp_path / "a.faiss").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for step in ("os.replace", "os.fsync"):
        monkeypatch.setattr(step, full)
        with pytest.raises(StoreError, match=r"a.faiss: cannot be written \(No space left on dev"):
            index.save(tmp_path / "a.faiss")
        assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]
        assert (tmp_path / "a.faiss").read_bytes() == before
    with pytest.raises(ConfigError, match="is a folder"):
        index.save(tmp_path)


def test_other_rows_are_refused(tmp_path):
    rows = clustered(60, 0)
    build_index(rows).save(tmp_path / "a.faiss")
    for other, message in (
        (rows[:59], r"different rows: 60 in the index, 59 now"),
        (rows[:, :31], r"different width: 32 in the index, 31 now"),
        (clustered(60, 1), r"different content\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_index(tmp_path / "a.faiss", other)
    with pytest.raises(ConfigError, match="has the kind 'flat', not 'ivf'"):
        load_index(tmp_path / "a.faiss", rows, kind="ivf")
    with pytest.raises(ConfigError, match="has the metric 'cosine', not 'dot'"):
        load_index(tmp_path / "a.faiss", rows, metric="dot")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("projection", {"seed": 1}),
        ("output", {"name": "loss"}),
        ("params", (("weight", (2, 3)),)),
        ("weights", "ab"),
    ],
)
def test_rows_of_another_map_are_refused(tmp_path, field, value):
    values = clustered(60, 0)
    store = write_store(tmp_path / "a.h5", values)
    other = write_store(tmp_path / "b.h5", values, **{field: value})
    index = build_index(store)
    index.save(tmp_path / "a.faiss")
    assert len(load_index(tmp_path / "a.faiss", store)) == 60
    with pytest.raises(ConfigError, match=f"was made of other rows .different {field}"):
        load_index(tmp_path / "a.faiss", other)
    with pytest.raises(ConfigError, match=f"b.h5 and the index differ in {field}"):
        index.search(other, 1)
    assert index.search(values, 1).indices[:, 0].tolist() == list(range(60))


def test_every_damaged_byte_is_found(tmp_path):
    rows = clustered(60, 0)
    path = tmp_path / "a.faiss"
    build_index(rows).save(path)
    whole = path.read_bytes()
    about = whole.index(b'{"bytes"')
    places = [0, 3, 50, about // 2, about - 1, *range(about, len(whole), 7), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"the index is damaged|is not an index of pntk"):
            load_index(path, rows)
    for length in (0, 10, about, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="is not an index of pntk, or it is truncated"):
            load_index(path, rows)
    path.write_bytes(whole[100:])
    with pytest.raises(StoreError, match="the index is damaged"):
        load_index(path, rows)


def test_what_is_no_index(tmp_path):
    rows = clustered(60, 0)
    with pytest.raises(StoreError, match=r"none.faiss: cannot be read \(No such file"):
        load_index(tmp_path / "none.faiss", rows)
    plain = faiss.IndexFlatIP(D)
    faiss.write_index(plain, str(tmp_path / "plain.faiss"))
    with pytest.raises(StoreError, match=r"plain\.faiss: is not an index of pntk"):
        load_index(tmp_path / "plain.faiss", rows)


def test_an_index_of_another_version_of_faiss(tmp_path, monkeypatch):
    rows = clustered(60, 0)
    build_index(rows).save(tmp_path / "a.faiss")

    def fail(_):
        raise RuntimeError("Index type 0x1234 not recognized\nin read_index")

    monkeypatch.setattr(faiss, "read_index", fail)
    with pytest.raises(StoreError, match=r"cannot read what .* wrote \(Index type 0x1234 not rec"):
        load_index(tmp_path / "a.faiss", rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "lsh"}, "unknown kind of index 'lsh'; expected one of flat, ivf, ivfpq, hnsw"),
        ({"metric": "l2"}, "unknown metric 'l2'; expected one of cosine, dot"),
        ({"kind": "flat", "nlist": 3}, "'flat' has no option 'nlist'; it takes none"),
        (
            {"kind": "ivf", "ef_search": 3},
            "'ivf' has no option 'ef_search'; it takes nlist, nprobe",
        ),
        ({"kind": "ivf", "nlist": 0}, "nlist is 0; expected a positive integer"),
        ({"kind": "ivf", "nlist": 2.5}, "nlist is 2.5; expected a positive integer"),
        ({"kind": "ivf", "nlist": True}, "nlist is True; expected a positive integer"),
        ({"kind": "ivf", "nlist": 61}, "60 rows can be learnt from, and this .* at least 61"),
        ({"kind": "ivfpq", "pq_bits": 8}, "60 rows can be learnt from, and this .* at least 256"),
        ({"kind": "ivfpq", "pq_m": 5}, "pq_m is 5, which does not divide the 32 numbers of a row"),
        ({"kind": "ivfpq", "pq_bits": 13}, "pq_bits is 13; expected 1 to 12"),
        ({"kind": "hnsw", "hnsw_m": 1}, "hnsw_m is 1; expected at least 2"),
        ({"memory_budget": 100}, "memory_budget is 100 bytes; rows of this width need at least"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_index(clustered(60, 0), **arguments)


def test_too_little_is_finite_to_learn_from():
    rows = clustered(60, 0)
    rows[10:] = NAN
    with pytest.raises(ConfigError, match=r"10 rows can be learnt from, and this .* at least 20"):
        build_index(rows, "ivf", nlist=20)


def test_refused_queries():
    index = build_index(clustered(60, 0))
    with pytest.raises(ConfigError, match="queries are 31 wide and the index 32"):
        index.search(torch.zeros(1, 31), 1)
    for k in (0, 61, 2.0, True):
        with pytest.raises(ConfigError, match=r"k is .*; expected 1 to 60, the rows of the index"):
            index.search(clustered(2, 1), k)
    with pytest.raises(ConfigError, match="queries is a list"):
        index.search([[1.0]], 1)


def test_small_sets_of_rows():
    for kind in KINDS:
        index = build_index(clustered(5, 0), kind)
        assert index.search(clustered(2, 1), 5).indices.shape == (2, 5)


def test_repr():
    assert repr(build_index(clustered(60, 0))) == "FaissIndex('flat', 'cosine', 60 rows)"


def test_without_faiss(monkeypatch):
    def fail(name, *arguments, **options):
        if name.partition(".")[0] == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
        return original(name, *arguments, **options)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", fail)
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(MissingExtraError, match=r'pip install "pntk\[search\]"'):
        build_index(clustered(5, 0))
    with pytest.raises(ConfigError, match="unknown kind"):  # before FAISS is asked for
        build_index(clustered(5, 0), "lsh")


def test_a_broken_faiss_raises_its_own_error(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ModuleNotFoundError, match=r"numpy\.core") as caught:
        build_index(clustered(5, 0))
    assert not isinstance(caught.value, MissingExtraError)


BOTH = """
import sys
if sys.argv[1] == "faiss":
    import faiss
import torch
import pntk
from pntk.faiss_index import build_index
assert sys.argv[1] == "faiss" or "faiss" not in sys.modules
torch.set_num_threads(2)
rows = torch.randn(3000, 64)
for _ in range(3):
    expected = pntk.topk(rows, rows, 3)
    found = build_index(rows, "flat").search(rows, 3)
    assert torch.equal(found.indices, expected.indices)
build_index(rows, "ivf").search(rows, 3)
import faiss
print(faiss.omp_get_max_threads(), torch.get_num_threads())
"""


@pytest.mark.parametrize("first", ["torch", "faiss"])
def test_torch_and_faiss_share_a_process(first):
    """Each brings an OpenMP; in either order both work, with as many threads as torch is told."""
    arguments = [sys.executable, "-W", "error", "-c", BOTH, first]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]


def test_a_featurized_store(tmp_path):
    f = Featurizer(nn.Linear(5, 3), proj_dim=64)
    store = f.featurize(torch.randn(40, 5), tmp_path / "a.h5", progress=False)
    build_index(store, "hnsw").save(tmp_path / "a.faiss")
    found = load_index(tmp_path / "a.faiss", store).search(store, 1)
    assert found.indices[:, 0].tolist() == list(range(40))
