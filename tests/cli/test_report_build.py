"""The modules of pntk.report that turn stores into a report."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pntk.attribution import attribute
from pntk.errors import ConfigError, DataError, StoreError
from pntk.report import write_report
from pntk.report.build import Source, build_report, check_build
from pntk.report.gallery import draw
from pntk.report.influence import Influence
from pntk.report.neighbours import agreement, balanced, nearest, vote
from pntk.report.samples import samples_of
from pntk.report.surrogates import check_probs, chosen, compare
from pntk.report.suspects import find_suspects
from pntk.store import FeatureStore, RowWriter, StoreHeader
from pntk.surrogate import KernelSurrogate


def make_store(path, rows, labels=None, done=None, skipped=None, output=None):
    rows = np.asarray(rows, dtype=np.float32)
    header = StoreHeader(
        rows=len(rows),
        width=rows.shape[1],
        dtype="float32",
        projection={"family": "hadamard", "proj_dim": rows.shape[1], "seed": 0},
        output=output or {"name": "trace", "probes": 2},
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
        Source(train, images), Source(test, None, predictions), title="T", k=2, shown=[1, 4]
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
    assert report.notes[0] == (
        "The network gets 1 of 5 queries wrong. The gallery starts with these."
    )
    assert report.headline[0] == ("accuracy of the network", "80.0%")


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


# ---- what the model gets wrong, and why --------------------------------------------------------


def test_what_the_model_gets_wrong_is_drawn_first(tmp_path):
    labels = np.array([0, 1] * 10)
    store = make_store(tmp_path / "a.h5", np.ones((20, 8)), labels)
    wrong = [3, 8, 9, 15]
    predictions = labels.copy()
    predictions[wrong] = 2
    source, rng = Source(store, None, predictions), np.random.default_rng(0)
    assert source.wrong.tolist() == wrong
    some = draw(source, 10, rng)
    assert some[:4] == wrong and len(set(some)) == 10
    assert np.bincount(labels[some[4:]]).tolist() == [3, 3]
    half = draw(source, 4, rng)  # one of either class
    assert set(half[:2]) <= set(wrong) and sum(labels[half[:2]]) == 1
    assert not set(half[2:]) & set(wrong)
    assert draw(source, 20, rng)[:4] == wrong
    everything = Source(store, None, np.full(20, 2))
    assert len(set(draw(everything, 8, rng))) == 8
    assert Source(store).wrong.tolist() == []
    report = build_report(source, title="T", k=1, num_queries=6)
    assert [query.index in wrong for query in report.queries] == [True] * 3 + [False] * 3
    assert "starts with 3 of these" in report.notes[0]


def two_clusters(rng, size=20):
    """Rows around two orthogonal axes, by turns, and their classes 0 and 4."""
    rows = 0.1 * rng.normal(size=(size, 8))
    rows[np.arange(size), np.arange(size) % 2] += 1
    return rows, np.arange(size) % 2 * 4


def test_wrong_labels_are_found(tmp_path):
    rows, labels = two_clusters(np.random.default_rng(0))
    labels[[6, 11]] = [4, 0]
    store = make_store(tmp_path / "a.h5", rows, labels)
    images = torch.rand(20, 3, 3)
    report = build_report(Source(store, images), title="T", k=1, num_queries=0)
    assert sorted((s.index, s.label, s.suggested) for s in report.mislabelled) == [
        (6, "4", "0"),
        (11, "0", "4"),
    ]
    scores = [suspect.score for suspect in report.mislabelled]
    assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= 1
    np.testing.assert_array_equal(
        report.mislabelled[0].image, images[report.mislabelled[0].index].numpy()
    )
    assert report.suspicion.startswith("Of 20 training rows that were looked at, 2 have a label")
    assert "10 nearest other" in report.suspicion
    few = find_suspects(store, np.random.default_rng(0), checked=5)
    assert few.how.startswith("Of 5 training rows") and set(few.rows) <= {6, 11}


def test_rows_that_depend_on_labels_are_not_suspected(tmp_path):
    rows, labels = two_clusters(np.random.default_rng(0))
    store = make_store(tmp_path / "a.h5", rows, labels[::-1], output={"name": "margin"})
    report = build_report(Source(store), title="T", k=1, num_queries=0)
    assert report.mislabelled == [] and report.suspicion == ""
    assert "Rows of output margin may depend on the labels" in report.notes[-1]
    assert "on the label of their sample" in report.warning and report.headline == []
    unlabelled = make_store(tmp_path / "b.h5", rows)
    report = build_report(Source(unlabelled), title="T", k=1, num_queries=0)
    assert report.suspicion == report.warning == ""
    assert not any("depend on" in note for note in report.notes)


def test_influential_samples_are_those_of_attribute(tmp_path):
    rng = np.random.default_rng(0)
    train = make_store(tmp_path / "a.h5", rng.normal(size=(30, 8)), np.arange(30) % 3)
    test = make_store(tmp_path / "b.h5", rng.normal(size=(5, 8)), np.arange(5) % 3)
    report = build_report(
        Source(train), Source(test), title="T", k=4, shown=[3, 0],
        influence=Influence("dot", train, test),
    )  # fmt: skip
    best = attribute(train, test, "dot", top=4, both=True)
    for query in report.queries:
        for found, end in ((query.influential, best.highest), (query.opposing, best.lowest)):
            assert [hit.index for hit in found] == end.indices[query.index].tolist()
            np.testing.assert_allclose(
                [hit.score for hit in found], end.values[query.index], rtol=1e-5
            )
    assert report.influence.startswith("Influence is the kernel φᵀφᵢ, with φ the row of the query")
    assert "of output trace in a.h5" in report.influence


def test_influence_that_cannot_be_scored(tmp_path):
    train = make_store(tmp_path / "a.h5", np.eye(8), np.arange(8))
    test = make_store(tmp_path / "b.h5", np.eye(2, 8), [0, 1])

    def build(method, ours=train, theirs=test, queries=test):
        influence = Influence(method, ours, theirs)
        asked = None if queries is None else Source(queries)
        return build_report(Source(train), asked, title="T", k=1, influence=influence)

    with pytest.raises(ConfigError, match="unknown method 'tracin'; expected one of trak, dot"):
        build("tracin")
    with pytest.raises(ConfigError, match="no column 'reweighting': featurize with output"):
        build("trak")
    with pytest.raises(ConfigError, match=r"needs gradients of the loss, and .* output 'trace'"):
        build("influence")
    with pytest.raises(ConfigError, match=r"b\.h5 has 2 rows and .*a\.h5 8; expected stores of"):
        build("dot", ours=test)
    with pytest.raises(ConfigError, match="influence is on queries, and there are none"):
        build("dot", theirs=train, queries=None)


def test_surrogate_is_that_of_the_rows_with_labels(tmp_path):
    rng = np.random.default_rng(0)
    rows, labels = two_clusters(rng, 40)
    skipped = np.arange(40) == 5
    labels[7] = -1
    train = make_store(tmp_path / "a.h5", rows, labels, skipped=skipped)
    rows, labels = two_clusters(rng, 12)
    labels[3] = -1
    test = make_store(tmp_path / "b.h5", rows, labels)
    probs = rng.dirichlet(np.ones(2), 12)
    found = compare(train, test, probs, alpha=0.01, bootstrap=0)
    kept, asked = np.delete(np.arange(40), [5, 7]), np.delete(np.arange(12), 3)
    machine = KernelSurrogate("glm", alpha=0.01).fit(train[kept], train.labels[kept])
    truth = (test.labels[asked] == 4).astype(int)
    expected = machine.predict_proba(test[asked])[np.arange(11), truth]
    np.testing.assert_allclose(found.ours, expected)
    np.testing.assert_array_equal(found.network, probs[asked, truth])
    assert found.right.tolist() == (probs[asked].argmax(1) == truth).tolist()
    assert found.report.examples == 11 and found.name == "glm of cosines, alpha 0.01"
    report = build_report(Source(train), Source(test), title="T", k=1, surrogates=[found])
    tau = ("Kendall τ-b of surrogate and network", f"{found.report.kendall_tau:.3f}")
    assert report.headline[-1] == tau and report.surrogates == [found]
    assert report.warning == ""
    logits = torch.from_numpy(probs).log().requires_grad_()
    same = compare(train, test, logits.softmax(1), alpha=0.01, bootstrap=0)
    np.testing.assert_allclose(same.network, found.network)


def test_numbers_that_labels_may_leak_into_are_no_headline(tmp_path):
    rows, labels = two_clusters(np.random.default_rng(0), 40)
    margin = {"name": "margin"}
    train = make_store(tmp_path / "a.h5", rows, labels, output=margin)
    test = make_store(tmp_path / "b.h5", rows[:8] + 0.01, labels[:8], output=margin)
    probs = np.full((8, 2), 0.5)
    report = build_report(
        Source(train), Source(test, predictions=torch.from_numpy(labels[:8])), title="T", k=1,
        surrogates=[compare(train, test, probs, alpha=0.01, bootstrap=0)],
    )  # fmt: skip
    assert report.headline == [("accuracy of the network", "100.0%")]
    assert report.queries[1].prediction == "4"
    assert report.warning.startswith("Rows of output margin may depend on the label of their")
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    html = write_report(report, tmp_path / "report.html").read_text("utf-8")
    results, surrogate = (
        re.search(f'<section id="{name}".*?</section>', html, re.DOTALL)[0]
        for name in ("headline", "surrogate")
    )
    shown = report.warning.replace("'", "&#39;")
    assert shown in results and shown in surrogate and "same class" not in results


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (None, ""),
        ([0.2, 0.1, 0.0], " (chosen, the smallest tried)"),
        ([0.1, 0.2, 0.1], " (chosen)"),
        ([0.1, 0.2, 0.2], " (chosen, the largest tried)"),
    ],
)
def test_an_alpha_at_an_end_of_those_tried_is_named_so(scores, words):
    assert chosen(None if scores is None else np.array(scores)) == words


def test_probabilities_that_do_not_fit(tmp_path):
    train = make_store(tmp_path / "a.h5", np.eye(4, 8), [0, 4, 0, 4])
    test = make_store(tmp_path / "b.h5", np.eye(3, 8), [0, 4, 4])
    probs = np.full((3, 2), 0.5)
    assert check_probs(train, test, probs).tolist() == [0, 4]
    with pytest.raises(
        ConfigError, match=r"shape \(2, 2\); expected \(3, 2\), the rows of .*b\.h5"
    ):
        check_probs(train, test, probs[:2])
    with pytest.raises(ConfigError, match="sum to 2 in row 0"):
        check_probs(train, test, 2 * probs)
    other = make_store(tmp_path / "c.h5", np.eye(3, 8), [0, 5, 4])
    with pytest.raises(DataError, match=r"c\.h5 has rows of class 5, and .*a\.h5 has none"):
        check_probs(train, other, probs)
    with pytest.raises(DataError, match=r"d\.h5 has no labels; featurize data that has some"):
        check_probs(train, make_store(tmp_path / "d.h5", np.eye(3, 8)), probs)
