"""Every output against its formula, and every refusal."""

import math
from collections import UserDict, namedtuple
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pntk import Featurizer, outputs
from pntk.errors import ConfigError, DataError, OutputError
from pntk.outputs import (
    PNTK,
    Clip,
    Custom,
    Loss,
    Margin,
    Output,
    Text,
    Trace,
    Values,
    check_values,
    resolve_output,
)

LOGITS = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
LABELS = torch.tensor([1, 0])


def passes_on(x, **_):
    """A model whose logits are its input."""
    return x


# ---- pntk and trace -----------------------------------------------------------------------------


def test_pntk_sums_the_logits():
    found = PNTK()(passes_on, LOGITS)
    torch.testing.assert_close(found.values, torch.tensor([2.0, 3.5]))
    assert found.labels is None and found.reweighting is None


def test_pntk_keeps_the_labels():
    assert torch.equal(PNTK()(passes_on, (LOGITS, LABELS)).labels, LABELS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, "rest"),
        lambda x: [x],
        lambda x: {"logits": x},
        lambda x: SimpleNamespace(logits=x),
    ],
)
def test_where_logits_are_found(wrap):
    found = PNTK()(lambda x: wrap(x), LOGITS)
    torch.testing.assert_close(found.values, LOGITS.sum(1))


def test_one_logit_without_an_axis():
    torch.testing.assert_close(PNTK()(passes_on, LOGITS[:, 0]).values, LOGITS[:, 0])
    assert Trace()(passes_on, LOGITS[:, 0]).values.shape == (2, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    assert PNTK()(passes_on, LOGITS.to(dtype)).values.dtype == torch.float32


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(2, 3, 4), r"logits of shape \(2, 3, 4\); expected \[b\] or \[b, c\]"),
        (torch.zeros(2, 3, dtype=torch.int64), "returned torch.int64 logits; expected floating"),
        ("text", "returned a str; expected logits as a tensor, as .logits, or first in a tuple"),
        ((), "returned a tuple; expected logits"),
        ({"hidden": LOGITS}, "returned a dict; expected logits"),
        (None, "returned a NoneType; expected logits"),
    ],
)
def test_what_is_no_logits(result, message):
    with pytest.raises(OutputError, match=message):
        PNTK()(lambda x: result, LOGITS)


def test_trace_is_every_logit():
    found = Trace()(passes_on, (LOGITS, LABELS))
    assert torch.equal(found.values, LOGITS) and torch.equal(found.labels, LABELS)


def test_probes_are_signed_sums_of_logits():
    found = Trace(probes=5, seed=2)(passes_on, torch.eye(3)).values * math.sqrt(5)
    torch.testing.assert_close(found.abs(), torch.ones(3, 5))
    assert torch.equal(found, Trace(5, 2)(passes_on, torch.eye(3)).values * math.sqrt(5))
    assert not torch.equal(found, Trace(5, 3)(passes_on, torch.eye(3)).values * math.sqrt(5))


def test_probes_have_the_kernel_of_all_logits_on_average():
    """K = sum_m <grad v_m, grad v'_m> with v = f eps / sqrt(M) has E K = sum_c <J_c, J_c>."""
    jacobian = torch.randn(2, 6, 50)  # [n, c, p]
    exact = torch.einsum("ncp,mcp->nm", jacobian, jacobian)
    found = []
    for seed in range(400):
        eps = Trace(2, seed)(passes_on, torch.eye(6)).values  # [c, probes]
        mixed = torch.einsum("ncp,cv->nvp", jacobian, eps)
        found.append(torch.einsum("nvp,mvp->nm", mixed, mixed))
    found = torch.stack(found)
    z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(400))
    assert float(z.abs().max()) < 4


@pytest.mark.parametrize("probes", [-1, 1.5, "2"])
def test_probes_must_be_a_count(probes):
    with pytest.raises(ConfigError, match="expected an integer, 0 for every class"):
        Trace(probes)


# ---- margin and text ----------------------------------------------------------------------------


