"""How a command ends when it does not end well."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from pntk.cli.common import console, say
from pntk.errors import ConfigError, MissingExtraError, PntkError

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived."""


class Commands(TyperGroup):
    """Commands whose expected errors become one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with _sigterm_raises():
            try:
                return super().invoke(ctx)
            except Terminated:
                code = TERMINATED
            except KeyboardInterrupt:
                code = INTERRUPTED
            except PntkError as error:
                if ctx.params.get("debug"):
                    traceback.print_exc()
                _print_error(error)
                code = USAGE if isinstance(error, (ConfigError, MissingExtraError)) else FAILED
            raise typer.Exit(code)


def _print_error(error: PntkError) -> None:
    message = " ".join(str(error).splitlines())
    console(stderr=True).print(Text("error: ", "bold red") + Text(message, "red"), soft_wrap=True)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that a store is closed properly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def explain_stop(how_to_resume: Any) -> Iterator[None]:
    """Say what ``how_to_resume()`` returns, if anything, when the work is stopped from outside."""
    try:
        yield
    except KeyboardInterrupt:
        try:
            message = how_to_resume()
        except PntkError as error:
            message = str(error)
        if message:
            say(f"stopped: {message}")
        raise


def this_command() -> str:
    """Return the command line of this process, to be given again."""
    program = ["pntk"] if Path(sys.argv[0]).name == "pntk" else ["python", "-m", "pntk"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        program = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m", "pntk"]
    return shlex.join([*program, *sys.argv[1:]])
