"""The entry that compares attribution with TRAK, with a stand-in for TRAK."""

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")
pytest.importorskip("sklearn", reason="the entry uses its digits")

from benchmarks import lds
from benchmarks.registry import CheckFailed, Options, Unavailable, run
from pntk.trak_adapter import TRAKer

QUICK = Options(torch.device("cpu"), repeats=1, quick=True)


def stand_in(use_half_precision, **arguments):
    return TRAKer(**arguments)


def test_rows_name_quality_and_time(monkeypatch):
    monkeypatch.setattr(lds, "_import_traker", lambda: stand_in)
    found = run(lds.Lds(), QUICK)
    assert [row.case.split()[0] for row in found.rows] == ["MLP", "CNN", "LeNet"]
    for row in found.rows:
        assert row.values["LDS of TRAK"] == row.values["LDS of pntk, TRAK's script"]
        assert row.ratios["TRAK / pntk, time"].median > 0


def test_wrong_scores_are_not_timed(monkeypatch):
    monkeypatch.setattr(lds, "_formula", lambda *arguments: torch.ones(60, 10))
    with pytest.raises(CheckFailed, match="scores against the formula"):
        run(lds.Lds(), QUICK)


def test_worse_scores_are_not_timed(monkeypatch):
    monkeypatch.setattr(lds, "_import_traker", lambda: stand_in)
    good = lds.LDS(0.9, 0.8, 1.0, None)
    bad = lds.LDS(-0.9, -1.0, -0.8, None)
    found = iter([good, good, bad])
    monkeypatch.setattr(lds, "_quality", lambda scores, retrained: next(found))
    with pytest.raises(CheckFailed, match="LDS of pntk below TRAK's"):
        run(lds.Lds(), QUICK)


def test_without_trak(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trak", None)
    with pytest.raises(Unavailable, match="pip install traker"):
        lds._import_traker()
