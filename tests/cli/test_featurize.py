import json
import random
import shlex
import signal
import sys
import time

import numpy as np
import pytest
import torch

from pntk.errors import StoreError
from pntk.featurizer import Featurizer
from pntk.outputs import Trace
from pntk.store import FeatureStore

WORK = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
SLOW = ["featurize", "--model", "toy:net", "--data", "toy:Slow", "--proj-dim", 64]
SLOW += ["--batch-size", 2, "--sync-interval", 0.01, "--out", "slow.h5"]


def test_rows_are_those_of_the_library(invoke, toy):
    import toy as module

    shown = invoke(*WORK, "--out", "a.h5", "--seed", 5, "--no-progress")
    assert "computed 20 rows in" in shown.stdout
    assert "a.h5: 20 rows of 64 float32, " in shown.stdout.splitlines()[-1]
    store = FeatureStore("a.h5")
    expected = Featurizer(module.net().eval(), proj_dim=64, seed=5)(module.digits())
    assert torch.allclose(store.torch(), expected)
    assert store.labels.tolist() == module.digits()[1].tolist()


def test_options_reach_the_store(invoke, toy):
    invoke(
        *WORK, "--out", "a.h5", "--output", "trace", "--probes", 2, "--projection", "normal",
        "--params", "1.*", "--params", "3.bias", "--precision", "fp64", "--batch-size", 7,
        "--memory-budget", "1GB", "--device", "cpu", "--impl", "torch",
        "--no-check", "--no-progress",
    )  # fmt: skip
    header = FeatureStore("a.h5").header
    assert header.output == Trace(2).describe()
    assert header.projection == {"family": "normal", "proj_dim": 64, "seed": 0}
    assert [name for name, _ in header.params] == ["1.weight", "1.bias", "3.bias"]
    assert (header.dtype, header.precision) == ("float64", "fp64")


def test_bfloat16_reaches_the_store(invoke, toy):
    import toy as module

    invoke(*WORK, "--out", "a.h5", "--precision", "bf16", "--no-progress")
    store = FeatureStore("a.h5")
    assert (store.header.dtype, store.header.precision) == ("float32", "bf16")
    half = Featurizer(module.net().eval(), proj_dim=64, precision="bf16")
    assert torch.equal(store.torch(), half(module.digits()))


def test_a_batch_that_does_not_fit_is_one_line(refused, toy, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Featurizer, "_one_pass", full)
    shown = refused(*WORK, "--out", "a.h5", "--no-check", "--no-progress", code=1)
    assert "a batch of 20 takes more memory than cpu has; about 10 fit by estimate" in shown


def test_fallback_is_used(invoke, toy):
    invoke(*WORK, "--out", "a.h5", "--fallback", "3.*", "--no-progress")
    coverage = FeatureStore("a.h5").header.info["coverage"]
    rules = {row["name"]: row["rule"] for row in coverage}
    assert rules["1.weight"] == "linear"
    assert rules["3.weight"] == rules["3.bias"] == "torch.func"


def test_progress_goes_to_stderr(invoke, toy):
    shown = invoke(*WORK, "--out", "a.h5")
    assert "20/20" in shown.stderr
    assert "row/s" in shown.stderr
    assert "row/s" not in shown.stdout


def test_json_stands_alone_on_stdout(invoke, toy):
    found = json.loads(invoke(*WORK, "--out", "a.h5", "--json").stdout)
    assert (found["rows"], found["width"], found["computed"], found["skipped"]) == (20, 64, 20, [])
    assert found["path"] == str(toy / "a.h5")


def test_second_run_has_nothing_to_do(invoke, toy):
    invoke(*WORK, "--out", "a.h5")
    before = (toy / "a.h5").read_bytes()
    assert "nothing to do: every row is there" in invoke(*WORK, "--out", "a.h5").stdout
    assert (toy / "a.h5").read_bytes() == before


def test_checkpoint_is_used(invoke, toy):
    import toy as module

    model = module.net()
    torch.nn.init.zeros_(model[1].bias)
    torch.save(model.state_dict(), "net.pt")
    invoke(*WORK, "--out", "a.h5", "--checkpoint", "net.pt", "--no-progress")
    expected = Featurizer(model.eval(), proj_dim=64)(module.digits())
    assert torch.allclose(FeatureStore("a.h5").torch(), expected)


