"""The compiled dense projections, at every level of this machine, against the float64 matrix."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from pntk.projection import ProjectionSpec, bits, ops
from pntk.projection.bits import stream_id
from pntk.projection.dense import DenseSketch
from pntk.projection.dense_native import NativeDenseSketch
from pntk.projection.quantiles import NORMAL_MEAN_SQUARE

native = bits.native_module()
pytestmark = pytest.mark.skipif(native is None, reason="the compiled kernels are not used")

LEVELS = [name for name, supported in native.levels() if supported] if native else []
LEVELS += ["amx-emulated"] if native and native.has_level("amx-emulated") else []
NAME, SEED = "block.0.weight", 2**63 + 5
WIDTHS = [1, 3, 4, 63, 64, 65, 130, 512]
SIZES = [1, 31, 32, 33, 127, 1000]
BATCHES = [1, 3, 63, 64, 65, 130]
CASES = [(p, k, 5) for p in SIZES for k in WIDTHS] + [(127, 65, b) for b in BATCHES]

every_level = pytest.mark.parametrize("level", LEVELS)
both_families = pytest.mark.parametrize("family", ["rademacher", "normal"])


def bound(level, bf16):
    """Relative error: float32 sums, two bfloat16 numbers for each float32, or one."""
    if not level.startswith("amx"):
        return 2e-6
    return 5e-3 if bf16 else 5e-6


def project(family, gradient, k, *, level="", bf16=False, out=None, threads=1):
    out = np.zeros((len(gradient), k), np.float32) if out is None else out
    scale = (k * (NORMAL_MEAN_SQUARE if family == "normal" else 1.0)) ** -0.5
    stream = stream_id(family, k, "entries", 0, NAME)
    normal = family == "normal"
    native.dense_project(gradient, normal, scale, bf16, SEED, stream, out, threads, level)
    return out


def relative(found, gradient, matrix):
    """|found - P g| / |g|; both sides have the same expected size, and g does not cancel."""
    expected = torch.from_numpy(gradient).double() @ matrix.mT
    return float((torch.from_numpy(found) - expected).norm() / np.linalg.norm(gradient))


def gradients(b, p):
    return torch.randn(b, p).numpy()


@both_families
@every_level
@pytest.mark.parametrize("bf16", [False, True])
def test_against_the_matrix(family, level, bf16, reference):
    for p, k, b in CASES:
        gradient = gradients(b, p)
        found = project(family, gradient, k, level=level, bf16=bf16)
        matrix = reference(family, k, (p,), seed=SEED, name=NAME)
        alone = 4 if p == 1 else 1  # nothing averages the rounding of a single number
        assert relative(found, gradient, matrix) < alone * bound(level, bf16), (p, k, b)


@both_families
@every_level
@pytest.mark.parametrize("bf16", [False, True])
def test_many_coordinates_and_entries(family, level, bf16, distance):
    p, k, b = 40_003, 612, 3  # three pieces; with threads, two blocks of entries
    gradient = gradients(b, p)
    found = torch.from_numpy(project(family, gradient, k, level=level, bf16=bf16))
    spec = ProjectionSpec(family, k, SEED)
    exact = DenseSketch(spec, NAME, (p,), dtype=torch.float64, device=torch.device("cpu"))
    expected = torch.zeros(b, k, dtype=torch.float64)
    exact.add_gradient(torch.from_numpy(gradient), expected)
    assert distance(found, expected) < bound(level, bf16)


@both_families
@every_level
def test_adds_to_what_is_there(family, level):
    gradient = gradients(3, 100)
    start = gradients(3, 70)
    found = project(family, gradient, 70, level=level, out=start.copy())
    np.testing.assert_array_equal(found, start + project(family, gradient, 70, level=level))


@both_families
@every_level
def test_threads_do_not_matter(family, level):
    for p, k, b in [(40_003, 1100, 3), (500, 70, 67)]:  # more tasks than are done together; few
        gradient = gradients(b, p)
        one, two, three = (project(family, gradient, k, level=level, threads=n) for n in (1, 2, 3))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@both_families
@every_level
@pytest.mark.parametrize("bf16", [False, True])
def test_samples_do_not_meet(family, level, bf16):
    gradient = gradients(67, 300)
    expected = project(family, gradient, 70, level=level, bf16=bf16)
    wrong = {1: np.nan, 17: np.inf, 66: -np.inf}
    for row, value in wrong.items():
        gradient[row, 270] = value
    found = project(family, gradient, 70, level=level, bf16=bf16)
    for row in range(67):
        if row in wrong:
            assert not np.isfinite(found[row]).any()
        else:
            np.testing.assert_array_equal(found[row], expected[row])


@both_families
@every_level
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("size", [1e30, 1e-30, 0.0])
def test_extreme_sizes(family, level, bf16, size, reference):
    gradient = gradients(3, 127) * np.float32(size)
    found = project(family, gradient, 65, level=level, bf16=bf16)
    matrix = reference(family, 65, (127,), seed=SEED, name=NAME)
    if size == 0.0:
        assert (found == 0).all()
    else:
        unit = np.float64(size)  # the norm's squares would leave the range of float32
        assert relative(found / unit, gradient / unit, matrix) < bound(level, bf16)


@both_families
@every_level
def test_denormals(family, level, reference):
    gradient = gradients(3, 127) * np.float32(1e-41)
    found = project(family, gradient, 65, level=level)
    matrix = reference(family, 65, (127,), seed=SEED, name=NAME).numpy()
    # a sum of 127 numbers rounded to multiples of 1.4e-45, or flushed to zero by AMX
    absolute = 1e-43 if not level.startswith("amx") else 1e-37
    assert np.abs(found - gradient.astype(np.float64) @ matrix.T).max() < absolute


def test_unknown_level():
    with pytest.raises(ValueError, match="does not have"):
        project("normal", gradients(1, 3), 4, level="mmx")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"gradient is \[2, 3\] and out \[1, 4\]"):
        project("normal", gradients(2, 3), 4, out=np.zeros((1, 4), np.float32))


@both_families
def test_sketch(family, distance):
    spec, shape = ProjectionSpec(family, 33, SEED), (7, 11, 3)
    gradient = torch.randn(4, *shape, dtype=torch.float64)
    made = {}
    for kind, dtype in ((NativeDenseSketch, torch.float32), (DenseSketch, torch.float64)):
        sketch = kind(spec, NAME, shape, dtype=dtype, device=torch.device("cpu"))
        made[kind] = torch.ones(4, 33, dtype=dtype)
        sketch.add_gradient(gradient, made[kind], output=2)
        # as the layers have it: any memory order
        sketch.add_gradient(gradient.mT.contiguous().mT, made[kind], output=1)
    assert distance(made[NativeDenseSketch], made[DenseSketch]) < 1e-6


@both_families
def test_operator(family):
    args = (torch.randn(2, 40), family == "normal", 0.5, False, -1, ops.signed(2**63 + 1))
    opcheck(torch.ops.pntk.dense_project.default, (*args, torch.zeros(2, 6)))
