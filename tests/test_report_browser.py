"""The report in a real browser: what a reader sees, and what hostile rows cannot do there."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright
from small_mix import HOSTILE, build, rows_of

from datagen.report import write_report
from datagen.steps import run_steps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    dedup, mine, mix = build(str(folder), *rows_of(hostile=True))
    report = write_report(mix, steps=[dedup, mine])
    run_steps([dedup, mine, mix, report], str(folder), executor="local")
    return folder / "mix" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page is not looked at")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, file: Path, *, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page, and all that it should not have done: errors, requests, dialogs."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("data:", "blob:", file.as_uri()))
            or complaints.append(request.url)
        ),
    )
    page.goto(file.as_uri())
    drawn = page.locator(".canvas.js-plotly-plot:has(.main-svg)")
    expect(drawn).to_have_count(page.locator("figure.plot").count())
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_all_plots_without_a_complaint(browser, page_file, width, scheme):
    page, complaints = opened(browser, page_file, width=width, scheme=scheme)
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.locator(".canvas .main-svg").first.is_visible()
    surface = "rgb(255, 255, 255)" if scheme == "light" else "rgb(26, 32, 41)"
    painted = page.locator("#plot-funnel .main-svg").first
    assert painted.evaluate("svg => getComputedStyle(svg).backgroundColor") == surface


def test_plots_answer_the_reader(browser, page_file):
    page, complaints = opened(browser, page_file, width=1280, scheme="light")
    funnel = page.locator("#plot-funnel")
    kept = "figure => figure.querySelector('.js-plotly-plot').data[0].x"
    everything = funnel.evaluate(kept)
    funnel.locator(".updatemenu-header").click()
    funnel.locator(".updatemenu-dropdown-button", has_text="trivia").dispatch_event("click")
    trivia = funnel.evaluate(kept)
    assert 0 < sum(trivia) < sum(everything)
    page.emulate_media(color_scheme="dark")
    painted = funnel.locator(".main-svg").first
    expect(painted).to_have_css("background-color", "rgb(26, 32, 41)")
    assert complaints == []


def test_hostile_names_are_labels_and_nothing_else(browser, page_file):
    page, complaints = opened(browser, page_file, width=1280, scheme="light")
    page.locator("#plot-funnel .updatemenu-header").click()
    label = " ".join(HOSTILE["source"].split())[:39]
    names = page.locator("#plot-funnel .updatemenu-dropdown-button").all_text_contents()
    assert any(label in name for name in names)
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.locator("figure a").count() == page.locator("figure a.modebar-btn").count()
    assert complaints == []
