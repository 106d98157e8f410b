"""Against TRAK: the same rows a second, from the same gradients, into a store."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.registry import Check, Entry, Options, Row, Unavailable, progress, require
from benchmarks.timing import interleaved
from pntk import Featurizer
from pntk.models import ResNet18

PROJ_DIM = 2048
BATCHES = (32, 128)  # of TRAK
OUR_SAMPLES, OUR_BATCH = 128, 32
CHECKED = 4
BOUND = 1e-3
MAX_REPEATS = 3  # one batch of TRAK on a CPU takes minutes


class Trak(Entry):
    """Samples a second of TRAK and of pntk."""

    name = "trak"
    summary = (
        "Margin gradients of ResNet18 on random 3x32x32 images, k = 2048 in fp32, written to "
        "each library's store: pntk's featurize against TRAKer.featurize."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare the exact kernels: pntk without projection, TRAK's gradients before its own."""
        traker_class = _import_traker()
        model, images, labels = _problem(options, CHECKED)
        rows = Featurizer(model, "margin", "identity")((images, labels))
        with tempfile.TemporaryDirectory() as folder:
            traker = _traker(traker_class, model, CHECKED, options, folder, small=True)
            gradients = traker.gradient_computer.compute_per_sample_grad(batch=[images, labels])
        flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1).detach()
        kernel, expected = rows.double() @ rows.double().T, flat.double() @ flat.double().T
        error = float((kernel - expected).norm() / expected.norm())
        return [require("exact margin kernel against TRAK's gradients", error, BOUND)]

    def measure(self, options: Options) -> list[Row]:
        """Time TRAK at pntk's batch size and at a large one, which its cost a batch favours."""
        traker_class = _import_traker()
        import trak  # type: ignore[import-not-found, unused-ignore]

        self.notes.append(
            f"traker {trak.__version__}, use_half_precision=False; it makes its whole projection "
            "matrix anew for each batch, so larger batches are cheaper for it a sample, as far as "
            "their gradients fit in memory."
        )
        rows = []
        for size in (1, 2) if options.quick else BATCHES:
            if _fits(size, options.device):
                rows.append(self._at(size, traker_class, options))
            else:
                self.notes.append(f"TRAK's batch of {size} was not tried for lack of memory.")
        return rows

    def _at(self, batch: int, traker_class: Any, options: Options) -> Row:
        repeats = min(options.repeats, MAX_REPEATS)
        ours = 8 if options.quick else OUR_SAMPLES
        model, images, labels = _problem(options, max(batch, ours))
        f = Featurizer(model, "margin", proj_dim=64 if options.quick else PROJ_DIM)
        with tempfile.TemporaryDirectory() as folder:
            traker = _traker(traker_class, model, batch * repeats, options, folder)
            _featurize(f, images[:ours], labels[:ours])
            progress(f"TRAK, batch {batch}")
            times = interleaved(
                {
                    "TRAK": lambda: traker.featurize(
                        batch=[images[:batch], labels[:batch]], num_samples=batch
                    ),
                    "pntk": lambda: _featurize(f, images[:ours], labels[:ours]),
                },
                repeats,
                warmup=0,  # a batch of TRAK takes minutes; ours has run
                device=options.device,
            )
        trak_each, our_each = times.of("TRAK").times(1 / batch), times.of("pntk").times(1 / ours)
        return Row(
            f"ResNet18, TRAK with batches of {batch}",
            {"TRAK / pntk, time a sample": times.ratio("TRAK", "pntk").times(ours / batch)},
            {
                "TRAK [samples/s]": 1 / trak_each.median,
                "pntk [samples/s]": 1 / our_each.median,
                "TRAK [s/sample]": trak_each,
                "pntk [s/sample]": our_each,
                "pntk batch": OUR_BATCH,
                "pntk samples": ours,
            },
        )


def _import_traker() -> Any:
    try:
        from trak import TRAKer  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise Unavailable(
            f"TRAK cannot be imported ({error}); install it with: pip install traker"
        ) from None
    return TRAKer


def _problem(options: Options, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = ResNet18(width=8 if options.quick else 64).eval().to(options.device)
    images = torch.randn(samples, 3, 32, 32).to(options.device)
    labels = torch.randint(10, (samples,)).to(options.device)
    return model, images, labels


def _traker(
    traker_class: Any,
    model: nn.Module,
    samples: int,
    options: Options,
    folder: str,
    *,
    small: bool = False,
) -> Any:
    """Return a TRAKer ready to featurize; ``small`` leaves its projection matrix out of memory."""
    traker = traker_class(
        model=model,
        task="image_classification",
        train_set_size=samples,
        save_dir=folder,
        device=str(options.device),
        proj_dim=8 if small else 64 if options.quick else PROJ_DIM,
        use_half_precision=False,
        logging_level=logging.ERROR,
    )
    traker.load_checkpoint(model.state_dict(), model_id=0)
    return traker


def _featurize(f: Featurizer, images: Tensor, labels: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.h5"
        f.featurize((images, labels), path, batch_size=OUR_BATCH, progress=False).close()


def _fits(size: int, device: torch.device) -> bool:
    """Whether twice the gradients of a batch, as TRAK holds them, fit in the free memory."""
    import psutil

    gradients = 2 * size * 4 * sum(p.numel() for p in ResNet18().parameters())
    if device.type == "cuda":
        return gradients < torch.cuda.mem_get_info(device)[0]
    return gradients < psutil.virtual_memory().available
