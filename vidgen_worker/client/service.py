"""The service for Python programs: start a video, look at it, wait for it, cancel it. Synchronous.

`video_generation_service` is ready to use: it reads the environment and connects at the first call,
so that importing it never fails. It orders as the user whose id it is given, under the same
policies and limits as a browser. A worker generates the video.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from vidgen_worker.client.database import (
    ClientError,
    ClientSettings,
    Database,
    DatabaseUnreachableError,
    RefusedError,
    load_client_settings,
    user_claims,
)
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.resolution import FALLBACK, look_up
from vidgen_worker.domain.task import Status
from vidgen_worker.films.refusals import cut_of
from vidgen_worker.providers import proxies
from vidgen_worker.settings.looks import REMEDIES

SIGNED_FOR = timedelta(hours=1)
SIGN_AGAIN_BEFORE = timedelta(minutes=1)
LOOK_AGAIN_SECONDS = 0.5

TaskRow = dict[str, Any]


class VideoGenerationError(Exception):
    """A request can't be fulfilled; the message says what happened, to what, and what now."""


class TaskNotFoundError(VideoGenerationError, LookupError):
    """The task does not exist."""


class SceneNotFoundError(VideoGenerationError, LookupError):
    """The scene does not exist, or belongs to another user."""


class TaskTimeoutError(VideoGenerationError, TimeoutError):
    """The task has not ended within the time-out; it goes on."""


class ServiceUnavailableError(VideoGenerationError, ConnectionError):
    """The database can't be reached."""


class VideoGenerationService:
    """Start, status, list, cancel and wait. Threads may share it; it connects when needed."""

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self._settings = settings
        self._database: Database | None = None
        self._lock = threading.Lock()

    def start_video_generation_task(
        self,
        scene_id: UUID | str,
        user_id: UUID | str,
        *,
        task_id: UUID | str | None = None,
        priority: int = 0,
        run_after: datetime | timedelta | None = None,
    ) -> TaskRow:
        """Insert a task and return it as a dictionary.

        With a `task_id` of your own a repeated call returns the existing task. `priority` is -10 to
        10, among this user's own tasks; `run_after` is a time, or a duration from now. Raises
        SceneNotFoundError where the scene is absent or another user's, VideoGenerationError where a
        limit or the database refuses.
        """
        user = _uuid("user_id", user_id)
        values = {
            "id": _uuid("task_id", task_id) if task_id else uuid.uuid4(),
            "scene_id": _uuid("scene_id", scene_id),
            "user_id": user,
            "priority": priority,
            "run_after": None if isinstance(run_after, timedelta) else run_after,
            "delay": run_after if isinstance(run_after, timedelta) else None,
        }
        with _own_errors():
            try:
                row = self._db.row("insert_task", values, user_claims(user))
            except RefusedError as error:
                if "row-level security" not in str(error):
                    raise
                message = (
                    f"There is no scene {scene_id} of user {user_id}. Create the scene first; "
                    "only its owner may order its video."
                )
                raise SceneNotFoundError(message) from error
        if row is None:
            message = f"Task {task_id} exists already and is another user's. Choose another id."
            raise VideoGenerationError(message)
        return _task(row)

    def start_film(
        self,
        cut: Mapping[str, Any],
        user_id: UUID | str,
        *,
        task_id: UUID | str | None = None,
        priority: int = 0,
        run_after: datetime | timedelta | None = None,
    ) -> TaskRow:
        """Insert a film of several scenes and return its task as a dictionary.

        `cut` names them: `{"parts": [{"scene": id} | {"task": id}, …]}` or `{"scenario": id}`; all
        else is as for one scene. Whose the scenes are is looked at by a worker, before anything is
        paid. Raises VideoGenerationError where the cut has another shape, or a limit or the
        database refuses.
        """
        user = _uuid("user_id", user_id)
        try:
            cut_of(dict(cut))
        except Fault as fault:
            raise VideoGenerationError(fault.message) from fault
        values = {
            "id": _uuid("task_id", task_id) if task_id else uuid.uuid4(),
            "cut": Jsonb(dict(cut)),
            "user_id": user,
            "priority": priority,
            "run_after": None if isinstance(run_after, timedelta) else run_after,
            "delay": run_after if isinstance(run_after, timedelta) else None,
        }
        with _own_errors():
            row = self._db.row("insert_film", values, user_claims(user))
        if row is None:
            message = f"Task {task_id} exists already and is another user's. Choose another id."
            raise VideoGenerationError(message)
        return _task(row)

    def get_task_status(self, task_id: UUID | str) -> TaskRow:
        """Return the task, with a `video_url` that is valid now once it is completed.

        Raises TaskNotFoundError, and VideoGenerationError where the URL has run out and can't be
        signed again.
        """
        row = self._row(task_id)
        now = row.pop("database_now")
        task = _task(row)
        expires_at = row["video_url_expires_at"]
        if row["video_path"] and (expires_at is None or expires_at - now < SIGN_AGAIN_BEFORE):
            task["video_url"] = self._sign(row["video_path"])
            task["video_url_expires_at"] = now + SIGNED_FOR
        return task

    def list_tasks(self, user_id: UUID | str, *, limit: int = 100) -> list[TaskRow]:
        """Return the user's newest tasks. Their `video_url` is as stored: it may have run out."""
        values = {"user_id": _uuid("user_id", user_id), "status": None, "limit": limit}
        with _own_errors():
            return [_task(row) for row in self._db.rows("tasks", values)]

    def cancel(self, task_id: UUID | str) -> TaskRow:
        """Cancel a task, at once or through its worker; an ended one is returned as it is."""
        self._row(task_id)
        with _own_errors():
            return _task(self._db.rows("cancel_task", {"task_id": str(task_id)})[0])

    def wait(self, task_id: UUID | str, timeout: float | None = None) -> TaskRow:
        """Return the task when it has ended, with any status.

        `timeout` is in seconds; None means no limit. Raises TaskTimeoutError. During an outage of
        the database the call goes on waiting.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = threading.Event()
        seen = ""
        while True:
            try:
                row = self._row(task_id)
            except ServiceUnavailableError as error:
                if not seen:  # the first call: the URL is probably wrong
                    raise
                seen = str(error)
            else:
                if Status(row["status"]).terminal:
                    return self.get_task_status(task_id)
                seen = f"{row['status']} at {row['progress']:.0f} %: {row['current_step']}"
            left = LOOK_AGAIN_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                message = (
                    f"Task {task_id} had not ended after {timeout} s ({seen}). It goes on: wait "
                    "again, or cancel it."
                )
                raise TaskTimeoutError(message)
            pause.wait(min(left, LOOK_AGAIN_SECONDS))

    def close(self) -> None:
        """Close the connections; the next call opens a new one."""
        with self._lock:
            database, self._database = self._database, None
        if database is not None:
            database.close()

    def _get_resolution_mapping(self, resolution: str | None) -> dict[str, str]:
        """Return `video_ratio` and `image_ratio` of a resolution; none means 720:1280.

        Raises UnsupportedResolutionError, a ValueError.
        """
        found = look_up(resolution)
        return {"video_ratio": found.video_ratio, "image_ratio": found.image_ratio}

    def _get_scenario_resolution(self, scene_id: UUID | str) -> str:
        """Return the resolution of a scene's scenario; 720:1280 where it has none.

        Raises SceneNotFoundError.
        """
        with _own_errors():
            values = {"scene_id": _uuid("scene_id", scene_id)}
            row = self._db.row("scenario_resolution", values)
        if row is None:
            message = f"There is no scene {scene_id}. Check the id."
            raise SceneNotFoundError(message)
        return str(row["resolution"] or "").strip() or FALLBACK

    @property
    def _db(self) -> Database:
        with self._lock:
            if self._database is None:
                url = self._read_settings().database_url.get_secret_value()
                self._database = Database(url)
            return self._database

    def _read_settings(self) -> ClientSettings:
        if self._settings is None:
            self._settings = load_client_settings()
        return self._settings

    def _row(self, task_id: UUID | str) -> TaskRow:
        with _own_errors():
            row = self._db.row("task_and_clock", {"task_id": _uuid("task_id", task_id)})
        if row is None:
            message = f"There is no task {task_id}. Check the id."
            raise TaskNotFoundError(message)
        return row

    def _sign(self, path: str) -> str:
        """Sign a clip's path for one hour."""
        with self._lock:
            settings = self._read_settings()
        key = settings.supabase_service_role_key
        if not settings.supabase_url or key is None:
            missing = [
                f"{name.upper()} ({REMEDIES[name]})"
                for name in ("supabase_url", "supabase_service_role_key")
                if not getattr(settings, name)
            ]
            message = (
                f"The URL of video {path} has run out, and signing it again needs "
                f"{' and '.join(missing)}."
            )
            raise VideoGenerationError(message)
        return sign(
            settings.supabase_url, key.get_secret_value(), settings.storage_bucket_videos, path
        )


