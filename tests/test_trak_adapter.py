import numpy as np
import pytest
import torch
from torch import nn

from pntk import FeatureStore, Featurizer
from pntk.attribution import attribute
from pntk.errors import CheckError, ConfigError, DataError, ModelError, NonFiniteError, StoreError
from pntk.outputs import Margin
from pntk.trak_adapter import TRAKer

N, M = 40, 5


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def checkpoints():
    return [network().state_dict() for _ in range(2)]


@pytest.fixture
def data():
    make = torch.Generator().manual_seed(5)
    images = torch.randn(N + M, 1, 2, 3, generator=make)
    labels = torch.randint(3, (N + M,), generator=make)
    return (images[:N], labels[:N]), (images[N:], labels[N:])


def batches(data, size=16):
    images, labels = data
    return [[images[i : i + size], labels[i : i + size]] for i in range(0, len(images), size)]


def run(traker, checkpoints, data):
    """A script for TRAK."""
    train, test = data
    for model_id, checkpoint in enumerate(checkpoints):
        traker.load_checkpoint(checkpoint, model_id=model_id)
        for batch in batches(train):
            traker.featurize(batch=batch, num_samples=batch[0].shape[0])
    traker.finalize_features()
    for model_id, checkpoint in enumerate(checkpoints):
        traker.start_scoring_checkpoint(
            exp_name="test", checkpoint=checkpoint, model_id=model_id, num_targets=len(test[0])
        )
        for batch in batches(test, 2):
            traker.score(batch=batch, num_samples=batch[0].shape[0])
    return traker.finalize_scores(exp_name="test")


@pytest.fixture
def traker(tmp_path):
    made = TRAKer(network(), "image_classification", N, tmp_path / "trak", proj_dim=16)
    yield made
    made.close()


def direct(checkpoints, data, folder, ridge=None, family="hadamard", proj_dim=16):
    """The same by Featurizer and attribute."""
    train, test = [], []
    for number, checkpoint in enumerate(checkpoints):
        model = network()
        model.load_state_dict(checkpoint)
        f = Featurizer(model.eval(), "margin", family, proj_dim, seed=2**32 * number)
        train.append(f.featurize(data[0], folder / f"a{number}.h5", progress=False))
        test.append(f.featurize(data[1], folder / f"b{number}.h5", progress=False))
    return attribute(train, test, ridge=ridge)


def test_a_script_for_trak_gives_our_scores(traker, checkpoints, data, tmp_path):
    scores = run(traker, checkpoints, data)
    assert scores.shape == (N, M) and traker.scores is scores
    expected = direct(checkpoints, data, tmp_path)
    assert np.allclose(scores, expected, rtol=1e-4, atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "trak" / "0").iterdir()) == ["test.h5", "train.h5"]


def test_ridge_of_trak_is_in_its_scale(checkpoints, data, tmp_path):
    traker = TRAKer(
        network(), "image_classification", N, tmp_path / "t", proj_dim=16, lambda_reg=0.01
    )
    size = sum(p.numel() for p in network().parameters())
    expected = direct(checkpoints, data, tmp_path, ridge=0.01 * size / 16)
    assert np.allclose(run(traker, checkpoints, data), expected, rtol=1e-4, atol=1e-6)


def test_other_widths_are_dense(checkpoints, data, tmp_path):
    traker = TRAKer(network(), Margin(), N, tmp_path / "t", proj_dim=10, ridge=0.5)
    expected = direct(checkpoints, data, tmp_path, 0.5, "rademacher", 10)
    assert np.allclose(run(traker, checkpoints, data), expected, rtol=1e-4, atol=1e-6)


def test_half_precision(checkpoints, data, tmp_path):
    make = {"task": "image_classification", "train_set_size": N, "proj_dim": 16, "ridge": 1.0}
    halves = TRAKer(network(), save_dir=tmp_path / "h", use_half_precision=True, **make)
    scores = run(halves, checkpoints, data)
    whole = run(TRAKer(network(), save_dir=tmp_path / "w", **make), checkpoints, data)
    assert FeatureStore(tmp_path / "h" / "0" / "train.h5").header.dtype == "float16"
    assert not np.array_equal(scores, whole)
    assert np.allclose(scores, whole, atol=2e-3 * float(abs(whole).max()))


