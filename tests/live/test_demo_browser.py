"""The demo's page in a real browser: what users do there, by mouse, keyboard and on a phone."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..helpers import demo
from ..helpers.browser import FLAGS, find_chromium
from ..helpers.npm import installed

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
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, with its three clients in the lobby; it must have nothing to say on the console.

    With REDISMPX_SCREENSHOTS set, as in CI, this folder gets a picture of the page at the end of each test.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    expect(page.locator(".client .state", has_text="connected")).to_have_count(3)
    yield page
    if folder := os.environ.get("REDISMPX_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    context.close()
    assert complaints == []


def client(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def join(client: Locator, room: str) -> None:
    client.get_by_label("Room to join").fill(room)
    client.get_by_role("button", name="Join").click()
    expect(client.locator(".activation", has_text=room)).to_be_visible()


def cut(page: Page) -> None:
    page.get_by_role("button", name="Cut the wire for 0.5 s").click()


def say(client: Locator, room: str, text: str) -> None:
    client.get_by_label("Room to talk in").select_option(room)
    client.get_by_label("Message").fill(text)
    client.get_by_label("Message").press("Enter")


def test_the_page_says_first_what_it_shows(page: Page) -> None:
    """The status explains the numbers until something happens."""
    expect(page.locator("#cells-channel li").first).to_be_attached()
    expect(page.locator("#connection-status")).to_contain_text("Cut the wire: a missing number turns red.")


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
    expect(page.locator("#count-rooms")).to_have_text("7")  # two rooms, two of numbers, two of the topic, a service
    expect(page.locator("#count-subscriptions")).to_have_text("11")
    expect(page.locator("#count-connections")).to_have_text("1")


def test_each_client_shows_disconnect_and_activation_of_a_cut(page: Page) -> None:
    """After a cut each client shows Disconnect and Activation."""
    expect(page.locator("#count-reconnects")).to_have_text("0")
    cut(page)
    expect(page.locator("#connection-status")).to_contain_text("Connected again after")
    logs = page.get_by_role("log")
    expect(logs).to_have_count(4)
    for log in logs.all():
        events = log.locator(".event")
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
    cut(page)
    expect(page.locator(".promise .outcome")).to_have_text(["interrupted", "timed out"])


def test_a_refused_name_is_kept_and_explained(page: Page) -> None:
    """A refused name stays in its field, which is marked, with the reason beside it; the next one is accepted."""
    ada = client(page, "Ada")
    field = ada.get_by_label("Room to join")
    field.fill("no spaces, please")
    ada.get_by_role("button", name="Join").click()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_value("no spaces, please")
    expect(field).to_have_accessible_description(re.compile("a room's name has"))
    expect(ada.locator(".rooms li span")).to_have_text(["lobby"])
    say(ada, "lobby", "hello")
    expect(ada.locator(".message")).to_have_count(1)
    expect(field).to_have_accessible_description(re.compile("a room's name has"))
    join(ada, "tea")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    expect(ada.locator(".refusal")).to_be_empty()


# --- the numbers and the faults


@pytest.mark.parametrize(
    ("button", "wire"),
    [("Cut the wire for 0.5 s", "down"), ("Freeze the server for 5 s", "frozen"), ("Restart the server", "down")],
)
def test_a_fault_shows_what_each_subscription_misses(page: Page, button: str, wire: str) -> None:
    """The picture shows the fault. After it, the stream subscription has missed nothing, and the status says so."""
    expect(page.locator("#last-stream")).to_have_text(re.compile(r"^\d+$"))
    page.get_by_role("button", name=button).click()
    expect(page.locator("#picture")).to_have_attribute("data-wire", wire)
    expect(page.locator("#connection-status")).to_contain_text("the stream subscription 0.")
    expect(page.locator("#picture")).to_have_attribute("data-wire", "up")
    expect(page.locator("#missed-stream")).to_have_text("0")
    expect(page.locator("#cells-channel .lost")).to_have_count(1)
    missing = page.locator("#cells-channel .missing")
    expect(page.locator("#missed-channel")).to_have_text(str(missing.count()))
    expect(page.locator("#cells-stream .missing")).to_have_count(0)


def test_the_publisher_goes_on_while_the_connection_is_cut(page: Page) -> None:
    """The numbers that are published meanwhile are seen at the publisher, then as missing before the Activation."""
    page.get_by_role("button", name="Cut it for 5 s").click()
    expect(page.locator("#picture")).to_have_attribute("data-wire", "down")
    last = page.locator("#last-channel").text_content() or ""
    is_ahead = "last => Number(document.getElementById('picture-number').textContent) > last + 3"
    page.wait_for_function(is_ahead, arg=int(last))
    expect(page.locator("#last-channel")).to_have_text(last)
    expect(page.locator("#connection-status")).to_contain_text("the stream subscription 0.")
    expect(page.locator("#cells-channel .lost + .missing")).to_have_text(str(int(last) + 1))
    expect(page.locator("#cells-channel .missing + .back")).to_have_count(1)


def test_a_topic_and_requests_go_on_beside_a_cut(page: Page) -> None:
    """After a cut the page shows what the topic got meanwhile, which requests failed, and what each client missed."""
    expect(page.locator("#last-reply")).to_have_text(re.compile(r"^\d+² = \d+$"))
    for _ in range(2):  # all clients are on the channel by now, so they have the second number too
        expect(page.locator("#last-channel")).not_to_have_text(page.locator("#last-channel").text_content() or "")
    page.get_by_role("button", name="Cut it for 5 s").click()
    expect(page.locator("#note-topic")).to_have_text(re.compile(r"^[1-9]\d* came while the connection was lost\.$"))
    expect(page.locator("#note-requests")).to_have_text(re.compile(r"^[1-9]\d* failed in a row\.$"))
    expect(page.locator("#connection-status")).to_contain_text("numbers, the topic 0, the stream subscription 0.")
    expect(page.locator("#note-requests")).to_contain_text("Answered again after")
    failed = page.locator("#failed-requests").text_content()
    expect(page.locator("#note-requests")).to_have_text(f"Answered again after {failed} failed.")
    expect(page.locator("#missed-topic")).to_have_text("0")
    missed = page.locator("#missed-channel").text_content() or ""
    assert int(missed) > 0
    expect(page.locator(".client .missed")).to_have_text([f"missed {missed} numbers"] * 3)


def test_the_command_is_shown_whole_and_copied(page: Page) -> None:
    """The command for redis-cli has the address of the server, and can be copied."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command = page.locator("#command")
    expect(command).to_have_text(
        re.compile(r"^redis-cli -u redis://:\S+@127\.0\.0\.1:\d+ PUBLISH demo:room:lobby \w+$")
    )
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command.text_content()


