import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pntk.errors import ConfigError, DataError, ModelError, PntkWarning
from pntk.representation import (
    DistanceHook,
    SimilarityHook,
    TaskDistances,
    distance,
    distance_over_tasks,
    layer_similarity,
    similarity,
)
from pntk.representation.cka import MinibatchCKA, linear_cka


class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(channels, 5, 3, padding=1))
        self.head = nn.Linear(5, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))


def net(seed=0, channels=4):
    torch.manual_seed(seed)
    return Net(channels).eval()


def images(n=50):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(9))


def by_hand(model, data):
    stem = model.stem(data)
    conv = model.body(stem.clone())
    return {"stem": stem, "body.1": conv, "head": model.head(conv.mean((2, 3)))}


# ---- layers ------------------------------------------------------------------------------------


@torch.no_grad()
def test_minibatches_are_those_of_the_class():
    a, b, data = net(0), net(1, 6), images()
    found = layer_similarity(a, b, data, minibatch=16, progress=False)
    assert found.layers_a == found.layers_b == ["stem", "body.1", "head"]
    assert (found.samples, found.minibatch, found.measure) == (50, 16, "cka")
    sums = MinibatchCKA()
    for cut in (slice(0, 16), slice(16, 32), slice(32, 50)):  # two left over join the last
        sums.update(by_hand(a, data[cut]), by_hand(b, data[cut]))
    torch.testing.assert_close(found.matrix, sums.matrix(), atol=1e-6, rtol=0)
    other = layer_similarity(a, b, data, minibatch=16, batch_size=5, progress=False)
    torch.testing.assert_close(found.matrix, other.matrix, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"measure": "cka", "minibatch": None},
        {"measure": "svcca"},
        {"measure": "cka", "neurons": "per_sample"},
        {"measure": "cca", "neurons": "filter", "size": 2},
        {"measure": lambda x, y: float(x.shape[1])},
    ],
)
def test_whole_matrices_are_those_of_each_pair(options):
    a, b, data = net(0, 5), net(1, 5), images(90)
    layers = ["stem", "body.1"]
    found = layer_similarity(
        a, b, data, layers_a=layers, layers_b=layers, batch_size=7, progress=False, **options
    )
    assert found.minibatch is None
    left, right = by_hand(a, data), by_hand(b, data)
    given = {key: value for key, value in options.items() if key != "minibatch"}
    for i, x in enumerate(layers):
        for j, y in enumerate(layers):
            expected = similarity(left[x], right[y], **given)
            assert float(found.matrix[i, j]) == pytest.approx(expected, abs=1e-5)


def test_one_model_and_down_sampled_maps_beside_rows():
    found = layer_similarity(net(), None, images(), size=2, progress=False)
    torch.testing.assert_close(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.matrix.diagonal(), torch.ones(3, dtype=torch.float64))
    again = layer_similarity(net(), net(), images(), size=2, progress=False)
    torch.testing.assert_close(found.matrix, again.matrix)
    part = layer_similarity(net(), None, images(), layers_a=["st*"], layers_b=["*"], progress=False)
    assert part.layers_a == ["stem"]
    assert part.layers_b == ["stem", "body", "body.0", "body.1", "head"]  # not the unused one


def test_rotated_weights_are_the_same_representation():
    one, other = nn.Linear(6, 4), nn.Linear(6, 4)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    other.weight.data, other.bias.data = turn @ one.weight.data, turn @ one.bias.data + 3
    a, b = nn.Sequential(one).eval(), nn.Sequential(other).eval()
    for measure in ("cka", "rbf_cka", "cca", "svcca", "procrustes"):
        found = layer_similarity(a, b, torch.randn(40, 6), measure=measure, progress=False)
        assert float(found.matrix) == pytest.approx(1, abs=1e-5), measure