def test_margin():
    found = Margin()(passes_on, (LOGITS, LABELS))
    for n, y in enumerate(LABELS.tolist()):
        others = [float(f) for j, f in enumerate(LOGITS[n]) if j != y]
        expected = float(LOGITS[n, y]) - math.log(sum(map(math.exp, others)))
        p = math.exp(LOGITS[n, y]) / sum(map(math.exp, LOGITS[n].tolist()))
        assert float(found.values[n]) == pytest.approx(expected, rel=1e-6)
        assert float(found.reweighting[n]) == pytest.approx(1 - p, rel=1e-5)
    assert torch.equal(found.labels, LABELS)


def test_margin_is_the_log_odds():
    """f_y - lse of the others = log(p / (1 - p)), and its gradient is finite where p is 1."""
    logits = torch.tensor([[80.0, 0.0, -3.0]], requires_grad=True)
    found = Margin()(passes_on, (logits, torch.tensor([0])))
    found.values.sum().backward()
    assert logits.grad.isfinite().all()
    assert not found.reweighting.requires_grad


def test_margin_of_one_logit_is_refused():
    with pytest.raises(OutputError, match=r"margin needs at least two classes.*output='pntk'"):
        Margin()(passes_on, (LOGITS[:, :1], torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("output", [Margin(), Loss()])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "label 3 of sample 1 in the batch is out of range; .* 3 classes"),
        (torch.tensor([-1, 0]), "label -1 of sample 0 in the batch is out of range"),
        (torch.tensor([0.0, 1.0]), r"labels are torch.float32 of shape \(2,\).*integer classes"),
        (torch.tensor([[0], [1]]), r"labels are torch.int64 of shape \(2, 1\)"),
        ([0, 1], "labels are list"),
    ],
)
def test_labels_that_are_no_classes(output, labels, message):
    with pytest.raises(DataError, match=message):
        output(passes_on, (LOGITS, labels))


@pytest.mark.parametrize("output", [Margin(), Loss()])
def test_labels_are_needed(output):
    with pytest.raises(DataError, match=f"output '{output.name}' needs labels and the batch has"):
        output(passes_on, LOGITS)


def test_text_is_the_margin_of_a_mapping():
    batch = {"x": LOGITS, "labels": LABELS}
    for mapping in (batch, UserDict(batch)):  # Hugging Face's BatchEncoding is a UserDict
        found = Text()(passes_on, mapping)
        expected = Margin()(passes_on, (LOGITS, LABELS))
        torch.testing.assert_close(found.values, expected.values)
        torch.testing.assert_close(found.reweighting, expected.reweighting)


def test_text_of_a_tuple_is_refused():
    with pytest.raises(DataError, match="output 'text' got a tuple; expected a mapping"):
        Text()(passes_on, (LOGITS, LABELS))


# ---- loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction):
    found = Loss(nn.CrossEntropyLoss(reduction=reduction))(passes_on, (LOGITS, LABELS))
    expected = -F.log_softmax(LOGITS, 1)[torch.arange(2), LABELS]
    torch.testing.assert_close(found.values, expected)
    assert torch.equal(found.labels, LABELS)


def test_cross_entropy_is_the_default():
    assert resolve_output("loss")(passes_on, (LOGITS, LABELS)).values.shape == (2,)


@pytest.mark.parametrize(
    ("reduction", "combine"), [("mean", "mean"), ("sum", "sum"), ("none", "sum")]
)
def test_further_axes_are_combined_as_the_criterion_asks(reduction, combine):
    logits, labels = torch.randn(2, 3, 5), torch.randint(0, 3, (2, 5))
    found = Loss(nn.CrossEntropyLoss(reduction=reduction))(passes_on, (logits, labels))
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found.values, getattr(each, combine)(1))
    assert found.labels is None


def test_the_criterion_is_left_alone():
    criterion = nn.MSELoss(reduction="sum")
    Loss(criterion)(passes_on, (LOGITS, LOGITS + 1))
    assert criterion.reduction == "sum"


def test_regression():
    found = Loss(nn.MSELoss())(passes_on, (LOGITS, torch.zeros(2, 3)))
    torch.testing.assert_close(found.values, (LOGITS**2).mean(1))


