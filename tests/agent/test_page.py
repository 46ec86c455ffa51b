"""The live page in a real browser."""

from __future__ import annotations

import re
import shutil
import time

import pytest

from stabwatch.runlog import Accumulator, Event, append_event
from tests.agent.conftest import until

pytestmark = pytest.mark.chromium
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
           "--no-first-run", "--disable-dev-shm-usage"]  # fmt: skip
HOSTILE = '<img src=x onerror="window.hacked=1">'
COLOURED = """() => [...document.querySelectorAll('.uplot canvas')].map(canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let n = 0;
    for (let i = 0; i < data.length; i += 4)
    {
        const [red, green, blue, alpha] = data.slice(i, i + 4);
        n += alpha > 0 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60;
    }
    return n;
})"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        path = next(p for name in BROWSERS if (p := shutil.which(name)))
        chromium = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield chromium
        chromium.close()


def broken(message) -> bool:
    """An error that is not the agent's silence."""
    return message.type == "error" and "Failed to load resource" not in message.text


@pytest.fixture
def open_page(browser):
    """Opens an address; fails at the end on any error on the console and any request to another host."""
    contexts, complaints = [], []

    def start(url: str, *, width: int = 1200, scheme: str = "light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: complaints.append(message.text) if broken(message) else None)
        page.on("request", lambda r: None if r.url.startswith((url, "data:")) else complaints.append(f"asked {r.url}"))
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def sick(new_log):
    """A sick run that goes on, with names that try to be markup."""
    now = time.time()
    layers = [HOSTILE, "blocks.1", "blocks.2", "blocks.3"]
    log = new_log("sick", layers=layers, created=now - 40, now=lambda step: now - 30 + 0.1 * step)
    log.write(range(260))
    return log


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_page_shows_what_is_wrong_and_where(sick, start_agent, open_page, width, scheme):
    url = start_agent(sick.path).info()["url"]
    page = open_page(url, width=width, scheme=scheme)
    page.wait_for_selector(".uplot canvas")
    until(lambda: "critical" in (page.locator("#diagnosis").get_attribute("class") or ""))
    assert page.inner_text("#name") == "sick"
    assert "running" in page.inner_text("#state")
    assert len(page.inner_text(".verdict")) > 20
    assert HOSTILE in page.inner_text("#alerts")
    assert page.locator("#table tbody td").nth(6).get_attribute("title") == f"{HOSTILE}.attn"
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    titles = page.locator(".chart h3").all_inner_texts()
    assert titles[:3] == ["Loss", "Gradient norm", "Attention logit"]
    assert len(titles) == 7
    assert min(page.evaluate(COLOURED)) > 400
    assert page.locator(".chart").nth(2).locator(".scale").inner_text() == "log scale"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_follows_the_run_and_says_when_the_agent_is_gone(sick, start_agent, open_page):
    agent = start_agent(sick.path)
    page = open_page(agent.info()["url"])
    page.wait_for_selector(".uplot canvas")
    sick.write(range(260, 280))
    until(lambda: "279" in page.inner_text("#facts"))
    assert page.locator("#gone").is_hidden()
    agent.process.kill()
    page.wait_for_selector("#gone:not([hidden])", timeout=15000)
    assert "does not answer" in page.inner_text("#gone")


def test_a_loss_that_is_not_finite_is_not_said_to_be_missing(new_log, start_agent, open_page):
    log = new_log("broken")
    log.write(range(20))
    row = log.row(20)
    log.put(row, "loss", "", "mean", sum=float("nan"))
    log.folder.append(log.layout, 20, log.now(20), row)
    page = open_page(start_agent(log.path).info()["url"])
    until(lambda: "20" in page.inner_text("#facts"))
    assert "not finite" in page.inner_text("#facts")


def test_a_selected_layer_stays_selected(sick, start_agent, open_page):
    page = open_page(start_agent(sick.path).info()["url"])
    page.wait_for_selector(".uplot canvas")
    page.locator("#table tbody tr", has_text="blocks.1.attn").click()
    sick.write(range(260, 262))
    until(lambda: "261" in page.inner_text("#facts"))
    assert page.locator("tr.selected").inner_text().startswith("blocks.1.attn")


def test_a_run_without_records_yet(new_log, start_agent, open_page):
    page = open_page(start_agent(new_log("empty").path).info()["url"])
    until(lambda: page.inner_text("#name") == "empty")
    assert page.inner_text(".verdict")
    assert page.locator("#charts-section").is_hidden()
    assert page.locator("#layers").is_hidden()


def test_zoom_stays_when_data_comes_and_is_shared(sick, start_agent, open_page):
    page = open_page(start_agent(sick.path).info()["url"])
    page.wait_for_selector(".uplot canvas")
    page.locator(".chart").nth(0).scroll_into_view_if_needed()
    box = page.locator(".chart").nth(0).locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    assert page.locator("#unzoom").is_visible()
    page.locator(".chart button:visible", has_text="heat map").first.click()  # it shows the same steps
    before = page.locator(".heat-axis").first.inner_text()
    assert "259" not in before
    sick.write(range(260, 270))
    until(lambda: "269" in page.inner_text("#facts"))
    assert page.locator(".heat-axis").first.inner_text() == before
    page.locator("#unzoom").click()
    until(lambda: "269" in page.locator(".heat-axis").first.inner_text())
    assert page.locator("#unzoom").is_hidden()


def test_layers_are_found_and_names_keep_their_number(new_log, start_agent, open_page):
    now = time.time()
    layers = [f"model.decoder.transformer_layers.{i}" for i in range(12)]
    log = new_log("deep", layers=layers, created=now - 40, now=lambda step: now - 30 + 0.1 * step)
    log.write(range(260))
    page = open_page(start_agent(log.path).info()["url"])
    page.wait_for_selector(".uplot canvas")
    until(lambda: "Also at model.decoder.transformer_layers.{" in page.inner_text("#alerts"))
    assert page.inner_text("#alerts").count("transformer_layers") < 4
    names = page.locator("#table tbody td:first-child").all_inner_texts()
    assert len(set(names)) == len(names) and any("11.attn" in name for name in names)
    page.fill("#find", "layers.7.")
    until(lambda: page.locator("#table tbody tr").count() == 2)
    assert "7" in page.locator(".chart .readout .layer").nth(2).inner_text()
    page.keyboard.press("Escape")
    until(lambda: page.locator("#table tbody tr").count() > 30)
    page.check("#worst-first")
    assert "0.attn" in page.locator("#table tbody tr").first.inner_text()
    page.select_option("#axis", "linear")
    until(lambda: page.locator(".chart .scale", has_text="log").count() == 0)


def test_old_values_are_grey_and_alerts_that_are_over_stay_readable(new_log, start_agent, open_page):
    now = time.time()
    log = new_log("r", sick=False, created=now - 400, now=lambda step: now - 300 + step)
    log.write(range(40))
    for step in range(40, 250):  # activations are no longer measured
        row = log.row(step)
        for site in log.sites:
            start = log.layout.start(Accumulator("activation", site, "moments"))
            row[start : start + 3] = float("nan")
        log.folder.append(log.layout, step, log.now(step), row)
    for state in ("firing", "resolved"):
        data = {"rule": "LossSpike", "severity": "warning", "state": state, "signal": "loss", "layer": "", "onset": 9}
        append_event(log.path, Event("alert", now, 10, {**data, "summary": "The loss jumped."}))
    page = open_page(start_agent(log.path).info()["url"])
    page.wait_for_selector("#table td.stale")
    assert "at step 36" in page.locator("#table td.stale").first.inner_text()


def test_a_run_that_ended_at_once_did_not_run_for_long(new_log, start_agent, open_page):
    now = time.time()
    log = new_log("short", created=now - 3000, now=lambda step: now - 2999)
    log.end(0)
    page = open_page(start_agent(log.path).info()["url"])
    until(lambda: "ran for" in page.inner_text("#facts"))
    assert "1 s" in page.inner_text("#facts").split("ran for")[1]


def test_a_runbook_opens_on_the_page(sick, start_agent, open_page):
    page = open_page(start_agent(sick.path).info()["url"])
    page.locator("a.runbook").first.click()
    page.wait_for_selector(".prose h2")
    assert "what it means" in page.inner_text("main").lower()


def test_the_axis_of_time(sick, start_agent, open_page):
    page = open_page(start_agent(sick.path).info()["url"])
    page.wait_for_selector(".uplot canvas")
    page.select_option("#x", "time")
    page.locator(".chart").first.locator(".u-over").hover()
    readout = page.locator(".chart").first.locator(".readout")
    until(lambda: re.search(r"step \d+, .*\d+:\d\d:\d\d", readout.inner_text()))
    assert min(page.evaluate(COLOURED)) > 400
    page.select_option("#x", "step")
    until(lambda: ":" not in readout.inner_text())


def test_any_signal_as_a_heat_map(sick, start_agent, open_page):
    page = open_page(start_agent(sick.path).info()["url"])
    page.wait_for_selector(".uplot canvas")
    page.select_option("#add", "weight_rms")
    page.wait_for_selector(".heatmap .colour-bar canvas")
    first = page.locator(".chart").first
    assert first.locator("h3").inner_text() == "weight rms"
    first.locator(".heatmap > canvas").hover()
    until(lambda: "step " in first.locator(".readout").inner_text())
    first.get_by_role("button", name="remove").click()
    assert page.locator(".chart h3").first.inner_text() == "Loss"


def test_what_changed_since(sick, start_agent, open_page):
    page = open_page(start_agent(sick.path).info()["url"])
    page.wait_for_selector(".uplot canvas")
    assert page.locator("#changes-list li").count() == 0
    page.fill("#since", "10")
    until(lambda: HOSTILE in page.inner_text("#changes-list"), timeout=60)
    text = page.inner_text("#changes-list")
    assert "Attention logit" in text and "→" in text
    until(lambda: "step\n259" in page.inner_text("body"), timeout=60)  # all of the log is read
    page.fill("#since", "259")
    until(lambda: page.locator("#changes-none").is_visible(), timeout=60)
    page.reload()
    page.wait_for_selector(".uplot canvas")
    sick.write(range(260, 290))
    until(lambda: page.input_value("#since") == "259", timeout=60)  # the last look
