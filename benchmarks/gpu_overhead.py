"""R on a GPU: rows beside the ordinary gradient, in the arithmetic that people train in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks import gpu_cases
from benchmarks.cases import Case, Loaded
from benchmarks.gpu_cases import check_rows, require_gpu
from benchmarks.machine import gpu_ceilings, tf32
from benchmarks.overhead import measure
from benchmarks.registry import Check, Entry, Options, Row

SECONDS = 5.0  # to time one row of the table
ROUNDS = 20


@dataclass(frozen=True)
class Run:
    """One row.

    Attributes:
        arithmetic: of rows and ordinary gradient alike: ``fp32``, ``tf32`` (float32, rounded for
            products and convolutions) or ``bf16`` (autocast; rows by ``precision="bf16"``).
    """

    case: Case
    arithmetic: str
    impl: str = "auto"

    def __str__(self) -> str:
        return f"{self.case.name}, {self.arithmetic}, impl={self.impl}"

    def load(self, options: Options) -> Loaded:
        """Return the case in memory."""
        return dataclasses.replace(self.case.load(options), autocast=self.arithmetic == "bf16")


# What matters most comes first, as time may run out.
RUNS = [
    Run(gpu_cases.RESNET, "tf32"),
    Run(gpu_cases.VIT, "tf32"),
    Run(gpu_cases.RESNET, "bf16"),
    Run(gpu_cases.VIT, "bf16"),
    Run(gpu_cases.GPT2, "tf32"),
    Run(gpu_cases.GPT2, "bf16"),
    Run(gpu_cases.VIT_B, "tf32"),
    Run(gpu_cases.VIT_B, "bf16"),
    Run(gpu_cases.MLP, "tf32"),
    Run(gpu_cases.MLP, "bf16"),
    Run(gpu_cases.RESNET_TRACE, "tf32"),
    Run(gpu_cases.VIT_TRACE, "tf32"),
    Run(gpu_cases.RESNET_TRACE, "bf16"),
    Run(gpu_cases.MLP_TRACE, "tf32"),
    Run(gpu_cases.VIT_B_TRACE, "bf16"),
    Run(gpu_cases.RESNET, "tf32", impl="triton"),
    Run(gpu_cases.RESNET, "tf32", impl="torch"),
    Run(gpu_cases.VIT, "tf32", impl="triton"),
    Run(gpu_cases.RESNET, "bf16", impl="triton"),
]


class GpuOverhead(Entry):
    """R of several models, arithmetics and implementations."""

    name = "gpu-overhead"
    summary = (
        "R = time of f(batch), k = 4096, over time of one forward and backward of the same batch "
        "with parameter gradients (one backward an output for a trace), on a GPU. R_floor is that "
        "of one forward and the backward down to the first layers alone. Model and comparison use "
        "the arithmetic that a row names: TF32 in products and convolutions, or autocast to bf16."
    )

    def check(self, options: Options) -> list[Check]:
        """Check the first row's model; others are checked just before they are timed."""
        require_gpu(options)
        self._checked: dict[Run, Check] = {}
        return [self._check(RUNS[0], options)]

    def measure(self, options: Options) -> Iterator[Row]:
        self.notes.append(
            "Rows of models in TF32 are checked without it, as the model's own rounding would hide "
            "errors of the projection; those in bf16 as they are, where they may differ from "
            "float64 by three times as much as the ordinary gradient in bf16 does."
        )
        for run in RUNS:
            yield self.attempt(str(run), options, lambda run=run: self._row(run, options))  # type: ignore[misc]
            if options.device.type == "cuda":
                torch.cuda.empty_cache()

    def _row(self, run: Run, options: Options) -> Row:
        known = len(self._checked)
        check = self._check(run, options)
        if len(self._checked) > known:
            self.checks.append(check)
        loaded = run.load(options)
        limited = dataclasses.replace(options, repeats=min(options.repeats, ROUNDS))
        with tf32(run.arithmetic == "tf32"):
            # the self-check has been run by the comparison with float64
            f = loaded.featurizer(impl=run.impl, check=False)
            row = measure(str(run), loaded, f, limited, SECONDS)
        rate = row.values["forward + backward [GF/s]"]
        kind = "gemm_bf16_gflops" if run.arithmetic == "bf16" else "gemm_tf32_gflops"
        peak = gpu_ceilings(options.device, options.quick)[kind]
        assert isinstance(rate, float)
        return dataclasses.replace(row, ratios={**row.ratios, "backward / GEMM": rate / peak})

    def _check(self, run: Run, options: Options) -> Check:
        """Check rows, once for fp32 and TF32."""
        key = dataclasses.replace(run, arithmetic="fp32") if run.arithmetic == "tf32" else run
        if key not in self._checked:
            with tf32(False):
                self._checked[key] = check_rows(key.load(options), str(key), run.impl)
        return self._checked[key]
