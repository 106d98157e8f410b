"""Compiling ahead of time finds what is wrong with machine code; needs no GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
aot = pytest.importorskip("pntk.kernels.aot")

CASES = """
import triton
import triton.language as tl

from pntk.kernels.variant import Variant


@triton.jit
def shifted(x_p, out_p, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x_p + o_n, mask=o_n < n, other=0.0)
    tl.store(out_p + o_n, b_x - tl.sum(b_x), mask=o_n < n)


@triton.jit
def product(x_p, out_p):
    o_x = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    b_x = tl.load(x_p + o_x)
    tl.store(out_p + o_x, tl.dot(b_x, b_x))


def variants():
    pointers = {"x_p": "*fp32", "out_p": "*fp32"}
    types = {**pointers, "n": "i32"}
    halves = {"x_p": "*bf16", "out_p": "*fp32"}
    return [
        Variant("good", shifted, types, {"BLOCK": 256}, divisible=("n",)),
        Variant("spilling", shifted, types, {"BLOCK": 8192}, warps=1),
        Variant("not a product", shifted, types, {"BLOCK": 256}, tensor_cores=True),
        Variant("a product", product, halves, tensor_cores=True),
        Variant("forgotten", shifted, {"x_p": "*fp32", "y_p": "*fp32"}),
    ]
"""
EMPTY = "def variants():\n    return []\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    (folder / "cases.py").write_text(CASES)
    (folder / "empty.py").write_text(EMPTY)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_INTERPRET", None)

    def run(*arguments, **more):
        command = [sys.executable, "-m", "pntk.kernels.aot", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env={**environment, **more}
        )

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def report(run):
    done = run("--arch", "80", "--markdown", "table.md", "cases")
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines()


def rows(lines):
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[1]: dict(zip(aot.HEADER, row, strict=True)) for row in cells}


def test_table(report, run):
    lines = report[:7]
    assert (run.folder / "table.md").read_text().splitlines() == lines
    table = rows(lines)
    good, product = table["good"], table["a product"]
    assert (good["kernel"], good["arch"], good["spills"], good["tensor"]) == (
        "shifted", "80", "0", "0",
    )  # fmt: skip
    assert 8 <= int(good["registers"]) <= 64
    assert int(product["tensor"]) > 0 and product["spills"] == "0"
    assert int(table["spilling"]["spills"]) > 0


def test_violations(report):
    wrong = [line.removeprefix("VIOLATION ") for line in report if line.startswith("VIOLATION")]
    assert len(wrong) == 3
    assert wrong[0].startswith("shifted (spilling), sm_80: spills: ")
    assert wrong[1] == "shifted (not a product), sm_80: no tensor-core instructions"
    assert wrong[2] == (
        "shifted (forgotten), sm_80: does not compile: arguments unknown ['y_p'], "
        "without a type ['BLOCK', 'n', 'out_p']"
    )
    assert report[-1] == "5 kernels compiled, 3 with violations"


def test_nothing_to_compile(run):
    done = run("empty")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        1, "0 kernels compiled, 0 with violations",
    )  # fmt: skip


def test_the_interpreter_compiles_nothing(run):
    done = run("cases", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET=1 leaves nothing to compile; unset it" in done.stderr


def test_all_kernels_are_found():
    assert {"pntk.kernels.dense", "pntk.kernels.gram"} <= set(aot.modules())
    assert not {"pntk.kernels.aot", "pntk.kernels.philox"} & set(aot.modules())
