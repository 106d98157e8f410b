"""The models, batches and outputs that entries share, and the reference for their rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.registry import Check, Options, require
from benchmarks.sketches import relative_error
from pntk import Featurizer, ProjectionSpec
from pntk.models import GPT, MLP, LeNet, ResNet18, ViT
from pntk.outputs import resolve_output
from pntk.projection.dispatch import Projector

PROJ_DIM = 4096
CHECKED = 2  # samples whose rows are compared
BOUND = 1e-4  # of fp32 rows against float64


def token_log_likelihood(model: nn.Module, ids: Tensor) -> Tensor:
    """Return each sequence's mean log-likelihood of its next tokens, [b]."""
    logits = model(ids)[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).mean((1, 2))


@dataclass(frozen=True)
class Case:
    """A model with a batch.

    Attributes:
        output: what the featurizer differentiates.
        outputs: how many backward passes that takes, for the comparison too.
        batch: samples.
        make_model, make_batch: in full size, or tiny.
    """

    name: str
    output: str | Callable[[Any, Any], Tensor]
    outputs: int
    batch: int
    make_model: Callable[[bool], nn.Module]
    make_batch: Callable[[int, bool], Tensor]

    def load(self, options: Options) -> Loaded:
        """Return the seeded model in eval mode and its batch, on the device."""
        torch.manual_seed(0)
        model = self.make_model(options.quick).eval().to(options.device)
        batch = self.make_batch(4 if options.quick else self.batch, options.quick)
        return Loaded(self, model, batch.to(options.device), 64 if options.quick else PROJ_DIM)


@dataclass(frozen=True)
class Loaded:
    """A case in memory.

    Attributes:
        autocast: whether the model runs under autocast to bfloat16.
    """

    case: Case
    model: nn.Module
    batch: Tensor
    proj_dim: int
    autocast: bool = False

    def featurizer(self, **options: Any) -> Featurizer:
        """Return a new featurizer."""
        if self.autocast:
            options["precision"] = "bf16"
        return Featurizer(self.model, self.case.output, proj_dim=self.proj_dim, **options)

    def values(self, model: nn.Module, batch: Any) -> Tensor:
        """Return what is differentiated, [b, outputs]."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.autocast):
            values = resolve_output(self.case.output)(model, batch).values
        return values if values.dim() == 2 else values[:, None]

    def backward(self) -> None:
        """Run one forward, and one backward an output, with parameter gradients."""
        values = self.values(self.model, self.batch)
        for column in range(values.shape[1]):
            self.model.zero_grad(set_to_none=True)
            values[:, column].sum().backward(retain_graph=column < values.shape[1] - 1)
        self.model.zero_grad(set_to_none=True)

    def floor(self) -> Callable[[], None]:
        """Return a function that runs what no way to make rows can leave out.

        One forward, and one backward an output that reaches the outputs of the first layers, but
        no gradient of a parameter.
        """
        model = copy.deepcopy(self.model).requires_grad_(False)
        first: list[Tensor] = []

        def start_here(layer: nn.Module, args: Any, output: Tensor) -> None:
            if not output.requires_grad:  # no layer with parameters came before
                first.append(output.requires_grad_())

        for layer in model.modules():
            if any(True for _ in layer.parameters(recurse=False)):
                layer.register_forward_hook(start_here)

        def run() -> None:
            first.clear()
            values = self.values(model, self.batch)
            for column in range(values.shape[1]):
                more = column < values.shape[1] - 1
                torch.autograd.grad(values[:, column].sum(), first, retain_graph=more)

        return run


def reference_rows(loaded: Loaded, samples: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return rows [samples, k] in float64, from a loop of ``torch.autograd.grad``.

    Each gradient is materialised and projected whole; none of the library's rules is used.

    Args:
        dtype: of the model and its gradients.
    """
    model = copy.deepcopy(loaded.model).to(dtype)
    params = dict(model.named_parameters())
    batch = loaded.batch[:samples]
    batch = batch.to(dtype) if batch.is_floating_point() else batch
    projector = Projector(
        ProjectionSpec("hadamard", loaded.proj_dim),
        {name: tuple(p.shape) for name, p in params.items()},
        dtype=torch.float64,
        device=batch.device,
        outputs=loaded.case.outputs,
    )
    rows = projector.empty_rows(samples)
    for i in range(samples):
        values = loaded.values(model, batch[i : i + 1])[0]
        for column, value in enumerate(values):
            gradients = torch.autograd.grad(value, list(params.values()), retain_graph=True)
            for name, gradient in zip(params, gradients, strict=True):
                projector.sketch(name).add_gradient(
                    gradient.double()[None], rows[i : i + 1], column
                )
    return rows


def check_rows(case: Case, options: Options) -> Check:
    """Compare rows of the batch to be timed with the reference.

    Raises:
        CheckFailed: they differ.
    """
    loaded = case.load(options)
    rows = loaded.featurizer()(loaded.batch)[:CHECKED]
    error = relative_error(rows, reference_rows(loaded, CHECKED))
    return require(f"{case.name}: rows against float64 autograd", error, BOUND)


def _images(channels: int, size: int, quick_size: int) -> Callable[[int, bool], Tensor]:
    def make(batch: int, quick: bool) -> Tensor:
        side = quick_size if quick else size
        return torch.randn(batch, channels, side, side)

    return make


def _mlp(quick: bool) -> nn.Module:
    return MLP(64, [32], 10) if quick else MLP(784, [1024, 1024], 10)


def _lenet(quick: bool) -> nn.Module:
    return LeNet(image_size=8 if quick else 28)


def _resnet(quick: bool) -> nn.Module:
    return ResNet18(width=8 if quick else 64)


def _vit(quick: bool) -> nn.Module:
    if quick:
        return ViT(image_size=8, patch_size=4, dim=12, depth=1, heads=3)
    return ViT(image_size=32, patch_size=4, dim=192, depth=6, heads=3)


def _gpt(quick: bool) -> nn.Module:
    if quick:
        return GPT(vocab_size=50, context=16, dim=16, depth=1, heads=2)
    return GPT(vocab_size=1000, context=128, dim=256, depth=4)


def _tokens(batch: int, quick: bool) -> Tensor:
    return torch.randint(50 if quick else 1000, (batch, 16 if quick else 128))


CASES = [
    Case("MLP", "pntk", 1, 256, _mlp, _images(1, 28, 8)),
    Case("LeNet", "pntk", 1, 256, _lenet, _images(1, 28, 8)),
    Case("LeNet, trace of 10", "trace", 10, 256, _lenet, _images(1, 28, 8)),
    Case("ResNet18", "pntk", 1, 32, _resnet, _images(3, 32, 8)),
    Case("ViT", "pntk", 1, 32, _vit, _images(3, 32, 8)),
    Case("GPT", token_log_likelihood, 1, 16, _gpt, _tokens),
]
FULL_CASES = [
    Case("MLP, trace of 10", "trace", 10, 256, _mlp, _images(1, 28, 8)),
    Case("ResNet18, trace of 10", "trace", 10, 32, _resnet, _images(3, 32, 8)),
    Case("ViT, trace of 10", "trace", 10, 32, _vit, _images(3, 32, 8)),
]


def cases(options: Options) -> list[Case]:
    """Return the cases to run."""
    return CASES + FULL_CASES if options.full else CASES
