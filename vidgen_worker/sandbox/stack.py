"""The whole sandbox: PostgreSQL, a Supabase project and Runway's double, in one folder.

The database is a process of its own; the doubles share one HTTP server in a thread, and one origin.
Whatever ends this process, kill -9 included, ends PostgreSQL and deletes the folder, if it is a
temporary one. It never applies our migrations and never starts a worker: that is the caller's
business.
"""

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar
from uuid import UUID

import httpx
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.folder import HeldFolder
from vidgen_worker.sandbox.postgres.places import scratch_path
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.runway.double import RunwayDouble, RunwaySettings
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.state import State
from vidgen_worker.sandbox.supabase.auth.refusals import ADDRESS_TAKEN
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.sandbox.supabase.project import PATHS, SupabaseProject
from vidgen_worker.sandbox.supabase.storage.refusals import DUPLICATE
from vidgen_worker.serving.stoppable import Stoppable

Part = TypeVar("Part")

POLL_INTERVAL = "500ms"
WEEK_SECONDS = 7 * 86_400
REQUEST_SECONDS = 30.0


class Sandbox(Stoppable):
    """A Supabase project and a Runway account on this machine. `start` makes one."""

    def __init__(self, folder: Path | None) -> None:
        self._temporary = folder is None
        self.folder = (folder or scratch_path("vidgen-sandbox")).absolute()
        self._postgres: EmbeddedPostgres | None = None
        self._server: BackgroundServer | None = None
        self._held: HeldFolder | None = None
        self.state = State()

    @classmethod
    def start(  # noqa: PLR0913 - each has a default and is given by name
        cls,
        folder: Path | None = None,
        *,
        port: int = 0,
        postgres_port: int = 0,
        settings: RunwaySettings | None = None,
        durable: bool = False,
        fetch_remote_assets: bool = False,
    ) -> Self:
        """Start everything; the ports are free ones unless given.

        Without a `folder` all of it lives in a temporary one, which `stop` deletes. With one, the
        database, users, stored objects and keys are there again next time; Runway's generations
        are not. Raises `PostgresError`, `ServingError`, `StateError`, `FolderError`, and OSError
        for a port that is taken.
        """
        sandbox = cls(folder)
        try:
            sandbox._start(port, postgres_port, settings, durable, fetch_remote_assets)
        except BaseException:
            sandbox.stop()
            raise
        return sandbox

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The database server."""
        return _running(self._postgres)

    @property
    def url(self) -> str:
        """The one origin: SUPABASE_URL, and where Runway's double listens."""
        return _running(self._server).url

    @property
    def runway(self) -> RunwayControl:
        """The control of Runway's double: its requests and its behaviour."""
        return RunwayControl(self.url, self.state.runway_key or "")

    @property
    def storage(self) -> StorageControl:
        """The control of Storage's double: its objects and its faults."""
        return StorageControl(self.url, self.keys)

    @property
    def keys(self) -> StorageKeys:
        """The project's keys."""
        return self.state.keys

    @property
    def product_image_url(self) -> str:
        """A product's picture, for a scene's `product_reference_image_url`."""
        return f"{self.url}/sandbox/product.png"

    def environment(self) -> dict[str, str]:
        """Return the settings with which a worker runs against this sandbox."""
        return {
            "DATABASE_URL": self.postgres.url(),
            "SUPABASE_URL": self.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.keys.service_role,
            "SUPABASE_ANON_KEY": self.keys.anon,
            "RUNWAYML_API_SECRET": self.state.runway_key or "",
            "RUNWAYML_BASE_URL": self.url,
            "VIDGEN_POLL_INTERVAL": POLL_INTERVAL,
            # Its pictures are on http://127.0.0.1, which the worker refuses elsewhere.
            "VIDGEN_ALLOW_LOOPBACK_ASSETS": "true",
            "VIDGEN_WEBHOOK_ALLOW_LOOPBACK": "true",
        }

    def user_token(self, user_id: UUID | str, *, seconds: float = WEEK_SECONDS) -> str:
        """Return the access token of a signed-in user, by default good for a week."""
        return self.keys.user_token(user_id, seconds=seconds)

    def add_user(self, user_id: UUID, email: str, password: str) -> None:
        """Make a user who can sign in, as an administrator does; one who is there stays as he is.

        Raises `httpx.HTTPError`.
        """
        user = {"id": str(user_id), "email": email, "password": password, "email_confirm": True}
        answer = self._as_administrator("/auth/v1/admin/users", user)
        if answer.headers.get("x-sb-error-code") != ADDRESS_TAKEN.code:
            answer.raise_for_status()

    def add_bucket(self, name: str, *, max_bytes: int, media_types: Sequence[str]) -> None:
        """Make a private bucket, as an administrator does; one that is there stays as it is.

        Raises `httpx.HTTPError`.
        """
        bucket = {
            "name": name, "public": False, "file_size_limit": max_bytes,
            "allowed_mime_types": list(media_types),
        }  # fmt: skip
        answer = self._as_administrator("/storage/v1/bucket", bucket)
        if answer.is_error and answer.json().get("error") != DUPLICATE.error:
            answer.raise_for_status()

    def _as_administrator(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        key = self.keys.service_role
        return httpx.post(
            f"{self.url}{path}",
            json=body,
            headers={"apikey": key, "authorization": f"Bearer {key}"},
            timeout=REQUEST_SECONDS,
            trust_env=False,
        )

    def keep(self, state: State) -> None:
        """Remember a state; over restarts, where the sandbox has a folder of its own."""
        self.state = state
        if not self._temporary:
            state.save(self.folder)

    def stop(self) -> None:
        """Stop what runs and delete the temporary folder. Any number of calls is fine."""
        if self._server is not None:
            self._server.stop()
        if self._postgres is not None:
            self._postgres.stop()
        if self._held is not None:
            self._held.release()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(
        self,
        port: int,
        postgres_port: int,
        settings: RunwaySettings | None,
        durable: bool,  # noqa: FBT001 - handed on by `start`, by name there
        fetch_remote_assets: bool,  # noqa: FBT001 - likewise
    ) -> None:
        if self._temporary:
            self.folder.mkdir(mode=0o711, parents=True)
        else:
            self._held = HeldFolder.take(self.folder)
            self.state = State.of(self.folder)
        self._postgres = EmbeddedPostgres.start(
            None if self._temporary else self.folder / "postgres",
            port=postgres_port,
            durable=durable,
            sweep=(self.folder,) if self._temporary else (),
            inherited=() if self._held is None else (self._held.lock,),
        )
        bootstrap(self._postgres.admin_url())
        runway = RunwayDouble(
            self.folder / "runway",
            settings,
            key=self.state.runway_key,
            fetch_remote_assets=fetch_remote_assets,
        )
        project = SupabaseProject(
            self.folder / "storage", self._postgres.admin_url(), keys=self.state.keys
        )
        self._server = BackgroundServer(_both(runway, project), port, websockets=True)
        self._server.start()
        self.keep(
            replace(
                self.state,
                runway_key=runway.key,
                port=self._server.port,
                postgres_port=self._postgres.port,
            )
        )


def _both(runway: RunwayDouble, project: SupabaseProject) -> ASGIApp:
    """Return one application that is both, by path."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with runway.lifespan(app), project.lifespan(app):
            yield

    shell = Starlette(lifespan=lifespan)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await shell(scope, receive, send)
        elif scope["path"].startswith(PATHS):
            await project.app(scope, receive, send)
        else:
            await runway.app(scope, receive, send)

    return application


def _running(part: Part | None) -> Part:
    if part is None:
        raise RuntimeError("The sandbox does not run. Begin with Sandbox.start().")
    return part
