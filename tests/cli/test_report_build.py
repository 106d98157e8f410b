"""The modules of pntk.report that turn stores into a report."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pntk.errors import ConfigError, DataError, StoreError
from pntk.report.build import Source, build_report, check_build
from pntk.report.neighbours import agreement, balanced, nearest, vote
from pntk.report.samples import samples_of
from pntk.store import FeatureStore, RowWriter, StoreHeader


def make_store(path, rows, labels=None, done=None, skipped=None):
    rows = np.asarray(rows, dtype=np.float32)
    header = StoreHeader(
        rows=len(rows),
        width=rows.shape[1],
        dtype="float32",
        projection={"family": "hadamard", "proj_dim": rows.shape[1], "seed": 0},
        output={"name": "trace", "probes": 2},
        params=(("w", (3, 4)), ("b", (2,))),
        weights="00",
        precision="fp32",
        columns={} if labels is None else {"labels": "int64"},
    )
    with RowWriter.open(path, header) as writer:
        columns = {} if labels is None else {"labels": np.asarray(labels)}
        writer.write(np.arange(len(rows)), rows, columns, skipped)
        if done is not None:
            writer.forget(np.flatnonzero(~np.asarray(done)))
    return FeatureStore(path)


def test_balanced_takes_every_class_in_turn():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    rows = balanced(labels, np.arange(103), 11, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [4, 3, 4]
    assert (np.diff(rows) > 0).all()
    again = balanced(labels, np.arange(103), 11, np.random.default_rng(0))
    assert rows.tolist() == again.tolist()
    few = balanced(labels, np.array([60, 2]), 11, np.random.default_rng(0))
    assert few.tolist() == [2, 60]
    assert len(balanced(labels, np.array([], dtype=int), 5, np.random.default_rng(0))) == 0


@pytest.mark.parametrize(
    ("labels", "answer"), [([1, 2, 2], 2), ([3, 1, 2], 3), ([5], 5), ([4, 1, 1, 4], 4)]
)
def test_vote(labels, answer):
    assert vote(np.array([labels])).tolist() == [answer]


def test_training_rows_are_not_their_own_neighbours(tmp_path):
    rows = [[1, 0], [1, 0], [1, 0], [0, 1]]
    store = make_store(tmp_path / "a.h5", rows)
    found = nearest(store, store, np.arange(4), 1, same=True)
    assert found.indices.tolist() == [[1], [0], [0], [0]]
    assert nearest(store, store, np.arange(4), 1, same=False).indices.tolist() == [
        [0], [0], [0], [3],
    ]  # fmt: skip


def test_agreement_counts_classes(tmp_path):
    train = make_store(tmp_path / "a.h5", [[1, 0], [0, 1], [1, 1]], [0, 1, 2])
    queries = make_store(tmp_path / "b.h5", [[2, 0], [0, 3], [0, 2]], [0, 1, 0])
    found = dict(agreement(train, queries, np.arange(3), same=False))
    assert found["nearest neighbour has the same class"] == "66.7%"
    assert "accuracy of 3 nearest neighbours" in found
    unlabelled = make_store(tmp_path / "c.h5", [[2, 0]])
    assert agreement(train, unlabelled, np.arange(1), same=False) == []
    assert agreement(unlabelled, queries, np.arange(3), same=False) == []


def test_report_of_stores(tmp_path):
    rng = np.random.default_rng(0)
    train = make_store(tmp_path / "a.h5", rng.normal(size=(320, 8)), np.arange(320) % 3)
    test = make_store(tmp_path / "b.h5", rng.normal(size=(5, 8)), np.arange(5) % 3)
    images = torch.rand(320, 1, 4, 4), torch.arange(320) % 3
    predictions = np.array([0, 1, 2, 0, 0])
    report = build_report(
        Source(train, images), Source(test, None, predictions), title="T", k=2, shown=[4, 1]
    )
    assert report.kernel.shape == (300, 300)
    assert np.bincount(report.kernel_labels).tolist() == [100, 100, 100]
    np.testing.assert_allclose(report.spectrum.sum(), np.trace(report.kernel), rtol=1e-4)
    assert (np.diff(report.spectrum) <= 0).all()
    assert [(q.index, q.label, q.prediction) for q in report.queries] == [
        (4, "1", "0"),
        (1, "1", "1"),
    ]
    assert report.queries[0].image is None
    assert report.queries[0].neighbours[0].image.shape == (4, 4, 1)
    assert report.run["Output"] == "trace (probes = 2)"
    assert report.run["Parameters"] == "14 in 2 tensors"
    assert any("300 of the 320 rows of a.h5" in note for note in report.notes)


def test_skipped_and_unlabelled_rows(tmp_path):
    skipped = np.array([False, True, False, False])
    rows = np.eye(4, 8)
    store = make_store(tmp_path / "a.h5", rows, [-1, 0, 1, 2], skipped=skipped)
    report = build_report(Source(store), title="T", k=1, num_queries=9)
    assert [query.index for query in report.queries] == [0, 2, 3]
    assert report.queries[0].label is None
    assert report.kernel.shape == (3, 3)
    assert report.kernel_labels is None
    assert build_report(Source(store), title="T", k=1, num_queries=0).queries == []


def test_stores_that_cannot_be_reported(tmp_path):
    part = make_store(tmp_path / "a.h5", np.eye(3, 8), done=[True, False, True])
    with pytest.raises(StoreError, match="1 of 3 rows are missing"):
        build_report(Source(part), title="T", k=1)
    nothing = make_store(tmp_path / "b.h5", np.eye(2, 8), skipped=np.array([True, True]))
    with pytest.raises(DataError, match=r"all 2 rows of .*b\.h5 were skipped"):
        check_build(nothing, nothing, 1, same=True)
    one = make_store(tmp_path / "c.h5", np.eye(1, 8))
    with pytest.raises(ConfigError, match="k is 1; expected 1 to 0"):
        check_build(one, one, 1, same=True)


class Texts(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"input_ids": torch.zeros(3), "text": f"text {index}"}


def test_samples():
    color = {"pixels": torch.rand(4, 3, 6, 5), "label": torch.arange(4)}
    found = samples_of(color, [3, 1, 3], 4)
    assert sorted(found) == [1, 3]
    assert np.array_equal(found[3].image, color["pixels"][3].permute(1, 2, 0).numpy())
    assert samples_of(torch.rand(4, 6, 5), [0], 4)[0].image.shape == (6, 5)
    assert samples_of(torch.rand(4, 6, 5, 3), [0], 4)[0].image.shape == (6, 5, 3)
    assert samples_of(torch.rand(4, 7, 6, 5), [0], 4)[0].image is None
    assert samples_of(torch.rand(4, 6), [0], 4)[0].image is None
    assert samples_of(Texts(), [2], 4)[2].text == "text 2"
    assert samples_of(None, [2], 4)[2].image is None
    with pytest.raises(ConfigError, match="4 examples and the store 5 rows"):
        samples_of(Texts(), [2], 5)
