import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pntk import Featurizer
from pntk.errors import ConfigError, NonFiniteError
from pntk.ntk.alignment import centered_alignment, target_alignment
from pntk.ntk.monitor import KernelMonitor, evaluating
from pntk.ntk.spectrum import spectrum_of

LABELS = torch.arange(10) % 3


class FakeWriter:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))


@pytest.fixture
def images():
    return torch.randn(10, 1, 6, 6)


@pytest.fixture
def model():
    """With layers that behave differently in training."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 3),
    )


def learn(model, images, steps=1, monitor=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        if monitor is not None:
            monitor(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), LABELS).backward()
        optimizer.step()


def test_numbers_are_those_of_the_present_kernel(model, images):
    model.eval()
    f = Featurizer(model, "trace", proj_dim=64)
    monitor = KernelMonitor(f, (images, LABELS))
    kernels = []
    for step in range(3):
        found = monitor(step)
        rows = f((images, LABELS)).double()
        kernels.append(rows @ rows.T)
        spectrum = spectrum_of(kernels[-1])
        assert found == {
            "step": step,
            "trace": pytest.approx(spectrum.trace),
            "largest": pytest.approx(spectrum.largest),
            "condition_number": pytest.approx(spectrum.condition_number, rel=1e-6),
            "effective_rank": pytest.approx(spectrum.effective_rank),
            "target_alignment": pytest.approx(target_alignment(kernels[-1], LABELS)),
            "target_alignment_centered": pytest.approx(
                target_alignment(kernels[-1], LABELS, centered=True)
            ),
            "drift": pytest.approx(1 - centered_alignment(kernels[-1], kernels[0]), abs=1e-12),
            "drift_step": pytest.approx(
                1 - centered_alignment(kernels[-1], kernels[max(0, step - 1)]), abs=1e-12
            ),
        }
        learn(model.train(), images, steps=3)
        model.eval()
    assert [entry["drift"] > 0 for entry in monitor.history] == [False, True, True]
    assert monitor.history[2]["drift"] != monitor.history[2]["drift_step"]


def test_training_goes_on_as_without_it(model, images):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ends = []
    for watched in (False, True):
        model.load_state_dict(start)
        torch.manual_seed(1)
        learn(model, images, 4, KernelMonitor(model, images) if watched else None)
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_every_module_keeps_its_mode(model, images):
    model.train()
    model[1].eval()
    monitor = KernelMonitor(model, images)
    before = [module.training for module in model.modules()]
    monitor(0)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == before


def test_every_few_steps_to_a_writer(model, images):
    writer = FakeWriter()
    monitor = KernelMonitor(model, (images, LABELS), writer=writer, every=10, tag="probe")
    found = [monitor(step) for step in range(25)]
    assert [step for step, entry in enumerate(found) if entry is not None] == [0, 10, 20]
    assert [entry["step"] for entry in monitor.history] == [0, 10, 20]
    assert {step for _, _, step in writer.scalars} == {0, 10, 20}
    assert [tag for tag, _, step in writer.scalars if step == 10] == [
        f"probe/{name}" for name in monitor.history[1] if name != "step"
    ]
    assert ("probe/trace", monitor.history[1]["trace"], 10) in writer.scalars


def test_infinity_is_kept_from_the_writer(images):
    writer = FakeWriter()
    repeated = torch.cat([images, images])
    monitor = KernelMonitor(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), repeated, writer=writer)
    assert monitor(0)["condition_number"] == math.inf
    tags = [tag for tag, _, _ in writer.scalars]
    assert "ntk/condition_number" not in tags and "ntk/effective_rank" in tags


def test_targets(model, images):
    model.eval()
    assert "target_alignment" not in KernelMonitor(model, images)(0)
    numbers = torch.randn(10, 2)
    rows = Featurizer(model)(images).double()
    found = KernelMonitor(model, (images, LABELS), targets=numbers)(0)["target_alignment"]
    assert found == pytest.approx(target_alignment(rows @ rows.T, numbers))
    one_class = KernelMonitor(model, (images, torch.zeros(10, dtype=torch.int64)))(0)
    assert math.isnan(one_class["target_alignment_centered"])
    assert 0 < one_class["target_alignment"] <= 1


def test_a_model_that_has_diverged_is_reported(model, images):
    monitor = KernelMonitor(model, images)
    monitor(0)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        monitor(1)
    assert model.training and len(monitor.history) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; expected a positive number of steps"),
        ({"every": 2.0}, "every is 2.0"),
        ({"writer": print}, r"writer is a builtin_function_or_method; expected .* add_scalar\(tag"),
        ({"targets": torch.arange(3)}, r"targets have shape \(3,\); expected \[10\]"),
        ({"featurizer": len}, "featurizer is a builtin_function_or_method; expected a pntk.Featu"),
        ({"batch": torch.zeros(1, 1, 6, 6)}, "the batch has 1 sample; expected at least 2"),
    ],
)
def test_wrong_arguments(model, images, options, message):
    with pytest.raises(ConfigError, match=message):
        KernelMonitor(**{"featurizer": model, "batch": images, **options})


def test_tensorboard(model, images, tmp_path):
    tensorboard = pytest.importorskip(
        "torch.utils.tensorboard", reason="tensorboard is not installed", exc_type=ImportError
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard.SummaryWriter(tmp_path) as writer:
        monitor = KernelMonitor(model, (images, LABELS), writer=writer)
        learn(model, images, 3, monitor)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "ntk/drift" in events.Tags()["scalars"]
    found = [(event.step, event.value) for event in events.Scalars("ntk/trace")]
    assert found == [(e["step"], pytest.approx(e["trace"])) for e in monitor.history]
