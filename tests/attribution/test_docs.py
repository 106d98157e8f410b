"""The examples of docs/attribution.md."""

import doctest
from pathlib import Path


def test_examples():
    path = Path(__file__).parents[2] / "docs" / "attribution.md"
    outcome = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 5
    assert outcome.failed == 0
