"""What the documents show must run and give what they say."""

import doctest
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["projection.md", "spectrum.md", "ntk.md"])
def test_examples_in_docs(name):
    outcome = doctest.testfile(str(ROOT / "docs" / name), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 5
    assert outcome.failed == 0


def test_readme_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the README's example uses scikit-learn's digits")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["hits"].indices.shape == (297, 5)
    assert scope["kernel"].shape == (297, 297)
    assert sorted(os.listdir(tmp_path)) == ["test.h5", "train.h5"]


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
