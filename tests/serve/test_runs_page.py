"""The list and the comparison in a real browser."""

from __future__ import annotations

import pytest

from tests.agent.conftest import until
from tests.agent.test_page import HOSTILE, browser, open_page  # noqa: F401  (fixtures)

pytestmark = pytest.mark.chromium


@pytest.fixture
def many(runs, root, serving):
    """Twelve runs, one of them sick, one with a name that tries to be markup."""
    for i in range(10):
        log = runs(f"group/run-{i}", tags=["even" if i % 2 == 0 else "odd"], config={"lr": 10.0**-i, "batch": i % 3})
        log.write(range(20))
        log.end(19)
    sick = runs("sick", sick=True, config={"agent": False})
    sick.write(range(150))
    runs("hostile", model={"name": HOSTILE}, host=HOSTILE).end(0)
    service = serving(root)
    service.round()
    return service


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark"), (1920, "light")])
def test_the_list(many, open_page, width, scheme):  # noqa: F811
    page = open_page(many.url, width=width, scheme=scheme)
    page.wait_for_selector("#list svg")
    assert page.locator("#list tbody tr").count() == 12
    first = page.locator("#list tbody tr").first
    assert "sick" in first.inner_text() and "ttention" in first.inner_text()
    assert first.locator(".name a").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert HOSTILE in page.inner_text("#list") and page.locator("img").count() == 0


def test_filter_sort_group_and_open(many, open_page):  # noqa: F811
    page = open_page(many.url)
    page.wait_for_selector("#list tbody tr")
    page.fill("#search", "run- even")
    until(lambda: page.locator("#list tbody tr").count() == 5)
    page.fill("#search", "tag=even lr<1e-3")
    until(lambda: page.locator("#list tbody tr").count() == 3)
    page.fill("#search", "batch=2 tag!=even")
    until(lambda: page.locator("#list tbody tr").count() == 1)
    page.fill("#search", "no such run")
    until(lambda: page.locator("#empty").is_visible())
    page.fill("#search", "")
    page.select_option("#health", "bad")
    until(lambda: page.locator("#list tbody tr").count() == 1)
    page.select_option("#health", "")
    page.get_by_role("button", name="Run", exact=True).click()
    assert page.locator("#list tbody .name a").first.inner_text() == "hostile"
    page.select_option("#group", "first")
    until(lambda: page.locator("#list .group").count() == 2)
    assert "Not judged" in page.inner_text("#list")
    page.select_option("#setting", "stabwatch.lr")
    until(lambda: page.get_by_role("button", name="lr", exact=True).count() == 1)
    page.get_by_role("button", name="lr", exact=True).click()
    until(lambda: "1e-9" in page.locator("#list tbody tr:not(.group)").first.inner_text())
    page.select_option("#setting", "stabwatch.batch")
    page.select_option("#group", "setting")
    until(lambda: page.locator("#list .group").count() == 4)  # 0, 1, 2, and runs without it
    page.select_option("#group", "tags")
    until(lambda: page.locator("#list .group").count() == 3)
    page.get_by_role("link", name="sick", exact=True).click()
    page.wait_for_selector("#name")
    until(lambda: page.inner_text("#name") == "sick")
    page.locator("#above a").click()
    page.wait_for_selector("#list tbody tr")


def test_the_comparison(many, open_page):  # noqa: F811
    page = open_page(many.url)
    page.wait_for_selector("#list tbody tr")
    for name in ("run-1", "run-2"):
        page.get_by_label(f"Compare {name}", exact=True).check()
    page.locator("#compare").click()
    page.wait_for_selector("#charts .uplot", timeout=60000)
    assert "stabwatch.lr" in page.inner_text("#differences")
    assert "run-2" in page.inner_text("#runs")
    before = page.locator("#charts .uplot").count()
    page.check("#log")
    assert page.locator("#charts .uplot").count() == before
