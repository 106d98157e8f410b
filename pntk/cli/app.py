"""The application: its commands, and the options that they all have."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from pntk._version import __version__
from pntk.cli import (
    attribute,
    demo,
    export,
    featurize,
    fourier,
    info,
    join,
    landscape,
    lds,
    nads,
    ntk,
    repair,
    report,
    similarity,
    spectrum,
    study,
    surrogate,
    topk,
    verify,
)
from pntk.cli.common import examples, short_warning
from pntk.cli.errors import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    demo,
    featurize,
    join,
    ntk,
    spectrum,
    study,
    topk,
    attribute,
    lds,
    surrogate,
    landscape,
    fourier,
    similarity,
    nads,
    report,
    info,
    verify,
    repair,
    export,
):
    app.command(module.NAME, epilog=examples(*module.EXAMPLES))(module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pntk {__version__}")
        raise typer.Exit


@app.callback(
    epilog=examples(
        "pntk demo",
        "pntk featurize --model train:net --data train:digits --out train.h5",
        "pntk topk test.h5 train.h5 -k 5",
    )
)
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, too.")
    ] = False,
) -> None:
    """Per-sample gradients of any PyTorch model as k numbers each, and what they make possible.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done; 1 the work or the
    check failed; 2 wrong usage; 130 and 143 stopped by Ctrl-C or SIGTERM.
    """


def run() -> None:
    """Run the command line of this process."""
    warnings.formatwarning = short_warning
    app(prog_name="pntk")
