from dataclasses import replace

import numpy as np
import pytest

from pntk.errors import ConfigError
from pntk.report import Neighbour, Panel, Query, Report, Suspect
from pntk.report.checks import check_report

EYE = np.eye(3)
ROW = {"name": "fc.weight", "shape": (2, 2), "count": 4, "rule": "linear", "module": "Linear"}


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"kernel": EYE},
        {"kernel": EYE, "kernel_labels": np.array([-1, 5, 0])},
        {"kernel": EYE, "kernel_labels": [0, 1, 1], "class_names": ["a", "b"]},
        {"kernel": np.zeros((0, 0)), "kernel_labels": np.zeros(0, int), "class_names": []},
        {"spectrum": np.array([2.0, 1.0, -1e-9])},
        {"spectrum": np.zeros(0)},
        {"coverage": [ROW, {**ROW, "extra": 1}]},
        {"panels": [Panel("p"), Panel("p", b"\x89PNG", "c", ["a", "b"], [["1", "2"], ["3", "4"]])]},
        {"mislabelled": [Suspect(3, "a", "b", 0.5, np.zeros((8, 9)))]},
        {"queries": [Query(0, image=np.zeros((8, 9, 1))), Query(1, image=np.zeros((8, 9, 3)))]},
    ],
)
def test_accepts(contents):
    check_report(Report("t", **contents))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"kernel": np.ones((3, 4))},
            r"kernel has shape \[3, 4\], but \[m, m\] was expected: pass",
        ),
        ({"kernel": np.ones(3)}, r"kernel has shape \[3\], but \[m, m\] was expected"),
        ({"kernel": np.full((3, 3), np.nan)}, "kernel holds 9 values that are NaN or inf"),
        (
            {"kernel": EYE, "kernel_labels": np.zeros(4, int)},
            r"kernel_labels has shape \[4\], but the kernel has 3 samples: pass one label a row",
        ),
        (
            {"kernel": EYE, "kernel_labels": np.zeros(3)},
            "kernel_labels has dtype float64, but integers were expected: pass class numbers",
        ),
        (
            {"kernel": EYE, "kernel_labels": np.array([0, 1, 2]), "class_names": ["a", "b"]},
            "kernel_labels run from 0 to 2, but class_names has 2 entries: name every class",
        ),
        (
            {"kernel": EYE, "kernel_labels": np.array([0, -1, 0]), "class_names": ["a", "b"]},
            "kernel_labels run from -1 to 0",
        ),
        (
            {"spectrum": EYE},
            r"spectrum has shape \[3, 3\] and 0 values that are NaN.*expected: pas",
        ),
        ({"spectrum": np.array([1.0, np.nan])}, r"spectrum has shape \[2\] and 1 values that are"),
        ({"spectrum": np.zeros(2)}, r"eigenvalue of spectrum is 0\.0, but .* check the kernel, or"),
        (
            {"coverage": [{"name": "w", "shape": (), "rule": "r"}]},
            r"coverage row .*'w'.* lacks count, module: give every row the keys name, shape, count",
        ),
        (
            {"queries": [Query(7, image=np.zeros((3, 8, 8)))]},
            r"the image of query 7 has shape \[3, 8, 8\], but .*: move .*image\.transpose\(1, 2, 0",
        ),
        ({"queries": [Query(7, image=np.zeros((0, 8)))]}, r"image of query 7 has shape \[0, 8\]"),
        (
            {"queries": [Query(7, neighbours=[Neighbour(9, 1.0, image=np.zeros(64))])]},
            r"the image of neighbour 9 has shape \[64\]",
        ),
        (
            {"queries": [Query(7, opposing=[Neighbour(9, 1.0, image=np.zeros(64))])]},
            r"the image of neighbour 9 has shape \[64\]",
        ),
        (
            {"mislabelled": [Suspect(3, "a", "b", 0.5, np.zeros(64))]},
            r"the image of row 3 has shape \[64\]",
        ),
        ({"panels": [Panel("Rank", b"GIF89a")]}, "figure of 'Rank' starts with b'GIF89a'; expect"),
        (
            {"panels": [Panel("Rank", columns=["a", "b"], rows=[["1", "2"], ["3"]])]},
            "a row of 'Rank' has 1 cells; expected 2, one a column",
        ),
    ],
)
def test_refuses(contents, message):
    with pytest.raises(ConfigError, match=message):
        check_report(Report("t", **contents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ours": np.ones(2)},
            r"ours of the surrogate 'glm' has shape \[2\]; .* each of the 3 exam",
        ),
        ({"right": np.ones((3, 1))}, r"right of the surrogate 'glm' has shape \[3, 1\]"),
        ({"network": np.array([0.5, -1.0, 2.0])}, "network .* runs from -1 to 2; expected probab"),
        ({"network": np.array([0.5, np.nan, 0.5])}, "network .* runs from nan to nan"),
    ],
)
def test_surrogates(surrogate, change, message):
    check_report(Report("t", surrogates=[surrogate]))
    with pytest.raises(ConfigError, match=message):
        check_report(Report("t", surrogates=[surrogate, replace(surrogate, **change)]))
