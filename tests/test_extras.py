import sys

import pytest

from pntk.errors import MissingExtraError
from pntk.extras import require


def test_returns_the_module():
    assert require("os.path") is sys.modules["os.path"]


def test_names_the_extra():
    message = r'needs absent_package, which is not installed: pip install "pntk\[analysis\]"'
    with pytest.raises(MissingExtraError, match=message):
        require("absent_package.part")


def test_a_broken_package_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import absent_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_dependency") as caught:
        require("broken_package")
    assert not isinstance(caught.value, MissingExtraError)
