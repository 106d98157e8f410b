"""The harness of the benchmarks: it refuses, alternates and reports."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.cases import CASES, check_rows
from benchmarks.memory import peaks
from benchmarks.registry import Check, CheckFailed, Entry, Options, Row, require, run
from benchmarks.timing import Spread, Times, interleaved

CPU = torch.device("cpu")
QUICK = Options(CPU, repeats=2, quick=True)
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc123-dirty",
    "device": "NVIDIA Some GPU",
    "cuda": "13.0",
    "cpu": "Some CPU",
    "cpu_level": "avx9",
    "cores": 4,
    "threads": 2,
    "memory_gib": 8.0,
    "torch": "2.9",
    "pntk": "0.1",
}
CEILINGS = {"gemm_gflops": 123.4, "copy_gbytes": 12.34}


class Fake(Entry):
    name = "fake"
    summary = "A measurement of nothing."

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error
        self.measured = False

    def check(self, options: Options) -> list[Check]:
        return [require("fake rows", self.error, 1e-3)]

    def measure(self, options: Options) -> list[Row]:
        self.measured = True
        self.notes.append("a note")
        first = Row("first", {"R": Spread(1.5, 1.25, 2.0)}, {"time [ms]": 3.14159, "batch": 8})
        return [first, Row("second", {"R": 2.0}, {"only here": "yes"})]


@pytest.mark.parametrize("error", [1e-3, 1.0, math.nan, math.inf])
def test_a_wrong_result_is_not_timed(error: float) -> None:
    entry = Fake(error)
    with pytest.raises(CheckFailed, match=r"fake rows: relative error .* so nothing was timed"):
        run(entry, QUICK)
    assert not entry.measured


def test_an_entry_without_checks_is_not_timed() -> None:
    entry = Fake(0.0)
    entry.check = lambda options: []  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match="fake: nothing was checked"):
        run(entry, QUICK)
    assert not entry.measured


def test_rows_that_differ_from_the_reference_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows(CASES[0], QUICK)
    from pntk import Featurizer

    right = Featurizer.__call__
    monkeypatch.setattr(Featurizer, "__call__", lambda self, batch: right(self, batch) * 1.001)
    with pytest.raises(CheckFailed, match="MLP: rows against float64 autograd"):
        check_rows(CASES[0], QUICK)


def test_interleaved_alternates_and_reverses() -> None:
    calls: list[str] = []
    times = interleaved({n: lambda n=n: calls.append(n) for n in "ab"}, repeats=3, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round() -> None:
    times = Times({"a": [2.0, 20.0, 4.0], "b": [1.0, 10.0, 2.0]})
    assert times.ratio("a", "b") == Spread(2.0, 2.0, 2.0)
    assert times.of("a") == Spread(4.0, 3.0, 12.0)
    assert times.of("b").times(1e3).median == 2000.0
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_report_files(tmp_path: Path) -> None:
    paths = report.write(run(Fake(1e-5), QUICK), MACHINE, CEILINGS, tmp_path)
    stem = "2026-01-02-nvidia-some-gpu-fake"
    assert [path.name for path in paths] == [f"{stem}.json", f"{stem}.md"]
    found = json.loads(paths[0].read_text())
    assert found["machine"] == MACHINE
    assert found["rows"][0]["ratios"]["R"] == {"median": 1.5, "low": 1.25, "high": 2.0}
    text = paths[1].read_text()
    assert text.index("## Ratios") < text.index("## Absolute") < text.index("| fake rows | 1e-05")
    assert text.count("NVIDIA Some GPU, CUDA 13.0; Some CPU, 2 threads of 4 cores") == 2
    assert text.count("(abc123-dirty), kernels avx9; 2026-01-02") == 2
    assert text.count("copy 12.3 GB/s. Medians") == 2
    assert "| first | 1.5 (1.25 to 2) |" in text
    assert "| second |  |  | yes |" in text  # cells that a row lacks are empty
    assert "mean nothing" not in text
    assert "mean nothing" in report.markdown(run(Fake(0.0), QUICK), MACHINE, CEILINGS, quick=True)


def test_peaks_see_what_a_call_holds() -> None:
    held = 64 * 2**20  # the kernel counts pages in batches, so somewhat less may show
    found = peaks(lambda: torch.ones(held // 4), CPU)
    assert 0.9 * held < found["first"] < 1.5 * held
    assert 0.9 * held < found["later"] < 1.5 * held


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"overhead", "memory", "kernels", "scaling", "trak"} <= set(listed)
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "no entry nonsense; there are overhead, " in capsys.readouterr().err


def test_a_missing_traker_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trak", None)
    assert main(["trak", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "skipped: TRAK cannot be imported" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_wrong_entry_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Fake):
        def __init__(self) -> None:
            super().__init__(1.0)

    monkeypatch.setattr("benchmarks.__main__.ENTRIES", [Wrong])
    assert main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "WRONG: fake rows" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
