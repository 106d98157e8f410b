import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from pntk.errors import ConfigError, MissingExtraError
from pntk.report import Neighbour, Panel, Query, Report, Suspect, plots, write_report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

ATTACK = "<script>alert('\"&')</script>"
SECTIONS = {
    "run": {"run": {"Model": "LeNet"}},
    "headline": {"headline": [("Test accuracy", "97.0%")]},
    "neighbours": {"queries": [Query(4)]},
    "mislabelled": {"mislabelled": [Suspect(8, "cat", "dog", 0.75)], "suspicion": "By a vote."},
    "kernel": {"kernel": np.eye(3)},
    "spectrum": {"spectrum": np.array([2.0, 1.0])},
    "panels": {"panels": [Panel("Widths", None, "In words.", ["k", "rank"], [["64", "9.5"]])]},
    "coverage": {
        "coverage": [
            {"name": "fc.bias", "shape": (9,), "count": 9, "rule": "linear", "module": "Linear"}
        ]
    },
    "notes": {"notes": ["A remark."]},
    "reproduce": {"reproduce": "pntk report run.h5"},
}
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements of a page, refusing tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def write(tmp_path):
    def write(**contents):
        contents = {"title": "A title", **contents}
        return write_report(Report(**contents), tmp_path / "report.html").read_text("utf-8")

    return write


@pytest.fixture
def full():
    image = np.arange(12).reshape(3, 4)
    neighbours = [
        Neighbour(10, 0.97531, "cat", image, None),
        Neighbour(11, 0.5, "dog", image[..., None], "Found text."),
        Neighbour(12, -0.25),
    ]
    contents = {key: value for part in SECTIONS.values() for key, value in part.items()}
    contents["queries"] = [
        Query(4, "cat", "dog", image, None, neighbours),
        Query(5, "cat", "cat", None, "Query text.", neighbours),
    ]
    return contents


def test_every_section_is_there(write, full):
    page = Page(write(**full))
    assert [section["id"] for section in page.all("section")] == list(SECTIONS)
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in SECTIONS]
    for words in (
        "A title", "Model LeNet", "Test accuracy 97.0%", "Query 4", "class cat", "0.975", "row 12",
        "-0.250", "Query text.", "Found text.", "fc.bias Linear 9 9", "linear 1 9 100.0%",
        "By a vote.", "label cat vote dog 0.750 row 8", "Widths In words. k rank 64 9.5",
        "A remark.", "pntk report run.h5", "2 eigenvalues", "gradients of 3 samples",
    ):  # fmt: skip
        assert words in page.text


@pytest.mark.parametrize("name", SECTIONS)
def test_empty_sections_are_left_out(write, name):
    page = Page(write(**SECTIONS[name]))
    assert [section["id"] for section in page.all("section")] == [name]
    assert not page.all("nav")


def test_arrays_without_entries_are_left_out(write):
    page = Page(write(kernel=np.zeros((0, 0)), spectrum=np.zeros(0)))
    assert not page.all("section") and not page.all("img")


def test_marks_do_not_rely_on_colour(write, full):
    text = Page(write(queries=full["queries"][:1])).text
    assert "predicted dog ✗ wrong" in text
    assert "class cat 0.975 ✓ same row 10" in text
    assert "class dog 0.500 ✗ differs row 11" in text
    assert "-0.250 row 12" in text
    assert "predicted cat ✓ correct" in Page(write(queries=full["queries"][1:])).text


def test_lists_side_by_side(write, full):
    query = Query(4, "cat", None, None, None, *([found] for found in full["queries"][0].neighbours))
    page = Page(write(queries=[query], influence="By the kernel."))
    assert "Nearest and most influential" in page.text and "By the kernel." in page.text
    assert (
        "Most similar class cat 0.975 ✓ same row 10 Most influential class dog 0.500 ✗ differs "
        "row 11 Found text. Lowering the output most -0.250 row 12"
    ) in page.text
    assert len(page.all("details")) == 1
    assert "Most similar" not in Page(write(queries=full["queries"])).text


def test_articles_say_what_they_can_be_chosen_by(write, full):
    queries = [*full["queries"], Query(6, "10"), Query(7, "9"), Query(8)]
    page = Page(write(queries=queries))
    facts = [
        [article.get(f"data-{name}") for name in ("query", "class", "network")]
        for article in page.all("article")
    ]
    assert facts == [
        ["4", "cat", "wrong"], ["5", "cat", "right"], ["6", "10", None], ["7", "9", None],
        ["8", None, None],
    ]  # fmt: skip
    form = page.all("form")[0]
    assert "hidden" in form and form["aria-label"]
    assert "Class all 9 10 cat Network all wrong right Query Show all" in page.text
    assert page.all("p")[1] == {"role": "status"}
    assert not Page(write(queries=queries[4:])).all("select")
    names = [select["name"] for select in Page(write(queries=queries[2:])).all("select")]
    assert names == ["class"]


