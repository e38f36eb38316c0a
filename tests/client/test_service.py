"""The Python service: what former callers relied on, and what it refuses with a sentence."""

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from vidgen_worker.client.database import ClientSettings
from vidgen_worker.sandbox.control import StorageControl
from vidgen_worker.sandbox.postgres.places import free_port
from vidgen_worker.service import (
    SceneNotFoundError,
    ServiceUnavailableError,
    TaskNotFoundError,
    TaskTimeoutError,
    VideoGenerationError,
    VideoGenerationService,
)
from vidgen_worker.settings.environment import SettingsError


@dataclass(frozen=True)
class Scene:
    user_id: str
    scene_id: str


@pytest.fixture
def scene(database_url: str) -> Scene:
    user_id, scenario_id, scene_id = (str(uuid.uuid4()) for _ in range(3))
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into video_scenarios (id, resolution) values (%s, '1280:720')", [scenario_id]
        )
        connection.execute(
            "insert into video_scenes (id, user_id, scenario_id, visual_prompt)"
            " values (%s, %s, %s, 'A bottle')",
            [scene_id, user_id, scenario_id],
        )
    return Scene(user_id, scene_id)


@pytest.fixture
def service(database_url: str, storage: StorageControl) -> Iterator[VideoGenerationService]:
    settings = ClientSettings(
        database_url=SecretStr(database_url),
        supabase_url=storage.url,
        supabase_service_role_key=SecretStr(storage.keys.service_role),
    )
    service = VideoGenerationService(settings)
    yield service
    service.close()


def conclude(database: str, task_id: str, **columns: object) -> None:
    """Walk a task to completed, as a worker would."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "update video_generation_tasks set status = 'processing', attempt = attempt + 1,"
            " worker_id = gen_random_uuid(), started_at = now() where id = %s",
            [task_id],
        )
        connection.execute(
            "update video_generation_tasks set status = 'completed', progress = 100,"
            " completed_at = now(), video_path = %(path)s, video_url = %(url)s,"
            " video_url_expires_at = %(until)s where id = %(id)s",
            {"id": task_id, **columns},
        )


def clip_of(scene: Scene) -> str:
    """The path of a clip of the scene's user."""
    return f"video-files/{scene.user_id}/gone.mp4"


def upload(storage: StorageControl, bucket: str, path: str, content: bytes) -> None:
    key = storage.keys.service_role
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    base = f"{storage.url}/storage/v1"
    httpx.post(
        f"{base}/bucket", headers=headers, json={"id": bucket, "name": bucket, "public": False}
    ).raise_for_status()
    httpx.post(
        f"{base}/object/{bucket}/{path}",
        headers={**headers, "content-type": "video/mp4"},
        content=content,
    ).raise_for_status()


def test_a_started_task_is_a_dictionary_that_former_callers_know(
    service: VideoGenerationService, scene: Scene
) -> None:
    task = service.start_video_generation_task(scene_id=scene.scene_id, user_id=scene.user_id)
    uuid.UUID(task["task_id"])
    assert task["status"] == "pending"
    assert task["scene_id"] == scene.scene_id
    assert task["user_id"] == scene.user_id
    assert task["message"] == "Video generation task started"
    assert task["current_step"] == "Initializing"
    assert task["progress"] == 0
    assert task["error_message"] is None
    assert isinstance(task["created_at"], datetime)
    status = service.get_task_status(task["task_id"])
    assert status["task_id"] == task["task_id"]
    assert status["updated_at"] >= task["created_at"]
    assert status["video_url"] is None


def test_starting_twice_with_one_id_is_starting_once(
    service: VideoGenerationService, scene: Scene
) -> None:
    task_id = uuid.uuid4()
    for _ in range(2):
        task = service.start_video_generation_task(
            scene.scene_id, scene.user_id, task_id=task_id, priority=3
        )
        assert (task["task_id"], task["priority"]) == (str(task_id), 3)
    assert len(service.list_tasks(scene.user_id)) == 1


