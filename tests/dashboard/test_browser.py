"""The pages in a real Chromium: nothing hostile runs, they fit, are live, and need no mouse.

Skipped where there is no Chromium: `apt-get install chromium` brings one on Debian.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from psycopg import sql

from tests.support.panel import Panel, browser, form_token, panel

__all__ = ["browser", "panel"]

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on the PATH: apt-get install chromium"
)
WIDTHS = (1280, 390)


@dataclass
class Seen:
    """A page, and what its browser complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium(panel: Panel) -> Iterator[Browser]:
    """Provide one browser, after the panel: it keeps an event loop in this thread."""
    assert panel.link
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(
    chromium: Browser, panel: Panel, width: int = 1280, scheme: str = "light"
) -> Iterator[Seen]:
    """A page of the panel, opened by its link."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    seen = Seen(context.new_page())
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: dialog.dismiss())
    seen.page.goto(panel.link)
    yield seen
    context.close()


def places(panel: Panel) -> list[str]:
    return [
        "/", "/tasks", f"/tasks/{panel.completed}", f"/tasks/{panel.rejected}", "/users",
        f"/tasks/{panel.film}", f"/tasks/{panel.film}?show=poster",
        f"/users/{panel.user}", "/numbers", f"/act?action=cancel&task={panel.waiting}",
    ]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_of_a_user_runs_as_code_and_every_page_fits(
    chromium: Browser, panel: Panel, width: int
) -> None:
    with opened(chromium, panel, width, "dark" if width == WIDTHS[1] else "light") as seen:
        for place in places(panel):
            seen.page.goto(panel.url + place)
            seen.page.wait_for_load_state("networkidle")
            assert seen.page.evaluate("window.hacked") is None, place
            wider = seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{place} is {wider} pixels wider than a window of {width}"
            assert seen.page.locator("h1").count() == 1
        assert seen.complaints == []
        # The policy itself: what is put into the page all the same does not run.
        seen.page.evaluate(
            "document.body.insertAdjacentHTML('beforeend',"
            " '<img src=x onerror=\"window.hacked = 1\">')"
        )
        seen.page.wait_for_function("document.images[document.images.length - 1].complete")
        assert seen.page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in complaint for complaint in seen.complaints)


def test_the_still_and_the_clip_are_shown(chromium: Browser, panel: Panel) -> None:
    with opened(chromium, panel) as seen:
        seen.page.goto(f"{panel.url}/tasks/{panel.completed}")
        # The image and, where this Chromium has the codec, the first frame.
        seen.page.wait_for_function(
            "(() => { const clip = document.querySelector('video');"
            " return clip.readyState >= 1 || clip.error; })()"
        )
        assert seen.page.evaluate("document.querySelector('video').error?.code ?? 0") in (0, 4)
        seen.page.goto(f"{panel.url}/tasks")
        still = seen.page.locator(".thumb img").first
        still.wait_for()
        seen.page.wait_for_function("document.querySelector('.thumb img').naturalWidth > 100")
        assert [one for one in seen.complaints if "Content Security" in one] == []


def test_a_page_updates_itself_and_disturbs_nobody_at_work(
    chromium: Browser, panel: Panel, browser: httpx.Client
) -> None:
    with opened(chromium, panel) as seen:
        page = seen.page
        page.clock.install()
        page.goto(f"{panel.url}/tasks?status=pending")
        page.locator(f"input[value='{panel.waiting}']").check()
        assert page.locator("#count").inner_text() == "1 chosen"
        with page.expect_response(lambda answer: "/tasks" in answer.url):
            page.clock.run_for(10_500)
        assert page.locator(f"input[value='{panel.waiting}']").is_checked()
        page.goto(panel.url)
        tile = page.locator("#tiles dd").first
        page.locator("#failures a.id").first.focus()
        focused = page.evaluate("document.activeElement.href")
        waiting, place = int(tile.inner_text()), page.locator("#failures").bounding_box()
        panel.world.order(panel.user, panel.world.scene(panel.user))
        # The server keeps an answer for ten seconds, unless somebody has changed something.
        form = {"token": form_token(browser.get("/gate?action=close&model=*").text)}
        opened_gate = {**form, "action": "open", "model": "none"}
        assert browser.post("/gate", data=opened_gate, headers=panel.origin).status_code == 409
        page.clock.run_for(10_500)
        expect(tile).to_have_text(str(waiting + 1))
        assert page.locator("#failures").bounding_box() == place
        assert page.evaluate("document.activeElement.href") == focused


@contextmanager
def away(panel: Panel) -> Iterator[None]:
    """The panel's database takes no connection inside the block, and has ended those it had."""
    database = panel.world.database
    name = sql.Identifier(database.name)
    with psycopg.connect(database.admin_url, dbname="postgres", autocommit=True) as conn:
        conn.execute(sql.SQL("alter database {} allow_connections false").format(name))
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
            [database.name],
        )
        try:
            yield
        finally:
            conn.execute(sql.SQL("alter database {} allow_connections true").format(name))


def test_a_page_says_that_the_database_is_away_and_comes_back(
    chromium: Browser, panel: Panel
) -> None:
    with opened(chromium, panel) as seen:
        page = seen.page
        page.clock.install()
        with away(panel):
            page.goto(f"{panel.url}/tasks?status=cancelled&since=30d")
            expect(page.locator("#sentence")).to_contain_text("database")
        page.clock.run_for(10_500)
        page.get_by_role("heading", name="Tasks").wait_for()
        with away(panel), page.expect_response(lambda answer: answer.status == 503):
            page.evaluate("history.replaceState(null, '', '/tasks?status=cancelled&since=1h')")
            page.clock.run_for(10_500)
        expect(page.locator("#notice")).to_contain_text("What you see is out of date.")
        page.clock.run_for(10_500)
        expect(page.locator("#notice")).to_be_hidden()


def test_everything_is_reached_by_keyboard_with_a_visible_focus(
    chromium: Browser, panel: Panel
) -> None:
    with opened(chromium, panel) as seen:
        page = seen.page
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "(() => { const at = document.activeElement;"
                    " return [at.textContent.trim() || at.name,"
                    " getComputedStyle(at).outlineStyle, getComputedStyle(at).outlineWidth]; })()"
                )
            )
        names = [name for name, _, _ in reached]
        assert names[:6] == [
            "Skip to the content",
            "vidgenworker",
            "Now",
            "Tasks",
            "Users",
            "Numbers",
        ]
        assert "Close the gate …" in names
        assert {tuple(outline) for _, *outline in reached} == {("solid", "2px")}
        page.goto(f"{panel.url}/tasks?status=pending")
        page.locator(f"input[value='{panel.waiting}']").focus()
        page.keyboard.press("Space")
        page.get_by_role("button", name="Cancel …").focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Cancel 1 task?").wait_for()
        page.get_by_role("button", name="Cancel 1 task").focus()
        page.keyboard.press("Enter")
        page.get_by_text("It is cancelled.").wait_for()
        assert panel.world.task(panel.waiting)["status"] == "cancelled"
