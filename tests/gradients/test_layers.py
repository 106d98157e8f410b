"""Every kind of layer and every way to call one, against a loop of torch.autograd.grad."""

import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pntk import EmpiricalNTK, Featurizer, empirical_ntk
from pntk.batch import batch_size, take
from pntk.errors import PntkWarning
from pntk.ntk.reference import reference_ntk

# padding="same" with an odd total is asymmetric, which torch remarks upon
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

SAMPLES = 4


@dataclass
class Case:
    """A model, what one sample of its input looks like, and the parameters without a rule."""

    layers: dict
    forward: object
    shape: tuple = (5,)
    ids: int = 0  # the input holds integers below this
    fallback: set = field(default_factory=set)
    vectorised: bool = True  # whether torch.func.vmap can go there

    def build(self):
        torch.manual_seed(1)
        model = Net({name: make() for name, make in self.layers.items()}, self.forward)
        for module in model.modules():
            randomise(module)
        shape = (SAMPLES, *self.shape)
        batch = torch.randint(0, self.ids, shape) if self.ids else torch.randn(shape).double()
        return model.double().eval(), batch


class Net(nn.Module):
    def __init__(self, layers, forward):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def randomise(module):
    """Move norms away from their initial state, in which weights are one and means zero."""
    if isinstance(getattr(module, "running_mean", None), torch.Tensor):
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2)
    for key, p in module._parameters.items():
        if p is not None and p.dim() <= 1:
            nn.init.normal_(p, 1.0 if key == "weight" else 0.0, 0.5)


def layer(make, shape, *, ids=0, fallback=()):
    """One layer, and a nonlinearity so that gradients differ from sample to sample."""
    return Case(
        {"layer": make},
        lambda m, x: tail(m.layer(x)),
        shape,
        ids,
        {f"layer.{key}" for key in fallback},
    )


def tail(x):
    """Three outputs [b, 3] that depend on every entry of x in a nonlinear way."""
    flat = torch.sin(x.flatten(1) + 0.3)
    weights = torch.linspace(-1, 1.5, 3 * flat.shape[1], dtype=x.dtype, device=x.device)
    return flat @ weights.view(flat.shape[1], 3)


def repadded():
    """A convolution whose padding is not the one it was made with."""
    layer = nn.Conv2d(4, 6, 3, padding=(2, 0))
    layer.padding = (0, 1)
    return layer


def param(*shape):
    return lambda: nn.Parameter(torch.randn(shape))


def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.embed(ids)))

    return Tied()


class Scaled(nn.Linear):
    """A subclass that changes the forward pass: no rule may take it."""

    def forward(self, x):
        return 2 * super().forward(x)


def by_keyword(m, x):
    return tail(m.b(input=torch.tanh(m.a(input=x))))


def checkpointed(reentrant):
    def forward(m, x):
        return tail(checkpoint(lambda h: m.b(torch.tanh(m.b(h))), m.a(x), use_reentrant=reentrant))

    return forward


def at_positions(m, ids, places):
    return tail(torch.tanh(m.tokens(ids) + m.places(places)))


def attend(m, x):
    return tail(m.attention(x, x, x, need_weights=False)[0])


def attend_sequence_first(m, x):
    y = x.transpose(0, 1)
    return tail(m.attention(y, y, y)[0].transpose(0, 1))


def sequence_first(m, x):
    y = torch.tanh(m.b(m.norm(m.a(x.transpose(0, 1)))))
    return tail(y.transpose(0, 1))


def flat_tokens(m, x):
    b, t, d = x.shape
    return tail(m.b(m.norm(m.a(x.reshape(b * t, d)))).view(b, t, -1))


def several_images(m, x):
    b, views = x.shape[:2]
    return tail(m.norm(m.conv(x.flatten(0, 1))).view(b, views, -1))


def residual(m, x):
    h = m.a(x)
    return tail(h + m.b(F.relu(m.norm(h))))


def conv(cls, *arguments, **options):
    return lambda: cls(*arguments, **options)


TOKENS, IMAGE, VOLUME = (4, 5), (4, 7, 6), (2, 4, 5, 4)
LINEAR = {"a": lambda: nn.Linear(5, 6), "b": lambda: nn.Linear(6, 6)}

