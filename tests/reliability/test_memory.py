"""Stores larger than what they may take; see benchmarks/reliability/memory.py."""

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks.memory import STATUS
from benchmarks.reliability import memory
from benchmarks.reliability.report import Unavailable
from benchmarks.reliability.task import make_header
from pntk.store import FeatureStore, RowWriter

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="peaks are read from /proc")


def test_search_and_kernel_within_little_memory(tmp_path):
    """Stores of 123 and 41 MB, of which a search may take 80 MB and a kernel 64 MB."""
    found = memory.run(30_000, 1024, 50, "80MB", 5000, "64MB", tmp_path)
    assert found.failures == []
    assert [row["store [MB]"] for row in found.rows] == [123, 20]


def test_too_much_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "apart", lambda *args: {"peak": 2e9, "seconds": 1.0, "base": 1.0})
    monkeypatch.setattr(memory, "open_kernel", None)
    store = tmp_path / "large.h5"
    finding = memory.Finding("memory", "")
    np.savez(tmp_path / "found.npz", values=np.zeros((9, 5)), indices=np.zeros((9, 5), np.int64))
    memory._search(finding, tmp_path, 300, 16, 9, "80MB")
    assert any("the peak is 2,000,000,000 bytes" in failure for failure in finding.failures)
    assert any("cosines differ" in failure for failure in finding.failures)
    assert any("planted rows are first" in failure for failure in finding.failures)
    assert store.exists()


def test_float64_search_is_a_search(tmp_path):
    rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    with RowWriter.open(tmp_path / "rows.h5", make_header(200, 8, columns={})) as writer:
        writer.write(np.arange(200), rows)
    values, places = memory.search_again(FeatureStore(tmp_path / "rows.h5"), rows[:3])
    assert places[:, 0].tolist() == [0, 1, 2]
    assert np.allclose(values[:, 0], 1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(values, -np.sort(-(unit[:3] @ unit.T), axis=1)[:, :5], atol=1e-6)


def test_a_disk_that_is_too_small_is_named_beforehand(tmp_path):
    with pytest.raises(Unavailable, match="bytes of disk are needed"):
        memory.run(10**9, 4096, parent=tmp_path)
