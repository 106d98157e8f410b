"""Two ranks of gloo, as torchrun and torch.multiprocessing start them."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from pntk import FeatureStore
from pntk.distributed import is_distributed, launched, processes
from pntk.store.shards import find_shards

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")

JOB = """
import time

import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def data(n=60):
    return torch.rand(n, 12, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


def unequal():
    import os

    torch.manual_seed(int(os.environ["RANK"]))
    return nn.Linear(12, 3)


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        time.sleep(0.05)
        x, y = data()
        return x[index], y[index]


def bad_on_rank_1():
    x, y = data()
    x[55] = float("nan")
    return x, y


def instead_of_the_command_line():
    import torch.distributed as dist

    import pntk

    dist.init_process_group("gloo")
    store = pntk.Featurizer(net(), proj_dim=64).featurize(
        data(), "rows.h5", batch_size=4, progress=False
    )
    assert store.complete
    dist.destroy_process_group()


if __name__ == "__main__":
    instead_of_the_command_line()
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(ranks, *arguments):
    """A command line, under torchrun if there are several ranks."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*start, *map(str, arguments)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WORK = ["-m", "pntk", "featurize", "--model", "job:net", "--proj-dim", 64, "--batch-size", 4]
WORK += ["--no-progress"]


def run(ranks, *arguments):
    return subprocess.run(
        command(ranks, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def whole(job):
    done = run(1, *WORK, "--data", "job:data", "--out", "whole.h5")
    assert done.returncode == 0, done.stderr
    return FeatureStore("whole.h5")


def same(store, whole):
    assert store.complete and store.verify().ok
    assert torch.equal(store.torch(), whole.torch())


def test_two_ranks_make_what_one_makes(whole):
    done = run(2, *WORK, "--data", "job:data", "--out", "rows.h5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("computed 60 rows") == 1  # rank 0 alone speaks
    store = FeatureStore("rows.h5")
    assert len(store.files) == 2
    same(store, whole)


def test_in_a_script_of_the_user(whole, job):
    done = run(2, "job.py")
    assert done.returncode == 0, done.stderr
    same(FeatureStore("rows.h5"), whole)


@pytest.mark.slow
def test_a_killed_rank_and_another_number_of_ranks(whole, job):
    arguments = [*WORK, "--sync-interval", 0, "--out", "rows.h5"]
    running = subprocess.Popen(
        command(2, *arguments, "--data", "job:Slow"),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _until(lambda: sum(FeatureStore(f).num_done for f in find_shards("rows.h5")) >= 8, running)
        victim = int((job / find_shards("rows.h5")[1].with_suffix(".h5.writer")).read_text()
                     .partition('"pid": ')[2].rstrip("}"))  # fmt: skip
        os.kill(victim, signal.SIGKILL)
        assert running.wait(60) != 0
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    assert not os.path.exists("rows.h5")
    kept = sum(FeatureStore(file).num_done for file in find_shards("rows.h5"))
    assert 8 <= kept < 60
    done = run(3, *arguments, "--data", "job:data")
    assert done.returncode == 0, done.stderr
    assert f"resuming: {kept} of 60 rows" in done.stderr
    assert f"computed {60 - kept} rows" in done.stdout
    same(FeatureStore("rows.h5"), whole)


def _until(condition, process):
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("it takes too long")


def test_an_error_of_one_rank_ends_all(job):
    done = run(2, *WORK, "--data", "job:bad_on_rank_1", "--out", "rows.h5")
    assert done.returncode != 0
    assert "the row of sample 55 holds NaN" in done.stderr
    assert not os.path.exists("rows.h5")
    first, _ = find_shards("rows.h5")
    assert FeatureStore(first).verify().ok


def test_ranks_must_be_alike(job):
    arguments = [*WORK, "--data", "job:data", "--out", "rows.h5"]
    arguments[arguments.index("job:net")] = "job:unequal"
    done = run(2, *arguments)
    assert done.returncode != 0
    assert "rank 1: weights is " in done.stderr and "give all ranks the same weights" in done.stderr
    assert not find_shards("rows.h5")


# ---- without ranks


def test_a_rank_that_never_comes(tmp_path):
    code = """
import os, sys
from datetime import timedelta
from pntk import distributed
from pntk.errors import DistributedError
distributed._MEETING = timedelta(seconds=3)
with distributed.launched() as rank:
    if rank == 1:
        os._exit(0)
    try:
        with distributed.processes():
            pass
    except DistributedError as error:
        print(error)
"""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=100)[0] for rank in ranks]
    assert "rank 0: another rank has ended" in printed[0]
    assert "run the same command again" in printed[0]


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_alone():
    assert not is_distributed()
    with processes() as group:
        assert (group.rank, group.size, group.share("x")) == (0, 1, "x")
        group.wait()


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "8"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_nothing_is_launched_for_one_process(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with launched() as rank:
        assert rank == 0 and not dist.is_initialized()