def test_a_function_of_the_loss_a_sample():
    def criterion(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none")[:, None]

    found = Loss(criterion)(passes_on, (LOGITS, LABELS))
    torch.testing.assert_close(found.values, criterion(LOGITS, LABELS)[:, 0])


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(3), 1.5])
def test_a_criterion_that_reduces_is_refused(value):
    with pytest.raises(OutputError, match=r"for 2 samples; expected one loss a sample: use reduc"):
        Loss(lambda logits, labels: value)(passes_on, (LOGITS, LABELS))


# ---- clip ---------------------------------------------------------------------------------------


def pairs(n=9, d=4):
    return torch.randn(n, d), torch.randn(n, d)


def test_clip():
    images, texts = pairs()
    clip = Clip(images, texts, pairs=5)
    image, text = pairs(3)
    found = clip(lambda i, t: (i, t), (image, text)).values
    for n in range(3):
        expected = 0.0
        for own, other, drawn in (
            (image[n], text[n], clip.texts),
            (text[n], image[n], clip.images),
        ):
            gaps = [-float(own @ (other - b)) for b in drawn]
            expected -= math.log(sum(math.exp(gap) for gap in gaps))
        assert float(found[n]) == pytest.approx(expected, rel=1e-4)


def test_clip_draws_pairs_once_and_by_its_seed():
    images, texts = torch.arange(40.0).view(20, 2), -torch.arange(40.0).view(20, 2)
    a, b, c = (Clip(images, texts, pairs=7, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, c.images)
    assert torch.equal(a.images, -a.texts)
    assert len({tuple(row) for row in a.images.tolist()}) == 7
    assert a.describe() == b.describe() != c.describe()


def test_clip_moves_its_pairs_once():
    image, text = pairs(3)
    clip = Clip(*(x.double() for x in pairs()), pairs=5)
    before = clip.describe()
    first = clip._pairs_like(image, text)
    assert first[0].dtype == torch.float32 and clip._pairs_like(image, text)[0] is first[0]
    assert clip._pairs_like(image.double(), text.double())[0] is clip.images
    assert clip.describe() == before


def test_clip_inputs():
    images, texts = pairs()
    image, text = pairs(3)
    clip = Clip(images, texts, pairs=5)
    expected = clip(lambda i, t: (i, t), (image, text)).values
    named = SimpleNamespace(image_embeds=image, text_embeds=text)
    for found in (
        clip(lambda i, t: [i, t, "more"], (image, text)),
        clip(lambda i, t: named, (image, text)),
        clip(lambda a, b: (a, b), {"a": image, "b": text}),
        Clip(images, texts, 5, embed=lambda model, batch: (image, text))(None, None),
    ):
        torch.testing.assert_close(found.values, expected)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (torch.zeros(3, 4), OutputError, "output 'clip' got a Tensor .*pass embed=callable"),
        ((torch.zeros(3, 4),), OutputError, "output 'clip' got a tuple"),
        (
            (torch.zeros(3, 5), torch.zeros(3, 4)),
            OutputError,
            r"image embeddings have shape \(3, 5\); expected \[b, 4\]",
        ),
        ((torch.zeros(3, 4), torch.zeros(4)), OutputError, r"text embeddings have shape \(4,\)"),
    ],
)
def test_clip_models_that_are_refused(result, error, message):
    clip = Clip(*pairs(), pairs=5)
    with pytest.raises(error, match=message):
        clip(lambda i, t: result, pairs(3))


def test_clip_arguments_that_are_refused():
    images, texts = pairs()
    with pytest.raises(ConfigError, match=r"embeddings have shapes \(9, 4\) and \(9, 3\)"):
        Clip(images, texts[:, :3])
    for count in (0, 10):
        with pytest.raises(ConfigError, match=f"pairs is {count}; expected 1 to 9"):
            Clip(images, texts, pairs=count)


# ---- batches of every nesting -------------------------------------------------------------------


@dataclass
class Example:
    x: torch.Tensor
    labels: torch.Tensor


Pair = namedtuple("Pair", ["inputs", "target"])


