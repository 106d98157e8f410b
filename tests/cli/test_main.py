import json
import subprocess
import sys
import warnings

import pytest

from pntk import __version__
from pntk.cli.common import format_bytes, plain, short_warning
from pntk.cli.main import main
from pntk.errors import PntkWarning

COMMANDS = [
    "demo",
    "featurize",
    "ntk",
    "topk",
    "report",
    "info",
    "verify",
    "spectrum",
    "study",
    "attribute",
    "surrogate",
]


def test_version(invoke):
    assert invoke("--version").stdout == f"pntk {__version__}\n"


def test_module_runs_as_a_command(start):
    process = start("--version")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, f"pntk {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(invoke, command):
    shown = invoke(command, "--help").stdout
    assert f"$ pntk {command} " in shown or f"$ pntk {command}\n" in shown


def test_main_help_lists_every_command(invoke):
    shown = invoke("--help").stdout
    assert all(command in shown for command in COMMANDS)


def test_unknown_command_is_wrong_usage(invoke):
    assert "No such command 'train'" in invoke("train", code=2).stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_named(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from pntk.cli.main import main; main()"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 2
    assert shown.stderr == (
        f'error: the command line needs {missing}, which is not installed: install "pntk[cli]"\n'
    )


def test_broken_dependency_is_not_taken_for_a_missing_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "pntk.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"pntk\.cli\.app"):
        main()


def test_debug_shows_the_traceback_too(invoke, toy):
    args = ["featurize", "--model", "toy", "--data", "toy:digits", "--out", "a.h5"]
    shown = invoke("--debug", *args, code=2).stderr
    assert "Traceback" in shown
    assert "error: --model is 'toy'" in shown
    assert "Traceback" not in invoke(*args, code=2).stderr


def test_unexpected_errors_propagate(invoke, stores, monkeypatch):
    def bug(*_, **__):
        raise KeyError("bug")

    monkeypatch.setattr("pntk.cli.verify.FeatureStore", bug)
    result = invoke("verify", "train.h5", code=1)
    assert isinstance(result.exception, KeyError)


def test_warnings_of_pntk_are_one_line():
    assert short_warning(PntkWarning("slow"), PntkWarning, "a.py", 3) == "warning: slow\n"
    assert short_warning(UserWarning("x"), UserWarning, "a.py", 3) == "a.py:3: UserWarning: x\n"


def test_run_shows_warnings_shortly(monkeypatch):
    from pntk.cli import app

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["pntk", "--version"])
    with pytest.raises(SystemExit) as stop:
        app.run()
    assert stop.value.code == 0
    assert warnings.formatwarning.__name__ == "short_warning"


def test_json_has_no_nan():
    values = {"a": [float("nan"), 1.5], 2: (float("inf"),)}
    assert json.dumps(plain(values), allow_nan=False) == '{"a": [null, 1.5], "2": [null]}'


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**15, "2000.0 TB")]
)
def test_format_bytes(size, text):
    assert format_bytes(size) == text


def test_output_into_a_pipe_has_no_colours_and_no_cut_lines(stores):
    shown = subprocess.run(
        [sys.executable, "-m", "pntk", "info", "train.h5"], capture_output=True, check=True
    )
    assert b"\x1b" not in shown.stdout
    assert str(stores / "train.h5").encode() in shown.stdout
