"""Pages: they say what they show, hold all they need, escape what others wrote, and work in a browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from l2c.graph.cache_graph import CacheGraph
from l2c.report.comparison_page import ComparisonPage, write_comparison_page
from l2c.report.decisions import printable
from l2c.report.method_table import HEADER, Cell
from l2c.report.page import Column, TableCell, page_html, table_html
from l2c.report.page_graph import graph_html
from l2c.report.samples import SampleRow

EVIL = '<script>alert("1")</script>&\x1b'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "img", "br"}


def graph(model="net"):
    rows = [[True, True], [True, True], [False, True], [True, False]]
    layers = ("blocks.0.attn", "blocks.0.mlp")
    reuse = ("hold", "hold", "hold", "linear")
    return CacheGraph(rows=rows, layers=layers, timesteps=(9, 7, 5, 3), model=model, solver="ddim", reuse=reuse)


@pytest.fixture(scope="module")
def page():
    cells = [
        Cell(method, target, 0, target, mse, mse / 10, 5 * mse, target / 20, 1.0)
        for target in (15.0, 8.0)
        for method, mse in ((EVIL, 2e-3), ("best", 1e-3 / target), ("fewer_steps", 1e-2))
    ]
    torch.manual_seed(0)
    reference = torch.rand(12, 3, 8, 8)
    rows = [SampleRow.of(name, reference + 0.01 * torch.randn_like(reference), reference) for name in ("best", EVIL)]
    graphs = {8.0: {"best": graph(), EVIL: graph(EVIL)}}
    facts = {"model": EVIL, "solver": "ddim, 20 evaluations", "command": "l2c compare"}
    return ComparisonPage(EVIL, facts, cells, {8.0: rows}, graphs)


class Tags(HTMLParser):
    """Collects tags and text, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["script"] and self.open[-1:] != ["style"]:
            self.words.append(data)


def test_the_page_says_what_was_compared(page):
    words = " ".join(Tags(page.html()).words)
    for said in ("3 ways to sample", "2 budgets", "ddim, 20 evaluations", "l2c compare", "What the columns mean"):
        assert said in words
    for said in ("Budget 8", "worst", "x 10", "the least error of the graphs at this budget"):
        assert said in words
    assert all(name in words for name in HEADER)


def test_the_page_needs_nothing_from_elsewhere(page):
    for tag, attributes in Tags(page.html()).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), (tag, value)
    assert "://" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.html())


def test_what_others_wrote_is_shown_and_does_nothing(page):
    html = page.html()
    assert "<script>alert" not in html
    assert "\x1b" not in html
    scripts = [attributes for tag, attributes in Tags(html).tags if tag == "script"]
    assert len(scripts) == 3  # ours, and the data of two graphs


def test_the_page_says_which_methods_share_a_line(page):
    shared = replace(page, family_of={"best": "ours", EVIL: "ours"})
    assert f"ours is the best of {printable(EVIL)}, best at each budget" in " ".join(Tags(shared.html()).words)


def test_a_page_without_measurements_is_refused():
    with pytest.raises(ValueError, match="at least one measurement"):
        ComparisonPage("net", {}, []).html()


def test_the_best_row_is_marked_and_numbers_are_sorted_by_value():
    html = table_html(
        [Column("a", "means", words=True), Column("b", "too")], [[TableCell("x"), TableCell("1,234", 1234.0)]]
    )
    assert 'data-order="1234"' in html
    assert 'class="best"' not in html
    assert 'class="best"' in table_html([Column("a", "means")], [[TableCell("x")]], best=[0])


def test_each_cell_of_a_graph_says_its_decision():
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', graph_html(graph(), "c"))[1])
    assert data["layers"] == ["blocks.0.attn (attention)", "blocks.0.mlp (MLP)"]
    assert data["timesteps"] == ["9", "7", "5", "3"]
    said = [[data["decisions"][int(digit)] for digit in row] for row in data["rows"]]
    assert said[2] == ["reused: the last output, held", "computed"]
    assert said[3] == ["computed", "reused: linear in t"]


def test_a_name_cannot_end_the_data_of_a_graph():
    named = graph().replace(layers=("a</script><b>.attn", "a.mlp"))
    assert graph_html(named, "c").count("</script>") == 1


def test_the_page_is_a_short_one_without_pictures():
    Tags(page_html("t", "lead", {}, []))


PROBE = """<script>
document.querySelector("table.sortable th:nth-child(4) button").click();
const svg = document.querySelector(".graph svg"), box = svg.getBoundingClientRect();
const at = { clientX: box.left + 82 + 7, clientY: box.top + 16 + 2 * 14 + 7, bubbles: true };
svg.dispatchEvent(new PointerEvent("pointermove", at));
document.title = [
  document.querySelector("table.sortable tbody tr td:nth-child(2)").textContent,
  document.querySelector(".graph .said").textContent,
  [...document.images].every((image) => image.complete && image.naturalWidth > 0),
].join("|");
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, so the page is not opened in a browser")
def test_the_page_works_in_a_browser(page, tmp_path):
    path = write_comparison_page(tmp_path, page)
    html = path.read_text(encoding="utf-8")
    late = PROBE.replace("<script>", '<script>addEventListener("load", () => {').replace("</script>", "});</script>")
    path.write_text(html.replace("</body>", f"{late}</body>"), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    opened = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert "CONSOLE" not in opened.stderr, opened.stderr
    title = re.search("<title>(.*?)</title>", opened.stdout)[1]
    assert title == "best|evaluation 2, t 5, blocks.0.attn (attention): reused: the last output, held|true"
