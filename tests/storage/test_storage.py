"""The storage adapter against Storage's double on a real PostgreSQL, and against odd gateways."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from supabase import AsyncClientOptions, acreate_client

from vidgen_worker.domain.faults import Fault
from vidgen_worker.providers.http_client import certificates
from vidgen_worker.sandbox.control import StorageControl
from vidgen_worker.storage.buckets import Bucket, Found
from vidgen_worker.storage.fetching import AbsentError, TooLargeError
from vidgen_worker.storage.storage import REMOVE_BATCH, Storage

IMAGES = Bucket("generated-content", public=True, max_bytes=1_000_000, media_types=("image/png",))
VIDEOS = Bucket("video-files", public=False, max_bytes=2_000_000, media_types=("video/mp4",))
BUCKETS = (IMAGES, VIDEOS)
CLIP = "video-files/11111111-1111-4111-8111-111111111111/22222222-2222-4222-8222-222222222222.mp4"
STILL = "generated_images/u/22222222-2222-4222-8222-222222222222.png"


@pytest.fixture
async def store(bare_storage: StorageControl) -> AsyncIterator[Storage]:
    """Provide a storage whose buckets exist."""
    async with opened(bare_storage.url, bare_storage.keys.service_role) as storage:
        await storage.ensure_buckets()
        yield storage


@asynccontextmanager
async def opened(url: str, key: str, *, seconds: float = 10.0) -> AsyncIterator[Storage]:
    storage = Storage(
        url,
        key,
        buckets=BUCKETS,
        timeout=timedelta(seconds=seconds),
        first_wait=timedelta(milliseconds=1),
    )
    try:
        yield storage
    finally:
        await storage.aclose()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Provide a file to upload; the store does not look inside."""
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"film" * 50_000)
    return file


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def refill(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def fetch(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, verify=certificates())


def uploads(control: StorageControl) -> list[int | None]:
    return [seen["status"] for seen in control.requests() if seen["kind"] == "upload"]


async def put_fault(store: Storage, file: Path, media_type: str = "video/mp4") -> Fault:
    with pytest.raises(Fault) as raised:
        await store.put("video-files", CLIP, file, media_type)
    return raised.value


async def test_an_upload_arrives_with_its_type_and_bytes(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    await store.put("video-files", CLIP, clip, "video/mp4")
    [found] = bare_storage.objects()
    assert (found["bucket"], found["name"]) == ("video-files", CLIP)
    assert found["sha256"] == digest(clip)
    assert await store.exists("video-files", CLIP)


async def test_a_second_upload_overwrites_the_first(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    await store.put("video-files", CLIP, clip, "video/mp4")
    refill(clip, b"another film")
    await store.put("video-files", CLIP, clip, "video/mp4")
    [found] = bare_storage.objects()
    assert found["sha256"] == hashlib.sha256(b"another film").hexdigest()


async def test_an_empty_file_is_refused_and_nothing_is_sent(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    refill(clip, b"")
    assert (await put_fault(store, clip)).name == "storage_refused"
    assert uploads(bare_storage) == []


async def test_a_missing_bucket_is_created_with_its_limits_and_the_upload_repeated(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    bare_storage.delete_bucket("video-files")
    await store.put("video-files", CLIP, clip, "video/mp4")
    assert [found["name"] for found in bare_storage.objects()] == [CLIP]
    refill(clip, b"x" * (VIDEOS.max_bytes + 1))
    assert (await put_fault(store, clip)).name == "storage_refused"
    response = fetch(f"{bare_storage.url}/storage/v1/object/public/video-files/{CLIP}")
    assert response.status_code == 400


async def test_a_missing_bucket_that_no_setting_names_is_refused(
    store: Storage, clip: Path
) -> None:
    with pytest.raises(Fault, match="is not in the settings") as raised:
        await store.put("elsewhere", CLIP, clip, "video/mp4")
    assert raised.value.name == "storage_refused"


async def test_buckets_are_created_once_and_keep_their_settings(
    store: Storage, bare_storage: StorageControl
) -> None:
    await store.ensure_buckets()
    changed = await store.ensure_bucket(
        "video-files", public=True, max_bytes=1, media_types=["text/plain"]
    )
    assert changed is False
    key = bare_storage.keys.service_role
    response = fetch(
        f"{bare_storage.url}/storage/v1/bucket/video-files",
        apikey=key,
        authorization=f"Bearer {key}",
    )
    found = response.json()
    assert (found["public"], found["file_size_limit"]) == (False, VIDEOS.max_bytes)
    assert found["allowed_mime_types"] == ["video/mp4"]


async def test_two_workers_may_create_the_buckets_at_once(bare_storage: StorageControl) -> None:
    key = bare_storage.keys.service_role
    async with opened(bare_storage.url, key) as one, opened(bare_storage.url, key) as other:
        await asyncio.gather(one.ensure_buckets(), other.ensure_buckets(), one.ensure_buckets())
        again = await one.ensure_bucket("video-files", public=False, max_bytes=1, media_types=())
    assert again is False


async def test_open_creates_the_buckets_and_new_keys_work(
    bare_storage: StorageControl, clip: Path
) -> None:
    storage = await Storage.open(bare_storage.url, bare_storage.keys.secret, buckets=BUCKETS)
    await storage.put("video-files", CLIP, clip, "video/mp4")
    await storage.aclose()
    assert len(bare_storage.objects()) == 1


async def test_a_signed_url_is_absolute_and_reads_the_bytes(store: Storage, clip: Path) -> None:
    await store.put("video-files", CLIP, clip, "video/mp4")
    url = await store.sign("video-files", CLIP, timedelta(hours=1))
    response = fetch(url)
    assert hashlib.sha256(response.content).hexdigest() == digest(clip)
    assert response.headers["content-type"] == "video/mp4"


async def test_an_object_is_fetched_whole_within_its_bound(
    store: Storage, bare_storage: StorageControl, clip: Path, tmp_path: Path
) -> None:
    await store.put("video-files", CLIP, clip, "video/mp4")
    target, size = tmp_path / "fetched.mp4", len(b"film") * 50_000
    bare_storage.fail("download", times=2, status=503)
    fetched = await store.fetch("video-files", CLIP, target, most=size)
    assert (fetched.size, fetched.sha256, digest(target)) == (size, digest(clip), digest(clip))
    with pytest.raises(TooLargeError):
        await store.fetch("video-files", CLIP, target, most=size - 1)
    with pytest.raises(AbsentError):
        await store.fetch("video-files", "u/none.mp4", target, most=size)
    with pytest.raises(Fault, match="bucket_missing"):  # which says nothing of the file
        await store.fetch("none", CLIP, target, most=size)
    bare_storage.fail("download", times=9, status=503)
    with pytest.raises(Fault, match="storage_unavailable"):
        await store.fetch("video-files", CLIP, target, most=size)


async def test_a_bucket_that_nothing_paid_needs_stops_no_work(
    bare_storage: StorageControl,
) -> None:
    """It is made where it is missing; what is wrong with it is said and lived with."""
    extra = Bucket("extra", public=False, max_bytes=9, media_types=("image/*",), vital=False)
    films = replace(VIDEOS, further_types=("image/avif",), for_films=True)
    key = bare_storage.keys.service_role
    storage = Storage(bare_storage.url, key, buckets=(films, extra))
    try:
        assert await storage.prove() == []
        found, _ = await storage.look(extra)
        assert found == Found(public=False, max_bytes=9, media_types=("image/*",))
        found, _ = await storage.look(films)
        assert found is not None
        assert found.media_types == ("video/mp4", "image/avif")
        change(f"{bare_storage.url}/storage/v1/bucket/extra", key, public=True)
        (noted,) = await storage.prove()
        assert "make it private" in str(noted)
    finally:
        await storage.aclose()


def change(url: str, key: str, **changed: object) -> None:
    headers = {"authorization": f"Bearer {key}"}
    httpx.put(url, json=changed, headers=headers, verify=certificates()).raise_for_status()


async def test_signing_an_absent_object_is_refused(store: Storage) -> None:
    with pytest.raises(Fault) as raised:
        await store.sign("video-files", "nobody/nothing.mp4", timedelta(hours=1))
    assert raised.value.name == "storage_refused"


async def test_the_public_url_is_the_clients_own_and_reads_the_bytes(
    store: Storage, bare_storage: StorageControl, tmp_path: Path
) -> None:
    still = tmp_path / "still.png"
    refill(still, b"picture")
    await store.put("generated-content", STILL, still, "image/png")
    url = store.public_url("generated-content", STILL)
    assert fetch(url).content == b"picture"
    async with httpx.AsyncClient() as http:
        options = AsyncClientOptions(httpx_client=http)
        client = await acreate_client(bare_storage.url, "key", options)
        assert url == await client.storage.from_("generated-content").get_public_url(STILL)


async def test_absent_objects_and_buckets_do_not_exist(store: Storage) -> None:
    assert not await store.exists("video-files", "nobody/nothing.mp4")
    assert not await store.exists("elsewhere", "nothing.mp4")


async def test_objects_are_removed_in_batches(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    await store.put("video-files", CLIP, clip, "video/mp4")
    await store.remove("video-files", [])
    await store.remove("video-files", [f"absent/{n}.mp4" for n in range(REMOVE_BATCH)] + [CLIP])
    assert bare_storage.objects() == []
    assert sum(seen["method"] == "DELETE" for seen in bare_storage.requests()) == 2


@pytest.mark.parametrize("status", [500, 503, 544, 429])
async def test_trouble_that_passes_is_retried_in_place(
    store: Storage, bare_storage: StorageControl, clip: Path, status: int
) -> None:
    bare_storage.fail("upload", times=2, status=status)
    await store.put("video-files", CLIP, clip, "video/mp4")
    assert len(uploads(bare_storage)) == 3
    assert len(bare_storage.objects()) == 1


async def test_trouble_that_lasts_is_unavailable_after_four_tries(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    bare_storage.fail("upload", times=99, status=544)
    assert (await put_fault(store, clip)).name == "storage_unavailable"
    assert len(uploads(bare_storage)) == 4


@pytest.mark.usefixtures("transport")
async def test_an_upload_that_is_cut_off_is_sent_again(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    bare_storage.fail("upload", drop="during")
    await store.put("video-files", CLIP, clip, "video/mp4")
    [found] = bare_storage.objects()
    assert found["sha256"] == digest(clip)


@pytest.mark.usefixtures("transport")
async def test_a_store_that_hangs_is_unavailable(bare_storage: StorageControl, clip: Path) -> None:
    key = bare_storage.keys.service_role
    async with opened(bare_storage.url, key, seconds=0.2) as storage:
        await storage.exists("video-files", CLIP)
        bare_storage.fail("any", times=99, hang=30)
        fault = await put_fault(storage, clip)
    bare_storage.heal()
    assert (fault.name, "ReadTimeout" in fault.details) == ("storage_unavailable", True)


async def test_a_refused_key_is_denied_at_once(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    bare_storage.fail("upload", times=99, status=403)
    assert (await put_fault(store, clip)).name == "storage_denied"
    assert len(uploads(bare_storage)) == 1


async def test_a_wrong_key_is_denied(bare_storage: StorageControl) -> None:
    async with opened(bare_storage.url, "not.a.jwt") as storage:
        with pytest.raises(Fault) as raised:
            await storage.ensure_buckets()
    assert raised.value.name == "storage_denied"


async def test_a_wrong_type_and_a_bad_name_are_refused_at_once(
    store: Storage, bare_storage: StorageControl, clip: Path
) -> None:
    assert (await put_fault(store, clip, "text/plain")).name == "upload_refused"
    with pytest.raises(Fault) as raised:
        await store.put("video-files", "films/é.mp4", clip, "video/mp4")
    assert raised.value.name == "upload_refused"
    assert len(uploads(bare_storage)) == 2


async def test_a_store_that_is_not_there_is_unavailable(unused_tcp_port: int, clip: Path) -> None:
    async with opened(f"http://127.0.0.1:{unused_tcp_port}", "key") as storage:
        fault = await put_fault(storage, clip)
    assert (fault.name, "ConnectError" in fault.details) == ("storage_unavailable", True)


@pytest.mark.parametrize("url", ["not a url", "ftp://example.com"])
async def test_an_address_that_can_not_be_right_is_loud(url: str, clip: Path) -> None:
    async with opened(url, "key") as storage:
        fault = await put_fault(storage, clip)
    assert fault.name == "storage_denied"


# Gateways and answers that the double does not give


@asynccontextmanager
async def gateway(*answers: tuple[int, bytes, str]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve (status, body, extra header) in turn, the last one again and again."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status, body, header = answers[min(len(seen), len(answers) - 1)]
            seen.append(head)
            # Uploads are multipart of a known length: read them, or the client can't listen.
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            writer.write(
                f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\n{header}"
                "connection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()
        await server.wait_closed()


def storage_error(status: str, code: str, message: str) -> bytes:
    return json.dumps({"statusCode": status, "error": code, "message": message}).encode()


HTML = b"<html>Bad Gateway</html>"
UPLOADED = json.dumps({"Key": f"video-files/{CLIP}", "Id": "1"}).encode()


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    ("status", "body", "fault", "tries"),
    [
        (502, HTML, "storage_unavailable", 4),
        (503, b'{"message": "name resolution failed"}', "storage_unavailable", 4),
        (504, b"", "storage_unavailable", 4),
        (540, b'{"message": "Project paused"}', "storage_unavailable", 4),
        (544, storage_error("544", "DatabaseTimeout", "timed out"), "storage_unavailable", 4),
        (404, HTML, "storage_unavailable", 4),
        (302, HTML, "storage_unavailable", 4),
        (200, HTML, "storage_unavailable", 4),
        (200, b"{}", "storage_unavailable", 4),
        (200, b"[]", "storage_unavailable", 4),
        (400, storage_error("odd", "Error", "odd"), "storage_unavailable", 4),
        (400, storage_error("409", "Duplicate", "exists"), "storage_unavailable", 4),
        (400, storage_error("423", "ResourceLocked", "locked"), "storage_unavailable", 4),
        (401, b'{"message": "Invalid API key"}', "storage_denied", 1),
        (403, HTML, "storage_denied", 1),
        (400, storage_error("403", "Unauthorized", '"exp" claim'), "storage_denied", 1),
        # Refused once, and then the bucket is read: it answers as oddly, so the file is kept.
        (413, HTML, "upload_refused", 2),
        (400, storage_error("413", "Payload too large", "too large"), "upload_refused", 2),
        (400, storage_error("415", "invalid_mime_type", "no"), "upload_refused", 2),
        (400, storage_error("400", "InvalidKey", "Invalid key"), "upload_refused", 2),
    ],
)
async def test_every_answer_to_an_upload_has_its_fault(
    clip: Path, status: int, body: bytes, fault: str, tries: int
) -> None:
    async with gateway((status, body, "")) as (url, seen), opened(url, "key") as storage:
        raised = await put_fault(storage, clip)
    assert (raised.name, len(seen)) == (fault, tries)
    assert CLIP in raised.details


@pytest.mark.parametrize(
    "body", [HTML, storage_error("429", "too_many_connections", "Too many")], ids=["html", "json"]
)
async def test_a_long_retry_after_is_left_to_the_pipeline(clip: Path, body: bytes) -> None:
    answer = (429, body, "retry-after: 120\r\n")
    async with gateway(answer) as (url, seen), opened(url, "key") as storage:
        raised = await put_fault(storage, clip)
    assert (raised.name, len(seen)) == ("storage_unavailable", 1)
    assert raised.retry_after == timedelta(minutes=2)


@pytest.mark.parametrize("header", ["soon", "-1", "0", "999999999999", "1e3"])
async def test_an_absurd_retry_after_is_not_believed(clip: Path, header: str) -> None:
    answers = (503, HTML, f"retry-after: {header}\r\n"), (200, UPLOADED, "")
    async with gateway(*answers) as (url, seen), opened(url, "key") as storage:
        await storage.put("video-files", CLIP, clip, "video/mp4")
    assert len(seen) == 2


async def test_the_project_limit_may_be_lower_than_ours() -> None:
    answers = (
        (400, storage_error("404", "Bucket not found", "Bucket not found"), ""),
        (400, storage_error("413", "Payload too large", "exceeded the maximum"), ""),
        (200, b'{"name": "video-files"}', ""),
    )
    async with gateway(*answers) as (url, seen), opened(url, "key") as storage:
        created = await storage.ensure_bucket(
            "video-files", public=False, max_bytes=10**12, media_types=["video/mp4"]
        )
    assert (created, len(seen)) == (True, 3)


async def test_a_bucket_without_an_owner_exists() -> None:
    found = {"id": "video-files", "name": "video-files", "owner": None, "public": False}
    answer = (200, json.dumps(found).encode(), "")
    async with gateway(answer) as (url, seen), opened(url, "key") as storage:
        created = await storage.ensure_bucket(
            "video-files", public=False, max_bytes=1, media_types=()
        )
    assert (created, len(seen)) == (False, 1)


async def test_the_headers_of_an_upload_say_type_and_overwrite(clip: Path) -> None:
    async with gateway((200, UPLOADED, "")) as (url, seen), opened(url, "key") as storage:
        await storage.put("video-files", CLIP, clip, "video/mp4")
    [head] = seen
    assert f"POST /storage/v1/object/video-files/{CLIP} HTTP/1.1".encode() in head
    assert b"x-upsert: true" in head
    assert b"authorization: bearer key" in head.lower()