def test_another_users_scene_is_refused(service: VideoGenerationService, scene: Scene) -> None:
    with pytest.raises(SceneNotFoundError, match="only its owner"):
        service.start_video_generation_task(scene.scene_id, uuid.uuid4())


def test_an_absent_scene_is_refused(service: VideoGenerationService) -> None:
    with pytest.raises(SceneNotFoundError, match="Create the scene first"):
        service.start_video_generation_task(uuid.uuid4(), uuid.uuid4())


def test_an_id_of_another_users_task_is_refused(
    service: VideoGenerationService, scene: Scene, database_url: str
) -> None:
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    stranger = str(uuid.uuid4())
    with psycopg.connect(database_url) as connection:
        connection.execute("update video_scenes set user_id = %s", [stranger])
    with pytest.raises(VideoGenerationError, match="another user's"):
        service.start_video_generation_task(scene.scene_id, stranger, task_id=task["task_id"])


def test_an_invalid_id_is_named(service: VideoGenerationService) -> None:
    with pytest.raises(VideoGenerationError, match="scene_id 'x' is not a UUID"):
        service.start_video_generation_task("x", uuid.uuid4())
    with pytest.raises(VideoGenerationError, match="task_id"):
        service.get_task_status("x")


def test_an_absent_task_is_not_found(service: VideoGenerationService) -> None:
    with pytest.raises(TaskNotFoundError):
        service.get_task_status(uuid.uuid4())
    with pytest.raises(TaskNotFoundError):
        service.cancel(uuid.uuid4())


def test_tasks_are_listed_newest_first_and_only_the_users(
    service: VideoGenerationService, scene: Scene
) -> None:
    made = [
        service.start_video_generation_task(scene.scene_id, scene.user_id)["task_id"]
        for _ in range(3)
    ]
    listed = [task["task_id"] for task in service.list_tasks(scene.user_id)]
    assert listed == made[::-1]
    assert service.list_tasks(uuid.uuid4()) == []
    assert len(service.list_tasks(scene.user_id, limit=1)) == 1


def test_a_waiting_task_is_cancelled_at_once(service: VideoGenerationService, scene: Scene) -> None:
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    assert service.cancel(task["task_id"])["status"] == "cancelled"
    assert service.cancel(task["task_id"])["status"] == "cancelled"
    assert service.wait(task["task_id"], timeout=5)["status"] == "cancelled"


def test_waiting_ends_when_the_task_does(
    service: VideoGenerationService, scene: Scene, database_url: str
) -> None:
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    until = datetime.now(UTC) + timedelta(hours=1)
    ended: list[dict[str, Any]] = []
    waiter = threading.Thread(target=lambda: ended.append(service.wait(task["task_id"], 30)))
    waiter.start()
    conclude(database_url, task["task_id"], path=clip_of(scene), url="https://signed", until=until)
    waiter.join(30)
    assert ended[0]["video_url"] == "https://signed"


def test_a_wait_that_times_out_says_how_far_the_task_is(
    service: VideoGenerationService, scene: Scene
) -> None:
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    with pytest.raises(TaskTimeoutError, match="pending at 0 %: Initializing"):
        service.wait(task["task_id"], timeout=0)


def test_signed_urls_are_valid_when_the_status_is_read(
    service: VideoGenerationService, scene: Scene, database_url: str, storage: StorageControl
) -> None:
    path = f"video-files/{scene.user_id}/{uuid.uuid4()}.mp4"
    upload(storage, "video-files", path, b"a clip")
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    past = datetime.now(UTC) - timedelta(seconds=1)
    conclude(database_url, task["task_id"], path=path, url="https://over", until=past)
    status = service.get_task_status(task["task_id"])
    assert status["video_url_expires_at"] > datetime.now(UTC)
    assert httpx.get(status["video_url"]).content == b"a clip"