@pytest.mark.parametrize(
    "batch",
    [
        (LOGITS, LABELS),
        [LOGITS, LABELS],
        Pair(LOGITS, LABELS),
        {"x": LOGITS, "labels": LABELS},
        {"x": LOGITS, "label": LABELS},
        UserDict(x=LOGITS, labels=LABELS),
        Example(LOGITS, LABELS),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_every_nesting_gives_the_same_margin(batch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    model = Model()
    expected = Margin()(model, (LOGITS, LABELS))
    found = Margin()(model, batch)
    torch.testing.assert_close(found.values, expected.values)
    rows = Featurizer(model, "margin", proj_dim=64)(batch)
    torch.testing.assert_close(rows, Featurizer(model, "margin", proj_dim=64)((LOGITS, LABELS)))


# ---- custom outputs, names and checks -----------------------------------------------------------


def half_of(model, batch):
    return model(batch) / 2


def test_callables():
    found = Custom(half_of)(passes_on, LOGITS)
    assert torch.equal(found.values, LOGITS / 2)
    values = Values(LOGITS[:, 0], LABELS, LOGITS[:, 1])
    assert Custom(lambda model, batch: values)(passes_on, LOGITS) is values
    assert torch.equal(Custom(lambda m, b: m(b[0]))(passes_on, (LOGITS, LABELS)).labels, LABELS)


@pytest.mark.parametrize("result", [torch.zeros(()), torch.zeros(2, 3, 4), [1.0, 2.0]])
def test_callables_that_return_something_else(result):
    with pytest.raises(OutputError, match=r"callable returned .*expected a tensor \[b\] or \[b, c"):
        Custom(lambda model, batch: result)(passes_on, LOGITS)


@pytest.mark.parametrize("name", ["pntk", "trace", "margin", "loss", "text"])
def test_names(name):
    output = resolve_output(name)
    assert output.name == name and output.describe()["name"] == name
    assert resolve_output(output) is output


def test_a_callable_is_a_custom_output():
    described = resolve_output(half_of).describe()
    assert described["name"] == "custom" and "half_of " in described["callable"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip", r"output 'clip' needs embeddings.*pntk.outputs.Clip"),
        (
            "logits",
            "unknown output 'logits'; expected one of pntk, trace, margin, loss, text, clip",
        ),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve_output(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3), r"shape \(3,\) for a batch of 2; expected \[2\] or \[2, c\]"),
        (torch.zeros(()), r"shape \(\) for a batch of 2"),
        (torch.zeros(2, 1, 1), r"shape \(2, 1, 1\) for a batch of 2"),
        (torch.zeros(2, dtype=torch.int32), "the output is torch.int32; expected floating point"),
        (torch.zeros(2, 0), "the output has no columns"),
    ],
)
def test_values_that_are_refused(values, message):
    with pytest.raises(OutputError, match=message):
        check_values(Values(values), 2)


def test_values_get_a_column():
    assert check_values(Values(torch.zeros(2)), 2).shape == (2, 1)
    assert check_values(Values(torch.zeros(2, 3)), 2).shape == (2, 3)


def test_descriptions_tell_outputs_apart():
    described = [
        PNTK().describe(),
        Trace().describe(),
        Trace(2).describe(),
        Trace(2, 1).describe(),
        Margin().describe(),
        Text().describe(),
        Loss().describe(),
        Loss(nn.MSELoss()).describe(),
        Custom(half_of).describe(),
        Custom(passes_on).describe(),
        Custom(partial(half_of)).describe(),
        Custom(partial(half_of, scale=2)).describe(),
    ]
    assert all(described.count(one) == 1 for one in described)


@pytest.mark.parametrize(
    "other",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
    ],
)
def test_descriptions_tell_criteria_apart(other):
    assert Loss(other).describe() != Loss().describe()


def test_descriptions_tell_embeddings_apart():
    assert Clip(*pairs(), pairs=5).describe() != Clip(*pairs(), pairs=5).describe()


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Output()
    assert set(outputs.__all__) >= {"PNTK", "Trace", "Margin", "Loss", "Text", "Clip", "Custom"}


def test_squeezed_logits_have_one_class():
    """A model that squeezes its logits returns no axis at all for a batch of one."""

    class Squeezed(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    model = Squeezed(3, 1)
    assert PNTK()(model, LOGITS[:1]).values.shape == (1,)
    rows = Featurizer(model, proj_dim=64)(LOGITS)
    torch.testing.assert_close(Featurizer(model, proj_dim=64)(LOGITS[:1]), rows[:1])