class Words(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"ids": torch.randint(0, 9, (5,), generator=generator), "labels": index % 2}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.block = nn.GRU(6, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        return {"logits": self.head(self.block(self.table(ids))[0].mean(1))}


def test_batches_of_dicts_tokens_and_outputs_that_are_tuples():
    model = Encoder().eval()
    loader = DataLoader(Words(), batch_size=6)
    found = layer_similarity(model, None, loader, progress=False)
    assert found.layers_a == ["table", "block", "head"]
    tokens = layer_similarity(
        model,
        None,
        loader,
        layers_a=["table", "block"],
        measure="cca",
        neurons="filter",
        progress=False,
    )
    assert tokens.matrix.shape == (2, 2) and float(tokens.matrix[0, 1]) < 1


def test_save_best_and_heat_map(tmp_path):
    pytest.importorskip("matplotlib")
    found = layer_similarity(net(0), net(1), images(), progress=False)
    found.save(tmp_path / "sim.npz")
    with np.load(tmp_path / "sim.npz") as read:
        np.testing.assert_array_equal(read["matrix"], found.matrix.numpy())
        assert read["layers_b"].tolist() == found.layers_b
        assert (int(read["samples"]), int(read["minibatch"]), str(read["measure"])) == (
            50,
            256,
            "cka",
        )
    best = found.best()
    assert [name for name, _, _ in best] == found.layers_a
    assert best[0][2] == float(found.matrix[0].max())
    figure = found.plot(name_a="first", name_b="second")
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("first", "second")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == found.layers_a
    assert {text.get_text() for text in axes.texts} == {
        f"{value:.2f}" for value in found.matrix.flatten().tolist()
    }
    assert axes.images[0].get_clim() == (min(0, float(found.matrix.min())), 1)
    assert found.png().startswith(b"\x89PNG")
    assert found.to_dict()["matrix"] == found.matrix.tolist()


def test_absent_layers_are_refused_with_those_near():
    a = net()
    with pytest.raises(ConfigError, match=r"model_a \(Net\) has no layer 'body.2'; near it: body"):
        layer_similarity(a, a, images(), layers_a=["body.2"])
    with pytest.raises(ConfigError, match=r"model_b .* has no layer 'tail.\*'"):
        layer_similarity(a, a, images(), layers_b=["tail.*"])
    with pytest.raises(ConfigError, match="layers are 'stem'; expected a list of names"):
        layer_similarity(a, a, images(), layers_a="stem")
    with pytest.raises(ModelError, match="layer 'unused' of model_a puts out no tensor with a row"):
        layer_similarity(a, a, images(), layers_a=["unused"])


def test_models_that_cannot_be_compared():
    a = net()
    with pytest.raises(ModelError, match="model_b is in train mode; expected eval mode"):
        layer_similarity(a, Net().train(), images())
    shared = nn.Linear(4, 4)
    with pytest.raises(ModelError, match="'0' of model_a is called more than once in a forward"):
        layer_similarity(nn.Sequential(shared, nn.ReLU(), shared).eval(), None, torch.randn(9, 4))
    with pytest.raises(ModelError, match="calls no layer with parameters that puts out a row"):
        layer_similarity(nn.Sequential(nn.ReLU()).eval(), None, torch.randn(9, 4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"minibatch": 3}, ConfigError, "minibatch is 3; expected at least 4, or None"),
        ({"debiased": False}, ConfigError, "debiased=False with minibatch=256, .*minibatch=None"),
        ({"measure": "svcca", "memory_budget": "2kB"}, ConfigError, "memory_budget is 2,000 bytes"),
        ({"measure": "cca"}, DataError, "layers 'stem' .x. and 'stem' .y.: .*at least 65 samples"),
        ({"measure": "cca", "k": 1}, ConfigError, "cca has no option k"),
        ({"layers_a": ["unus*"]}, ModelError, "calls no layer of .'unus.*'. that puts out a row"),
        ({"size": 5}, DataError, "maps of stem have 4 x 4 pixels and cannot be down-sampled to 5"),
    ],
)
def test_bad_options_of_layers(options, error, message):
    with pytest.raises(error, match=message):
        layer_similarity(net(), net(1), images(), progress=False, **options)


def test_one_warning_for_all_pairs():
    with pytest.warns(PntkWarning, match=r"are 1 whatever the data.*and 3 more pairs of layers"):
        layer_similarity(
            net(), None, images(20), layers_a=["stem", "body.1"], measure="svcca", progress=False
        )


def test_too_few_samples_for_a_minibatch():
    with pytest.raises(DataError, match="has 3 samples; expected minibatches of at least 4"):
        layer_similarity(net(), None, images(3), progress=False)


# ---- hooks -------------------------------------------------------------------------------------


