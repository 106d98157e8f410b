"""One layer's factors on a GPU: their projection beside the layer's ordinary weight gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import roofline, sketches
from benchmarks.gpu_cases import require_gpu
from benchmarks.gpu_kernels import BOUNDS, TURN_SECONDS
from benchmarks.machine import gpu_ceilings, tf32
from benchmarks.registry import Check, Entry, Number, Options, Row, require
from benchmarks.timing import calls_in, interleaved, repeated
from pntk.projection.sketch import Columns, Sketch, Windows

CHECKED = 2  # samples
ROUNDS, LAYER_SECONDS = 7, 3.0
ORDINARY = "weight gradient"
WAYS = [("cuda", "bf16"), ("cuda", "fp32"), ("triton", "bf16"), ("triton", "fp32")]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of the factors


@dataclass(frozen=True)
class Layer:
    """A linear layer on so many positions, or a square convolution on a square image.

    Attributes:
        kernel: its side, 0 for a linear layer.
        side: of the image; of a linear layer, the number of positions.
    """

    name: str
    batch: int
    rows: int
    channels: int
    kernel: int
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of its weight."""
        return (self.rows, self.channels, *(self.kernel,) * (2 if self.kernel else 0))

    def factors(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return output gradients and inputs, in the layout that a model has them in."""
        torch.manual_seed(0)
        if self.kernel:
            shapes = [(self.batch, n, self.side, self.side) for n in (self.rows, self.channels)]
        else:
            shapes = [(self.batch, self.side, n) for n in (self.rows, self.channels)]
        delta, x = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
        return delta, x

    def project(self, sketch: Sketch, delta: Tensor, x: Tensor, k: int) -> Tensor:
        """Return rows [b, k]."""
        out = torch.zeros(len(delta), k, dtype=sketch.dtype, device=delta.device)
        if self.kernel:
            grid, pad = (self.side,) * 2, (self.kernel // 2,) * 2
            windows = Windows((self.kernel,) * 2, (1, 1), (1, 1), grid, pad)
            rows, columns = delta.flatten(2), Columns(x, windows)
        else:
            rows, columns = delta.mT, Columns(x.mT)
        sketch.add_products(sketch.prepare_rows(rows), sketch.prepare_columns(columns), out)
        return out

    def ordinary(self, delta: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of the weight, summed over the batch."""
        if not self.kernel:
            return delta.flatten(0, 1).T @ x.flatten(0, 1)
        weight = x.new_empty(self.shape)
        pad = self.kernel // 2
        return torch.ops.aten.convolution_backward(
            delta, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1,
            [False, True, False],
        )[1]  # fmt: skip

    def parts(self, precision: str, ceilings: roofline.Ceilings, k: int) -> roofline.Parts:
        """Return what the ceilings allow."""
        positions = max(1, self.kernel) ** 2
        pixels = self.side**2 if self.kernel else self.side
        layer = roofline.Layer(self.rows, self.channels, positions, pixels, pixels)
        return roofline.project(layer, self.batch, ceilings, precision=precision, k=k)


LAYERS = [
    Layer("ResNet18, stage 1: 3x3, 64 to 64, 32x32", 256, 64, 64, 3, 32),
    Layer("ResNet18, stage 3: 3x3, 256 to 256, 8x8", 256, 256, 256, 3, 8),
    Layer("ResNet18, stage 4: 3x3, 512 to 512, 4x4", 256, 512, 512, 3, 4),
    Layer("ViT: 192 to 768, 64 positions", 256, 768, 192, 0, 64),
    Layer("ViT-B: 768 to 3072, 196 positions", 64, 3072, 768, 0, 196),
    Layer("GPT-2: 768 to 3072, 1024 positions", 8, 3072, 768, 0, 1024),
    Layer("MLP: 1024 to 1024, one position", 256, 1024, 1024, 0, 1),
]
QUICK = [Layer("conv", 4, 16, 8, 3, 5), Layer("linear", 4, 16, 24, 0, 6)]


class GpuLayers(Entry):
    """Projection of layers' factors, part by part against what the ceilings allow."""

    name = "gpu-layers"
    summary = (
        "Projection of one layer's factors by hadamard, k = 4096, over the time of the layer's "
        "ordinary weight gradient of the batch (TF32 or bf16). `roofline / this` is the time that "
        "the ceilings allow, all parts overlapped, as a share of the time taken."
    )

    def check(self, options: Options) -> list[Check]:
        """Check a small layer; each row is checked again before it is timed."""
        require_gpu(options)
        self.k = 64 if options.quick else 4096
        found = gpu_ceilings(options.device, options.quick)
        self.ceilings = roofline.Ceilings.measured("measured", found)
        return [
            self._check(QUICK[0], "torch", "fp32", *QUICK[0].factors(torch.float32, sketches.CPU))
        ]

    def measure(self, options: Options) -> Iterator[Row]:
        for layer in QUICK if options.quick else LAYERS:
            for precision, dtype in TYPES.items():
                name = f"{layer.name}; batch {layer.batch}; {precision}"
                ways = [way for way in WAYS if way[1] == precision]
                if options.quick and precision == "fp32":
                    ways = [("torch", "fp32")]
                factors = layer.factors(dtype, options.device)
                for impl, _ in ways:
                    yield self.attempt(
                        f"{name}; {impl}",
                        options,
                        lambda i=impl, f=factors, la=layer, p=precision: self._row(  # type: ignore[misc]
                            la, i, p, f, options
                        ),
                    )

    def _row(
        self,
        layer: Layer,
        impl: str,
        precision: str,
        factors: tuple[Tensor, Tensor],
        options: Options,
    ) -> Row:
        self.checks.append(self._check(layer, impl, precision, *factors))
        sketch = self._sketch(layer, impl, precision, options.device)
        calls: dict[str, Callable[[], object]] = {
            "projection": lambda: layer.project(sketch, *factors, self.k),
            ORDINARY: lambda: layer.ordinary(*factors),
        }
        with tf32(True):
            counts = {n: calls_in(c, TURN_SECONDS, options.device) for n, c in calls.items()}
            turns = {name: repeated(call, counts[name]) for name, call in calls.items()}
            times = interleaved(
                turns, min(options.repeats, ROUNDS), device=options.device, seconds=LAYER_SECONDS
            ).scaled({name: 1 / count for name, count in counts.items()})
        parts = layer.parts(precision, self.ceilings, self.k)
        ours = times.of("projection")
        flops = 2 * layer.batch * math.prod(layer.shape) * layer.side ** (2 if layer.kernel else 1)
        values: dict[str, Number] = {
            "projection [ms]": ours.times(1e3),
            f"{ORDINARY} [ms]": times.of(ORDINARY).times(1e3),
            "roofline: mix [ms]": parts.mix * 1e3,
            "products [ms]": parts.products * 1e3,
            "signed add [ms]": parts.signed_add * 1e3,
            "projection [TF/s]": flops / ours.median / 1e12,
            f"{ORDINARY} [TF/s]": flops / times.of(ORDINARY).median / 1e12,
        }
        ratios: dict[str, Number] = {
            f"projection / {ORDINARY}": times.ratio("projection", ORDINARY),
            "roofline / this": parts.overlapped / ours.median,
        }
        return Row(f"{layer.name}; batch {layer.batch}; {precision}; {impl}", ratios, values)

    def _sketch(self, layer: Layer, impl: str, precision: str, device: torch.device) -> Sketch:
        return sketches.make(
            "hadamard", self.k, layer.shape, impl, device=device, precision=precision
        )

    def _check(self, layer: Layer, impl: str, precision: str, delta: Tensor, x: Tensor) -> Check:
        """Compare with float64, of the factors as they are.

        Raises:
            Unavailable: there is no such implementation here.
            CheckFailed: rows differ.
        """
        sketch = self._sketch(layer, impl, precision, delta.device)
        rows = layer.project(sketch, delta, x, self.k)
        exact = sketches.make(
            "hadamard", self.k, layer.shape, "torch", torch.float64, device=delta.device
        )
        some = slice(0, CHECKED)
        expected = layer.project(exact, delta[some].double(), x[some].double(), self.k)
        what = f"{layer.name}; {precision}; {impl}"
        return require(what, sketches.relative_error(rows[some], expected), BOUNDS[precision])
