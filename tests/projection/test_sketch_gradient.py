"""Every family on a whole gradient against its float64 matrix."""

import pytest
import torch

from pntk.projection import ProjectionSpec
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.signs import SignCache

SHAPES = [
    (),
    (5,),
    (100,),
    (10, 7),
    (70, 40),
    (3, 130),
    (6, 5, 3),
    (7, 9, 3, 2),
    (6, 20, 3, 3),
    (4, 3, 2, 2, 3),
]
CASES = [
    *(("hadamard", k) for k in (8, 64, 128, 1024)),
    *((family, k) for family in ("rademacher", "normal") for k in (1, 13, 130)),
]
BOUNDS = {torch.float64: 1e-13, torch.float32: 5e-6}


def gradients(shape, batch=3):
    return torch.randn(batch, *shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("family", "k"), CASES)
def test_agrees_with_the_matrix(make_sketch, reference, device, family, k, shape):
    g = gradients(shape)
    for output in (0, 2):
        expected = g.reshape(3, -1) @ reference(family, k, shape, output).T
        for dtype, bound in BOUNDS.items():
            sketch = make_sketch(ProjectionSpec(family, k), shape, dtype, device)
            rows = torch.zeros(3, k, dtype=dtype, device=device)
            sketch.add_gradient(g.to(dtype).to(device), rows, output)
            assert rows.dtype == dtype
            # relative to the gradient, as a row of one number may be small
            assert float((rows.cpu() - expected).norm()) <= bound * float(g.norm())


@pytest.mark.parametrize(("family", "k"), [("hadamard", 64), ("rademacher", 13), ("normal", 13)])
class TestMap:
    SHAPE = (20, 9, 2, 2)

    def rows(self, make_sketch, g, family, k, *, output=0, seed=0, dtype=torch.float64, **options):
        spec = ProjectionSpec(family, k, seed)
        rows = torch.zeros(len(g), k, dtype=dtype)
        make_sketch(spec, self.SHAPE, dtype, **options).add_gradient(g, rows, output)
        return rows

    def test_linear(self, make_sketch, distance, family, k):
        a, b = gradients(self.SHAPE), gradients(self.SHAPE)
        left = self.rows(make_sketch, 2 * a - 3 * b, family, k)
        right = 2 * self.rows(make_sketch, a, family, k) - 3 * self.rows(make_sketch, b, family, k)
        assert distance(left, right) <= 1e-13

    def test_adds_to_what_is_there(self, make_sketch, distance, family, k):
        g = gradients(self.SHAPE)
        sketch = make_sketch(ProjectionSpec(family, k), self.SHAPE)
        rows = torch.ones(3, k, dtype=torch.float64)
        sketch.add_gradient(g, rows)
        assert distance(rows, 1 + self.rows(make_sketch, g, family, k)) <= 1e-13

    def test_deterministic_to_the_bit(self, make_sketch, family, k):
        g = gradients(self.SHAPE)
        first, second = (self.rows(make_sketch, g, family, k) for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("change", [{"seed": 1}, {"output": 1}, {"name": "block.1.weight"}])
    def test_seed_output_and_name_change_it(self, make_sketch, distance, family, k, change):
        g = gradients(self.SHAPE)
        other = self.rows(make_sketch, g, family, k, **change)
        assert distance(other, self.rows(make_sketch, g, family, k)) > 0.5

    @pytest.mark.parametrize("workspace", [1, 3000, 20_000])
    def test_workspace_does_not(self, make_sketch, distance, family, k, workspace):
        g = gradients(self.SHAPE, 5)
        small = self.rows(make_sketch, g, family, k, workspace=workspace)
        assert distance(small, self.rows(make_sketch, g, family, k)) <= 1e-13

    def test_cutting_the_batch_does_not(self, make_sketch, distance, family, k):
        g = gradients(self.SHAPE, 5)
        cut = [self.rows(make_sketch, part, family, k) for part in g.split([1, 3, 1])]
        assert distance(torch.cat(cut), self.rows(make_sketch, g, family, k)) <= 1e-13

    def test_non_contiguous_gradients(self, make_sketch, distance, family, k):
        g = gradients(self.SHAPE)
        strided = g.permute(0, 2, 1, 4, 3).contiguous().permute(0, 2, 1, 4, 3)
        assert not strided.is_contiguous()
        found = self.rows(make_sketch, strided, family, k)
        assert distance(found, self.rows(make_sketch, g, family, k)) <= 1e-13

    def test_half_precision_gradients_are_summed_in_full(self, make_sketch, distance, family, k):
        g = gradients(self.SHAPE).bfloat16()
        found = self.rows(make_sketch, g, family, k, dtype=torch.float32)
        assert distance(found, self.rows(make_sketch, g.double(), family, k)) <= 1e-6


def test_hadamard_of_one_tile_is_an_isometry(make_sketch):
    g = gradients((8, 8))
    rows = torch.zeros(3, 64, dtype=torch.float64)
    make_sketch(ProjectionSpec("hadamard", 64), (8, 8)).add_gradient(g, rows)
    flat = g.reshape(3, -1)
    torch.testing.assert_close(rows @ rows.T, flat @ flat.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [0, 10_000, 2**28])
def test_hadamard_is_the_same_whatever_the_cache_holds(distance, reference, limit):
    shape = (20, 9, 2, 2)
    cache = SignCache(limit)
    sketch = HadamardSketch(
        ProjectionSpec("hadamard", 64),
        "block.0.weight",
        shape,
        dtype=torch.float64,
        device=torch.device("cpu"),
        cache=cache,
    )
    g = gradients(shape)
    for output in (0, 1, 0):
        rows = torch.zeros(3, 64, dtype=torch.float64)
        sketch.add_gradient(g, rows, output)
        expected = g.reshape(3, -1) @ reference("hadamard", 64, shape, output).T
        assert distance(rows, expected) <= 1e-13


class TestSignCache:
    def make(self):
        self.made += 1
        return torch.ones(4)

    def test_keeps_what_fits_and_makes_it_once(self):
        self.made = 0
        cache = SignCache(32)
        assert cache.get("a", 16, self.make) is cache.get("a", 16, self.make)
        assert self.made == 1 and cache.left == 16

    def test_returns_none_where_there_is_no_room(self):
        self.made = 0
        cache = SignCache(32)
        cache.get("a", 20, self.make)
        assert cache.get("b", 13, self.make) is None
        assert self.made == 1
        assert cache.get("a", 20, self.make) is not None
        assert cache.get("c", 12, self.make) is not None
        assert cache.left == 0