@torch.no_grad()
def test_hooks_gather_over_forwards_and_stop():
    a, b, data = net(0), net(1), images()
    with SimilarityHook(a, "stem", "svcca") as one, SimilarityHook(b, "body.1") as other:
        for part in data.split(20):
            a(part), b(part)
    x, y = by_hand(a, data)["stem"], by_hand(b, data)["body.1"]
    torch.testing.assert_close(one.activations, x)  # as it was before the ReLU in place
    assert one.similarity(other) == pytest.approx(similarity(x, y, "svcca"), abs=1e-6)
    filters = distance(x, y, "svcca", neurons="filter", size=2)
    assert one.distance(other, neurons="filter", size=2) == pytest.approx(filters, abs=1e-6)
    assert other.distance(one) == pytest.approx(distance(x, y), abs=1e-6)
    a(data)
    assert len(one.activations) == 50  # removed
    one.clear()
    with pytest.raises(DataError, match="layer 'stem' has put out nothing yet; call the model"):
        one.similarity(other)


def test_hooks_for_several_layers():
    assert DistanceHook is SimilarityHook
    model = net()
    hooks = SimilarityHook.create(model, ["stem", "body.*"], neurons="filter")
    model(images())
    assert [hook.name for hook in hooks] == ["stem", "body.0", "body.1"]
    assert not hooks[0].activations.requires_grad
    assert hooks[0].distance(hooks[0]) == pytest.approx(0, abs=1e-12)
    model(images()[:, :, :3])
    with pytest.raises(DataError, match=r"'stem' put out samples of shapes .*expected one shape"):
        hooks[0].similarity(hooks[1])


def test_bad_hooks():
    model = nn.Sequential(nn.Linear(3, 4), nn.Flatten(0))
    with pytest.raises(ConfigError, match=r"\(Sequential\) has no layer 'conv'; near it: 0, 1"):
        SimilarityHook(model, "conv")
    with pytest.raises(ConfigError, match="cka has no option k; expected debiased"):
        SimilarityHook(model, "0", k=3)
    with SimilarityHook(model, "1"), pytest.raises(ModelError, match=r"'1' puts out \(20,\); exp"):
        model(torch.randn(5, 3))


# ---- tasks -------------------------------------------------------------------------------------


@torch.no_grad()
def test_distances_over_tasks():
    stats = pytest.importorskip("scipy.stats")
    a, b = net(0), net(1)
    tasks = [[part, torch.zeros(len(part))] for part in images(60).split(20)]  # as of a DataLoader
    found = distance_over_tasks(a, b, iter(tasks), progress=False)
    assert found.layers_a == ["stem", "body.1", "head"] and found.values.shape == (3, 3)
    for i, (x, _) in enumerate(tasks):
        left, right = by_hand(a, x), by_hand(b, x)
        for j, name in enumerate(found.layers_a):
            expected = 1 - linear_cka(left[name].flatten(1), right[name].flatten(1))
            assert float(found.values[i, j]) == pytest.approx(expected, abs=1e-5)
    values = found.values.numpy()
    np.testing.assert_allclose(found.mean, values.mean(0))
    np.testing.assert_allclose(found.std, values.std(0, ddof=1))
    low, high = stats.t.interval(0.95, 2, values.mean(0), stats.sem(values))
    np.testing.assert_allclose(found.interval, (high - low) / 2)
    mean, deviation = found.whole()
    assert mean == pytest.approx(values.mean())
    assert deviation == pytest.approx(values.mean(1).std(ddof=1))
    assert found.to_dict()["tasks"] == 3


def test_tasks_of_other_layers_and_one_task_alone():
    found = distance_over_tasks(
        net(), net(1), [images()], ["stem"], "svcca", layers_b=["body.1"], progress=False
    )
    assert (found.layers_a, found.layers_b) == (["stem"], ["body.1"])
    assert math.isnan(found.std) and math.isnan(found.interval)
    assert math.isnan(found.whole()[1])
    assert isinstance(found, TaskDistances)


def test_bad_tasks():
    a = net()
    with pytest.raises(DataError, match="there are 0 tasks; expected at least one"):
        distance_over_tasks(a, a, [], progress=False)
    with pytest.raises(ConfigError, match="layers are 1 and layers_b 2; expected pairs"):
        distance_over_tasks(a, a, [images()], ["stem"], layers_b=["stem", "head"], progress=False)
    with pytest.raises(DataError, match=r"task 1: layers 'head' .*at least 4 samples here"):
        distance_over_tasks(a, a, [images(), images(3)], ["head"], "cca", progress=False)
    with pytest.raises(ConfigError, match="confidence is 95; expected a share"):
        distance_over_tasks(a, a, [images()], confidence=95)
    with pytest.raises(ConfigError, match=r"model_b .* has no layer 'stem'; near it: "):
        distance_over_tasks(a, nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), [images()])
