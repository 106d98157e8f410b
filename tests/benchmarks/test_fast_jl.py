"""The competitor fast_jl, with a stand-in for its module and its GPU."""

import sys
import types

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import fast_jl
from benchmarks.registry import Unavailable


class Elsewhere:
    """A batch that says that it is on a GPU."""

    device = torch.device("cuda")


def projector(factor=1.0):
    signs = torch.randint(0, 2, (fast_jl.PROBED, 512)) * 2.0 - 1

    def project(gradients):
        size = gradients.shape[1]
        return (gradients @ signs[:size]) * (factor if len(gradients) == 8 else 1)

    return project


def test_it_is_checked_against_its_own_matrix():
    assert fast_jl.error(projector(), torch.device("cpu")) < 1e-6
    assert fast_jl.error(projector(1.02), torch.device("cpu")) > fast_jl.BOUND


def test_why_it_is_left_out(monkeypatch):
    with pytest.raises(Unavailable, match="on a GPU only"):
        fast_jl.load("rademacher", 512, torch.zeros(2, 3))
    with pytest.raises(Unavailable, match="multiple of 512"):
        fast_jl.load("rademacher", 100, Elsewhere())
    monkeypatch.setitem(sys.modules, "fast_jl", None)
    with pytest.raises(Unavailable, match=r"cannot be imported .*README"):
        fast_jl.load("rademacher", 512, Elsewhere())


def test_the_fastest_function_is_taken(monkeypatch):
    module, asked = types.ModuleType("fast_jl"), []
    for size in fast_jl.SIZES:
        name = f"project_normal_{size}"
        setattr(module, name, lambda *args, name=name: asked.append((name, *args)))
    monkeypatch.setitem(sys.modules, "fast_jl", module)
    properties = types.SimpleNamespace(multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    def seconds(call):
        call()
        return 1.0 if asked[-1][0].endswith("16") else 2.0

    monkeypatch.setattr(fast_jl, "_seconds", seconds)
    batch = Elsewhere()
    project, name = fast_jl.load("normal", 1024, batch)
    assert name == "project_normal_16"
    project(batch)
    assert asked[-1] == (name, batch, 1024, 0, 7)
