"""Against the ``nads`` package: input gradients of random networks, drawn and differentiated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.registry import Check, Entry, Options, Row, Unavailable, require
from benchmarks.sketches import relative_error
from benchmarks.timing import interleaved
from pntk.nads import GradientCovariance
from pntk.nads.drawing import network_seed
from pntk.nads.networks import LeNet, ResNet18

SCALE = 100.0
OURS = {"LeNet": 256, "ResNet18": 4}  # networks a round of autograd
BOUND = 1e-4
ROUNDS = {"LeNet": 20, "ResNet18": 3}  # a network of the package takes a minute of ResNet18
MANY = ("pntk autograd", "plain loop")  # which are timed over that many


class Nads(Entry):
    """Time of the ``nads`` package over that of pntk, a network."""

    name = "nads"
    summary = (
        "Drawing a random network and taking its input gradient, 1x32x32 pixels in fp32: the nads "
        "package with its own finite differences (step 100, all pixels) over pntk with autograd, "
        "and with the same finite differences. Above 1, pntk is faster."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare the differences of the same networks, and autograd with a plain loop."""
        package = _package()
        checks = []
        for network, point in _problems(options):
            name = network.__name__
            models = [_drawn(network, number, options) for number in range(2)]
            theirs = torch.stack([package.numerical_jacobian(m, point, SCALE) for m in models[:1]])
            found = _ours(network, point, "finite_difference").gradients(0, 1)
            error = relative_error(found.flatten(1), theirs.flatten(1))
            checks.append(require(f"{name}: differences against the nads package", error, BOUND))
            loop = torch.stack([_gradient(model, point) for model in models])
            found = _ours(network, point, "autograd").gradients(0, 2)
            error = relative_error(found.flatten(1), loop.flatten(1))
            checks.append(require(f"{name}: autograd against a plain loop", error, BOUND))
        return checks

    def measure(self, options: Options) -> list[Row]:
        """Time each, a network."""
        package = _package()
        self.notes.append(
            "All draw the same networks anew each time, with the same initialisation, and drawing "
            "is timed. 'plain loop' is torch.autograd.grad, one network after the other."
        )
        return [
            self.attempt(
                network.__name__, options, partial(self._row, package, network, point, options)
            )
            for network, point in _problems(options)
        ]

    def _row(self, package: Any, network: type[nn.Module], point: Tensor, options: Options) -> Row:
        name = network.__name__
        many = 2 if options.quick else OURS[name]
        theirs = package.GradientCovariance(
            point, network, device=str(options.device), force_eval=True
        )
        exact, difference = (
            _ours(network, point, kind) for kind in ("autograd", "finite_difference")
        )
        competitors: dict[str, Callable[[], object]] = {
            "nads": lambda: theirs.sample_grad,
            "pntk differences": lambda: difference.gradients(0, 1),
            "pntk autograd": lambda: exact.gradients(0, many),
            "plain loop": lambda: [
                _gradient(_drawn(network, number, options), point) for number in range(many)
            ],
        }
        times = interleaved(
            competitors,
            min(options.repeats, ROUNDS[name]),
            warmup=0 if name == "ResNet18" and not options.quick else 1,
            device=options.device,
        ).scaled(dict.fromkeys(competitors, 1.0) | dict.fromkeys(MANY, 1 / many))
        return Row(
            name,
            {
                "nads / pntk autograd": times.ratio("nads", "pntk autograd"),
                "nads / pntk differences": times.ratio("nads", "pntk differences"),
                "plain loop / pntk autograd": times.ratio("plain loop", "pntk autograd"),
            },
            {f"{who} [ms/network]": times.of(who).times(1e3) for who in competitors},
        )


def _package() -> Any:
    try:
        import nads.compute  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise Unavailable(
            f"the nads package cannot be imported ({error}); install it with: pip install nads"
        ) from None
    return nads.compute


def _problems(options: Options) -> list[tuple[type[nn.Module], Tensor]]:
    torch.manual_seed(0)
    point = torch.randn(1, 32, 32).to(options.device)
    return [(network, point) for network in ((LeNet,) if options.quick else (LeNet, ResNet18))]


def _ours(network: type[nn.Module], point: Tensor, jacobian: str) -> GradientCovariance:
    return GradientCovariance(point, network, device=point.device, jacobian=jacobian, scale=SCALE)


def _drawn(network: type[nn.Module], number: int, options: Options) -> nn.Module:
    torch.manual_seed(network_seed(0, number))
    return network().to(options.device).eval()


def _gradient(model: nn.Module, point: Tensor) -> Tensor:
    x = point[None].clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x)[0][0]
