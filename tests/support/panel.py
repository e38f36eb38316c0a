"""A dashboard beside a database with some of everything, and texts that would be scripts.

What is there was made by a real worker where it could be, and written into the tables where the
doubles never say such a thing. One for a module: its tests only look, or change what they made.
"""

import asyncio
import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from PIL import Image
from psycopg.types.json import Jsonb

from tests.conftest import Database, PostgresServer, _database
from tests.support.world import World
from vidgen_worker.cli.dashboard import running_dashboard
from vidgen_worker.client.database import ClientSettings
from vidgen_worker.providers.http_client import certificates
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.runway.double import RunwayDouble, RunwaySettings
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.storage import StorageDouble

HOSTILE = (
    "</textarea></script><script>window.hacked = 1</script>"
    '<img src=x onerror=\'window.hacked = 1\'>" autofocus onfocus="window.hacked = 1" x="'
    " javascript:window.hacked=1 {{ 7 * 7 }} \u202e\u2066gnp.exe"
)
"""What of it is not escaped runs, leaves its attribute, is evaluated, or turns the line."""


@dataclass(frozen=True)
class Panel:
    """A running dashboard, and what is in its database."""

    world: World
    link: str
    user: UUID
    completed: UUID
    rejected: UUID
    waiting: UUID
    cancelled: UUID
    film: UUID
    """Of the completed task; two of its files are stored, and one that no browser shows."""

    @property
    def url(self) -> str:
        """Without the token."""
        return self.link.partition("/?")[0]

    @property
    def origin(self) -> dict[str, str]:
        """The header with which a form of its own pages comes."""
        return {"origin": self.url}


def form_token(page: str) -> str:
    """The token that the form of a page sends along."""
    (token,) = set(re.findall(r'name="token" value="([^"]+)"', page))
    return str(token)


def sentence_of(answer: httpx.Response) -> str:
    """What an error's page says."""
    found = re.search(r'<p id="sentence">(.*?)</p>', answer.text, re.DOTALL)
    assert found, answer.text[:500]
    return found[1]


def cookie_of(answer: httpx.Response) -> SimpleCookie:
    """The cookie that an answer sets, with its attributes."""
    return SimpleCookie(answer.headers["set-cookie"])


@contextlib.contextmanager
def dashboard_of(
    world: World, *, read_only: bool = False, database_url: str | None = None
) -> Iterator[str]:
    """The link of a dashboard on a world's database and file store."""
    values: dict[str, Any] = {
        "database_url": database_url or world.database.url,
        "supabase_url": world.storage.url,
        "supabase_service_role_key": world.storage.keys.service_role,
    }
    settings = ClientSettings(_env_file=None, **values)
    with running_dashboard(settings, read_only=read_only) as server:
        yield server.link


@contextlib.contextmanager
def furnished(server: PostgresServer, template: str, folder: Path) -> Iterator[Panel]:
    """A panel with some of everything."""
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(_database(server, "panel", template))
        database = Database(name, server.url(name), server.admin_url(name))
        runway = RunwayDouble(
            folder / "runway",
            RunwaySettings(image_seconds=0, video_seconds=0, render="cached"),
            allow_loopback_assets=True,
        )
        storage = StorageDouble(folder / "storage", database.admin_url)
        http = stack.enter_context(BackgroundServer(runway.app))
        store = stack.enter_context(BackgroundServer(storage.app))
        world = World(
            database,
            RunwayControl(http.url, runway.key),
            StorageControl(store.url, storage.keys),
        )
        stack.callback(world.close)
        made = asyncio.run(_made(world))
        _be_hostile(world)
        link = stack.enter_context(dashboard_of(world))
        yield Panel(world, link, **made)


@pytest.fixture(scope="module")
def panel(
    postgres_server: PostgresServer,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Panel]:
    """Provide the module's panel."""
    with furnished(postgres_server, migrated_template, tmp_path_factory.mktemp("panel")) as made:
        yield made


@pytest.fixture
def browser(panel: Panel) -> Iterator[httpx.Client]:
    """Provide a client that has opened the panel's link."""
    with httpx.Client(
        base_url=panel.url, follow_redirects=True, timeout=20, verify=certificates()
    ) as client:
        client.get(panel.link).raise_for_status()
        yield client