def test_grad_wrt(checkpoints, data, tmp_path):
    traker = TRAKer(
        network(), "image_classification", N, tmp_path, proj_dim=16, grad_wrt=["3.weight"]
    )
    traker.load_checkpoint(checkpoints[0], 0)
    traker.featurize(batches(data[0])[0], num_samples=16)
    traker.close()
    assert FeatureStore(tmp_path / "0" / "train.h5").header.params == (("3.weight", (3, 5)),)


def test_work_goes_on_where_it_stopped(traker, checkpoints, data, tmp_path, monkeypatch):
    first = batches(data[0])
    traker.load_checkpoint(checkpoints[0], 0)
    traker.featurize(first[0], num_samples=16)
    traker.close()
    again = TRAKer(network(), "image_classification", N, tmp_path / "trak", proj_dim=16)
    made, rows_and_values = [], Featurizer.rows_and_values

    def count(self, batch):
        made.append(len(batch[0]))
        return rows_and_values(self, batch)

    monkeypatch.setattr(Featurizer, "rows_and_values", count)
    again.load_checkpoint(checkpoints[0], 0)
    for batch in first:
        again.featurize(batch, num_samples=len(batch[0]))
    assert made == [16, 8]
    again.featurize([x[:8] for x in first[1]], inds=np.arange(16, 24))
    again.finalize_features()
    assert made == [16, 8]


def test_only_missing_rows_of_a_batch_are_made(traker, checkpoints, data, monkeypatch):
    images, labels = data[0]
    traker.load_checkpoint(checkpoints[0], 0)
    traker.featurize((images[3:5], labels[3:5]), inds=torch.tensor([3, 4]))
    traker.featurize((images[:10], labels[:10]), inds=list(range(10)))
    traker.close()
    store = FeatureStore(traker.save_dir / "0" / "train.h5")
    assert store.num_done == 10
    assert store.labels[:10].tolist() == labels[:10].tolist()


def test_another_checkpoint_under_the_same_number(traker, checkpoints, data):
    batch = batches(data[0])[0]
    traker.load_checkpoint(checkpoints[0], 0)
    traker.featurize(batch, num_samples=16)
    traker.load_checkpoint(checkpoints[1], 0)
    with pytest.raises(StoreError, match="the model's weights differ"):
        traker.featurize(batch, num_samples=16)


def test_existing_rows_may_be_refused(traker, checkpoints, data, tmp_path):
    batch = batches(data[0])[0]
    traker.load_checkpoint(checkpoints[0], 0)
    traker.featurize(batch, num_samples=16)
    traker.close()
    other = TRAKer(
        network(),
        "image_classification",
        N,
        tmp_path / "trak",
        load_from_save_dir=False,
        proj_dim=16,
    )
    other.load_checkpoint(checkpoints[0], 0)
    with pytest.raises(StoreError, match="the file exists"):
        other.featurize(batch, num_samples=16)


def test_text(tmp_path):
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, input_ids, token_type_ids, attention_mask):
            mask = attention_mask[..., None].float()
            return self.head((self.embed(input_ids) * mask).sum(1) + token_type_ids.sum(1)[:, None])

    ids = torch.randint(9, (12, 5))
    batch = [ids, torch.zeros_like(ids), torch.ones_like(ids), torch.randint(2, (12,))]
    model = Text().eval()
    traker = TRAKer(model, "text_classification", 12, tmp_path, proj_dim=8, ridge=1.0)
    traker.load_checkpoint(model.state_dict(), model_id=3)
    traker.featurize(batch, num_samples=12)
    traker.finalize_features()
    traker.start_scoring_checkpoint("qnli", model.state_dict(), 3, num_targets=4)
    traker.score([x[:4] for x in batch], num_samples=4)
    scores = traker.finalize_scores("qnli")
    mapping = dict(
        zip(("input_ids", "token_type_ids", "attention_mask", "labels"), batch, strict=True)
    )
    rows = Featurizer(model, "text", proj_dim=8, seed=3 * 2**32)(mapping)
    q = FeatureStore(tmp_path / "3" / "train.h5").column("reweighting")
    expected = attribute(rows, rows[:4], reweighting=torch.from_numpy(q.copy()), ridge=1.0)
    assert np.allclose(scores, expected, rtol=1e-4, atol=1e-6)
    traker.load_checkpoint(model.state_dict(), model_id=4)
    with pytest.raises(DataError, match="the batch has 3 entries; expected input_ids, token_type"):
        traker.featurize(batch[:3], num_samples=12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "segmentation"}, "unknown task 'segmentation'; expected one of image_class"),
        ({"train_set_size": 0}, "train_set_size is 0; expected an integer of at least 1"),
        ({"proj_dim": 2.5}, "proj_dim is 2.5"),
        ({"projector": object()}, "projector is <object .* pntk has its own: leave it out"),
        ({"saver": 1}, "saver is 1"),
        ({"score_computer": 1}, "score_computer is 1"),
        ({"gradient_computer": 1}, "gradient_computer is 1"),
        ({"lambda_reg": 1.0, "ridge": "auto"}, "lambda_reg=1.0 and ridge='auto'; give one of them"),
        ({"lambda_reg": -1.0}, "ridge is -1.0"),
    ],
)
def test_refused(tmp_path, changes, message):
    made = {"task": "image_classification", "train_set_size": N, "proj_dim": 16, **changes}
    with pytest.raises(ConfigError, match=message):
        TRAKer(network(), save_dir=tmp_path, **made)