def sign(supabase_url: str, key: str, bucket: str, path: str) -> str:
    """Sign an object's path with Supabase Storage, for one hour. Raises VideoGenerationError."""
    if problems := proxies.problems():
        raise VideoGenerationError("; ".join(problems))
    # Imported here, because this takes half a second and few callers sign.
    from vidgen_worker.storage.storage import Storage  # noqa: PLC0415

    async def once() -> str:
        storage = Storage(supabase_url, key, buckets=())
        try:
            return await storage.sign(bucket, path, SIGNED_FOR)
        finally:
            await storage.aclose()

    try:
        # A thread of its own, because the caller's thread may run an event loop.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, once()).result()
    except Fault as fault:
        message = (
            f"The URL of {bucket}/{path} has run out and could not be signed again: "
            f"{fault.details}. Check SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, or try again."
        )
        raise VideoGenerationError(message) from fault


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turn errors of the database box into errors of the service."""
    try:
        yield
    except DatabaseUnreachableError as error:
        raise ServiceUnavailableError(str(error)) from error
    except ClientError as error:
        raise VideoGenerationError(str(error)) from error


def _task(row: TaskRow) -> TaskRow:
    """Return a row in the form of the former service: `task_id` beside every column."""
    return {"task_id": str(row["id"])} | {
        name: str(value) if isinstance(value, UUID) else value for name, value in row.items()
    }


def _uuid(name: str, value: UUID | str) -> str:
    try:
        return str(UUID(str(value)))
    except ValueError as error:
        message = f"{name} {str(value)[:64]!r} is not a UUID. Pass the row's id."
        raise VideoGenerationError(message) from error


video_generation_service = VideoGenerationService()
