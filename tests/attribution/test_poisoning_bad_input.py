"""Triggers and shares that cannot be used."""

import pytest
import torch

from pntk.errors import ConfigError
from pntk.lds import Trigger, poison, stamp

IMAGES = torch.zeros(4, 1, 5, 6)


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (Trigger(size=(-1, 1)), r"size of the trigger is \(-1, 1\)"),
        (Trigger(size=(1.5, 1)), r"size of the trigger is \(1.5, 1\)"),
        (Trigger(size=2), "size of the trigger is 2"),
        (Trigger(at=(1.5, 0)), r"at of the trigger is \(1.5, 0\)"),
        (Trigger(at=1), "at of the trigger is 1"),
        (3, "trigger is a int; expected Trigger"),
    ],
)
def test_triggers(trigger, message):
    with pytest.raises(ConfigError, match=message):
        stamp(IMAGES, trigger)


@pytest.mark.parametrize("value", [300.0, 0.5, -1.0])
def test_bytes_that_cannot_hold_the_trigger(value):
    for images in (IMAGES.byte(), IMAGES.byte().numpy()):
        with pytest.raises(ConfigError, match="uint8, which cannot hold them"):
            stamp(images, Trigger(value))
    assert stamp(IMAGES.byte(), Trigger(255)).max() == 255
    assert stamp(IMAGES.half(), Trigger(0.1)).max() > 0  # rounded, as floats are


def test_shares_and_seeds():
    with pytest.raises(ConfigError, match="fraction is 'a'"):
        poison(IMAGES, [0, 1, 1, 1], 0, "a")
    with pytest.raises(ConfigError, match="seed is -1"):
        poison(IMAGES, [0, 1, 1, 1], 0, 1, seed=-1)
