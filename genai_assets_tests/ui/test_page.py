"""The page in a real browser, over a real service: type, look, rate."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from genai_assets_tests.serving.tiny_service import VERSION, Service

pytest_plugins = ["genai_assets_tests.serving.tiny_service"]

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("GENAI_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        told = "no chromium: install it (apt-get install chromium) or set GENAI_CHROMIUM to the executable"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Content Security" in message.text else None)
    page.goto(service.url)
    yield page
    page.close()
    assert not complaints


def test_a_prompt_becomes_pictures_and_a_thumb_becomes_a_row_in_the_log(page: Page, service: Service):
    expect(page.get_by_test_id("model")).to_contain_text(VERSION)
    page.get_by_test_id("prompt").fill("a slice of pizza")
    page.get_by_test_id("number").select_option("2")
    page.get_by_test_id("generate").click()
    pictures = page.get_by_test_id("picture")
    expect(pictures).to_have_count(2, timeout=30_000)
    assert pictures.first.evaluate("image => [image.complete, image.naturalWidth]") == [True, 64]
    expect(page.get_by_test_id("latency")).to_contain_text("seed")
    expect(page.get_by_test_id("history")).to_contain_text("a slice of pizza")

    page.get_by_test_id("thumb-up").nth(1).click()
    expect(page.get_by_test_id("thumb-up").nth(1)).to_have_attribute("aria-pressed", "true")
    with service.log() as log:
        asked = log.requests(newest=1).iloc[0]
        rated = log.feedback().iloc[-1]
    assert (asked["prompt"], asked["n"], asked["status"]) == ("a slice of pizza", 2, 200)
    assert (rated["request_id"], rated["picture_id"], rated["rating"]) == (asked["id"], asked["picture_ids"][1], 1)

    page.get_by_test_id("better-caption").nth(1).fill("a pizza with olives")
    page.get_by_test_id("send-caption").nth(1).click()
    expect(page.get_by_test_id("said").nth(1)).to_contain_text("caption is noted")
    with service.log() as log:
        assert log.feedback().iloc[-1]["better_caption"] == "a pizza with olives"


def test_the_keyboard_is_enough(page: Page, service: Service):
    expect(page.get_by_test_id("prompt")).to_be_focused()
    page.keyboard.type("a small key")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("picture")).to_have_count(1, timeout=30_000)
    page.get_by_test_id("generate").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_test_id("thumb-down")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_test_id("said")).to_contain_text("noted")
    with service.log() as log:
        assert log.feedback().iloc[-1]["rating"] == -1


def test_what_people_type_is_shown_as_text(page: Page):
    page.get_by_test_id("prompt").fill("<img src=x onerror=alert(1)>")
    page.get_by_test_id("generate").click()
    expect(page.get_by_test_id("picture")).to_have_count(1, timeout=30_000)
    expect(page.get_by_role("heading", name="<img src=x onerror=alert(1)>")).to_be_visible()


def test_an_error_is_told_in_plain_words(page: Page):
    page.get_by_test_id("prompt").fill("   ")
    page.get_by_test_id("generate").click()
    expect(page.get_by_test_id("error")).to_have_text("Please say what the picture should show.")
    page.get_by_test_id("prompt").fill("a hat")
    page.context.set_offline(True)
    page.get_by_test_id("generate").click()
    expect(page.get_by_test_id("error")).to_have_text("The service cannot be reached. Is it still running?")
    expect(page.get_by_test_id("generate")).to_be_enabled()
    page.context.set_offline(False)


def test_a_narrow_window_does_not_scroll_sideways(page: Page):
    page.set_viewport_size({"width": 340, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
