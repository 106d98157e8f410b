import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

from pntk.describe import describe


class Directions:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, model, batch):
        return model(batch).sum(1) * self.scale

    def doubled(self, model, batch):
        return 2 * self(model, batch)


class Named(Directions):
    def describe(self):
        return "my directions"


def closing_over(value):
    return lambda model, batch: model(batch)[:, value]


def shift(model, batch, by=1):
    return model(batch).sum(1) + by


PAIRS = [
    (lambda m, b: m(b).sum(1), lambda m, b: m(b)[:, 0]),
    (closing_over(0), closing_over(1)),
    (Directions(1.0), Directions(2.0)),
    (Directions(1.0), Directions(1.0).doubled),
    (functools.partial(shift, by=1), functools.partial(shift, by=2)),
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    (nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(weight=torch.arange(3.0))),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_differs_is_told_apart(one, other):
    assert describe(one) != describe(other)
    assert describe(one) == describe(one)
    assert "0x" not in describe(one)


def test_a_callable_may_name_itself():
    assert describe(Named(3.0)) == "my directions"


def test_the_same_in_another_process(tmp_path):
    (tmp_path / "mine.py").write_text("f = lambda m, b, k=3: [m(b) for _ in range(k)]\n")
    code = "import mine; from pntk.describe import describe; print(describe(mine.f))"
    run = [sys.executable, "-c", code]
    found = {subprocess.check_output(run, text=True, cwd=tmp_path) for _ in range(2)}
    assert len(found) == 1 and "mine.<lambda> " in found.pop()
