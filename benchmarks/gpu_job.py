"""The whole of a job: 60,000 images through ResNet18, rows into a store on disk."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import gpu_cases
from benchmarks.gpu_cases import check_rows, require_gpu
from benchmarks.gpu_overhead import Run
from benchmarks.machine import tf32
from benchmarks.registry import (
    Check,
    CheckFailed,
    Entry,
    Number,
    Options,
    Row,
    Unavailable,
    require,
)
from pntk import Featurizer
from pntk.store import FeatureStore

SAMPLES, BATCH = 60_000, 512
WARM_BATCHES = 3
COMPARED = 64  # rows of the store that are made again
ROUNDED = {"tf32": 3e-2, "bf16": 2e-1}  # a model in TF32 or bf16 against itself in fp32
# In the order of their importance; the target in seconds is for the H200.
JOBS = [
    (Run(gpu_cases.RESNET, "tf32"), 15.0),
    (Run(gpu_cases.RESNET_TRACE, "tf32"), 90.0),
    (Run(gpu_cases.RESNET, "bf16"), 15.0),
    (Run(gpu_cases.RESNET_TRACE, "bf16"), 90.0),
]


class GpuJob(Entry):
    """Seconds from images in the computer's memory to a closed store."""

    name = "gpu-job"
    summary = (
        "60,000 images of 3x32x32 (float32, in the computer's memory) through ResNet18, k = 4096: "
        "featurize into a store on disk, batches of 512, from the call to the closed file, after "
        "a warm-up on other files. `without a store` is the time of the rows alone, batches moved "
        "to the GPU and rows back, from a tenth of the images."
    )

    def check(self, options: Options) -> list[Check]:
        require_gpu(options)
        with tf32(False):
            loaded = gpu_cases.RESNET.load(options)
            return [check_rows(loaded, "ResNet18 in fp32")]

    def measure(self, options: Options) -> Iterator[Row]:
        self.notes.append("The system may keep written rows in memory; the store syncs every 5 s.")
        torch.manual_seed(1)
        count, side = (40, 8) if options.quick else (SAMPLES, 32)
        images = torch.randn(count, 3, side, side)
        for job, target in JOBS:
            yield self.attempt(
                str(job),
                options,
                lambda job=job, target=target: self._row(job, target, images, options),  # type: ignore[misc]
            )

    def _row(self, job: Run, target: float, images: Tensor, options: Options) -> Row:
        loaded = job.load(options)
        batch = 16 if options.quick else BATCH
        with tf32(job.arithmetic == "tf32"), tempfile.TemporaryDirectory() as folder:
            f = loaded.featurizer(impl=job.impl, check=False)  # its rows are compared below
            _store(f, images[: WARM_BATCHES * batch], Path(folder) / "warm.h5", batch)
            part = images[: max(2 * batch, len(images) // 10)]
            alone = _rows_alone(f, part, batch) * len(images) / len(part)
            if alone > options.seconds_left():
                raise Unavailable(f"it would take {alone:.0f} s, and less is left")
            path = Path(folder) / "rows.h5"
            seconds = _store(f, images, path, batch)
            size = path.stat().st_size
            rows = _read(path)
        with tf32(False):
            plain = dataclasses.replace(loaded, autocast=False).featurizer()
            expected = plain(images[:COMPARED].to(options.device)).cpu()
        error = float((rows - expected).norm() / expected.norm())
        self.checks.append(
            require(f"{job}: stored rows against fp32", error, ROUNDED[job.arithmetic])
        )
        ratios: dict[str, Number] = {
            "time / target": seconds / target,
            "share of the store": max(0.0, 1 - alone / seconds),
        }
        values: dict[str, Number] = {
            "seconds": seconds,
            "target [s]": target,
            "rows/s": len(images) / seconds,
            "without a store [s]": alone,
            "file [MB]": size / 1e6,
            "written [MB/s]": size / seconds / 1e6,
            "images": len(images),
            "impl": f.impl,
        }
        return Row(str(job), ratios, values)


def _store(f: Featurizer, images: Tensor, path: Path, batch: int) -> float:
    start = time.perf_counter()
    f.featurize(images, path, batch_size=batch, progress=False).close()
    return time.perf_counter() - start


def _rows_alone(f: Featurizer, images: Tensor, batch: int) -> float:
    """Return the seconds of moving batches to the device, making rows and fetching them."""
    start = time.perf_counter()
    for piece in images.split(batch):
        f(piece.to(f.device)).cpu()
    return time.perf_counter() - start


def _read(path: Path) -> Tensor:
    """Return the first rows of a store, all of which must be there and finite.

    Raises:
        CheckFailed: they are not.
    """
    with FeatureStore(path) as store:
        some = store.numpy()[:: max(1, len(store) // 1000)]
        if not store.complete or not np.isfinite(some).all():
            raise CheckFailed("the store lacks rows, or holds some that are not finite")
        return store[:COMPARED].clone()
