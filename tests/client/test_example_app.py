"""The page of examples/app in a real Chromium, on a sandbox with a real worker.

It is built as its README says, from a copy, and served with nothing but files. One sandbox, one
worker and one browser serve the module. Skipped where Chromium, Node or Vite is missing.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Route,
    WebSocketRoute,
    expect,
    sync_playwright,
)
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.conftest import Database
from tests.support.sandboxes import TOOLS, fresh, sandbox
from vidgen_worker.sandbox.control import RunwayControl
from vidgen_worker.sandbox.postgres.places import free_port
from vidgen_worker.sandbox.serving import BackgroundServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "app"
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
PATIENCE_MS = 60_000
PRICE = 30
PHONE, DESKTOP, NARROW = (390, 844), (1280, 900), (320, 640)
WATCHED = """
window.shifts = []; window.blocked = []; window.bar = []
new PerformanceObserver((list) => {
  for (const { hadRecentInput, value, sources } of list.getEntries()) {
    if (hadRecentInput) continue
    window.shifts.push([value, ...sources.map(({ node }) => node?.id || node?.className || '?')])
  }
}).observe({ type: 'layout-shift', buffered: true })
document.addEventListener('securitypolicyviolation', (e) => window.blocked.push(e.blockedURI))
const bar = () => {
  const shown = document.querySelector('.card progress')
  if (shown && shown.value !== window.bar.at(-1)) window.bar.push(shown.value)
}
new MutationObserver(bar).observe(document, { subtree: true, childList: true, attributes: true })
"""
"""Notes what moved by itself, what the policy refused, and the first card's bar."""