async def _made(world: World) -> dict[str, UUID]:
    """Let a worker make and fail some tasks, and leave others waiting."""
    user = world.user()
    completed = world.order(user, world.scene(user, image_prompt=f"{HOSTILE} {uuid4()}"))
    rejected = world.order(
        user, world.scene(user, image_prompt=f"[[fail SAFETY.INPUT.TEXT]] {HOSTILE} {uuid4()}")
    )
    async with world.worker():
        await world.until(completed)
        await world.until(rejected)
    waiting = world.order(user, world.scene(user))
    cancelled = world.order(user, world.scene(user))
    world.sql("select public.cancel_video_generation_task(%s)", cancelled)
    return {
        "user": user, "completed": completed, "rejected": rejected, "waiting": waiting,
        "cancelled": cancelled, "film": _film(world, user, completed),
    }  # fmt: skip


def _film(world: World, user: UUID, part: UUID) -> UUID:
    """Write a film that is being cut, with the files that it has so far."""
    film = uuid4()
    still = io.BytesIO()
    Image.new("RGB", (1280, 720), (38, 70, 83)).save(still, "JPEG")
    clip = httpx.get(world.task(part)["video_url"]).raise_for_status().content
    files = (
        ("web", "video/mp4", "mp4", clip, 1280, 720, 2.0),
        ("poster", "image/jpeg", "jpg", still.getvalue(), 1280, 720, None),
        ("captions", "text/vtt", "vtt", b"WEBVTT", None, None, 2.0),
    )
    cut = {
        "parts": [{"scene": str(world.task(part)["scene_id"]), "caption": HOSTILE}],
        "outputs": ["web", "poster", "captions", "audio"],
    }
    with world.admin() as conn, conn.transaction():
        conn.execute("set local session_replication_role = replica")
        conn.execute(
            "insert into public.video_generation_tasks"
            " (id, user_id, cut, lane, attempt, started_at, progress, message)"
            " values (%s, %s, %s, -1, 2, now(), 80, %s)",
            [film, user, Jsonb(cut), HOSTILE],
        )
        conn.execute(
            "update public.video_generation_tasks set film_id = %s where id = %s", [film, part]
        )
        conn.execute(
            "insert into vidgen.parts (film_id, position, task_id) values (%s, 1, %s)", [film, part]
        )
        for position, (name, kind, ending, content, *shape) in enumerate(files):
            path = f"video-files/{user}/{film}/{name}-0123456789abcdef.{ending}"
            conn.execute(
                "insert into public.video_renditions (film_id, user_id, name, position, preset,"
                " media_type, bucket, path, size, width, height, seconds, sha256)"
                " values (%s, %s, %s, %s, %s, %s, 'video-files', %s, %s, %s, %s, %s, 'ab')",
                [film, user, name, position, name, kind, path, len(content), *shape],
            )
            httpx.post(
                f"{world.storage.url}/storage/v1/object/video-files/{path}", content=content,
                headers={
                    "authorization": f"Bearer {world.storage.keys.service_role}",
                    "apikey": world.storage.keys.service_role, "content-type": kind,
                },
            ).raise_for_status()  # fmt: skip
    return film


def _be_hostile(world: World) -> None:
    """Put the text wherever a person, a provider or a machine has its say."""
    with world.admin() as conn:
        conn.execute("alter table public.video_generation_tasks disable trigger user")
        conn.execute(
            "update public.video_generation_tasks set error_message = %(text)s,"
            "       error = jsonb_build_object('message', %(text)s::text)"
            " where status = 'failed'",
            {"text": HOSTILE},
        )
        conn.execute(
            "update public.video_generation_tasks set current_step = %s where status = 'pending'",
            [HOSTILE],
        )
        conn.execute("alter table public.video_generation_tasks enable trigger user")
        conn.execute("update vidgen.submissions set details = %s", [HOSTILE])
        conn.execute(
            "insert into vidgen.workers"
            " (id, host, pid, version, provider, key_fingerprint, concurrency, lease, scopes)"
            " values (gen_random_uuid(), %(text)s, 4711, %(text)s, 'runway', 'key', 20, '1 hour',"
            "         array['key:key'])",
            {"text": HOSTILE},
        )
        conn.execute(
            "insert into vidgen.gates (provider, scope, model, reason, message, details)"
            " values ('runway', %(text)s, %(text)s, 'OPERATOR', %(text)s, %(text)s)",
            {"text": HOSTILE},
        )
        conn.execute(
            "update vidgen.user_limits set rejections = 3, reason = %s,"
            "       paused_until = now() + interval '1 hour'",
            [HOSTILE],
        )
        conn.execute(
            "select public.grant_video_credits(user_id, 5, %s) from public.user_credits", [HOSTILE]
        )