async def test_signing_works_inside_a_running_loop(
    service: VideoGenerationService, scene: Scene, database_url: str, storage: StorageControl
) -> None:
    path = f"video-files/{scene.user_id}/{uuid.uuid4()}.mp4"
    await asyncio.to_thread(upload, storage, "video-files", path, b"a clip")
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    past = datetime.now(UTC) - timedelta(seconds=1)
    conclude(database_url, task["task_id"], path=path, url="https://over", until=past)
    assert service.get_task_status(task["task_id"])["video_url"].startswith(storage.url)


def test_an_expired_url_that_can_not_be_signed_is_an_error_with_the_remedy(
    database_url: str, scene: Scene, service: VideoGenerationService
) -> None:
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    past = datetime.now(UTC) - timedelta(seconds=1)
    conclude(database_url, task["task_id"], path=clip_of(scene), url="https://over", until=past)
    with pytest.raises(VideoGenerationError, match=r"gone\.mp4 has run out and could not be"):
        service.get_task_status(task["task_id"])
    poor = VideoGenerationService(
        ClientSettings.model_construct(
            database_url=SecretStr(database_url), supabase_url=None, supabase_service_role_key=None
        )
    )
    with pytest.raises(VideoGenerationError, match=r"SUPABASE_URL .* and SUPABASE_SERVICE_ROLE"):
        poor.get_task_status(task["task_id"])
    poor.close()


@pytest.mark.parametrize(
    ("stored", "expected"), [("1280:720", "1280:720"), ("", "720:1280"), ("9:9", "9:9")]
)
def test_a_scenes_resolution_is_the_databases(
    service: VideoGenerationService, scene: Scene, database_url: str, stored: str, expected: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("update video_scenarios set resolution = %s", [stored])
    assert service._get_scenario_resolution(scene.scene_id) == expected


def test_a_missing_scenario_means_portrait_and_a_missing_scene_an_error(
    service: VideoGenerationService, scene: Scene, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("delete from video_scenarios")
    assert service._get_scenario_resolution(scene.scene_id) == "720:1280"
    with pytest.raises(SceneNotFoundError):
        service._get_scenario_resolution(uuid.uuid4())


def test_a_connection_that_died_idle_is_replaced(
    service: VideoGenerationService, scene: Scene, admin_database_url: str
) -> None:
    task = service.start_video_generation_task(scene.scene_id, scene.user_id)
    with psycopg.connect(admin_database_url) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    assert service.get_task_status(task["task_id"])["status"] == "pending"


def test_threads_share_the_service(service: VideoGenerationService, scene: Scene) -> None:
    made: list[str] = []

    def start() -> None:
        task = service.start_video_generation_task(scene.scene_id, scene.user_id)
        made.append(task["task_id"])

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


def test_a_database_that_is_away_is_reported() -> None:
    url = f"postgresql://postgres:hunter22@127.0.0.1:{free_port()}/postgres"
    service = VideoGenerationService(ClientSettings(database_url=SecretStr(url)))
    with pytest.raises(ServiceUnavailableError, match="Nothing listens there") as caught:
        service.get_task_status(uuid.uuid4())
    assert "hunter22" not in str(caught.value)


def test_a_database_without_our_tables_names_the_remedy(bare_database_url: str) -> None:
    service = VideoGenerationService(ClientSettings(database_url=SecretStr(bare_database_url)))
    with pytest.raises(VideoGenerationError, match="Run: vidgen-worker migrate"):
        service.get_task_status(uuid.uuid4())
    service.close()


def test_an_import_never_fails_and_the_first_call_names_missing_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SettingsError, match="DATABASE_URL: missing"):
        VideoGenerationService().list_tasks(uuid.uuid4())
    subprocess.run(
        [sys.executable, "-c", "from vidgen_worker.service import video_generation_service"],
        check=True,
        env={},
        cwd=tmp_path,
    )
