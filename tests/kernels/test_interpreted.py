"""The tests of this directory in Triton's interpreter, where there is no GPU to run them on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


SHARED = "../projection/test_gpu.py"


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="the other tests run in this process",
)
def test_this_directory_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", ".", SHARED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,  # where there is no pntk but the one that is tested here
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
