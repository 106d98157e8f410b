"""What a GPU's ceilings allow: ``python -m benchmarks.roofline`` prints tables, in Markdown.

Computed and not measured. Models are run on PyTorch's meta device to see the shapes of their
layers; times are bytes over bandwidth and operations over rates, with the formulas that
docs/performance.md explains.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import gpu_cases
from benchmarks.cases import PROJ_DIM, Case
from pntk.projection.tiles import TileLayout

# Philox4x32-10 makes 128 bits in ten rounds, of two wide products and four exclusive ors each
PHILOX_INSTRUCTIONS = 10 * (2 * 2 + 4)
ADD_INSTRUCTIONS = 3  # of a signed add: place the bit, flip the sign with it, add
DENSE_INSTRUCTIONS = 1  # to make one entry of P, out of a bit, for the matrix units
BATCH_TILE = 128  # samples for which one making of an entry of P serves


@dataclass(frozen=True)
class Ceilings:
    """Rates of a GPU: matrix units [flop/s], memory [byte/s], instructions of lanes [1/s]."""

    name: str
    bf16: float
    tf32: float
    memory: float
    lanes: float

    @classmethod
    def measured(cls, name: str, found: dict[str, float]) -> Ceilings:
        """Return what ``machine.gpu_ceilings`` found; lanes are the vendor's figure."""
        return cls(
            name,
            found["gemm_bf16_gflops"] * 1e9,
            found["gemm_tf32_gflops"] * 1e9,
            found["copy_gbytes"] * 1e9,
            H200.lanes,
        )


# NVIDIA's datasheet for the SXM part (dense rates); lanes = 132 multiprocessors x 128 x 1.98 GHz
H200 = Ceilings("H200, vendor's figures", 989e12, 494e12, 4.8e12, 132 * 128 * 1.98e9)


@dataclass(frozen=True)
class Layer:
    """An affine layer: O rows, C channels, P kernel positions; T outputs and N inputs a channel."""

    rows: int
    channels: int
    positions: int
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return self.rows * self.channels * self.positions


@dataclass(frozen=True)
class Parts:
    """Seconds that each part of a projection takes at its ceiling."""

    mix: float
    products: float
    signed_add: float
    sign_bits: float

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(a + b for a, b in zip(self.all(), other.all(), strict=True)))

    def all(self) -> tuple[float, ...]:
        """Return the four."""
        return self.mix, self.products, self.signed_add, self.sign_bits

    @property
    def alone(self) -> float:
        """Return the time if the signed add hides nothing and is hidden by nothing."""
        return sum(self.all())

    @property
    def overlapped(self) -> float:
        """Return the time if products, signed adds and sign bits overlap completely."""
        return self.mix + max(self.all()[1:])


def project(layer: Layer, batch: int, ceilings: Ceilings, *, precision: str, k: int) -> Parts:
    """Return the parts of ``hadamard`` on one layer's factors.

    mix: reads both factors and writes their transforms, as one or two bf16 numbers each.
    products: 2 b T O C P flops, three times for fp32.
    signed_add: b O C P entries of finished tiles.
    sign_bits: one bit an entry, made once a batch.
    """
    layout = TileLayout.of((layer.rows, layer.channels, layer.positions), k)
    read = 4 if precision == "fp32" else 2
    planes, terms = (2, 3) if precision == "fp32" else (1, 1)
    columns = layer.channels * layer.inputs if layout.per_position else (
        layer.channels * layer.positions * layer.outputs
    )  # fmt: skip
    numbers = batch * (layer.rows * layer.outputs + columns)
    moved = numbers * (read + 2 * planes)
    flops = 2 * batch * layer.outputs * layer.size * terms
    entries = layout.padded_rows * layout.padded_channels * layer.positions
    return Parts(
        # written once and read once more by the products
        mix=(moved + numbers * 2 * planes) / ceilings.memory,
        products=flops / ceilings.bf16,
        signed_add=ADD_INSTRUCTIONS * batch * entries / ceilings.lanes,
        sign_bits=PHILOX_INSTRUCTIONS / 128 * entries / ceilings.lanes,
    )


def dense(p: int, batch: int, ceilings: Ceilings, *, k: int, products: int = 1) -> dict[str, float]:
    """Return seconds of what a dense projection must do: read, make signs, multiply.

    ``P in memory`` is the time to read P as bf16 instead of making it.
    """
    times = math.ceil(batch / BATCH_TILE)
    made = (PHILOX_INSTRUCTIONS / 128 + DENSE_INSTRUCTIONS) * p * k * times
    return {
        "gradients": 4 * batch * p / ceilings.memory,
        "signs": made / ceilings.lanes,
        "products": 2 * batch * p * k * products / ceilings.bf16,
        "P in memory": 2 * p * k / ceilings.memory,
    }


# ---- models --------------------------------------------------------------------------------------