CASES = {
    "linear": layer(lambda: nn.Linear(5, 4), (5,)),
    "linear without bias": layer(lambda: nn.Linear(5, 4, bias=False), (5,)),
    "linear on tokens": layer(lambda: nn.Linear(5, 4), TOKENS),
    "linear on a grid of tokens": layer(lambda: nn.Linear(5, 4), (2, 3, 5)),
    "linear, input by keyword": Case(LINEAR, by_keyword),
    "linear, one output": Case(LINEAR, lambda m, x: m.b(torch.tanh(m.a(x)))[:, 0]),
    "subclass of linear": layer(lambda: Scaled(5, 4), (5,), fallback=("weight", "bias")),
    "conv1d": layer(conv(nn.Conv1d, 4, 3, 3, stride=2, padding=1, dilation=2), (4, 9)),
    "conv1d same": layer(conv(nn.Conv1d, 4, 3, 4, padding="same", dilation=3), (4, 9)),
    "conv1d causal": layer(conv(nn.Conv1d, 4, 3, 2, padding="valid"), (4, 9)),
    "conv2d": layer(conv(nn.Conv2d, 4, 6, 3, padding=1), IMAGE),
    "conv2d 1x1": layer(conv(nn.Conv2d, 4, 6, 1, bias=False), IMAGE),
    "conv2d strided": layer(conv(nn.Conv2d, 4, 6, (3, 2), (2, 3), (1, 0), (2, 1)), IMAGE),
    "conv2d groups": layer(conv(nn.Conv2d, 4, 6, 3, 2, 1, groups=2), IMAGE),
    "conv2d, padding set later": layer(repadded, IMAGE),
    "conv2d depthwise": layer(conv(nn.Conv2d, 4, 4, 3, padding=1, groups=4), IMAGE),
    "conv2d same": layer(conv(nn.Conv2d, 4, 6, (2, 3), padding="same", dilation=2), IMAGE),
    "conv2d reflect": layer(
        conv(nn.Conv2d, 4, 6, 3, padding=(2, 1), padding_mode="reflect"), IMAGE
    ),
    "conv2d replicate": layer(conv(nn.Conv2d, 4, 6, 3, padding=1, padding_mode="replicate"), IMAGE),
    "conv2d circular": layer(
        conv(nn.Conv2d, 4, 6, 3, padding="same", padding_mode="circular", groups=2), IMAGE
    ),
    "conv3d": layer(conv(nn.Conv3d, 2, 3, (1, 2, 3), stride=(1, 2, 1), padding=1), VOLUME),
    "conv3d groups": layer(conv(nn.Conv3d, 2, 4, 2, dilation=(1, 2, 1), groups=2), VOLUME),
    "conv, rest of the stride unseen": layer(conv(nn.Conv2d, 4, 3, 2, stride=3), (4, 7, 7)),
    "transposed conv1d": layer(conv(nn.ConvTranspose1d, 4, 3, 3, 2, 1, output_padding=1), (4, 5)),
    "transposed conv2d": layer(
        conv(nn.ConvTranspose2d, 4, 6, (3, 2), (2, 3), (1, 0), (1, 2)), IMAGE
    ),
    "transposed conv2d groups": layer(
        conv(nn.ConvTranspose2d, 4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2), IMAGE
    ),
    "transposed conv3d": layer(
        conv(nn.ConvTranspose3d, 2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 1)), VOLUME
    ),
    "embedding": layer(lambda: nn.Embedding(9, 4), (5,), ids=9),
    "embedding, large": layer(lambda: nn.Embedding(60, 4), (5,), ids=60),
    "embedding, padding": layer(lambda: nn.Embedding(4, 3, padding_idx=1), (7,), ids=4),
    "embedding, one token": Case({"e": lambda: nn.Embedding(9, 4)}, lambda m, x: m.e(x), (), 9),
    "layer norm": layer(lambda: nn.LayerNorm(5), TOKENS),
    "layer norm over two axes": layer(lambda: nn.LayerNorm((4, 5), eps=0.1), (3, 4, 5)),
    "layer norm without bias": layer(lambda: nn.LayerNorm(5, bias=False), (5,)),
    "rms norm": layer(lambda: nn.RMSNorm(5), TOKENS),
    "rms norm with eps": layer(lambda: nn.RMSNorm((4, 5), eps=0.1), (3, 4, 5)),
    "group norm": layer(lambda: nn.GroupNorm(2, 4), IMAGE),
    "group norm, flat": layer(lambda: nn.GroupNorm(2, 4, eps=0.1), (4,)),
    "batch norm 1d": layer(lambda: nn.BatchNorm1d(5), (5,)),
    "batch norm 1d on sequences": layer(lambda: nn.BatchNorm1d(5, eps=0.1), (5, 3)),
    "batch norm 2d": layer(lambda: nn.BatchNorm2d(4), IMAGE),
    "batch norm 3d": layer(lambda: nn.BatchNorm3d(2), VOLUME),
    "instance norm 1d": layer(lambda: nn.InstanceNorm1d(4, affine=True), (4, 9)),
    "instance norm 2d": layer(lambda: nn.InstanceNorm2d(4, affine=True, eps=0.1), IMAGE),
    "instance norm 3d": layer(lambda: nn.InstanceNorm3d(2, affine=True), VOLUME),
    "instance norm, tracked": layer(
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE
    ),
    "used three times": Case(
        {"a": lambda: nn.Linear(5, 5)},
        lambda m, x: tail(m.a(torch.tanh(m.a(torch.tanh(m.a(x)))))),
    ),
    "used on tokens and on their mean": Case(
        {"a": lambda: nn.Linear(5, 5)}, lambda m, x: tail(m.a(torch.tanh(m.a(x)).mean(1))), TOKENS
    ),
    "conv used at two sizes": Case(
        {"a": lambda: nn.Conv2d(4, 4, 3, padding=1)},
        lambda m, x: tail(m.a(F.max_pool2d(torch.tanh(m.a(x)), 2))),
        IMAGE,
    ),
    "tied embedding and head": Case({"net": tied}, lambda m, x: tail(m.net(x)), (5,), 11),
    "checkpoint": Case(LINEAR, checkpointed(False)),
    "bare parameters": Case(
        {**LINEAR, "scale": param(6), "shift": param()},
        lambda m, x: tail(m.scale * torch.tanh(m.a(x)) + m.shift),
        fallback={"scale", "shift", "b.weight", "b.bias"},  # b is not called
    ),
    "weight used by a function": Case(
        {"a": lambda: nn.Linear(5, 6)},
        lambda m, x: tail(torch.tanh(x @ m.a.weight.T)),
        fallback={"a.weight", "a.bias"},
    ),
    "position ids [1, T]": Case(
        {"tokens": lambda: nn.Embedding(9, 4), "places": lambda: nn.Embedding(6, 4)},
        lambda m, x: at_positions(m, x, torch.arange(x.shape[1])[None]),
        (5,),
        9,
    ),
    "position ids [T]": Case(
        {"tokens": lambda: nn.Embedding(9, 4), "places": lambda: nn.Embedding(6, 4)},
        lambda m, x: at_positions(m, x, torch.arange(x.shape[1])),
        (5,),
        9,
    ),
    "position ids [b, T]": Case(
        {"tokens": lambda: nn.Embedding(9, 4), "places": lambda: nn.Embedding(6, 4)},
        lambda m, x: at_positions(m, x, torch.arange(x.shape[1]).expand(x.shape[0], -1)),
        (5,),
        9,
    ),
    "sequence first": Case({**LINEAR, "norm": lambda: nn.LayerNorm(6)}, sequence_first, TOKENS),
    "flat tokens": Case({**LINEAR, "norm": lambda: nn.BatchNorm1d(6)}, flat_tokens, TOKENS),
    "several images a sample": Case(
        {"conv": lambda: nn.Conv2d(2, 3, 3), "norm": lambda: nn.GroupNorm(3, 3)},
        several_images,
        (3, 2, 5, 5),
    ),
    "several images, groups": Case(
        {
            "conv": lambda: nn.Conv2d(2, 4, 3, groups=2),
            "norm": lambda: nn.InstanceNorm2d(4, affine=True),
        },
        several_images,
        (3, 2, 5, 5),
    ),
    "a layer on a table, as the weight of another": Case(
        {"a": lambda: nn.Linear(5, 5)},
        lambda m, x: tail(F.linear(x, m.a(torch.eye(6, 5, dtype=x.dtype, device=x.device)))),
        fallback={"a.weight", "a.bias"},
    ),
    "a layer on a table, in a product": Case(
        {"a": lambda: nn.Linear(5, 5)},
        lambda m, x: tail(x @ m.a(torch.eye(6, 5, dtype=x.dtype, device=x.device)).mT),
        fallback={"a.weight", "a.bias"},
    ),
    "a layer on a table, added": Case(
        {"a": lambda: nn.Linear(3, 5)},
        lambda m, x: tail(torch.tanh(m.a(torch.eye(4, 3, dtype=x.dtype, device=x.device))) * x),
        TOKENS,
    ),
    "one call a sample": Case(
        LINEAR,
        lambda m, x: tail(m.b(torch.stack([torch.tanh(m.a(row)) for row in x]))),
        fallback={"a.weight", "a.bias"},
    ),
    "in-place relu": Case(
        {**LINEAR, "relu": lambda: nn.ReLU(inplace=True), "norm": lambda: nn.BatchNorm1d(6)},
        lambda m, x: tail(m.b(m.relu(m.norm(m.relu(m.a(x)))))),
    ),
    "residual": Case({**LINEAR, "norm": lambda: nn.LayerNorm(6)}, residual, TOKENS),
    "weight norm": Case(
        {"a": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))},
        lambda m, x: tail(m.a(x)),
        fallback={"a.parametrizations.weight.original0", "a.parametrizations.weight.original1"},
    ),
    "attention": Case(
        {"attention": lambda: nn.MultiheadAttention(6, 2, batch_first=True)},
        attend,
        (4, 6),
        fallback={
            f"attention.{key}"
            for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        },
    ),
    "attention, sequence first": Case(
        {"attention": lambda: nn.MultiheadAttention(6, 2)},
        attend_sequence_first,
        (4, 6),
        fallback={
            f"attention.{key}"
            for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        },
    ),
    "transformer layer": Case(
        {"a": lambda: nn.TransformerEncoderLayer(6, 2, 7, 0.0, batch_first=True)},
        lambda m, x: tail(m.a(x)),
        (4, 6),
        fallback={
            f"a.self_attn.{key}"
            for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        },
    ),
    "transformer layer, sequence first": Case(
        {"a": lambda: nn.TransformerEncoderLayer(6, 2, 7, 0.0, norm_first=True)},
        lambda m, x: tail(m.a(x.transpose(0, 1)).transpose(0, 1)),
        (4, 6),
        fallback={
            f"a.self_attn.{key}"
            for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        },
    ),
    "lstm": Case(
        {"a": lambda: nn.LSTM(5, 3, batch_first=True)},
        lambda m, x: tail(m.a(x)[0]),
        TOKENS,
        fallback={f"a.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
        vectorised=False,
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def rows_of(model, batch, case, *arguments, **options):
    featurizer = Featurizer(model, *arguments, **options)
    return warned(lambda: featurizer(batch), case, options.get("fallback"))


def warned(work, case, fallback=None):
    if case.vectorised or not (case.fallback or fallback):
        return work()
    with pytest.warns(PntkWarning, match="go one sample at a time"):
        return work()


@every_case
@pytest.mark.parametrize("output", ["pntk", "trace"])
def test_rows_are_the_gradients(loop_rows, distance, case, output):
    model, batch = case.build()
    found = rows_of(model, batch, case, output, "identity")
    assert found.dtype == torch.float64
    assert distance(found, loop_rows(model, batch, output)) <= 1e-10


@every_case
def test_rules_serve_what_they_should(case):
    model, batch = case.build()
    featurizer = Featurizer(model, proj_dim=64)
    warned(lambda: featurizer(batch), case)
    by_func = {row["name"] for row in featurizer.coverage() if row["rule"] == "torch.func"}
    assert by_func == case.fallback


@every_case
def test_rows_do_not_depend_on_the_batch(distance, case):
    model, batch = case.build()
    featurizer = Featurizer(model, "trace", proj_dim=64)
    rows = warned(lambda: featurizer(batch), case)
    for chosen in ([2], [3, 0], [1, 1, 2, 0, 3, 3]):
        again = featurizer(take(batch, torch.tensor(chosen)))
        assert distance(again, rows[chosen]) <= 1e-10


@every_case
def test_projected_rows_are_projections_of_the_rows(distance, case):
    """The rows of factors are the sketch of the materialised gradient, parameter by parameter."""
    model, batch = case.build()
    featurizer = Featurizer(model, "trace", proj_dim=64, seed=3)
    found = warned(lambda: featurizer(batch), case)
    gradients = rows_of(model, batch, case, "trace", "identity").view(batch_size(batch), -1)
    projector = featurizer._ready
    expected = projector.empty_rows(batch_size(batch))
    start = 0
    for output in range(gradients.shape[1] // projector.gradient_size):
        for name, shape in projector.shapes.items():
            size = torch.Size(shape).numel()
            piece = gradients[:, start : start + size].reshape(-1, *shape)
            projector.sketch(name).add_gradient(piece, expected, output)
            start += size
    assert distance(found, expected) <= 1e-10


@every_case
def test_fallback_gives_the_same_rows(distance, case):
    model, batch = case.build()
    rules = rows_of(model, batch, case, "trace", proj_dim=64)
    func = Featurizer(model, "trace", proj_dim=64, fallback="*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PntkWarning)
        found = func(batch)
    assert func.coverage().by_rule == 0
    assert distance(found, rules) <= 1e-10


@every_case
@pytest.mark.parametrize("method", ["factors", "gradients"])
def test_exact_kernels(case, method, monkeypatch):
    model, batch = case.build()
    expected = sum(reference_ntk(model, batch).values())
    if expected.dim() == 2:
        expected = expected[..., None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PntkWarning)
        found = empirical_ntk(model, batch, kind="full", method=method)
        trace = empirical_ntk(model, batch, method=method)
        monkeypatch.setattr(EmpiricalNTK, "_tile", lambda *_: 3)
        tiled = empirical_ntk(model, batch, method=method)
    scale = expected.abs().max()
    assert ((found - expected.reshape(found.shape)).abs() <= 1e-10 * scale).all()
    expected = expected.diagonal(dim1=2, dim2=3).sum(-1)
    for kernel in (trace, tiled):
        assert ((kernel - expected).abs() <= 1e-10 * expected.abs().max()).all()
        assert torch.equal(kernel, kernel.T)


@pytest.mark.gpu
@every_case
def test_the_gpu_gives_the_same_rows(distance, case):
    model, batch = case.build()
    expected = rows_of(model, batch, case, proj_dim=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PntkWarning)
        found = Featurizer(model.cuda(), proj_dim=64)(batch.cuda())
    assert distance(found, expected) <= 1e-9


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_reentrant_checkpoint(loop_rows, distance):
    """torch.autograd.grad refuses these, so the model without checkpoints is the reference."""
    case = CASES["checkpoint"]
    model, batch = case.build()
    expected = loop_rows(model, batch)
    model._forward = checkpointed(True)
    assert distance(Featurizer(model, projection="identity")(batch), expected) <= 1e-10


def test_reentrant_checkpoints_that_call_a_layer_in_two_ways(loop_rows, distance):
    """Samples are on the first axis in the first call and on the second in the second."""

    def forward(m, x):
        run = checkpoint if m.checkpointed else lambda f, h, use_reentrant: f(h)
        h = run(lambda h: torch.tanh(m.b(h)), m.a(x), use_reentrant=True)
        h = run(lambda h: m.b(h.transpose(0, 1)), h, use_reentrant=True)
        return tail(h.transpose(0, 1))

    model, batch = Case(LINEAR, forward, (SAMPLES, 5)).build()
    model.checkpointed = False
    expected = loop_rows(model, batch)
    model.checkpointed = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of inputs without gradients, in the probe
        found = Featurizer(model, projection="identity", check=False)(batch)
    assert distance(found, expected) <= 1e-10


def test_sync_batch_norm_in_eval_mode(loop_rows, distance):
    model = nn.Sequential(nn.Linear(5, 4), nn.SyncBatchNorm(4), nn.Tanh(), nn.Linear(4, 2))
    model = model.double().eval()
    batch = torch.randn(3, 5).double()
    found = Featurizer(model, projection="identity")(batch)
    assert distance(found, loop_rows(model, batch)) <= 1e-10


def test_parameters_that_only_some_layers_share(loop_rows, distance):
    """A weight that a served layer and an unserved one own goes to the fallback whole."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), Scaled(5, 5)).double()
    model[2].weight = model[0].weight
    batch = torch.randn(3, 5).double()
    featurizer = Featurizer(model, projection="identity")
    assert distance(featurizer(batch), loop_rows(model, batch)) <= 1e-10
    rules = {row["name"]: row["rule"] for row in featurizer.coverage()}
    assert rules == {"0.weight": "torch.func", "0.bias": "linear", "2.bias": "torch.func"}
