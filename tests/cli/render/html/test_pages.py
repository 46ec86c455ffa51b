"""The HTML report in a real browser."""

from __future__ import annotations

import shutil

import pytest

from stabwatch.cli.commands.analyze import analyses
from stabwatch.cli.render.html import markup
from stabwatch.cli.render.html.pages import page as html_page
from stabwatch.runlog.labels import Labels, write_labels
from tests.agent.conftest import new_log  # noqa: F401
from tests.agent.test_page import HOSTILE, OPTIONS

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser, tmp_path):
    """Opens a page from a file; fails on any error and any request to elsewhere."""
    complaints, contexts = [], []

    def start(text: str, width: int, scheme: str):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: None if r.url == path.as_uri() else complaints.append(r.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_a_sick_run(new_log, look, width, scheme):  # noqa: F811
    log = new_log("sick", layers=[HOSTILE, "blocks.1", "blocks.2", "\x1b[31mblocks.3"])
    log.write(range(260))
    page = look(html_page(analyses(log.path)), width, scheme)
    assert "critical" in page.locator(".verdict").get_attribute("class")
    assert page.locator("img").count() == 0
    assert HOSTILE in page.inner_text("main")
    assert "\x1b" not in page.content()
    assert page.locator("svg polyline").count() >= 1
    assert page.locator("svg rect").count() > 50
    bars = page.locator("svg.map").first.locator("g.critical rect")
    places = [float(bars.nth(i).get_attribute("x")) for i in range(bars.count())]
    assert len(places) >= 2 and places == sorted(places), "the time-line goes by onset"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (390, "light")])
def test_a_foreign_log(tmp_path, look, width, scheme):
    path = tmp_path / "log.csv"
    rows = [f"{i},{2 + 0.01 * (i % 7) if i < 150 else float('nan')}" for i in range(200)]
    path.write_text("\n".join(["step,loss", *rows]))
    page = look(html_page(analyses(path)), width, scheme)
    assert page.locator("svg polyline").count() == 1
    assert "NonFinite" in page.inner_text("main")


def test_runs_in_one_file_are_lines_of_their_own(tmp_path, look):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + "".join(f"{i},{3 - i / 50}\n" for _ in range(3) for i in range(100)))
    page = look(html_page(analyses(path)), 390, "light")
    assert page.locator("svg.chart polyline").count() == 3
    assert "RunRestarted" in page.locator("svg.map").first.inner_html()


def test_a_report_has_the_name_of_the_run_and_code_in_its_sentences(new_log, look):  # noqa: F811
    log = new_log("named")
    write_labels(log.path, Labels("baseline <b>"))
    log.write(range(60))
    page = look(html_page(analyses(log.path)), 390, "light")
    assert page.inner_text("h1") == "stabwatch report: baseline <b> · named"
    lines = markup.bullets(["call `model.train()` <i>", "a ` alone", "`<b>`"])
    assert lines == (
        "<ul><li>call <code>model.train()</code> &lt;i&gt;</li><li>a ` alone</li><li><code>&lt;b&gt;</code></li></ul>"
    )
