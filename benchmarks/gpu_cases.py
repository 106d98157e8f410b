"""The models of the GPU entries, in the sizes that people use, and the check of their rows."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from benchmarks.cases import (
    BOUND,
    CASES,
    CHECKED,
    FULL_CASES,
    Case,
    Loaded,
    reference_rows,
    token_log_likelihood,
)
from benchmarks.registry import Check, Options, Unavailable, require
from benchmarks.sketches import relative_error
from pntk.models import GPT, ViT


def require_gpu(options: Options) -> None:
    """Raise where there is no GPU, unless it is only to be seen whether the code runs.

    Raises:
        Unavailable: the device is a CPU.
    """
    if options.device.type == "cpu" and not options.quick:
        raise Unavailable("this measures a GPU; use --device cuda")


def _vit_b(quick: bool) -> nn.Module:
    if quick:
        return ViT(image_size=8, patch_size=4, dim=12, depth=1, heads=3)
    return ViT(image_size=224, patch_size=16, dim=768, depth=12, heads=12)


def _gpt2(quick: bool) -> nn.Module:
    if quick:
        return GPT(vocab_size=50, context=16, dim=16, depth=1, heads=2)
    return GPT(vocab_size=50257, context=1024, dim=768, depth=12, heads=12)


def _large_images(batch: int, quick: bool) -> Tensor:
    side = 8 if quick else 224
    return torch.randn(batch, 3, side, side)


def _long_texts(batch: int, quick: bool) -> Tensor:
    return torch.randint(50 if quick else 50257, (batch, 16 if quick else 1024))


def _case(name: str, batch: int) -> Case:
    case = next(case for case in (*CASES, *FULL_CASES) if case.name == name)
    return dataclasses.replace(case, batch=batch)


MLP, RESNET, VIT = (_case(name, 256) for name in ("MLP", "ResNet18", "ViT"))
MLP_TRACE, RESNET_TRACE, VIT_TRACE = (
    _case(f"{name}, trace of 10", 256) for name in ("MLP", "ResNet18", "ViT")
)
VIT_B = Case("ViT-B/16", "pntk", 1, 64, _vit_b, _large_images)
VIT_B_TRACE = Case("ViT-B/16, trace of 10", "trace", 10, 64, _vit_b, _large_images)
GPT2 = Case("GPT-2 small", token_log_likelihood, 1, 8, _gpt2, _long_texts)


def check_rows(loaded: Loaded, what: str, impl: str = "auto") -> Check:
    """Compare rows of the whole batch with float64.

    bfloat16 has errors of its own, and so have convolutions of a GPU, which ReLUs can enlarge.
    Where the bound is missed, the ordinary gradients of the same samples, in the same arithmetic,
    are compared with float64 too, and rows may be three times as far off as those.

    Raises:
        CheckFailed: they differ.
    """
    bound = BOUND
    rows = loaded.featurizer(impl=impl)(loaded.batch)[:CHECKED]
    expected = reference_rows(dataclasses.replace(loaded, autocast=False), CHECKED)
    error = relative_error(rows, expected)
    if not error < bound:
        ordinary = reference_rows(loaded, CHECKED, torch.float32)
        bound = max(bound, 3 * relative_error(ordinary, expected))
    return require(f"{what}: rows against float64 autograd", error, bound)
