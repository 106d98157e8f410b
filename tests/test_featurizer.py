"""From data to a store and back, and every way in which that may stop."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pntk
from pntk import FeatureStore, Featurizer, ProjectionSpec
from pntk.errors import (
    CheckError,
    ConfigError,
    DataError,
    ModelError,
    NonFiniteError,
    OutputError,
    StoreError,
)
from pntk.models import LeNet

N = 23
X, Y = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
QUIET = {"progress": False}


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture
def featurizer(model):
    return Featurizer(model, "margin", proj_dim=64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.h5"


class Rows(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, n):
        return X[n], int(Y[n])


class Stream(IterableDataset):
    def __init__(self, count=N):
        self.count = count

    def __iter__(self):
        yield from ((X[n], Y[n]) for n in range(self.count))


def same(store, expected):
    torch.testing.assert_close(store.torch(), expected, rtol=1e-5, atol=1e-6)


# ---- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ((X, Y), {}),
        ((X, Y), {"batch_size": 4}),
        ((X, Y), {"batch_size": 1}),
        (TensorDataset(X, Y), {"batch_size": 4}),
        (Rows(), {}),
        (DataLoader(TensorDataset(X, Y), batch_size=5), {}),
        (DataLoader(TensorDataset(X, Y), batch_size=5, drop_last=True), {"batch_size": 3}),
        (Stream(), {"num_rows": N}),
        (Stream(), {"num_rows": N, "batch_size": 5}),
        (DataLoader(Stream(), batch_size=6), {"num_rows": N}),
    ],
)
def test_every_source_gives_the_same_store(featurizer, path, data, options):
    expected = featurizer((X, Y))
    with featurizer.featurize(data, path, **options, **QUIET) as store:
        assert store.complete and store.shape == (N, 64)
        same(store, expected)
        assert np.array_equal(store.labels, Y.numpy())
        q = pntk.outputs.Margin()(featurizer.model, (X, Y)).reweighting
        np.testing.assert_allclose(store.column("reweighting"), q.numpy(), rtol=1e-5)


def test_tensors_and_mappings_without_labels(model, path):
    featurizer = Featurizer(model, proj_dim=64)
    with featurizer.featurize(X, path, **QUIET) as store:
        same(store, featurizer(X))
        assert (store.labels == -1).all()
        assert set(store.header.columns) == {"labels"}
    with featurizer.featurize({"input": X}, path.with_name("b.h5"), **QUIET) as store:
        same(store, featurizer(X))


def test_mapping_with_labels(featurizer, path):
    data = {"input": X, "labels": Y}
    with featurizer.featurize(data, path, **QUIET) as store:
        same(store, featurizer(data))
        assert np.array_equal(store.labels, Y.numpy())


def test_regression_targets_are_not_labels(model, path):
    data = (X, torch.randn(N))
    with Featurizer(model, proj_dim=64).featurize(data, path, **QUIET) as store:
        assert (store.labels == -1).all()


@pytest.mark.parametrize(
    "indices", [list(range(5, 5 + N)), torch.arange(N) * 2, np.arange(N)[::-1]]
)
def test_indices(featurizer, path, indices):
    with featurizer.featurize((X, Y), path, batch_size=4, indices=indices, **QUIET) as store:
        assert np.array_equal(store.column("indices"), np.asarray(indices))


@pytest.mark.parametrize("indices", [[1, 2], torch.zeros(N), np.zeros((N, 1), np.int64)])
def test_indices_that_do_not_fit(featurizer, path, indices):
    with pytest.raises(ConfigError, match=rf"indices are .*; expected {N} integers, one a row"):
        featurizer.featurize((X, Y), path, indices=indices, **QUIET)


def test_progress_bar(featurizer, path, capsys):
    featurizer.featurize((X, Y), path).close()
    assert f"{N}/{N}" in capsys.readouterr().err


def test_a_budget_keeps_labels_and_reweighting(model, path):
    whole = Featurizer(model, "margin", proj_dim=64)
    whole((X, Y))
    each = whole._plan.sample_bytes + 64 * 4
    cut = Featurizer(model, "margin", proj_dim=64, memory_budget=8 * each)
    with cut.featurize((X, Y), path, **QUIET) as store:
        same(store, whole((X, Y)))
        assert np.array_equal(store.labels, Y.numpy())


# ---- resuming -----------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


class Interrupting(Rows):
    def __init__(self):
        self.left = 13

    def __getitem__(self, n):
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return super().__getitem__(n)


def payload(path):
    """Every dataset of a store, as bytes."""
    with FeatureStore(path) as store:
        columns = [store.column(name).tobytes() for name in store.header.columns]
        return [store.numpy().tobytes(), store.done.tobytes(), *columns]


@pytest.mark.parametrize("again", ["same object", "new object", "other batch size"])
def test_resuming_gives_the_same_rows(model, path, again):
    whole, part = path.with_name("whole.h5"), path
    make = lambda: Featurizer(model, "margin", proj_dim=64)  # noqa: E731
    featurizer = make()
    featurizer.featurize(Rows(), whole, batch_size=5, **QUIET).close()
    with pytest.raises(Interrupted):
        featurizer.featurize(Interrupting(), part, batch_size=5, **QUIET)
    with FeatureStore(part) as store:
        assert 0 < store.num_done < N
        done = store.num_done
    if again == "new object":
        featurizer = make()
    size = 3 if again == "other batch size" else 5
    computed = []
    original = featurizer.rows_and_values
    featurizer.rows_and_values = lambda batch: computed.append(len(batch[0])) or original(batch)
    featurizer.featurize(Rows(), part, batch_size=size, **QUIET).close()
    # whole batches that hold a missing row
    assert sum(computed) == N - done // size * size
    if again != "other batch size":
        assert payload(part) == payload(whole)
    with FeatureStore(part) as a, FeatureStore(whole) as b:
        same(a, b.torch())
        assert np.array_equal(a.labels, b.labels)


def test_a_complete_store_is_not_touched(featurizer, path):
    featurizer.featurize((X, Y), path, **QUIET).close()
    before = path.read_bytes()
    featurizer.rows_and_values = None  # would fail if called
    featurizer.featurize((X, Y), path, **QUIET).close()
    assert path.read_bytes() == before


def test_streams_resume(featurizer, path):
    with pytest.raises(
        DataError, match=f"the stream ended after 13 examples; expected num_rows={N}"
    ):
        featurizer.featurize(Stream(13), path, num_rows=N, batch_size=5, **QUIET)
    with featurizer.featurize(Stream(), path, num_rows=N, batch_size=5, **QUIET) as store:
        same(store, featurizer((X, Y)))


def test_resume_can_be_refused(featurizer, path):
    featurizer.featurize((X, Y), path, **QUIET).close()
    with pytest.raises(StoreError):
        featurizer.featurize((X, Y), path, resume=False, **QUIET)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "projection.seed"),
        ({"projection": "normal"}, "projection.family"),
        ({"proj_dim": 128}, "width|projection.proj_dim"),
        ({"output": "text"}, "output.name"),
        ({"params": "0.*"}, "params"),
        ({"precision": "fp64"}, "dtype"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_other_settings_are_refused_by_name(model, path, change, field):
    Featurizer(model, "margin", proj_dim=64).featurize((X, Y), path, **QUIET).close()
    settings = {"output": "margin", "proj_dim": 64, **change}
    data = {"input": X, "labels": Y}
    with pytest.raises(StoreError, match=field):
        Featurizer(model, **settings).featurize(data, path, **QUIET)


def test_other_weights_are_refused(model, featurizer, path):
    featurizer.featurize((X, Y), path, **QUIET).close()
    with torch.no_grad():
        model[2].bias[0] += 1e-3
    with pytest.raises(StoreError, match="the model's weights differ"):
        Featurizer(model, "margin", proj_dim=64).featurize((X, Y), path, **QUIET)


def test_weights_that_change_between_two_calls_are_refused(model, featurizer, path):
    featurizer.featurize((X, Y), path, **QUIET).close()
    with torch.no_grad():
        model[2].bias[0] += 1e-3
    with pytest.raises(StoreError, match="the model's weights differ"):
        featurizer.featurize((X, Y), path, **QUIET)


def test_another_length_is_refused(featurizer, path):
    featurizer.featurize((X, Y), path, **QUIET).close()
    with pytest.raises(
        StoreError, match=rf"length has changed: the file has {N} rows, now {N - 1}"
    ):
        featurizer.featurize((X[1:], Y[1:]), path, **QUIET)


# ---- rows that are not finite -------------------------------------------------------------------

BAD = X.clone()
BAD[7, 2], BAD[9, 0] = float("nan"), float("inf")


def test_nonfinite_rows_are_an_error_that_names_the_first(featurizer, path):
    message = r"the row of sample 7 holds NaN or infinity \(2 of 5 rows of its batch do\)"
    with pytest.raises(NonFiniteError, match=message):
        featurizer.featurize((BAD, Y), path, batch_size=5, **QUIET)
    with FeatureStore(path) as store:
        assert store.num_done == 5
    with pytest.raises(NonFiniteError, match=r"the row of sample 1 holds"):
        featurizer((BAD[6:9], Y[6:9]))


def test_nonfinite_rows_can_be_skipped(model, path):
    featurizer = Featurizer(model, "margin", proj_dim=64, on_nonfinite="skip")
    with featurizer.featurize((BAD, Y), path, batch_size=5, **QUIET) as store:
        assert store.complete and store.skipped.tolist() == [7, 9]
        assert store.torch().isfinite().all() and not store.torch()[[7, 9]].any()
        good = [n for n in range(N) if n not in (7, 9)]
        torch.testing.assert_close(store[good], featurizer((X, Y))[good], rtol=1e-5, atol=1e-6)


def test_skipping_goes_on_where_a_batch_is_half_done(model, path):
    """Batches are cut elsewhere the second time; rows that are there already stay as they are."""
    featurizer = Featurizer(model, "margin", proj_dim=64, on_nonfinite="skip")

    class Bad(Interrupting):
        def __getitem__(self, n):
            super().__getitem__(n)
            return BAD[n], int(Y[n])

    with pytest.raises(Interrupted):
        featurizer.featurize(Bad(), path, batch_size=4, **QUIET)
    with FeatureStore(path) as store:
        assert store.num_done == 8 and store.skipped.tolist() == [7]
    with featurizer.featurize((BAD, Y), path, batch_size=5, **QUIET) as store:
        assert store.complete and store.skipped.tolist() == [7, 9]
        assert np.array_equal(store.labels[:8], Y[:8].numpy())


def test_nonfinite_rows_can_be_kept(model, path):
    featurizer = Featurizer(model, proj_dim=64, on_nonfinite="keep")
    with featurizer.featurize(BAD, path, batch_size=5, **QUIET) as store:
        assert store.complete and len(store.skipped) == 0
        assert store.torch().isfinite().all(1).logical_not().nonzero()[:, 0].tolist() == [7, 9]


def test_a_first_batch_that_is_not_finite(model, path):
    """The self-checks compare rows, of which those that are NaN must not stop a skip."""
    data = torch.cat([BAD[7:8], X])
    featurizer = Featurizer(model, proj_dim=64, on_nonfinite="skip", check=False)
    with featurizer.featurize(data, path, **QUIET) as store:
        assert store.skipped.tolist() == [0]


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_the_check_is_not_confused_by_samples_that_are_not_finite(model, path, policy):
    featurizer = Featurizer(model, proj_dim=64, on_nonfinite=policy)
    data = torch.cat([BAD[7:8], X])
    if policy == "raise":
        with pytest.raises(NonFiniteError, match="sample 0"):
            featurizer.featurize(data, path, **QUIET)
    else:
        with featurizer.featurize(data, path, **QUIET) as store:
            assert store.skipped.tolist() == [0]


# ---- other refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "logits"}, "unknown output 'logits'"),
        ({"projection": "sjlt"}, "unknown projection 'sjlt'"),
        ({"proj_dim": 100}, "needs a power of two: 64 or 128"),
        ({"seed": -1}, "seed is -1"),
        ({"impl": "fast"}, "impl is 'fast'"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected one of fp32, fp64, bf16"),
        ({"on_nonfinite": "drop"}, "on_nonfinite is 'drop'; expected one of raise, skip, keep"),
        ({"memory_budget": "much"}, "memory_budget is 'much'"),
        ({"params": "no.*"}, "params glob 'no.*' matches no parameter"),
        ({"fallback": "no.*"}, "fallback glob 'no.*' matches no selected parameter"),
        ({"device": "meta"}, "device is 'meta' and the model is on cpu"),
    ],
)
def test_arguments_that_are_refused(model, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Featurizer(model, **options)


def test_what_is_no_model():
    with pytest.raises(ConfigError, match=r"model is a function; expected a torch.nn.Module"):
        Featurizer(lambda x: x)


def test_models_on_two_devices_or_none():
    with torch.device("meta"):
        meta = nn.Linear(5, 3)
    with pytest.raises(ModelError, match="the model is on the meta device"):
        Featurizer(meta)
    with pytest.raises(ModelError, match="the model's parameters are on cpu, meta"):
        Featurizer(nn.Sequential(nn.Linear(5, 5), meta))


def test_batches_on_another_device(featurizer):
    with pytest.raises(
        DataError, match=r"the batch is on meta and the model on cpu; .*\.to\('cpu'"
    ):
        featurizer((X.to("meta"), Y.to("meta")))


def test_labels_on_another_device(featurizer):
    with pytest.raises(DataError, match="the batch is on meta and the model on cpu"):
        featurizer((X, Y.to("meta")))


def test_a_model_that_was_moved(featurizer):
    featurizer.device = torch.device("cuda", 0)  # as if it had been there
    with pytest.raises(DataError, match="the batch is on cpu and the model on cuda:0"):
        featurizer((X, Y))
    with pytest.raises(ModelError, match=r"was moved from meta to cpu since .*; make a new one"):
        featurizer.device = torch.device("meta")
        featurizer((X.to("meta"), Y.to("meta")))


def test_empty_data(featurizer, path):
    with pytest.raises(DataError, match="the data set is empty"):
        featurizer.featurize((X[:0], Y[:0]), path, **QUIET)
    with pytest.raises(DataError, match="the batch is empty"):
        featurizer((X[:0], Y[:0]))
    assert not path.exists()


def test_shuffled_loaders(featurizer, path):
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)
    with pytest.raises(DataError, match=r"draws examples with RandomSampler.*use shuffle=False"):
        featurizer.featurize(loader, path, **QUIET)
    assert not path.exists()


def test_an_output_of_the_wrong_shape_leaves_no_file(model, path):
    with pytest.raises(OutputError, match=r"the output has shape"):
        Featurizer(model, lambda m, x: m(x)[:1, 0], proj_dim=64).featurize(X, path, **QUIET)
    assert not path.exists()


class Centred(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return (h - h.mean(0)) ** 2


def test_a_model_that_mixes_samples_is_refused(path):
    featurizer = Featurizer(Centred(5, 3), proj_dim=64)
    with pytest.raises(CheckError, match=r"do not add up|changes with the batch"):
        featurizer.featurize(X, path, **QUIET)
    with FeatureStore(path) as store:
        assert store.num_done == 0


def test_the_check_runs_once(model, path):
    featurizer = Featurizer(model, proj_dim=64)
    checks = []
    original = featurizer._check
    featurizer._check = lambda batch: checks.append(len(batch)) or original(batch)
    for _ in range(2):
        featurizer(X)
        featurizer.featurize(X, path, **QUIET).close()
        path.unlink()
    assert len(checks) == 1 and checks[0] <= 8


def test_a_check_that_failed_is_not_forgotten(path):
    featurizer = Featurizer(Centred(5, 3), proj_dim=64)
    with pytest.raises(CheckError):
        featurizer.featurize(X, path, **QUIET)
    with pytest.raises(CheckError):
        featurizer(X)


# ---- widths, types, kernels, tables ------------------------------------------------------------


def test_identity_of_the_trace_is_as_wide_as_all_jacobians(model, path):
    p = sum(p.numel() for p in model.parameters())
    with Featurizer(model, "trace", "identity").featurize(X, path, **QUIET) as store:
        assert store.shape == (N, 3 * p)
        assert store.header.projection == {"family": "identity", "proj_dim": None, "seed": 0}


def test_float64_models_make_float64_stores(model, path):
    featurizer = Featurizer(model.double(), proj_dim=64)
    with featurizer.featurize(X.double(), path, **QUIET) as store:
        assert store.dtype == torch.float64 and store.header.precision == "fp64"
        assert torch.equal(store.torch(), featurizer(X.double()))


def test_the_header_says_what_the_rows_are(featurizer, path):
    with featurizer.featurize((X, Y), path, **QUIET) as store:
        header = store.header
    assert header.projection == {"family": "hadamard", "proj_dim": 64, "seed": 0}
    assert header.output == {"name": "margin"}
    assert header.params[0] == ("0.weight", (6, 5))
    assert header.info["impl"] == featurizer.impl and header.info["pntk"] == pntk.__version__
    assert [row["name"] for row in header.info["coverage"]] == list(featurizer.params)


def test_a_spec_may_be_given_whole(model):
    spec = ProjectionSpec("normal", 30, seed=4)
    rows = Featurizer(model, projection=spec)(X)
    torch.testing.assert_close(rows, Featurizer(model, "pntk", "normal", 30, 4)(X))


def test_kernels_are_those_of_the_gradients(model):
    exact = Featurizer(model.double(), "trace", "identity")(X.double())
    rows = Featurizer(model, "trace", proj_dim=4096)(X.double())
    scale = exact.norm(dim=1)
    error = (rows @ rows.T - exact @ exact.T) / (scale[:, None] * scale)
    assert float(error.abs().max()) < 0.15


def test_ntk_and_topk_of_stores(featurizer, path):
    store = featurizer.featurize((X, Y), path, **QUIET)
    rows = store.torch()
    torch.testing.assert_close(featurizer.ntk(store), rows @ rows.T)
    torch.testing.assert_close(
        featurizer.ntk(store, rows[:3], normalize=True), pntk.ntk(store, rows[:3], normalize=True)
    )
    assert featurizer.topk(store, store, 1).indices[:, 0].tolist() == list(range(N))
    assert featurizer.topk(featurizer((X[:2], Y[:2])), store, k=2).values.shape == (2, 2)


@pytest.mark.parametrize("options", [{"seed": 1}, {"proj_dim": 128}])
def test_stores_of_another_projection_are_refused(model, featurizer, path, options):
    settings = {"proj_dim": 64, **options}
    other = Featurizer(model, "margin", **settings).featurize((X, Y), path, **QUIET)
    with pytest.raises(ConfigError, match=r"projection.*use pntk.ntk"):
        featurizer.ntk(other)
    with pytest.raises(ConfigError, match="projection"):
        featurizer.topk(torch.zeros(1, 64), other)


def test_stores_of_another_output_are_refused(model, featurizer, path):
    other = Featurizer(model, "pntk", proj_dim=64).featurize((X, Y), path, **QUIET)
    with pytest.raises(ConfigError, match="output"):
        featurizer.ntk(other)


def test_coverage_prints_as_a_table(model):
    model.scale = nn.Parameter(torch.ones(()))
    featurizer = Featurizer(model, lambda m, x: m.scale * m(x).sum(1), proj_dim=64)
    featurizer(X)
    coverage = featurizer.coverage()
    lines = str(coverage).splitlines()
    assert lines[0].split() == ["parameter", "shape", "count", "rule", "module"]
    assert lines[1].split() == ["scale", "scalar", "1", "torch.func", "scale", "of", "Sequential"]
    assert lines[2].split() == ["0.weight", "6x5", "30", "linear", "0"]
    assert lines[-1] == "58 parameters, 98.3% by rules, the rest by torch.func"
    assert repr(coverage) == str(coverage)
    assert len(coverage) == 5 and coverage[0]["name"] == "scale"
    assert coverage.by_rule == 57 / 58


def test_coverage_before_the_first_batch(model):
    assert {row["rule"] for row in Featurizer(model).coverage()} == {"linear"}


def test_biases_alone():
    """Their layers' weights have no part in it."""
    model, x = LeNet(image_size=8).eval(), torch.randn(3, 1, 8, 8)
    full = Featurizer(model, projection="identity")
    sizes = [p.numel() for p in model.parameters()]
    expected = [
        columns
        for columns, (name, _) in zip(
            full(x).split(sizes, 1), model.named_parameters(), strict=True
        )
        if name.endswith("bias")
    ]
    found = Featurizer(model, projection="identity", params="*.bias")(x)
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-5, atol=1e-6)
