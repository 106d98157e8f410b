import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pntk.errors import ConfigError
from pntk.projection import ProjectionSpec, bits, dispatch
from pntk.projection.dispatch import IMPLEMENTATIONS, Projector, resolve_impl

needs_native = pytest.mark.skipif(not bits.has_native(), reason=str(bits.native_error()))
SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "scale": ()}


def projector(spec, dtype=torch.float64, **options):
    return Projector(spec, SHAPES, dtype=dtype, device=torch.device("cpu"), **options)


@needs_native
def test_auto_is_the_first_implementation_that_applies(monkeypatch):
    assert resolve_impl("auto") == "cpu"
    monkeypatch.setattr(dispatch, "why_not", lambda *args, **where: None)
    assert resolve_impl("auto", device="cuda") == IMPLEMENTATIONS[0] == "cuda"
    assert resolve_impl("auto") == "cpu"  # interpreted kernels only when asked for


@pytest.mark.parametrize("impl", [pytest.param("cpu", marks=needs_native), "torch"])
def test_explicit_implementations_are_taken_as_they_are(impl):
    assert resolve_impl(impl) == impl


@pytest.mark.parametrize(
    ("family", "dtype", "device"),
    [
        ("identity", torch.float32, "cpu"),
        ("hadamard", torch.float64, "cpu"),
        ("hadamard", torch.float32, "cuda"),
        ("hadamard", torch.float32, "cuda:1"),
        ("hadamard", torch.float32, torch.device("meta")),
    ],
)
def test_auto_is_torch_where_the_kernels_do_not_apply(family, dtype, device):
    assert resolve_impl("auto", family, dtype=dtype, device=device) == "torch"


@needs_native
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_auto_is_cpu_for_float32_on_the_cpu(device):
    assert resolve_impl("auto", "hadamard", dtype=torch.float32, device=device) == "cpu"


@needs_native
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"dtype": torch.float64}, "sum in float32, and rows here are torch.float64"),
        ({"family": "identity"}, "the identity projects nothing"),
        ({"device": "cuda"}, "run on the CPU, and the model is on cuda"),
    ],
)
def test_cpu_says_why_it_cannot_be_used(given, reason):
    with pytest.raises(ConfigError, match=rf"impl='cpu' cannot be used: .*{reason}.*'auto' finds"):
        resolve_impl("cpu", **given)


def test_cpu_without_the_extension(monkeypatch):
    monkeypatch.setattr(bits, "_load_native", lambda: (None, "pntk._C was not built: install"))
    assert resolve_impl("auto") == "torch"
    with pytest.raises(ConfigError, match=r"impl=.cpu. cannot be used: pntk\._C was not built"):
        resolve_impl("cpu")


def test_everything_works_with_the_extension_turned_off():
    script = """
import torch
from pntk import Featurizer
from pntk.errors import ConfigError
from pntk.projection import ops

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
for family in ("hadamard", "rademacher", "normal", "identity"):
    f = Featurizer(model, projection=family, proj_dim=None if family == "identity" else 64)
    assert f.impl == "torch"
    assert f(torch.ones(2, 5)).abs().sum() > 0
try:
    Featurizer(model, impl="cpu")
except ConfigError as error:
    print(error)
try:
    torch.ops.pntk.hadamard_gradient(*[torch.zeros(1)] * 3, [], 0, 0, torch.zeros(1))
except ConfigError as error:
    print("no kernel")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PNTK_DISABLE_NATIVE": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    assert "impl='cpu' cannot be used: turned off by PNTK_DISABLE_NATIVE=1" in done.stdout
    assert "no kernel" in done.stdout


def test_unknown_implementation_never_falls_back():
    with pytest.raises(ConfigError, match=r"impl is 'cudnn'; this version has .*or 'auto'"):
        resolve_impl("cudnn")


def test_widths():
    assert projector(ProjectionSpec("hadamard", 64)).width == 64
    assert projector(ProjectionSpec("identity")).width == 17
    assert projector(ProjectionSpec("identity"), outputs=3).width == 51


def test_empty_rows_are_zeros_of_the_type_asked_for():
    rows = projector(ProjectionSpec("hadamard", 64), torch.float32).empty_rows(3)
    assert rows.shape == (3, 64) and rows.dtype == torch.float32 and not rows.any()


def test_a_sketch_is_made_once():
    p = projector(ProjectionSpec("hadamard", 64))
    assert p.sketch("a.weight") is p.sketch("a.weight")


def test_identity_puts_each_parameter_and_output_in_its_place():
    p = projector(ProjectionSpec("identity"), outputs=2)
    rows = p.empty_rows(1)
    start = 0
    for output in range(2):
        for value, (name, shape) in enumerate(SHAPES.items(), start=1 + 3 * output):
            gradient = torch.full((1, *shape), float(value), dtype=torch.float64)
            p.sketch(name).add_gradient(gradient, rows, output)
            assert (rows[0, start : start + gradient.numel()] == value).all()
            assert not rows[0, start + gradient.numel() :].any()
            start += gradient.numel()
    assert start == p.width


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "normal"])
def test_a_map_does_not_depend_on_the_other_parameters(family):
    spec = ProjectionSpec(family, 64)
    alone = Projector(
        spec, {"scale": ()}, dtype=torch.float64, device=torch.device("cpu"), outputs=2
    )
    gradient = torch.ones(1, dtype=torch.float64)
    rows = [p.empty_rows(1) for p in (alone, projector(spec))]
    alone.sketch("scale").add_gradient(gradient, rows[0])
    projector(spec).sketch("scale").add_gradient(gradient, rows[1])
    assert torch.equal(*rows)