def test_calls_out_of_order(traker, checkpoints, data):
    batch = batches(data[0])[0]
    with pytest.raises(ConfigError, match="no checkpoint is loaded; call load_checkpoint"):
        traker.featurize(batch, num_samples=16)
    with pytest.raises(ConfigError, match="call start_scoring_checkpoint before score"):
        traker.score(batch, num_samples=16)
    with pytest.raises(ConfigError, match="holds no model; featurize one first"):
        traker.finalize_features()
    with pytest.raises(ConfigError, match="model_id 0 has no training rows in"):
        traker.start_scoring_checkpoint("test", checkpoints[0], 0, 5)
    with pytest.raises(ConfigError, match="model_id 7 has no training rows in"):
        traker.finalize_features([7])
    with pytest.raises(ConfigError, match="model_id is '0'; expected an integer"):
        traker.load_checkpoint(checkpoints[0], "0")
    traker.load_checkpoint(checkpoints[0], 0)
    for wrong in ({}, {"inds": [0], "num_samples": 1}):
        with pytest.raises(ConfigError, match="give exactly one of them"):
            traker.featurize(batch, **wrong)
    with pytest.raises(DataError, match="the batch has 16 samples and 3 numbers were given"):
        traker.featurize(batch, num_samples=3)
    with pytest.raises(DataError, match="samples 30 to 45 of 40; expected integers from 0 to 39"):
        traker.featurize(batch, inds=np.arange(30, 46))
    with pytest.raises(DataError, match="expected integers"):
        traker.featurize(batch, inds=np.arange(16) / 2)
    traker.featurize(batch, num_samples=16)
    with pytest.raises(StoreError, match="24 of 40 rows are missing"):
        traker.finalize_features()
    with pytest.raises(ConfigError, match="del_grads=True"):
        traker.finalize_features(del_grads=True)
    with pytest.raises(ConfigError, match="model_id 0 has no rows of the targets 'test'"):
        traker.finalize_scores("test")
    with pytest.raises(ConfigError, match="no model has rows of the targets 'test'"):
        traker.finalize_scores("test", allow_skip=True)
    for name in ("../x", "", ".h5", "a/b", None):
        with pytest.raises(ConfigError, match="expected letters, digits, dots"):
            traker.start_scoring_checkpoint(name, checkpoints[0], 0, 5)
    with pytest.raises(ConfigError, match="exp_name is 'train'"):
        traker.start_scoring_checkpoint("train", checkpoints[0], 0, 5)


def test_wide_rows_are_refused_when_features_are_finalized(checkpoints, data, tmp_path):
    traker = TRAKer(network(), "image_classification", N, tmp_path, proj_dim=64)
    traker.load_checkpoint(checkpoints[0], 0)
    for batch in batches(data[0]):
        traker.featurize(batch, num_samples=len(batch[0]))
    with pytest.raises(ConfigError, match="64 wide and there are 40 of them"):
        traker.finalize_features()


def test_nonfinite_samples_are_named(traker, checkpoints, data):
    images, labels = data[0]
    images = images.clone()
    images[20] = torch.inf
    traker.load_checkpoint(checkpoints[0], 0)
    with pytest.raises(NonFiniteError, match="sample 20"):
        for batch in batches((images, labels)):
            traker.featurize(batch, num_samples=len(batch[0]))


def test_models_that_mix_samples_are_refused(tmp_path, data):
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x - x.mean(0))

    model = Mixes()
    traker = TRAKer(model, "image_classification", N, tmp_path, proj_dim=16)
    traker.load_checkpoint(model.state_dict(), 0)
    with pytest.raises((CheckError, ModelError)):
        traker.featurize(batches(data[0])[0], num_samples=16)
