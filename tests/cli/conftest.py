import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from pntk.cli.app import app
from pntk.featurizer import Featurizer

TOY = """
import time

import torch
from torch import nn
from torch.utils.data import Dataset

CLASSES = 3
instance = nn.Linear(12, CLASSES)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def digits(n=20, seed=1):
    images = torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(n) % CLASSES


def test_digits():
    return digits(9, seed=2)


class Slow(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        time.sleep(0.02)
        images, labels = digits(60)
        return images[index], labels[index]


def with_nan():
    images, labels = digits()
    images[[3, 7]] = float("nan")
    return images, labels


def broken():
    raise RuntimeError("no such file: digits.npz")


def nothing():
    return None
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with a module ``toy``, which is also the current one."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    yield tmp_path
    sys.modules.pop("toy", None)


@pytest.fixture
def stores(toy):
    """train.h5 with 20 rows and test.h5 with 9, of one network."""
    import toy as module

    featurizer = Featurizer(module.net().eval(), proj_dim=64)
    for data, name in ((module.digits(), "train.h5"), (module.test_digits(), "test.h5")):
        featurizer.featurize(data, toy / name, progress=False).close()
    return toy


@pytest.fixture
def invoke():
    """Run a command in this process."""

    def run(*args, code=0):
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


@pytest.fixture
def refused(invoke):
    """Run a command that must fail; return its one line on stderr."""

    def run(*args, code=2):
        result = invoke(*args, code=code)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("error: ")
        return result.stderr

    return run


@pytest.fixture
def start():
    """Start ``python -m pntk`` in the current folder; what still runs in the end is killed."""
    running = []

    def run(*args):
        process = subprocess.Popen(
            [sys.executable, "-m", "pntk", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # a background job of a shell ignores SIGINT and hands that on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()
