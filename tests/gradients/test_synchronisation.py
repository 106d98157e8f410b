"""Nothing on the way to rows waits for the device, once the first batch has gone through.

On a CPU the operations that would wait on a GPU are watched for: those that read a value, that
have a result whose shape depends on values, or that bring numbers of Python to the device.
"""

import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pntk import Featurizer
from pntk.models import GPT, LeNet, ResNet18, ViT
from pntk.outputs import Clip, Trace

READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"}
BRINGS = {"lift", "lift_fresh"}
PROJECTIONS = ("pntk/projection/bits.py",)  # which makes its words on a GPU, where there is one


class Waits(TorchDispatchMode):
    """Collect the operations that would wait on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in READS or masks or (name in BRINGS and not _in_a_projection()):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _in_a_projection():
    frame = sys._getframe(2)
    while "/pntk/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_filename.endswith(PROJECTIONS)


def embeddings(model, batch):
    found = model(batch)
    return found, 2 * found


CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 70), nn.Tanh(), nn.Linear(70, 3)),
        torch.randn(3, 5),
        {},
    ),
    "cnn": (lambda: LeNet(image_size=8), torch.randn(3, 1, 8, 8), {}),
    "resnet": (lambda: ResNet18(width=8), torch.randn(3, 3, 8, 8), {}),
    "vit": (
        lambda: ViT(image_size=8, patch_size=4, dim=16, depth=1, heads=2),
        torch.randn(3, 3, 8, 8),
        {"precision": "bf16"},
    ),
    "gpt": (
        lambda: GPT(vocab_size=131, context=8, dim=16, depth=1, heads=2),
        torch.randint(0, 131, (3, 8)),
        {"output": lambda model, batch: model(batch).flatten(1).sum(1)},
    ),
    "trace": (lambda: LeNet(image_size=8), torch.randn(3, 1, 8, 8), {"output": Trace(2)}),
    "clip": (
        lambda: nn.Linear(5, 4),
        torch.randn(3, 5),
        {"output": Clip(torch.randn(6, 4), torch.randn(6, 4), pairs=3, embed=embeddings)},
    ),
    "fallback": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
        torch.randn(3, 5),
        {"fallback": "2.*"},
    ),
    "identity": (lambda: nn.Linear(5, 3), torch.randn(3, 5), {"projection": "identity"}),
    "rademacher": (lambda: nn.Linear(5, 3), torch.randn(3, 5), {"projection": "rademacher"}),
    "normal": (lambda: nn.Linear(5, 3), torch.randn(3, 5), {"projection": "normal"}),
}


def featurizer(name, device, impl="torch"):
    make, batch, options = CASES[name]
    sizes = {} if options.get("projection") == "identity" else {"proj_dim": 64}
    f = Featurizer(make().eval().to(device), impl=impl, **sizes, **options)
    batch = batch.to(device)
    f(batch)  # checks itself, and makes its tables
    return f, batch


@pytest.mark.parametrize("name", CASES)
def test_no_operation_waits(name):
    f, batch = featurizer(name, torch.device("cpu"))
    with Waits() as waits:
        f.rows_and_values(batch)
    assert waits.found == []


@pytest.mark.parametrize("name", CASES)
def test_one_operation_waits_to_see_that_rows_are_finite(name):
    f, batch = featurizer(name, torch.device("cpu"))
    with Waits() as waits:
        f(batch)
    assert len(waits.found) == 1


@pytest.mark.parametrize("output", ["margin", "loss"])
def test_one_operation_waits_to_see_that_labels_are_classes(output):
    batch = torch.randn(3, 5), torch.arange(3)
    f = Featurizer(nn.Linear(5, 3), output, proj_dim=64)
    f(batch)
    with Waits() as waits:
        f.rows_and_values(batch)
    assert len(waits.found) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_is_not_waited_for(name, impl):
    f, batch = featurizer(name, torch.device("cuda", 0), impl)
    torch.cuda.set_sync_debug_mode("error")
    try:
        f.rows_and_values(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