def test_skipped_rows_are_named(invoke, toy):
    args = ["featurize", "--model", "toy:net", "--data", "toy:with_nan", "--out", "a.h5"]
    shown = invoke(*args, "--on-nonfinite", "skip", "--proj-dim", 64).stdout
    assert "skipped 2 rows with NaN or infinity: 3, 7\n" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--proj-dim", 100], "power of two: 64 or 128"),
        (["--probes", 3], "--probes is 3 for output 'pntk'; it goes with --output trace"),
        (["--projection", "identity"], "leave proj_dim out"),
        (["--memory-budget", "lots"], "memory_budget is 'lots'"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--params", "layer9.*"], "matches no parameter"),
        (["--out", "absent/a.h5"], "the folder absent does not exist"),
        (["--out", "."], "is a folder"),
        (["--model", "toy:digits"], "expected a torch.nn.Module"),
        (["--data", "toy:nothing"], "returned None"),
    ],
)
def test_wrong_arguments(refused, toy, more, message):
    assert message in refused(*WORK, "--out", "a.h5", *more)
    assert not (toy / "a.h5").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "logits"], "'logits' is not one of"),
        (["--seed", -1], "Invalid value for '--seed'"),
        (["--seed", 2**64], "Invalid value for '--seed'"),
        (["--batch-size", 0], "Invalid value for '--batch-size'"),
        (["--precision", "fp8"], "'fp8' is not one of fp32, fp64"),
        (["--impl", "tpu"], "'tpu' is not one of"),
        (["--impl", "triton", "--device", "cpu"], "impl='triton' cannot be used: "),
        (["--checkpoint", "absent.pt"], "does not exist"),
    ],
)
def test_wrong_usage(invoke, toy, more, message):
    shown = invoke(*WORK, "--out", "a.h5", *more, code=2).stderr
    assert message in " ".join(shown.replace("│", " ").split())


def test_no_resume_refuses_a_store(invoke, refused, toy):
    invoke(*WORK, "--out", "a.h5")
    assert "a.h5 exists" in refused(*WORK, "--out", "a.h5", "--no-resume")


def test_work_that_fails(refused, invoke, toy):
    args = ["featurize", "--model", "toy:net", "--data", "toy:with_nan", "--no-progress"]
    assert "sample 3 holds NaN" in refused(*args, "--out", "a.h5", code=1)
    invoke(*WORK, "--out", "b.h5")
    assert "cannot resume: projection.seed" in refused(*WORK, "--out", "b.h5", "--seed", 1, code=1)
    (toy / "c.h5").write_text("no store")
    assert "c.h5" in refused(*WORK, "--out", "c.h5", code=1)


def wait_for_rows(process, path, least=1):
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            with FeatureStore(path) as store:
                if store.num_done >= least:
                    return
        except StoreError:  # not created yet
            pass
        time.sleep(0.01)
    pytest.fail(f"no rows appeared: {process.communicate(timeout=5)}")


def test_killed_at_random_moments_gives_the_same_bytes(start, toy):
    whole = start(*[arg if arg != "slow.h5" else "whole.h5" for arg in SLOW])
    random.seed(0)
    kills = 0
    for _ in range(2):
        process = start(*SLOW)
        with_rows = FeatureStore("slow.h5").num_done if (toy / "slow.h5").exists() else 0
        wait_for_rows(process, "slow.h5", with_rows + 1)
        time.sleep(random.uniform(0, 0.25))
        kills += process.poll() is None
        process.kill()
        process.communicate()
        with FeatureStore("slow.h5") as store:
            assert store.verify().ok
    assert kills >= 1
    last = start(*SLOW)
    _, errors = last.communicate(timeout=60)
    assert last.returncode == 0
    assert "resuming: " in errors
    whole.communicate(timeout=60)
    with FeatureStore("slow.h5") as resumed, FeatureStore("whole.h5") as expected:
        assert resumed.complete
        assert resumed.numpy().tobytes() == expected.numpy().tobytes()
        assert np.array_equal(resumed.labels, expected.labels)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_from_outside(start, toy, number, code):
    process = start(*SLOW, "--no-progress")
    wait_for_rows(process, "slow.h5", 4)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    done = FeatureStore("slow.h5").num_done
    assert 4 <= done < 60
    assert errors == (
        f"stopped: {done} of 60 rows are in slow.h5; go on from there with: python -m pntk "
        f"{shlex.join(map(str, SLOW))} --no-progress\n"
    )
    command = shlex.split(errors.partition("with: python -m pntk ")[2])
    assert start(*command).wait(60) == 0
    assert FeatureStore("slow.h5").complete


def test_stopped_before_the_first_row(toy):
    from pntk.cli.featurize import how_to_resume

    assert how_to_resume(toy / "a.h5").startswith("no row was written; start again with: ")


def test_the_command_to_go_on_with(monkeypatch):
    from pntk.cli.errors import this_command

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pntk", "featurize", "--out", "my rows.h5"])
    assert this_command() == "pntk featurize --out 'my rows.h5'"
    monkeypatch.setattr(sys, "argv", ["/lib/pntk/__main__.py", "featurize"])
    assert this_command() == "python -m pntk featurize"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert this_command() == "torchrun --nproc-per-node 8 -m pntk featurize"
