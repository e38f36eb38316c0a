"""`make pictures`: the README's pictures, of a real video and of the dashboard in a real browser.

The sandbox is started, four users order, a real worker makes what can be made; then one frame of a
finished clip and two pages of the dashboard are written to docs/pictures/. It needs a `chromium` on
the PATH and the packages of `make venv`. Nothing here is drawn by hand, and nothing is sent away.
"""

import contextlib
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import av
import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vidgen_worker.cli.dashboard import dashboard_beside
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.stack import Seed, running_sandbox, running_worker, seed
from vidgen_worker.client.database import Database, open_database, user_claims

PICTURES = Path(__file__).parent / "pictures"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
WIDEST = 1120
"""Pixels, of every picture."""
SECONDS = 90.0
"""How long the worker may take for what it can finish."""
PLAYER_MS = 3000
"""A player's own sign of loading turns a little longer than the clip loads."""
QUALITY = 82


@dataclass(frozen=True)
class Order:
    """A scene, and how its video goes: the words in brackets are for Runway's double."""

    prompt: str
    ends: str | None
    delay: timedelta | None = None


ORDERS = (
    (Order("The product on a marble table, soft morning light", "completed"),
     Order("The product on a wet street at night, neon", "completed")),
    (Order("The product among ferns, first sun", "completed"),
     Order("[[fail SAFETY.INPUT.TEXT]] A prompt that the provider rejects", "failed")),
    (Order("[[slow 5m]] The product on a white table", None),
     Order("[[throttle 5m]] The product beside a window", None)),
    (Order("The product in the snow, for tonight", None, timedelta(hours=5)),),
)  # fmt: skip
"""For each user, what is ordered. `ends` is the status that is waited for."""


def main() -> None:
    """Make the pictures, and say how large they are."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("There is no chromium on the PATH. On Debian: apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        sandbox = stack.enter_context(running_sandbox(interrupts))
        environment = sandbox.environment()
        database = stack.enter_context(open_database(environment["DATABASE_URL"]))
        ordered = [
            (order, ask(database, user, scene, order))
            for orders in ORDERS
            for user in [seed(database, sandbox.product_image_url)]
            for order in orders
            for scene in [scene_of(database, user, sandbox.product_image_url, order)]
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(running_worker(interrupts, environment, folder, folder / "log"))
        rows = [wait(database, task, order.ends) for order, task in ordered if order.ends]
        save("frame", frame(httpx.get(rows[0]["video_url"], timeout=30).raise_for_status().content))
        link = stack.enter_context(dashboard_beside(environment))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": WIDEST, "height": WIDEST * 5 // 8})
        page.goto(str(link))
        look(page, "overview")
        page.goto(f"{str(link).partition('/?')[0]}/tasks/{rows[0]['id']}")
        look(page, "task")
    for file in sorted(PICTURES.iterdir()):
        print(f"{file}: {file.stat().st_size / 1000:.0f} KB")


def scene_of(database: Database, user: Seed, reference: str, order: Order) -> UUID:
    """Add a scene with the order's prompt."""
    scene = uuid4()
    database.rows(
        "add_scene",
        {
            "id": scene, "user_id": user.user_id, "scenario_id": user.scenario_id,
            "image_prompt": order.prompt, "visual_prompt": "The camera moves around the product",
            "reference": reference, "duration": 5,
        },
    )  # fmt: skip
    return scene


def ask(database: Database, user: Seed, scene: UUID, order: Order) -> UUID:
    """Insert a task as its user."""
    task = uuid4()
    database.rows(
        "insert_task",
        {
            "id": task, "scene_id": scene, "user_id": user.user_id, "priority": 0,
            "run_after": None, "delay": order.delay,
        },
        user_claims(user.user_id),
    )  # fmt: skip
    return task


def wait(database: Database, task: UUID, status: str) -> dict[str, Any]:
    """Return the task's row when it has this status."""
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        row = database.rows("task", {"task_id": task})[0]
        if row["status"] == status:
            return dict(row)
        time.sleep(0.5)
    sys.exit(
        f"Task {task} was not {status} after {SECONDS:.0f} s: {row['status']}, {row['message']}"
    )


def frame(clip: bytes) -> Image.Image:
    """Return the frame in the middle of a clip."""
    with av.open(BytesIO(clip), "r") as container:
        frames = list(container.decode(video=0))
        middle: Image.Image = frames[len(frames) // 2].to_image()  # type: ignore[no-untyped-call]
        return middle


def look(page: Page, name: str) -> None:
    """Save what the page shows when its pictures are there."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function(
        "[...document.querySelectorAll('video')].every(clip => clip.readyState == 4 || clip.error)"
    )
    page.wait_for_timeout(PLAYER_MS)
    save(name, Image.open(BytesIO(page.screenshot())))


def save(name: str, image: Image.Image) -> None:
    """Write a picture as WebP, at most WIDEST pixels wide."""
    image = image.convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    image.save(PICTURES / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
