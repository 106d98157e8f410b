"""What a page does in a browser without a window."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from pntk.report import Neighbour, Query, Report, write_report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} on PATH")
CLASSES = ["3", "<a & b>", "10"]
# What a person would do; what then was shown and where it stands, into the page.
PERSON = """
<script>
(() => {
  const form = document.querySelector("form");
  const note = () => document.body.append(
    [...document.querySelectorAll("article:not([hidden])")].map((a) => a.dataset.query).join(),
    "@", location.hash, "; ");
  const set = (name, value) => {
    form.elements.namedItem(name).value = value;
    form.elements.namedItem(name).dispatchEvent(new Event("input", { bubbles: true }));
    note();
  };
  set("class", "<a & b>");
  set("network", "right");
  set("query", "4");
  form.reset();
  setTimeout(() => {
    note();
    location.hash = "class=10";
    setTimeout(() => { note(); location.hash = "notes"; setTimeout(note, 50); }, 50);
  }, 50);
})();
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of nine queries, of classes by turns; the model gets 0, 1 and 2 wrong."""
    queries = [
        Query(
            number,
            CLASSES[number % 3],
            "?" if number < 3 else CLASSES[number % 3],
            np.full((2, 2), number / 9),
            neighbours=[Neighbour(number, 0.5)],
        )
        for number in range(9)
    ]
    report = Report("T", queries=queries, asked=1200, notes=["A remark."])
    return write_report(report, tmp_path_factory.mktemp("page") / "a page.html")


@pytest.fixture
def browse(tmp_path):
    def browse(page, address=""):
        """Return the page as it is after its script has run."""
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'user'}", "--virtual-time-budget=2000"]
        done = subprocess.run(
            [*command, page.as_uri() + address], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return browse


def shown(dom):
    articles = re.findall(r'<article [^>]*data-query="(\d+)"([^>]*)>', dom)
    assert len(articles) == 9
    return [int(number) for number, more in articles if "hidden" not in more]


@pytest.mark.parametrize(
    ("address", "queries"),
    [
        ("#class=3", [0, 3, 6]),
        ("#class=3&network=wrong", [0]),
        ("#query=7", [7]),
        ("#notes", list(range(9))),
        ("#class=18", list(range(9))),
    ],
)
def test_the_address_chooses_queries(browse, page, address, queries):
    dom = browse(page, address)
    assert shown(dom) == queries
    assert f"{len(queries)} of 9 queries shown" in dom
    assert re.search(r'<form class="controls" [^>]*>', dom)[0].count("hidden") == 0


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("#query=17", "Query 17 is not among the 9 of 1,200 queries on this page"),
        ("#class=3&query=4", "None of the 9 queries matches"),
        ("#class=3&network=wrong&query=4", "None of the 9 queries matches"),
    ],
)
def test_the_page_says_why_it_shows_nothing(browse, page, address, why):
    dom = browse(page, address)
    assert shown(dom) == [] and f">{why}<" in dom


def test_controls_choose_queries_and_write_the_address(browse, page, tmp_path):
    html = re.sub("<meta http-equiv[^>]*>", "", page.read_text())  # which lets no other script run
    driven = tmp_path / "driven.html"
    driven.write_text(html.replace("</body>", PERSON + "</body>"))
    dom = browse(driven)
    encoded = "class=%3Ca+%26+b%3E"
    for noted in (
        f"1,4,7@#{encoded}; ",
        f"4,7@#{encoded}&network=right; ",
        f"4@#{encoded}&network=right&query=4; ",
        "0,1,2,3,4,5,6,7,8@#neighbours; ",
        "2,5,8@#class=10; ",
        "2,5,8@#notes; ",
    ):
        assert noted in dom.rpartition("</script>")[2].replace("&amp;", "&")