PLAYS = """
it => new Promise((plays, fails) => {
  const look = () => { if (it.currentTime > 0.1) plays(it.readyState) }
  it.addEventListener('timeupdate', look)
  it.addEventListener('error', () => fails(it.error))
  look()
})
"""
"""Waits until a clip has played for a moment; gives its readyState."""
HAVE_CURRENT_DATA = 2
EXPIRED = """
changed => {
  const name = Object.keys(localStorage).find(name => name.endsWith('-auth-token'))
  const expired = { ...JSON.parse(localStorage[name]), expires_at: Date.now() / 1000 - 1 }
  localStorage[name] = JSON.stringify({ ...expired, ...changed })
}
"""
"""What supabase-js keeps of a session, an hour later."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here"),
    pytest.mark.skipif(not (TOOLS / "vite").exists(), reason="there is no Vite here: make tools"),
]


@dataclass
class App:
    """The page's address, the sandbox's settings, and a browser."""

    url: str
    settings: dict[str, str]
    picture: Path
    dist: Path
    browser: Browser = field(repr=False)

    def sql(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Run one statement as the application's operator."""
        with psycopg.connect(self.settings["DATABASE_URL"], autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []


@dataclass
class Visit:
    """A user's page, and what the browser complained of."""

    page: Page
    context: BrowserContext
    email: str
    complaints: list[str] = field(default_factory=list)

    @property
    def card(self) -> Locator:
        """The newest video."""
        return self.page.locator(".card").first

    def is_in(self, state: str) -> None:
        """Wait until the newest video is in this state."""
        expect(self.card).to_have_attribute("data-state", state)


def built(home: Path) -> Path:
    """Build a copy of the example, as its README says; return what a web server serves."""
    copy = home / "examples" / "app"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (copy / "node_modules").symlink_to(TOOLS)
    vite = ["node", str(TOOLS / "vite/bin/vite.js"), "build", "--mode", "sandbox"]
    done = subprocess.run(
        vite, cwd=copy, env=fresh(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


@contextmanager
def working(settings: dict[str, str], home: Path) -> Iterator[None]:
    """A worker as a process of its own, quick where nothing is learned from waiting."""
    quick = {"VIDGEN_POLL_INTERVAL": "50ms", "VIDGEN_LEASE": "3s", "VIDGEN_RETRY_BACKOFF": "20ms"}
    with (
        (home / "worker.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "vidgen_worker", "run"],
            env=fresh(**{**settings, **quick}), cwd=home, stdout=log, stderr=log,
        ) as worker,
    ):  # fmt: skip
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(60)


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    """Provide the page, its project, a worker and a browser."""
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory(prefix="vidgen-test-") as name:
        home = Path(name)
        home.chmod(0o711)  # PostgreSQL's account passes through it
        with sandbox(home, "--port", str(free_port()), "--env-file", ".env.sandbox") as running:
            settings = running.settings
            runway = RunwayControl(settings["RUNWAYML_BASE_URL"], settings["RUNWAYML_API_SECRET"])
            runway.set(image_seconds=0.5, video_seconds=1, render="cached")
            dist = built(home)
            picture = home / "product.png"
            Image.new("RGB", (640, 640), "#5a7d6a").save(picture)
            pages = Starlette(routes=[Mount("/", StaticFiles(directory=dist, html=True))])
            with (
                BackgroundServer(pages) as server,
                working(settings, home),
                sync_playwright() as playwright,
            ):
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
                yield App(server.url, settings, picture, dist, browser)
                browser.close()


@contextmanager
def visit(app: App, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Iterator[Visit]:
    """A visitor at the door. At the end: no complaint, nothing too wide, nothing that moved."""
    width, height = size
    context = app.browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        is_mobile=size == PHONE,
    )
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(WATCHED)
    seen = Visit(context.new_page(), context, f"{uuid4()}@example.com")
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.goto(app.url)
    try:
        yield seen
        assert seen.complaints == []
        assert seen.page.evaluate("window.blocked") == []
        shifts = seen.page.evaluate("window.shifts")
        assert sum(shift[0] for shift in shifts) < 0.02, shifts
        assert seen.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    finally:
        context.close()


def join(app: App, seen: Visit, credits_given: int) -> None:
    """Create an account; an operator grants it credits, and the page is looked at again."""
    seen.page.get_by_label("E-mail address").fill(seen.email)
    seen.page.get_by_label("Password").fill("a long password")
    seen.page.get_by_role("button", name="Create account").click()
    expect(seen.page.locator("#credits")).to_have_text("0")
    if credits_given:
        app.sql(
            "select vidgen.grant_credits(u.id, %s, u.email) from auth.users as u where email = %s",
            credits_given, seen.email,
        )  # fmt: skip
        look_again(seen)
        expect(seen.page.locator("#credits")).to_have_text(str(credits_given))


def look_again(seen: Visit) -> None:
    """The event of a browser when its tab is shown again."""
    seen.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def fill(app: App, seen: Visit, still: str, shape: str = "Landscape") -> None:
    """Write an order without sending it."""
    seen.page.get_by_label("Product picture").set_input_files(app.picture)
    seen.page.get_by_label("What the still shows").fill(still)
    seen.page.get_by_label("What happens in the clip").fill("The camera moves around it")
    seen.page.get_by_role("radio", name=shape).check()


def send(seen: Visit) -> None:
    seen.page.get_by_role("button", name="Order for").click()


def test_a_video_is_ordered_watched_and_played_with_the_keyboard_alone(app: App) -> None:
    with visit(app) as seen:
        page, keys = seen.page, seen.page.keyboard
        # Playwright asks Chromium for these without waiting: a key that is pressed right after it
        # may come first, and then no chooser is told.
        page.on("filechooser", lambda _: None)

        def tab_to(place: Locator) -> None:
            """Press Tab until the focus is there, and see that it shows."""
            for _ in range(12):
                keys.press("Tab")
                if place.evaluate("it => it === document.activeElement"):
                    ringed = place.evaluate(
                        "it => [it, it.nextElementSibling, it.parentElement].some(one =>"
                        " one && getComputedStyle(one).outlineStyle === 'solid')"
                    )
                    assert ringed, f"the focus on {place} can't be seen"
                    return
            raise AssertionError(f"{place} can't be reached with Tab")

        tab_to(page.get_by_label("E-mail address"))
        keys.type(app.settings["DEMO_EMAIL"])
        tab_to(page.get_by_label("Password"))
        keys.type(app.settings["DEMO_PASSWORD"])
        keys.press("Enter")
        expect(page.locator("#credits")).to_have_text("100")
        expect(page.get_by_role("heading", name="Your videos")).to_be_visible()

        tab_to(page.get_by_label("Product picture"))
        with page.expect_file_chooser() as chooser:
            keys.press("Space")
        chooser.value.set_files(app.picture)
        expect(page.get_by_alt_text("The picture you have chosen")).to_be_visible()
        tab_to(page.get_by_label("What the still shows"))
        keys.type("A green bottle on marble")
        tab_to(page.get_by_label("What happens in the clip"))
        keys.type("The camera moves around it")
        tab_to(page.get_by_role("radio", name="Landscape"))
        keys.press("ArrowRight")
        expect(page.get_by_role("radio", name="Square")).to_be_checked()
        tab_to(page.get_by_role("button", name="Order for 30 credits"))
        keys.press("Enter")

        expect(seen.card.get_by_alt_text("The still: A green bottle on marble")).to_be_visible()
        seen.is_in("completed")
        expect(page.get_by_role("status").last).to_have_text("A green bottle on marble: Ready")
        bar = page.evaluate("window.bar")
        assert bar == sorted(bar)
        assert len(set(bar)) >= 4, f"the bar hardly moved: {bar}"
        ((size, reference),) = app.sql(
            "select t.resolution, s.product_reference_image_url"
            "  from video_generation_tasks as t join video_scenes as s on s.id = t.scene_id"
            " where t.user_id = %s", app.settings["DEMO_USER_ID"],
        )  # fmt: skip
        assert size == "960:960"
        folder = f"/product-pictures/{app.settings['DEMO_USER_ID']}/"
        assert folder in str(reference)

        video = seen.card.locator("video")
        tab_to(video)
        keys.press("Space")
        assert video.evaluate(PLAYS) >= HAVE_CURRENT_DATA
        expect(page.locator("#credits")).to_have_text("70")


def test_a_picture_that_no_model_takes_is_refused_before_it_is_sent(
    app: App, tmp_path: Path
) -> None:
    with visit(app, NARROW) as seen:
        join(app, seen, PRICE)
        fill(app, seen, "سيارة حمراء <script>window.hacked = 1</script>")
        picture, hint = (
            seen.page.get_by_label("Product picture"),
            seen.page.locator("#picture-hint"),
        )
        for name, content, said in (
            ("empty.png", b"", "be read"),
            ("words.png", b"no picture", "be read"),
            ("large.png", bytes(16 * 2**20 + 1), "too large: 16 MB"),
            ("letter.pdf", b"%PDF-1.7", "not a JPEG, PNG or WebP"),
        ):
            (tmp_path / name).write_bytes(content)
            picture.set_input_files(tmp_path / name)
            expect(hint).to_contain_text(said)
            send(seen)
            expect(seen.card).to_have_count(0)
        picture.set_input_files(app.picture)
        expect(hint).to_contain_text("up to 16 MB")
        send(seen)
        expect(seen.card.get_by_role("heading")).to_contain_text("<script>")
        expect(seen.page.get_by_label("What the still shows")).to_be_empty()
        seen.is_in("processing")


def test_the_next_user_of_a_browser_sees_nothing_of_the_one_before(app: App) -> None:
    with visit(app) as seen:
        page, door = seen.page, seen.page.locator("#door-note")
        join(app, seen, PRICE)
        fill(app, seen, "What the first one plans")
        ((first,),) = app.sql("select id from auth.users where email = %s", seen.email)
        app.sql("insert into video_generation_tasks (user_id) values (%s)", first)
        expect(seen.card).to_have_count(1)

        # A read is under way while another tab signs out, as a server does whose session is over.
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        with page.expect_request("**/rest/v1/video_generation_tasks*"):
            page.route("**/rest/v1/video_generation_tasks*", hold, times=1)
            look_again(seen)
        with seen.context.expect_page() as opened:
            page.evaluate("open(location.href)")
        opened.value.get_by_role("button", name="Sign out").click()
        expect(door).to_have_text("Your session is over. Sign in again to go on.")
        opened.value.close()

        rows = page.request.get(held[0].request.url, headers=held[0].request.headers).json()
        assert len(rows) == 1
        seen.email = f"{uuid4()}@example.com"
        join(app, seen, 0)
        held[0].fulfill(json=rows)
        look_again(seen)
        expect(seen.card).to_have_count(0)
        expect(page.get_by_label("What the still shows")).to_be_empty()
        expect(page.locator("#preview")).to_be_hidden()

        seen.context.set_offline(offline=True)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        expect(door).to_be_empty()
        expect(page.locator("#banner")).to_be_empty()
        seen.complaints = [one for one in seen.complaints if "ERR_INTERNET_DISCONNECTED" not in one]


def test_a_video_is_cancelled_and_tried_again(app: App) -> None:
    with visit(app, PHONE, dark=True) as seen:
        join(app, seen, 2 * PRICE)
        # Only the first generation of this prompt is slow.
        fill(app, seen, "A bottle in the rain [[slow 60s x1]]", "Portrait")
        send(seen)
        seen.is_in("processing")
        seen.card.get_by_role("button", name="Cancel").click()
        seen.is_in("cancelled")
        expect(seen.card.locator(".standing")).to_have_text("Cancelled")
        expect(seen.page.locator("#credits")).to_have_text(str(2 * PRICE))
        seen.card.get_by_role("button", name="Try again").click()
        seen.is_in("completed")
        seen.page.reload()
        seen.is_in("completed")
        expect(seen.card.get_by_role("heading")).to_contain_text("A bottle in the rain")


def test_too_few_credits_are_shown_before_the_order_and_after_it(app: App) -> None:
    with visit(app) as seen:
        join(app, seen, 0)
        fill(app, seen, "A bottle on sand")
        expect(seen.page.locator("#price")).to_have_text(
            "A video costs 30 credits and you have 0. Add credits, then order."
        )
        # It is marked as disabled, but can still be reached.
        button = seen.page.get_by_role("button", name="Order for")
        button.press("Enter")
        expect(seen.card).to_have_count(0)

        app.sql(
            "select vidgen.grant_credits(u.id, 30, u.email) from auth.users as u where email = %s",
            seen.email,
        )
        look_again(seen)
        expect(button).to_have_attribute("aria-disabled", "false")
        app.sql("update credit_prices set credits = 90 where action = 'generate_scene'")
        try:
            send(seen)
            seen.is_in("failed")
        finally:
            app.sql("update credit_prices set credits = 25 where action = 'generate_scene'")
        expect(seen.card.locator(".standing")).to_have_text(
            "There are not enough credits for this video. Add credits, then retry."
        )
        seen.card.get_by_role("button", name="Try again").click()
        seen.is_in("completed")


def test_changes_while_offline_are_shown_and_an_expired_clip_is_signed_again(
    app: App,
) -> None:
    """The worker's address is made to be nearly over, as it is after 55 minutes."""
    app.sql("""
        create or replace function public.late_in_the_hour() returns trigger language plpgsql as
          $$ begin
            new.video_url_expires_at := now() + interval '303 seconds';
            perform pg_notify('test_ended', new.id::text);
            return new;
          end $$;
        create trigger late_in_the_hour before update on public.video_generation_tasks
          for each row when (new.status = 'completed') execute function public.late_in_the_hour();
    """)
    try:
        with visit(app) as seen:
            join(app, seen, PRICE)
            fill(app, seen, "A bottle in snow")
            banner = seen.page.locator("#banner")
            with psycopg.connect(app.settings["DATABASE_URL"], autocommit=True) as connection:
                connection.execute("listen test_ended")
                seen.context.set_offline(offline=True)
                expect(banner).to_contain_text("You are offline")
                send(seen)
                expect(seen.card.locator(".standing")).to_contain_text("could not be reached")
                seen.context.set_offline(offline=False)
                seen.card.get_by_role("button", name="Send again").click()
                seen.is_in("processing")
                seen.context.set_offline(offline=True)
                (ended,) = connection.notifies(timeout=PATIENCE_MS / 1000, stop_after=1)
            seen.is_in("processing")
            seen.context.set_offline(offline=False)
            seen.is_in("completed")
            expect(banner).to_be_empty()
            ((first,),) = app.sql(
                "select video_url from video_generation_tasks where id = %s", ended.payload
            )
            video, standing = seen.card.locator("video"), seen.card.locator(".standing")
            expect(video).not_to_have_js_property("src", first)
            seen.context.route("**/object/sign/**", lambda route: route.abort())
            video.evaluate("it => { it.play().catch(() => undefined) }")
            expect(standing).to_contain_text("could not be reached")
            look_again(seen)
            expect(standing).to_contain_text("could not be reached")
            seen.context.unroute("**/object/sign/**")
            look_again(seen)
            expect(standing).to_have_text("Ready")
            video.evaluate("it => it.play()")
            assert video.evaluate(PLAYS) >= HAVE_CURRENT_DATA
            broken = re.compile("ERR_(INTERNET_DISCONNECTED|FAILED)")
            seen.complaints = [one for one in seen.complaints if not broken.search(one)]
    finally:
        app.sql("drop function public.late_in_the_hour() cascade")


def test_one_order_of_two_clicks_is_seen_in_two_tabs_and_after_going_back(app: App) -> None:
    with visit(app) as seen:
        page = seen.page
        join(app, seen, 2 * PRICE)
        with seen.context.expect_page() as opened:
            page.evaluate("open(location.href)")
        fill(app, seen, "A bottle that is clicked twice")
        page.get_by_role("button", name="Order for").dblclick()
        expect(opened.value.locator(".card")).to_have_attribute("data-state", "completed")
        expect(opened.value.locator("#credits")).to_have_text(str(PRICE))
        opened.value.close()
        ((tasks, path),) = app.sql(
            "select count(*), min(video_path) from video_generation_tasks as t"
            "  join auth.users as u on u.id = t.user_id where u.email = %s", seen.email,
        )  # fmt: skip
        assert tasks == 1

        fill(app, seen, "What is half written")
        page.goto("about:blank")
        page.go_back()
        seen.is_in("completed")
        expect(page.get_by_label("What the still shows")).to_have_value("What is half written")
        expect(page.get_by_alt_text("The picture you have chosen")).to_be_visible()

        key = app.settings["SUPABASE_SERVICE_ROLE_KEY"]
        page.request.delete(
            f"{app.settings['SUPABASE_URL']}/storage/v1/object/video-files/{path}",
            headers={"apikey": key, "authorization": f"Bearer {key}"},
        )
        seen.card.locator("video").evaluate("it => { it.play().catch(() => undefined) }")
        expect(seen.card.locator(".standing")).to_contain_text("The clip is not there any more.")
        seen.complaints = [one for one in seen.complaints if "status of 40" not in one]


def test_a_session_outlives_its_token_and_a_service_that_is_away_is_said(app: App) -> None:
    with visit(app) as seen:
        page, banner = seen.page, seen.page.locator("#banner")
        join(app, seen, 0)

        def an_hour_later(**changed: str) -> None:
            page.evaluate(EXPIRED, changed)
            look_again(seen)

        with page.expect_response(lambda answer: "refresh_token" in answer.url) as renewed:
            an_hour_later()
        assert renewed.value.ok
        expect(banner).to_be_empty()
        # A gateway's own page, in place of PostgREST's answer.
        page.route("**/rest/v1/**", lambda route: route.fulfill(status=502, body="<html>"))
        look_again(seen)
        expect(banner).to_have_text(
            "The service has a problem at the moment. Wait a minute, then try again."
        )
        page.unroute_all()
        look_again(seen)
        expect(banner).to_be_empty()
        an_hour_later(refresh_token="revoked")
        expect(page.locator("#door-note")).to_contain_text("Your session is over.")
        seen.complaints = [
            one
            for one in seen.complaints
            if not re.search("status of (400|401|502)|^{message", one)
        ]


def test_realtime_alone_is_lost_while_the_scene_of_a_video_is_deleted(app: App) -> None:
    with visit(app) as seen:
        page, banner = seen.page, seen.page.locator("#banner")
        live: list[WebSocketRoute] = []
        is_down = False

        def reach(socket: WebSocketRoute) -> None:
            if is_down:
                socket.close(code=1011)
            else:
                live.append(socket)
                socket.connect_to_server()

        page.route_web_socket(re.compile("/realtime/"), reach)
        page.reload()
        join(app, seen, PRICE)
        fill(app, seen, "A bottle whose scene goes [[slow 3s]]")
        send(seen)
        # Now its request is frozen.
        expect(seen.card.locator(".standing")).to_have_text("Creating video from generated image")
        app.sql("delete from video_scenes where image_prompt like %s", "A bottle whose scene goes%")
        is_down = True
        for socket in live:
            socket.close(code=1011)
        expect(banner).to_have_text("Reconnecting …")
        seen.is_in("completed")
        expect(seen.card.get_by_role("heading")).to_contain_text("A bottle whose scene goes")
        is_down = False
        expect(banner).to_be_empty()
        page.reload()
        expect(seen.card.get_by_role("heading")).to_have_text("A scene that was deleted")
        seen.complaints = [one for one in seen.complaints if "WebSocket" not in one]


def test_the_page_is_given_two_settings_and_no_secret(app: App) -> None:
    files = [file for file in app.dist.rglob("*") if file.is_file()]
    text = "\n".join(file.read_text() for file in files)
    assert app.settings["SUPABASE_ANON_KEY"] in text
    for name in ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "RUNWAYML_API_SECRET"):
        assert app.settings[name] not in text
    html = unescape((app.dist / "index.html").read_text())
    assert "script-src 'self';" in html
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=", html) == []


HELD = """
import type { Database } from './real.ts'
import type { Database as Ours } from './database.ts'

type Tables = Ours['public']['Tables']
type Calls = Ours['public']['Functions']
declare const rows: { [T in keyof Tables]: Database['public']['Tables'][T]['Row'] }
export const read: { [T in keyof Tables]: Tables[T]['Row'] } = rows

type Written = 'video_generation_tasks' | 'video_scenes'
declare const ours: { [T in Written]: Tables[T]['Insert'] }
export const written: { [T in Written]: Database['public']['Tables'][T]['Insert'] } = ours

declare const args: { [F in keyof Calls]: Calls[F]['Args'] }
export const called: { [F in keyof Calls]: Database['public']['Functions'][F]['Args'] } = args
"""
"""The page's reads, writes and calls, compared with the database's own types."""


def test_the_page_agrees_with_the_tables(database: Database, tmp_path: Path) -> None:
    supabase, tsc = str(TOOLS / ".bin" / "supabase"), str(TOOLS / ".bin" / "tsc")
    if not Path(supabase).exists() or not Path(tsc).exists():
        pytest.skip("there is no Supabase CLI here: make tools")
    shutil.copytree(EXAMPLE / "src", tmp_path / "src")
    shutil.copy(EXAMPLE / "tsconfig.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(TOOLS)
    generate = [supabase, "gen", "types", f"--remote={database.url}", "--lang=typescript"]
    environment = fresh(
        HOME=str(tmp_path), PGSSLMODE="disable", SUPABASE_TELEMETRY_DISABLED="1"
    )  # fmt: skip
    types = subprocess.run(
        [*generate, "--schema", "public"],
        env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (tmp_path / "src" / "real.ts").write_bytes(types.stdout)
    (tmp_path / "src" / "held.ts").write_text(HELD)

    def errors() -> str:
        done = subprocess.run(
            [tsc, "-p", tmp_path], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert (done.returncode == 0) == (not done.stdout), done.stderr
        return done.stdout

    assert errors() == ""
    tables = tmp_path / "src" / "database.ts"
    tables.write_text(tables.read_text().replace("current_step: string", "current_stage: string"))
    assert "current_stage" in errors()
