"""The demo's page in a real browser: what users do there, by mouse, keyboard and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..helpers import demo
from ..helpers.browser import FLAGS, find_chromium

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

PATIENCE = demo.PATIENCE * 1000  # milliseconds

expect.set_options(timeout=PATIENCE)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with demo.in_background(tmp_path / "errors") as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, with its three clients in the lobby; it must have nothing to say on the console."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    expect(page.locator(".client .state", has_text="connected")).to_have_count(3)
    yield page
    context.close()
    assert complaints == []


def client(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def join(client: Locator, room: str) -> None:
    client.get_by_label("Room to join").fill(room)
    client.get_by_role("button", name="Join").click()
    expect(client.locator(".activation", has_text=room)).to_be_visible()


def say(client: Locator, room: str, text: str) -> None:
    client.get_by_label("Room to talk in").select_option(room)
    client.get_by_label("Message").fill(text)
    client.get_by_label("Message").press("Enter")


def test_two_clients_talk_in_a_room_and_the_feed_shows_it(page: Page) -> None:
    """A message appears as text at both clients of its room and in the feed, and nowhere else."""
    ada, ben, cleo = (client(page, name) for name in ("Ada", "Ben", "Cleo"))
    join(ada, "tea")
    join(ben, "tea")
    say(ada, "tea", "<img src=x onerror=alert(1)> & hello")
    for log in (ada.get_by_role("log"), ben.get_by_role("log"), page.get_by_role("log", name="Feed of all rooms")):
        message = log.locator(".message")
        expect(message.locator(".who")).to_have_text("Ada")
        expect(message.locator(".where")).to_have_text("tea")
        expect(message.locator(".text")).to_have_text("<img src=x onerror=alert(1)> & hello")
    say(cleo, "lobby", "and here")
    expect(cleo.locator(".message")).to_have_count(1)
    expect(ada.locator(".message")).to_have_count(2)
    expect(cleo.get_by_text("hello")).to_have_count(0)


def test_a_client_leaves_a_room(page: Page) -> None:
    """A client that left a room gets its messages no more; without rooms it cannot send."""
    ada, ben = client(page, "Ada"), client(page, "Ben")
    join(ada, "tea")
    join(ben, "tea")
    ada.get_by_role("button", name="Leave tea").click()
    expect(ada.locator(".rooms li span")).to_have_text(["lobby"])
    say(ben, "tea", "gone?")
    say(ben, "lobby", "still there")
    expect(ada.locator(".message .text")).to_have_text(["still there"])
    expect(ben.locator(".message")).to_have_count(2)
    ada.get_by_role("button", name="Leave lobby").click()
    expect(ada.get_by_text("In no room yet")).to_be_visible()
    expect(ada.get_by_role("button", name="Send")).to_be_disabled()


def test_clients_can_be_added_and_removed(page: Page) -> None:
    """Clients can be added and removed, and the counter follows."""
    page.get_by_role("button", name="Add a client").click()
    dora = client(page, "Dora")
    expect(dora.locator(".state")).to_have_text("connected")
    expect(page.locator("#count-clients")).to_have_text("4")
    dora.get_by_role("button", name="Remove Dora").click()
    expect(page.locator(".client")).to_have_count(3)
    expect(page.locator("#count-clients")).to_have_text("3")
    expect(page.get_by_role("button", name="Add a client")).to_be_focused()


def test_the_page_shows_one_shared_connection(page: Page) -> None:
    """The counters show several subscriptions and one connection."""
    join(client(page, "Ada"), "tea")
    expect(page.locator("#count-clients")).to_have_text("3")
    expect(page.locator("#count-rooms")).to_have_text("2")
    expect(page.locator("#count-subscriptions")).to_have_text("5")
    expect(page.locator("#count-connections")).to_have_text("1")


def test_each_client_shows_disconnect_and_activation_of_a_cut(page: Page) -> None:
    """After a cut each client shows Disconnect and Activation."""
    expect(page.locator("#count-reconnects")).to_have_text("0")
    page.get_by_role("button", name="Cut the Redis connection").click()
    expect(page.get_by_text("Redis has killed 1 connection.")).to_be_visible()
    logs = page.get_by_role("log")
    expect(logs).to_have_count(4)
    for log in logs.all():
        events = log.locator("li .event")
        expect(events).to_have_text(["Activation", "Disconnect", "Activation"])
    expect(page.locator(".client .detail", has_text="reconnected after")).to_have_count(3)
    expect(page.locator(".client .state")).to_have_text(["connected"] * 3)
    expect(page.locator("#count-reconnects")).to_have_text("1")
    expect(page.locator("#count-connections")).to_have_text("1")
    say(client(page, "Ada"), "lobby", "back again")
    expect(client(page, "Cleo").get_by_text("back again")).to_be_visible()


def test_a_promise_counts_down_and_is_kept(page: Page) -> None:
    """A promise shows the time left, then that it was kept."""
    page.get_by_label("Timeout in seconds").fill("60")
    page.get_by_role("button", name="Make a promise").click()
    promise = page.locator(".promise")
    expect(promise.get_by_role("timer")).to_have_text(re.compile(r"^5\d\.\d s left$"))
    expect(promise.get_by_role("timer")).to_have_text(re.compile(r"^58\.\d s left$"))
    promise.get_by_role("button", name="Keep the promise").click()
    expect(promise.locator(".outcome")).to_have_text("kept")
    expect(promise.locator(".time")).to_have_text(re.compile(r"^after .*: done$"))


def test_promises_time_out_and_are_interrupted(page: Page) -> None:
    """Promises show that they timed out or were interrupted."""
    page.get_by_label("Timeout in seconds").fill("1")
    page.get_by_role("button", name="Make a promise").click()
    expect(page.locator(".promise .outcome")).to_have_text("timed out")
    page.get_by_label("Timeout in seconds").fill("60")
    page.get_by_role("button", name="Make a promise").click()
    expect(page.locator(".promise .outcome")).to_have_text(["waiting", "timed out"])
    page.get_by_role("button", name="Cut the Redis connection").click()
    expect(page.locator(".promise .outcome")).to_have_text(["interrupted", "timed out"])


def test_a_rejected_request_is_shown(page: Page) -> None:
    """The server's error about a request is shown at the client."""
    ada = client(page, "Ada")
    ada.get_by_label("Room to join").fill("no spaces, please")
    ada.get_by_role("button", name="Join").click()
    expect(ada.locator(".rejection")).to_contain_text("a room's name has")
    expect(ada.locator(".rooms li span")).to_have_text(["lobby"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(page: Page, scheme: str) -> None:
    """At 360 pixels nothing is too wide, in both colour schemes."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": 360, "height": 740})
    ada = client(page, "Ada")
    join(ada, "w" * 32)
    say(ada, "w" * 32, "m" * 500)
    expect(ada.locator(".message")).to_have_count(1)
    page.get_by_role("button", name="Make a promise").click()
    expect(page.locator(".promise")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    too_wide = "nodes => nodes.filter(n => n.getBoundingClientRect().right > 360).map(n => n.outerHTML)"
    assert page.locator("main *:not(.hidden)").evaluate_all(too_wide) == []


def test_every_field_and_button_has_a_name(page: Page) -> None:
    """Each field and button has an accessible name."""
    page.get_by_role("button", name="Make a promise").click()
    expect(page.locator(".promise")).to_have_count(1)
    unnamed = """nodes => nodes.filter(n => !n.labels?.[0]?.textContent && !n.getAttribute("aria-label")
                 && !(n.tagName === "BUTTON" && /\\w/.test(n.textContent))).map(n => n.outerHTML)"""
    assert page.locator("button, input, select, progress").evaluate_all(unnamed) == []


def test_the_page_works_by_keyboard_alone(page: Page) -> None:
    """Rooms can be joined and left by keyboard, and the focus goes to a sensible place."""
    ada = client(page, "Ada")
    ada.get_by_label("Room to join").focus()
    page.keyboard.type("tea")
    page.keyboard.press("Enter")
    expect(ada.locator(".activation", has_text="tea")).to_be_visible()
    expect(ada.get_by_label("Room to join")).to_be_focused()
    ada.get_by_role("button", name="Leave lobby").focus()
    page.keyboard.press("Space")
    expect(ada.get_by_role("button", name="Leave tea")).to_be_focused()
