"""A model in bfloat16, rows in float32; and how coarsely a model computes."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pntk import FeatureStore, Featurizer
from pntk.errors import CheckError, ConfigError, PntkWarning, StoreError
from pntk.models import GPT, LeNet, ResNet18, ViT
from pntk.outputs import PNTK, Clip, Trace
from pntk.precision import Autocast, arithmetic

X, Y = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def last(model, tokens):
    return model(tokens)[:, -1]


MODELS = {
    "mlp": (mlp, lambda: X, "margin", 0.05),
    "lenet": (lambda: LeNet(image_size=8), lambda: torch.randn(9, 1, 8, 8), "trace", 0.2),
    "resnet": (lambda: ResNet18(width=16), lambda: torch.randn(9, 3, 16, 16), "pntk", 0.1),
    "vit": (
        lambda: ViT(image_size=8, patch_size=4, dim=16, depth=2, heads=2),
        lambda: torch.randn(9, 3, 8, 8),
        "loss",
        0.1,
    ),
    "gpt": (
        lambda: GPT(vocab_size=13, context=8, dim=16, depth=2, heads=2),
        lambda: torch.randint(0, 13, (9, 8)),
        last,
        0.1,
    ),
}


def distance(found, expected):
    return float((found.cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("fallback", [(), "*"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_float32_and_near_those_of_float32(name, fallback):
    if name == "resnet" and fallback:
        pytest.skip("torch's vmap takes no batch norm under autocast; the next test has a loop")
    make, inputs, output, bound = MODELS[name]
    model, x = make().eval(), inputs()
    batch = (x, Y) if output in ("margin", "loss") else x
    expected = Featurizer(model, output, proj_dim=256)(batch)
    featurizer = Featurizer(model, output, proj_dim=256, precision="bf16", fallback=fallback)
    found = featurizer(batch)
    assert found.dtype == featurizer.dtype == torch.float32
    assert 1e-4 < distance(found, expected) < bound


def test_what_vmap_cannot_take_goes_one_sample_at_a_time():
    model, x = ResNet18(width=16).eval(), torch.randn(9, 3, 16, 16)
    expected = Featurizer(model, proj_dim=256)(x)
    with pytest.warns(PntkWarning, match="cannot vectorise ResNet18 .* one sample at a time"):
        found = Featurizer(model, proj_dim=256, precision="bf16", fallback="*")(x)
    assert distance(found, expected) < 0.1


@pytest.mark.parametrize("fallback", [(), "*"])
def test_every_forward_pass_is_in_bfloat16(fallback):
    """In the probe, the check, the capture and the fallback; but by vmap, no backward pass."""
    model, seen, in_backward = mlp(), [], []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        generate_vmap_rule = True

        @staticmethod
        def backward(ctx, grad):
            in_backward.append(torch.is_autocast_enabled("cpu"))
            return grad

    def output(model, batch):
        assert torch.is_autocast_enabled("cpu")
        return Watched.apply(model(batch)).sum(1)

    Featurizer(model, output, proj_dim=64, precision="bf16", fallback=fallback)(X)
    assert len(seen) > 3 and set(seen) == {torch.bfloat16}
    assert in_backward and (fallback or not any(in_backward))
    assert not torch.is_autocast_enabled("cpu")


def test_checkpointed_blocks():
    class Net(nn.Module):
        def __init__(self, again):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head, self.again = mlp(), nn.Linear(3, 2), again

        def forward(self, x):
            h = checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)
            return self.head(h)

    rows = [Featurizer(Net(again), proj_dim=64, precision="bf16")(X) for again in (False, True)]
    assert distance(rows[1], rows[0]) < 1e-6


def test_the_store_says_so_and_takes_no_other_rows(tmp_path):
    model, path = mlp(), tmp_path / "rows.h5"
    half = Featurizer(model, proj_dim=64, precision="bf16")
    with half.featurize(X, path, progress=False) as store:
        assert (store.header.precision, store.header.dtype) == ("bf16", "float32")
        assert torch.equal(store.torch(), half(X))
    with pytest.raises(StoreError, match="precision"):
        Featurizer(model, proj_dim=64).featurize(X, path, progress=False)
    other = path.with_name("other.h5")
    Featurizer(model, proj_dim=64).featurize(X, other, progress=False).close()
    with pytest.raises(StoreError, match="precision"):
        half.featurize(X, other, progress=False)
    under_own = path.with_name("own.h5")
    with torch.autocast("cpu", torch.bfloat16):
        Featurizer(model, proj_dim=64).featurize(X, under_own, progress=False).close()
    with FeatureStore(under_own) as store:
        assert store.header.precision == "fp32, autocast torch.bfloat16"


def test_the_output_in_the_store_is_the_one_inside():
    wrapped = Autocast(Trace(2), torch.device("cpu"))
    assert wrapped.describe() == Trace(2).describe() and wrapped.name == "trace"


def test_float64_models_are_refused():
    message = (
        "precision is 'bf16' and parameter 0.weight is torch.float64, which autocast leaves alone; "
        "convert the model with .float(), or use precision='fp64'"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        Featurizer(mlp().double(), precision="bf16")


def test_devices_without_bfloat16_are_refused(monkeypatch):
    def autocast(*args, **kwargs):
        raise RuntimeError("Current CUDA Device does not support bfloat16")

    model = mlp()
    monkeypatch.setattr(torch, "autocast", autocast)
    message = r"precision is 'bf16' and cpu cannot run it \(Current CUDA.*use precision='fp32'"
    with pytest.raises(ConfigError, match=message):
        Featurizer(model, precision="bf16")


class Centred(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return (h - h.mean(0)) ** 2


def test_a_model_that_mixes_samples_is_still_found_out():
    with pytest.raises(CheckError, match=r"do not add up|changes with the batch"):
        Featurizer(Centred(5, 3), proj_dim=64, precision="bf16")(X)


# ---- an output's own arithmetic stays in float32 ------------------------------------------------


@pytest.mark.parametrize("where", ["autocast", "no autocast"])
def test_signed_sums_of_logits_are_not_rounded(where):
    logits = torch.randn(4, 50)
    exact = Trace(2)(lambda x: x, logits).values
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        found = Trace(2)(lambda x: x, logits).values
    assert found.dtype == torch.float32 and torch.equal(found, exact)


def test_products_of_embeddings_are_not_rounded():
    image, text = torch.randn(2, 4, 6)
    clip = Clip(torch.randn(9, 6), torch.randn(9, 6), pairs=5)
    exact = clip(lambda i, t: (i, t), (image, text)).values
    with torch.autocast("cpu", torch.bfloat16):
        found = clip(lambda i, t: (i, t), (image, text)).values
    assert torch.equal(found, exact)
    half = clip(lambda i, t: (i, t), (image.bfloat16(), text.bfloat16())).values
    assert half.dtype == torch.float32


# ---- how coarsely a model computes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, "fp64"),
        (torch.float32, "fp32"),
        (torch.bfloat16, "half"),
        (torch.float16, "half"),
    ],
)
def test_arithmetic_of_a_cpu(dtype, expected):
    assert arithmetic(mlp().to(dtype), PNTK()) == expected


def test_arithmetic_under_autocast():
    assert arithmetic(mlp(), Autocast(PNTK(), torch.device("cpu"))) == "half"
    with torch.autocast("cpu", torch.bfloat16):
        assert arithmetic(mlp(), PNTK()) == "half"


class OnGpu(nn.Sequential):
    """A model whose parameters seem to be on a GPU."""

    def parameters(self, recurse=True):
        return iter([SimpleNamespace(device=torch.device("cuda", 0), element_size=lambda: 4)])


@pytest.mark.parametrize(
    ("layer", "capability", "products", "convolutions", "expected"),
    [
        (nn.Conv2d(1, 1, 1), (8, 0), False, "tf32", "tf32"),
        (nn.Conv1d(1, 1, 1), (9, 0), False, "tf32", "tf32"),
        (nn.Conv2d(1, 1, 1), (8, 0), False, "ieee", "fp32"),
        (nn.Conv2d(1, 1, 1), (7, 5), True, "tf32", "fp32"),
        (nn.Linear(1, 1), (8, 0), False, "tf32", "fp32"),
        (nn.Linear(1, 1), (8, 0), True, "ieee", "tf32"),
    ],
)
def test_arithmetic_of_a_gpu(monkeypatch, layer, capability, products, convolutions, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    settings = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=products))  # before torch 2.9
    monkeypatch.setattr(torch.backends, "cuda", settings)
    cudnn = SimpleNamespace(conv=SimpleNamespace(fp32_precision=convolutions))
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    assert arithmetic(OnGpu(layer), PNTK()) == expected
    old = SimpleNamespace(allow_tf32=convolutions == "tf32")  # before torch 2.9
    monkeypatch.setattr(torch.backends, "cudnn", old)
    assert arithmetic(OnGpu(layer), PNTK()) == expected


def test_the_cache_of_an_autocast_around_it_is_not_used():
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(3, 6)
    expected = Featurizer(net, proj_dim=64, precision="bf16")(x)
    with torch.autocast("cpu", torch.float16):
        net(x)
        assert torch.equal(Featurizer(net, proj_dim=64, precision="bf16")(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
        with torch.no_grad():
            net[0].weight += 1
        changed = Featurizer(net, proj_dim=64, precision="bf16")(x)
    assert torch.equal(changed, Featurizer(net, proj_dim=64, precision="bf16")(x))


SETTINGS = {  # what is set -> whether products and convolutions round to TF32
    "": (False, True),
    "torch.backends.cuda.matmul.allow_tf32 = True": (True, True),
    "torch.set_float32_matmul_precision('high')": (True, True),
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": (True, True),
    "torch.backends.fp32_precision = 'tf32'": (True, True),
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'": (False, False),
    "torch.backends.cudnn.allow_tf32 = False": (False, False),
}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="needs PyTorch 2.9")
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_pytorch_itself(setting):
    script = f"""
import torch
from pntk.precision import _in_tf32
{setting}
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
print((_in_tf32(matmul, matmul), _in_tf32(cudnn.conv, cudnn)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(SETTINGS[setting]), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_the_gpu_in_bfloat16(name):
    make, inputs, output, bound = MODELS[name]
    model, x = make().eval(), inputs()
    batch = (x, Y) if output in ("margin", "loss") else x
    expected = Featurizer(model, output, proj_dim=256)(batch)
    moved = tuple(t.cuda() for t in batch) if isinstance(batch, tuple) else batch.cuda()
    found = Featurizer(model.cuda(), output, proj_dim=256, precision="bf16")(moved)
    assert found.dtype == torch.float32 and distance(found, expected) < 2 * bound
