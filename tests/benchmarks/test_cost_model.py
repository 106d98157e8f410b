"""The cost model's numbers, by hand; its simulation, where the answer is known; its page."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import cost_model
from benchmarks.cost_model import C, Constants, InvertedFile, duration, overhead, regrouped, size
from pntk import faiss_index

ROOT = Path(__file__).parents[2]


def cells(lines):
    head, *body = lines
    assert all(len(line) == len(head) for line in body)
    return body


def test_bytes_of_a_row():
    assert cost_model.row_bytes(4096, "float32") == 4 * 4096 + 8 + 1 + 8
    assert cost_model.row_bytes(512, "float16") == 2 * 512 + 8 + 1 + 8 + 4


def test_every_constant_is_measured_or_assumed():
    for entry in fields(Constants):
        assert re.match(r"(measured [AB]|assumed): .", entry.metadata["source"]), entry.name
        assert entry.metadata["what"]


def test_constants_are_those_of_the_results():
    results = ROOT / "benchmarks" / "results"
    found = json.loads((results / "2026-11-21-cpu-overhead.json").read_text())
    values = {row["case"]: row["values"] for row in found["rows"]}
    rates = {"LeNet": C.lenet, "ResNet18": C.resnet, "ViT": C.vit, "GPT": C.gpt}
    for name, rate in rates.items():
        assert values[name]["f [samples/s]"] == pytest.approx(rate, rel=1e-3)
    assert values["ResNet18"]["f(batch) [ms]"]["median"] == pytest.approx(C.batch * 1e3, rel=1e-3)
    assert found["ceilings"]["gemm_gflops"] == pytest.approx(C.gemm / 1e9, rel=5e-3)
    assert found["machine"]["commit"] in cost_model.MEASURED
    found = json.loads((results / "2026-11-21-cpu-memory.json").read_text())
    values = {row["case"]: row["values"] for row in found["rows"]}["ResNet18"]
    held = values["imports + model + batch [MiB]"] + values["f, later [MiB]"]
    assert held == pytest.approx(C.process, abs=0.1)


@pytest.mark.parametrize(("n", "k"), [(10**6, 4096), (10**9, 512)])
def test_the_index_is_the_one_that_defaults_make(n, k):
    index = InvertedFile(n, k)
    chosen = faiss_index._choose("ivfpq", faiss_index.Options(), index.training, n, k)
    assert chosen["nlist"] == index.lists and chosen["nprobe"] == index.probes
    assert chosen["pq_m"] * chosen["pq_bits"] // 8 + 8 == index.entry
    block, sample = faiss_index._fit(k, index.budget)
    assert sample == index.training and block


def test_operations_by_hand():
    assert cost_model.search_flops(10, 3, 4) == 2 * 10 * 3 * 4
    assert cost_model.gram_flops(10, 4) == 2 * 4 * 10 * 10 / 2
    line = next(line for line in cells(cost_model.search_table()) if line[0] == "1e+06")
    assert line[2] == f"{2 * 1000 * 1e6 * 4096:.1e}"
    assert line[3] == duration(2 * 1000 * 1e6 * 4096 / C.gemm)
    assert line[5] == duration(1e6 * 16401 / C.disk)


def test_shards():
    assert cost_model.shards_for(10**6, 1) == 1
    assert cost_model.shards_for(10**6, 8) == 32
    assert cost_model.shards_for(10**9, 1) == 250


def test_units():
    assert [size(n) for n in (0, 999, 1000, 999_600, 4e24)] == [
        "0 B", "999 B", "1 kB", "1 MB", "4 YB"
    ]  # fmt: skip
    assert [duration(s) for s in (0.0123, 59, 90, 86400 * 400, 1e16)] == [
        "12.3 ms", "59 s", "1.5 min", "1.1 years", "3e+08 years"
    ]  # fmt: skip


# --- the simulation


@pytest.mark.parametrize("way", [cost_model.alone, cost_model.together])
def test_without_failures_nothing_is_lost(way):
    end = way(np.random.default_rng(0), 3, 1e15, 3600.0)
    assert end == C.job + C.start


def test_one_worker_fares_the_same_in_both():
    """By renewal: attempts of mean life L that keep what they did cost start / L each, at first."""
    life = 20 * 3600.0
    for way in (cost_model.alone, cost_model.together):
        expected = C.start * C.job / life / (C.job + C.start)
        assert overhead(way, 1, life, 0.0) == pytest.approx(expected, rel=0.1)


def test_a_kill_loses_half_an_interval_on_average(monkeypatch):
    found = cost_model.lost(np.random.default_rng(0), 10_000, 100.0) - 2 * C.batch
    assert found.mean() == pytest.approx(50, rel=0.02) and found.min() >= 0
    monkeypatch.setattr(cost_model, "C", replace(C, start=0.0))
    life, interval = 24 * 3600.0, 3600.0
    found = overhead(cost_model.alone, 1, life, interval)
    assert found == pytest.approx(interval / 2 / life, rel=0.1)


def test_restarting_all_costs_more_and_longer_intervals_too():
    day = 24 * 3600.0
    assert overhead(cost_model.together, 64, day, 5.0) > 5 * overhead(
        cost_model.alone, 64, day, 5.0
    )
    for way in (cost_model.alone, cost_model.together):
        found = [overhead(way, 64, day, interval) for interval in cost_model.INTERVALS]
        assert found == sorted(found)


def test_the_simulation_repeats_itself():
    first, second = (list(cost_model.kills_table())[1:3] for _ in range(2))
    assert first == second


def test_whole_shards_are_handed_out():
    assert regrouped(64, 64, 1) == 1
    assert regrouped(64, 128, 1) == 2  # half of the new workers find nothing to do
    assert regrouped(64, 128, 4) == 1
    assert regrouped(2, 1, 3) == 1


# --- the page


def test_the_page_holds_the_tables_of_today():
    text = cost_model.PAGE.read_text()
    assert cost_model.MEASURED in text
    for lines in cost_model.TABLES:
        made = cost_model.table(lines())
        assert made in text, f"{made.splitlines()[0]}: run python -m benchmarks.cost_model --update"


def test_update_renews_a_table_and_nothing_else(monkeypatch):
    monkeypatch.setattr(cost_model, "TABLES", [cost_model.disk_table, cost_model.regroup_table])
    right = "\n\n".join(["before", *(cost_model.table(t()) for t in cost_model.TABLES)]) + "\n"
    assert cost_model.update(right.replace("16,401", "1")) == right
    with pytest.raises(ValueError, match="0 tables begin with"):
        cost_model.update("before")
