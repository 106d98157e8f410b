"""Reports of the reliability scripts."""

import json
from functools import partial

import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks.reliability import __main__ as command
from benchmarks.reliability.report import Finding, Unavailable, body, write

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00", "commit": "abc123", "cpu": "Some CPU", "cores": 4,
    "memory_gib": 8.0, "system": "Linux 1", "disk": "ext4", "python": "3.10", "torch": "2.9",
    "h5py": "3", "hdf5": "2", "pntk": "0.1",
}  # fmt: skip


def finding(name, **changes):
    return Finding(name, "What was done.", [{"a": 1234, "b": 0.5}, {"a": 1}], ["a note"], **changes)


def test_findings_of_a_day_stay_together(tmp_path):
    write([(finding("storm"), "command a", 1.25)], MACHINE, tmp_path)
    write([(finding("fuzz"), "command b", 2)], {**MACHINE, "commit": "def"}, tmp_path)
    json_path, path = write([(finding("storm"), "command c", 3)], MACHINE, tmp_path)
    assert json_path.name == "2026-01-02-reliability.json"
    content = json.loads(json_path.read_text())
    assert list(content) == ["storm", "fuzz"]
    assert content["storm"]["command"] == "command c"
    text = path.read_text()
    assert "pntk 0.1 (def); 2026-01-02. `command b`, 2 s." in text
    assert "| 1,234 | 0.5 |\n| 1 |  |" in text


def test_failures_come_first():
    lines = body(finding("storm", failures=[f"failure {i}" for i in range(60)]))
    assert lines[2:5] == ["**Failed:**", "", "- failure 0"]
    assert "- and 10 more" in lines


def test_command_line(tmp_path, monkeypatch, capsys):
    def unavailable(parent):
        raise Unavailable("no disk")

    monkeypatch.setattr(command, "FULL", {
        "storm": lambda parent: finding("storm"),
        "fuzz": lambda parent: finding("fuzz", failures=["it crashed"]),
        "memory": unavailable,
    })  # fmt: skip
    run = partial(command.main, ["--out", str(tmp_path)])
    assert command.main(["storm", "memory", "--out", str(tmp_path)]) == 0
    assert "not run: no disk" in capsys.readouterr().out
    assert run() == 1
    assert "- it crashed" in next(tmp_path.glob("*.md")).read_text()
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "no script nonsense; there are storm, fuzz, memory" in capsys.readouterr().err