def test_the_page_recovers_from_a_restart_of_the_demo(browser: Browser, tmp_path: Path) -> None:
    """After a restart, each card has its name and its rooms, and what was typed meanwhile is kept."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with demo.in_background(tmp_path / "first", port) as url:
        page = browser.new_page()
        page.goto(url)
        join(client(page, "Ben"), "tea")
    ben = client(page, "Ben")
    expect(ben.locator(".state")).to_have_text("WebSocket closed")
    ben.get_by_label("Message").fill("typed meanwhile")
    ben.get_by_role("button", name="Send").click()
    expect(ben.locator(".refusal")).to_contain_text("not sent")
    with demo.in_background(tmp_path / "second", port):
        expect(page.locator(".client .state", has_text="connected")).to_have_count(3)
        expect(page.locator(".client h3")).to_have_text(["Ada", "Ben", "Cleo"])
        expect(ben.locator(".rooms li span")).to_have_text(["lobby", "tea"])
        expect(ben.get_by_label("Message")).to_have_value("typed meanwhile")
        expect(page.locator("#connection-status")).to_have_text("Connected to the demo.")
        expect(page.locator("#missed-channel")).to_have_text("0")
        ben.get_by_role("button", name="Send").click()
        expect(ben.locator(".message .text")).to_have_text("typed meanwhile")
        page.close()


def test_a_long_message_is_folded(page: Page) -> None:
    """A long message shows its beginning, and the rest on request."""
    ada = client(page, "Ada")
    say(ada, "lobby", "start " + "x" * 300 + " end")
    text = ada.locator("details.text")
    expect(text.locator("summary")).to_have_text(re.compile("^start x+…$"))
    expect(text).not_to_have_attribute("open", "")
    text.locator("summary").click()
    expect(text).to_contain_text("end")


def test_a_term_is_explained_on_request(page: Page) -> None:
    """The words of redismpx have an explanation, which a click or a tap opens."""
    page.get_by_role("button", name="Stream subscription").click()
    expect(page.locator("#about-stream")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#about-stream")).to_be_hidden()


def test_the_shown_program_runs(page: Page, tmp_path: Path) -> None:
    """The program of the page, with the URL of the shown command, prints the numbers."""
    expect(page.locator("#command")).to_contain_text("redis://")
    server = (page.locator("#command").text_content() or "").split()[2]
    source = page.locator("pre code").text_content() or ""
    assert source.count("\n") <= 26
    program = tmp_path / "program.py"
    program.write_text(source.replace("redis://localhost:6379", server))
    with subprocess.Popen([sys.executable, "-u", "-W", "error", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed: set[str] = set()
        for line in itertools.islice(process.stdout, 40):
            printed.add(line.partition(":")[0])
            if len(printed) == 4:
                break
        process.terminate()
    assert printed == {"channel", "stream", "topic", "reply"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_accessibility_faults(page: Page, scheme: str) -> None:
    """axe-core finds no violation, with each kind of content on the page, in both colour schemes."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.get_by_role("button", name="Make a promise").click()
    cut(page)
    expect(page.locator("#connection-status")).to_contain_text("Connected again")
    expect(page.locator("#cells-channel .back")).to_have_count(1)
    page.locator("summary").first.click()
    page.evaluate((installed("axe-core", "4.14.1") / "axe-core/axe.min.js").read_text())
    found = page.evaluate("axe.run()")
    assert [(each["id"], [node["html"][:100] for node in each["nodes"]]) for each in found["violations"]] == []


@pytest.mark.parametrize("width", [320, 360])
def test_the_page_fits_a_phone(page: Page, width: int) -> None:
    """On a phone nothing is too wide, and nothing important is below four screens, also after a cut."""
    page.set_viewport_size({"width": width, "height": 740})
    page.reload()
    expect(page.locator(".client .state", has_text="connected")).to_have_count(2)
    expect(page.locator("#last-channel")).to_have_text(re.compile(r"^\d+$"))
    cut(page)
    expect(page.locator("#connection-status")).to_contain_text("the stream subscription 0.")
    expect(page.locator("#note-requests")).to_contain_text("failed")
    page.get_by_role("button", name="Make a promise").click()
    expect(page.locator(".promise .keep")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollHeight") <= 4 * 740
    ada = client(page, "Ada")
    join(ada, "w" * 32)
    say(ada, "w" * 32, "m" * 500)
    expect(ada.locator(".message")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_wide = "(nodes, width) => nodes.filter(n => n.getBoundingClientRect().right > width).map(n => n.outerHTML)"
    assert page.locator("main *:not(.hidden):not(pre *)").evaluate_all(too_wide, width) == []


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
