"""The exact kernel of a model, for ``pntk ntk --exact``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from pntk.cli.factories import load_data, load_model, pick_device
from pntk.errors import ConfigError
from pntk.ntk.exact import empirical_ntk
from pntk.ntk.exact_sinks import Kernels


@dataclass(frozen=True)
class Asked:
    """Options that go with --exact; None where one was not given."""

    model: str | None
    checkpoint: Path | None
    data: str | None
    other_data: str | None
    kind: str | None
    components: str | None
    params: list[str] | None
    precision: str | None
    method: str | None

    def given(self) -> list[str]:
        """Return the options that were given, as they are written."""
        named = [field.name for field in fields(self) if getattr(self, field.name)]
        return [f"--{name.replace('_', '-')}" for name in named]


def check_mix(
    asked: Asked, *, exact: bool, store: Path | None, normalize: bool, check: bool
) -> None:
    """Refuse options of exact kernels beside those of stores.

    Raises:
        ConfigError: saying what to leave out, or to add.
    """
    if not exact:
        if given := asked.given():
            raise ConfigError(
                f"{', '.join(given)} without --exact; add --exact for the exact kernel of a model, "
                "or leave them out for that of a store's rows"
            )
        if store is None:
            raise ConfigError(
                "no STORE.h5; name a store, or give --exact with --model and --data for the exact "
                "kernel of a model"
            )
        return
    if store is not None:
        raise ConfigError(
            f"{store} beside --exact; an exact kernel is made from --model and --data: leave "
            "the store out, or leave out --exact for the kernel of its rows"
        )
    if asked.model is None or asked.data is None:
        lacking = " and ".join(
            f"--{name}" for name in ("model", "data") if getattr(asked, name) is None
        )
        raise ConfigError(
            f"--exact without {lacking}; expected factories such as --model train:net --data "
            "train:digits"
        )
    for flag, wanted, remedy in (
        ("--normalize", normalize, "the entries are inner products: divide by their diagonal"),
        ("--check", check, "that compares the rows of stores with their checksums: leave it out"),
    ):
        if wanted:
            raise ConfigError(f"{flag} beside --exact; {remedy}")


def exact_kernel(
    asked: Asked, *, out: Path | None, memory_budget: str, device: str, progress: bool
) -> Kernels | Path:
    """Make the kernel that was asked for, in memory or in a file that resumes.

    Raises:
        ConfigError: a factory or an argument is wrong.
    """
    assert asked.model is not None and asked.data is not None
    model = load_model(asked.model, asked.checkpoint, pick_device(device), keep_mode=False)
    rows = load_data(asked.data)
    columns = None if asked.other_data is None else load_data(asked.other_data, "--other-data")
    return empirical_ntk(
        model,
        rows,
        columns,
        asked.kind or "trace",
        components=asked.components,
        params=asked.params or None,
        method=asked.method or "auto",
        precision=asked.precision or "fp32",
        memory_budget=memory_budget,
        out=out,
        progress=progress,
    )