def test_surrogates_have_a_table_and_a_scatter_each(write, surrogate):
    page = Page(write(surrogates=[surrogate, replace(surrogate, name="other")]))
    tau = f"{surrogate.report.kendall_tau:.4f}"
    assert "Surrogate glm other" in page.text
    assert f"Kendall tau-b {tau} {tau} Pearson" in page.text
    assert "saturated 0 of 3 left out 0 of 3 left out" in page.text
    assert ["glm: 3 examples" in image["alt"] for image in page.all("img")] == [True, False]


def test_intervals_stand_beside_values(write, surrogate):
    report = replace(surrogate.report, intervals={"tad": (-0.25, 0.5)})
    assert "-0.2500 to 0.5000" in Page(write(surrogates=[replace(surrogate, report=report)])).text


def test_panels_show_figures_with_captions(write):
    figure = plots.thumbnail(np.eye(4))
    page = Page(write(panels=[Panel("A <figure>", figure, "In words.")]))
    assert "A <figure> In words." in page.text
    assert page.all("img") == [{"src": plots.data_uri(figure), "alt": "A <figure>. In words."}]
    assert not page.all("table")


def test_a_query_without_neighbours_says_so(write):
    assert "No neighbours were found." in Page(write(queries=[Query(0)])).text


def test_images_are_embedded_and_described(write, full):
    images = Page(write(**full)).all("img")
    assert len(images) == 1 + 2 * 2 + 2
    for image in images:
        assert image["src"].startswith("data:image/png;base64,iVBOR")
        assert len(image["alt"]) > 5


def test_nothing_is_fetched(write, full):
    html = write(**full, title="https://example.org")
    page = Page(html)
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in html and "@import" not in html
    policy = next(a for a in page.all("meta") if "http-equiv" in a)["content"]
    script = re.search("<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
        f"base-uri 'none'; script-src 'sha256-{digest}'"
    )
    assert page.all("script") == [{}] and not page.all("link")


def test_without_queries_there_is_no_script(write):
    html = write(notes=["A remark."])
    assert not Page(html).all("script") and "script-src" not in html


def test_all_text_is_escaped(write):
    neighbour = Neighbour(1, 0.5, ATTACK, None, ATTACK)
    row = {"name": ATTACK, "shape": ATTACK, "count": 1, "rule": ATTACK, "module": ATTACK}
    html = write(
        title=ATTACK,
        run={ATTACK: ATTACK},
        headline=[(ATTACK, ATTACK)],
        queries=[Query(0, ATTACK, ATTACK, None, ATTACK, [neighbour], [neighbour], [neighbour])],
        influence=ATTACK,
        mislabelled=[Suspect(1, ATTACK, ATTACK, 0.5, None, ATTACK)],
        suspicion=ATTACK,
        panels=[Panel(ATTACK, None, ATTACK, [ATTACK], [[ATTACK]])],
        kernel=np.eye(1),
        kernel_labels=np.zeros(1, int),
        class_names=[ATTACK],
        coverage=[row],
        notes=[ATTACK],
        reproduce=ATTACK,
    )
    page = Page(html)
    assert len(page.all("script")) == 1
    # Title 2, facts 2, headline 2, query 3 and its option 1, neighbours 3 x 2, influence 1,
    # suspect 3 and how 1, panel 4, coverage 5, note 1, commands 1.
    assert page.text.count(ATTACK) == 32
    assert page.all("article")[0]["data-class"] == ATTACK


def test_accessible_and_fit_for_a_phone(write, full):
    html = write(**full)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    viewport = next(a for a in page.all("meta") if a.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("rows", "opened"), [(24, True), (25, False)])
def test_a_long_coverage_table_starts_folded(write, rows, opened):
    row = SECTIONS["coverage"]["coverage"][0]
    page = Page(write(coverage=[row] * rows))
    assert page.all("details") == [{"open": None} if opened else {}]
    assert f"All {rows} parameters" in page.text


def test_the_same_report_gives_the_same_bytes(write, full):
    assert write(**full) == write(**full)


def test_lone_surrogates_are_replaced(write):
    assert "caf?" in write(notes=["caf\udce9"])


def test_refuses_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder; name a file in it"):
        write_report(Report("t"), tmp_path)


def test_refuses_a_missing_folder(tmp_path):
    with pytest.raises(ConfigError, match="absent does not exist; create it first"):
        write_report(Report("t"), tmp_path / "absent" / "report.html")


def test_refuses_contents_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ConfigError, match="kernel has shape"):
        write_report(Report("t", kernel=np.ones(3)), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_names_the_extra_when_it_is_missing(tmp_path, monkeypatch, package):
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'needs {package}, which is not installed: pip install "pntk\[analysis\]"'
    with pytest.raises(MissingExtraError, match=message):
        write_report(Report("t", kernel=np.eye(2)), tmp_path / "report.html")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*args):
        raise OSError(28, "disk full")

    monkeypatch.setattr(f"pntk.files.os.{function}", fail)
    with pytest.raises(ConfigError, match=r"report.html cannot be written \(disk full\)"):
        write_report(Report("t"), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_takes_a_string_and_returns_the_path(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(Report("New"), str(path)) == path
    assert "<title>New</title>" in path.read_text()
