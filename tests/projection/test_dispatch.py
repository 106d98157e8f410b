import pytest
import torch

from pntk.errors import ConfigError
from pntk.projection import ProjectionSpec
from pntk.projection.dispatch import IMPLEMENTATIONS, Projector, resolve_impl

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "scale": ()}


def projector(spec, dtype=torch.float64, **options):
    return Projector(spec, SHAPES, dtype=dtype, device=torch.device("cpu"), **options)


def test_auto_is_the_first_implementation():
    assert resolve_impl("auto") == IMPLEMENTATIONS[0]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_explicit_implementations_are_taken_as_they_are(impl):
    assert resolve_impl(impl) == impl


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
