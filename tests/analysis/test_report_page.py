"""The report: one file, no request, alt texts; in headless Chromium it loads without an error and its tables sort."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from sweeps.analysis.breakdowns import by_band, told_apart
from sweeps.analysis.request import Comparison, Selection
from sweeps.analysis.variants import brief_names, show
from sweeps.analysis.views import views
from sweeps.report import plots
from sweeps.report.commands import report, tiles
from sweeps.report.page import EXTRA_COLUMNS

PROBE = """<script>
window.found = {errors: [], blocked: []};
window.addEventListener("error", e => found.errors.push(String(e.message || e.target.src)), true);
document.addEventListener("securitypolicyviolation", e => found.blocked.push(e.blockedURI));
window.addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), head = [...table.tHead.rows[0].cells];
  const place = head.findIndex(th => th.textContent.startsWith("boundary IoU"));
  const column = () => [...table.tBodies[0].rows].map(r => r.cells[place].textContent.trim());
  head[place].querySelector("button").click(); found.up = column(); found.ariaUp = head[place].getAttribute("aria-sort");
  head[place].querySelector("button").click(); found.down = column();
  found.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  found.overflow = document.documentElement.scrollWidth - window.innerWidth;
  found.sideways = [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth + 1).map(s => s.ariaLabel);
  found.background = getComputedStyle(document.body).backgroundColor;
  found.images = [...document.images].map(i => [i.naturalWidth > 0, i.alt.length > 20]);
  const pre = document.createElement("pre"); pre.id = "probe"; pre.textContent = JSON.stringify(found); document.body.appendChild(pre);
});
</script>"""


@pytest.fixture(scope="module")
def page(mapped, tmp_path_factory):
    return report(["mapped"], Comparison(stores=(str(mapped),)), out=str(tmp_path_factory.mktemp("page") / "report.html"))


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_page_is_one_small_file_that_asks_for_nothing(page):
    text = page.read_text()
    assert len(text) < 5_000_000
    elements = Elements()
    elements.feed(text)
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:80])
    assert not re.search(r"url\((?!#|data:)|@import", text)


def test_page_says_what_was_found_and_what_failed(page):
    text = page.read_text()
    assert re.search(r"changed boundary IoU by \+\d+\.\d\d points, 95\s% interval \+\d", text)
    assert "Planned" in text or "definition is not here" in text
    assert "loss is not a number at image 960 &lt;NaN&gt;" in text
    for figure in (
        "Effects against",
        "Boundaries of the best, the median and the worst",
        "Score against distance",
        "Score by frequency band",
        "Repaired and damaged",
        "Pareto",
        "Quality against steps",
        "Learning curves",
    ):
        assert figure in text, figure
    elements = Elements()
    elements.feed(text)
    pictures = [a for tag, a in elements.found if tag == "img" or a.get("role") == "img"]
    assert len(pictures) >= 8
    assert all(len(a.get("alt") or a.get("aria-label") or "") > 20 for a in pictures)


def in_chromium(path, width, *options):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={path.parent / f'profile{width}'}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
    ]
    return subprocess.run([*command, *options, f"file://{path}"], capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize("width", [1200, 500])  # 500: no window of headless Chromium is narrower; the layout of phones begins at 640
def test_page_in_chromium_loads_without_error_or_request_and_sorts(page, tmp_path, width):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("<style>", PROBE + "<style>", 1))
    run = in_chromium(probed, width, "--dump-dom")
    found = json.loads(
        re.search(r'<pre id="probe">(.*?)</pre>', run.stdout, re.DOTALL)[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
    )
    assert found["errors"] == found["blocked"] == found["requests"] == []
    assert "CONSOLE" not in run.stderr
    values = [float(x.split()[0]) for x in found["up"]]
    assert values == sorted(values)
    assert found["ariaUp"] == "ascending"
    assert found["down"] == found["up"][::-1]
    assert all(loaded and described for loaded, described in found["images"])
    assert found["overflow"] <= 0
    assert width < 1000 or not found["sideways"], "every table that is not folded is as wide as the page at most"


def test_page_begins_with_a_sentence_and_the_picture_and_folds_what_no_test_decides(page):
    text = page.read_text()
    body = text[text.index("<body>") :]
    assert body.index('class="lead"') < body.index("data:image/jpeg") < body.index("<main>") < body.index("<table")
    folded = re.findall(r'<details class="part"><summary>Not decided:.*?</details>\n<details', text, re.DOTALL)
    for part in folded:
        assert "data-table" in part
        assert " *</td>" not in part, "a difference that the test calls is not folded"


def test_settings_that_most_variants_share_are_left_out_of_brief_names(mapped, made):
    for store, study in ((mapped, "mapped"), (made, "made")):
        view = next(views(Comparison(stores=(str(store),)).trials([study]), ["boundary_iou"]))
        brief, usual = brief_names(view.population)
        assert brief.keys() == {v.label for v in view.population.variants}
        assert len(set(brief.values())) == len(brief)
        for v in view.population.variants:
            left_out = {f"{a.rpartition('.')[2]}={show(x)}" for a, x in v.axes.items() if x is not None}
            assert left_out <= {*brief[v.label].split(", "), *usual.split(", ")}


def test_names_leave_out_what_all_lines_say():
    assert told_apart({"one_pass, width=32": 1, "diffusion, width=32, steps=4": 2}) == {"one_pass": 1, "diffusion, steps=4": 2}
    assert told_apart({"one_pass, width=32": 1}) == {"one_pass, width=32": 1}


def test_edges_lie_between_pixels_of_different_classes_and_not_beside_ignored_ones():
    index = np.array([[0, 0, 1], [0, 2, 1], [255, 2, 1]], np.uint8)
    assert sorted(plots.edges(index)) == sorted(
        [
            [(1.5, -0.5), (1.5, 0.5)],
            [(0.5, 0.5), (0.5, 1.5)],
            [(1.5, 0.5), (1.5, 1.5)],
            [(1.5, 1.5), (1.5, 2.5)],
            [(0.5, 0.5), (1.5, 0.5)],
        ]
    )


def test_bands_add_up_to_the_share_of_wrong_pixels(mapped):
    view = next(views(Comparison(stores=(str(mapped),)).trials(["mapped"]), ["oa"], columns=EXTRA_COLUMNS))
    variants = [next(v for v in view.population.variants if v.kind == kind) for kind in ("coarse", "one_pass", "diffusion")]
    bands = by_band(view, variants)
    assert bands is not None
    for v in variants:
        wrong = 1 - float(view.scorer.seeds(v, "oa").mean())
        assert sum(p.value for p in bands.error[v.kind]) == pytest.approx(wrong)
        assert all(p.low <= p.value <= p.high for p in bands.error[v.kind])
    removed = 1 - bands.error["diffusion"][0].value / bands.error["coarse"][0].value
    assert bands.removed["diffusion"][0].value == pytest.approx(removed)


def test_tiles_picture_is_written_whole(mapped, tmp_path):
    path = tiles(["mapped"], Selection(stores=(str(mapped),)), out=str(tmp_path / "sub" / "tiles.png"))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == ["tiles.png"]


def test_report_from_tables_alone_says_that_tiles_are_missing(made, tmp_path):
    text = report(["made"], Comparison(stores=(str(made),), labels="full"), out=str(tmp_path / "r.html")).read_text()
    assert "No places are shown" in text
    assert "RuntimeError: out of memory" in text


def test_figures_leave_the_settings_of_matplotlib_as_they_were():
    """The caller's own settings survive, those of the figures apply while they are made and saved, whatever was drawn in between."""
    import matplotlib

    rows = [("steps=4 → 8", 0.5, 0.2, 0.8, "*"), ("width $x$", -0.1, -0.4, 0.2, "")]
    with matplotlib.rc_context({"text.color": "red", "font.size": 31, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        figure = plots.forest(rows, "points")
        first = plots.svg(figure)
        plots.png(plots.lines_figure({"loss": [(1, 2.0), (2, 1.0)]}, "images", "loss"), dpi=20)
        again = plots.svg(plots.forest(rows, "points"))
        assert dict(matplotlib.rcParams) == before
    assert first == again
    assert "width $x$" in first, "text stays text, and $ is a sign like any other"
    assert "currentColor" in first
    assert "31px" not in first
