"""Two checks that any model's rows must pass: they add up, and they do not know each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import batch_size, repeat_first, take
from pntk.errors import CheckError, PntkWarning
from pntk.gradients.hooks import exact
from pntk.gradients.ordinary import ordinary_gradients
from pntk.gradients.plan import Plan
from pntk.outputs import Output
from pntk.precision import arithmetic
from pntk.projection.dispatch import Projector

# of all rows together, which a parameter's share is never taken to be below: where large terms
# cancel, as in front of a norm, nothing is left but rounding
FLOOR = 1e-3
# a tie that rounding decides (a maximum, a zero of ReLU) moves a row by more than the rounding
TOLERANCES = {"fp64": 1e-9, "fp32": 1e-3, "tf32": 2e-2, "half": 5e-2}


def tolerance(model: nn.Module, output: Output) -> float:
    """Return the relative difference that rounding explains in a model's lowest precision."""
    return TOLERANCES[arithmetic(model, output)]


def check_sum(
    plan: Plan,
    model: nn.Module,
    output: Output,
    batch: Any,
    projector: Projector,
    rows: dict[str, Tensor],
) -> None:
    """Compare each parameter's rows, summed, with the sketch of the batch's ordinary gradient.

    Args:
        rows: canonical parameter name -> its share of the rows [b, k].

    Raises:
        CheckError: naming the worst parameter and the remedy.
    """
    expected = {name: torch.zeros_like(share[:1]) for name, share in rows.items()}
    for column, found in enumerate(ordinary_gradients(plan.params, model, output, batch)):
        with exact(projector.device):
            for name, gradient in found.items():
                projector.sketch(name).add_gradient(gradient[None], expected[name], column)
    scale = sum(float(share.norm(dim=1).sum()) for share in rows.values())
    if not scale and not any(bool(sketched.any()) for sketched in expected.values()):
        warnings.warn(
            f"all gradients of {batch_size(batch)} samples are exactly zero; check that the output "
            "depends on the selected parameters",
            PntkWarning,
            stacklevel=2,
        )
    worst, worst_name = 0.0, ""
    for name, share in rows.items():
        own = float(share.norm(dim=1).sum()) + float(expected[name].norm()) + FLOOR * scale
        difference = float((share.sum(0) - expected[name][0]).norm()) / max(own, 1e-30)
        if not difference <= worst:
            worst, worst_name = difference, name
    limit = tolerance(model, output)
    if not worst <= limit:
        if worst_name in plan.fallback:
            raise CheckError(
                f"the per-sample gradients of {worst_name}, each from a sample alone, do not add "
                f"up to the batch's gradient (relative difference {worst:.1e}, at most {limit:.0e} "
                "expected); the model or the output mixes samples: make each sample's value depend "
                "on that sample alone"
            )
        raise CheckError(
            f"the per-sample gradients of {worst_name} do not add up to the batch's gradient "
            f"(relative difference {worst:.1e}, at most {limit:.0e} expected); its layer uses the "
            f"weight in a way that no rule sees: pass fallback=[{worst_name!r}]"
        )


def check_alone(
    limit: float,
    compute: Callable[[Any], tuple[Tensor, Tensor]],
    batch: Any,
    rows: Tensor,
    values: Tensor,
) -> None:
    """Compare the last sample's value and row with those it has in a batch of two copies of it.

    Args:
        limit: relative difference that rounding explains.
        compute: batch -> (rows, values).
        rows: [b, k] of the batch.
        values: [b] or [b, c] of the batch.

    Raises:
        CheckError: they depend on the batch.
    """
    last = batch_size(batch) - 1
    alone = compute(repeat_first(take(batch, slice(last, last + 1)), 2))
    for what, own, among in zip(("row", "value"), alone, (rows, values), strict=True):
        size = float(own[0].norm()) + float(among.norm()) / len(among)
        difference = float((own[0] - among[last]).norm()) / max(size, 1e-30)
        if size and not difference <= limit:
            raise CheckError(
                f"the {what} of sample {last} changes with the batch it travels in (relative "
                f"difference {difference:.1e}, at most {limit:.0e} expected); the model or the "
                "output mixes samples: make each sample's value depend on that sample alone (if it "
                "does, a layer holds samples in an order of its own: pass fallback='*')"
            )