def layers(case: Case) -> list[Layer]:
    """Return the linear and convolutional layers of a model, in full size, as they are called."""
    found: list[Layer] = []

    def see(module: nn.Module, args: Any, output: Any) -> None:
        (x,) = args
        if isinstance(module, nn.Linear):
            tokens = math.prod(x.shape[1:-1])
            found.append(Layer(module.out_features, module.in_features, 1, tokens, tokens))
        elif isinstance(module, nn.Conv2d):
            sizes = math.prod(module.kernel_size), output[0, 0].numel(), x[0, 0].numel()
            found.append(Layer(module.out_channels, module.in_channels, *sizes))

    model = case.make_model(False).to("meta")
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(see)
    model(case.make_batch(1, False).to("meta"))
    return found


CASES = [gpu_cases.MLP, gpu_cases.RESNET, gpu_cases.VIT, gpu_cases.VIT_B, gpu_cases.GPT2]


def hadamard_rows(ceilings: Ceilings) -> Iterator[list[str]]:
    """Yield the lines of the table of models."""
    yield ["model", "batch", "precision", "forward + backward, products alone [ms]", "mix [ms]",
           "products [ms]", "signed add [ms]", "sign bits [ms]", "sum [ms]",
           "overlapped [ms]"]  # fmt: skip
    for case in CASES:
        shapes = layers(case)
        flops = 6 * case.batch * sum(layer.outputs * layer.size for layer in shapes)
        for precision, rate in (("fp32", ceilings.tf32), ("bf16", ceilings.bf16)):
            total = Parts(0, 0, 0, 0)
            for layer in shapes:
                total += project(layer, case.batch, ceilings, precision=precision, k=PROJ_DIM)
            times = [flops / rate, *total.all(), total.alone, total.overlapped]
            yield [case.name, str(case.batch), precision, *map(_ms, times)]


def dense_rows(ceilings: Ceilings) -> Iterator[list[str]]:
    """Yield the lines of the table of dense projections."""
    yield ["batch", "gradients [ms]", "signs [ms]", "products [ms]", "P in memory [ms]",
           "of bf16 GEMM, overlapped", "of bf16 GEMM, one after the other"]  # fmt: skip
    p = 2048 * 2048
    for batch in (8, 32, 64, 128, 256, 512):
        times = dense(p, batch, ceilings, k=PROJ_DIM)
        memory = times.pop("P in memory")
        shares = [times["products"] / max(times.values()), times["products"] / sum(times.values())]
        shown = [_ms(t) for t in (*times.values(), memory)]
        yield [str(batch), *shown, *(f"{share:.2f}" for share in shares)]


def balances(ceilings: Ceilings) -> dict[str, float]:
    """Return where two parts take the same time.

    ``positions``: T times the terms of the precision, of signed adds and products of a tile;
    ``signs``: samples, of making an entry of P and its products; ``memory``: samples, of reading
    an entry of P and its products.
    """
    product = 2 / ceilings.bf16
    made = (PHILOX_INSTRUCTIONS / 128 + DENSE_INSTRUCTIONS) / ceilings.lanes
    return {
        "positions": ADD_INSTRUCTIONS / ceilings.lanes / product,
        "signs": made / product,
        "memory": 2 / ceilings.memory / product,
    }


def markdown(ceilings: Ceilings) -> str:
    """Return both tables, each with what was assumed."""
    equal = balances(ceilings)
    rates = (
        f"{ceilings.name}: bf16 {ceilings.bf16 / 1e12:.0f} TFLOP/s, TF32 "
        f"{ceilings.tf32 / 1e12:.0f} TFLOP/s, memory {ceilings.memory / 1e12:.2f} TB/s, lanes "
        f"{ceilings.lanes / 1e12:.1f} T instructions/s"
    )
    parts = [
        f"Computed, not measured; {rates}.",
        f"`hadamard`, k = {PROJ_DIM}, on the factors of linear and convolutional layers. fp32: "
        "model in TF32, products in three bf16 terms. bf16: both in bf16.",
        _table(hadamard_rows(ceilings)),
        f"Signed adds and products of a tile take the same time at T x terms = "
        f"{equal['positions']:.0f} (terms: 3 in fp32, 1 in bf16).",
        f"`rademacher` in bf16, k = {PROJ_DIM}, p = {2048 * 2048:,}.",
        _table(dense_rows(ceilings)),
        f"Making P and its products take the same time at batch {equal['signs']:.0f}, reading P "
        f"and its products at batch {equal['memory']:.0f}.",
    ]
    return "\n\n".join(parts) + "\n"


def from_result(path: Path) -> Ceilings:
    """Return the ceilings that a result's JSON holds."""
    record = json.loads(path.read_text())
    found = record["ceilings"]
    if "gemm_bf16_gflops" not in found:
        raise ValueError(f"{path} holds no ceilings of a GPU")
    machine = record["machine"]
    return Ceilings.measured(f"{machine['device']}, measured {machine['date'][:10]}", found)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _table(rows: Iterator[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("result", nargs="?", type=Path, help="take the ceilings of this JSON file")
    given = parser.parse_args()
    print(markdown(from_result(given.result) if given.result else H200))


if __name__ == "__main__":
    main()
