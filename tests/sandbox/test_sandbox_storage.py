"""Storage's double against the real supabase-py client: statuses, quirks, and real policies."""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from storage3 import AsyncStorageClient
from storage3.exceptions import StorageApiError
from supabase import AsyncClientOptions, acreate_client

from vidgen_worker.providers.http_client import certificates
from vidgen_worker.sandbox.control import StorageControl
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.storage import StorageDouble

PNG = b"\x89PNG" + b"picture" * 5000
CLIP = b"clip" * 5000
AS_PNG: Any = {"content-type": "image/png"}
OWNER, STRANGER = uuid.uuid4(), uuid.uuid4()

Clients = Callable[..., Awaitable[AsyncStorageClient]]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(http2=False, timeout=20, verify=certificates()) as client:
        yield client


@pytest.fixture
def clients(bare_storage: StorageControl, http: httpx.AsyncClient) -> Clients:
    """Make clients: with the service key, with another key, with a user's token."""

    async def client(key: str | None = None, user: uuid.UUID | None = None) -> AsyncStorageClient:
        keys = bare_storage.keys
        headers = {}
        if user is not None:
            headers["Authorization"] = f"Bearer {keys.user_token(user)}"
        options = AsyncClientOptions(httpx_client=http, headers=headers)
        key = key or (keys.service_role if user is None else keys.anon)
        return (await acreate_client(bare_storage.url, key, options)).storage

    return client


@pytest.fixture
async def storage(clients: Clients) -> AsyncStorageClient:
    """The service's client, on a public bucket `stills` and a private bucket `films`."""
    client = await clients()
    await client.create_bucket(
        "stills",
        options={"public": True, "file_size_limit": 100_000, "allowed_mime_types": ["image/png"]},
    )
    await client.create_bucket("films", options={"public": False})
    return client


async def refused(call: Awaitable[object]) -> tuple[object, object, object]:
    with pytest.raises(StorageApiError) as caught:
        await call
    return caught.value.status, caught.value.code, caught.value.message


NO_OBJECT = ("404", "not_found", "Object not found")
NO_BUCKET = ("404", "Bucket not found", "Bucket not found")
DUPLICATE = ("409", "Duplicate", "The resource already exists")
NO_POLICY = ("403", "Unauthorized", "new row violates row-level security policy")


# Buckets -----------------------------------------------------------------------------------------


async def test_buckets_are_made_read_changed_and_deleted(storage: AsyncStorageClient) -> None:
    assert [bucket.id for bucket in await storage.list_buckets()] == ["films", "stills"]
    stills = await storage.get_bucket("stills")
    assert (stills.public, stills.file_size_limit) == (True, 100_000)
    assert stills.allowed_mime_types == ["image/png"]
    await storage.update_bucket("stills", {"public": False})
    stills = await storage.get_bucket("stills")
    assert (stills.public, stills.file_size_limit) == (False, 100_000)
    await storage.delete_bucket("films")
    assert [bucket.id for bucket in await storage.list_buckets()] == ["stills"]


async def test_bucket_errors_are_the_observed_ones(storage: AsyncStorageClient) -> None:
    assert await refused(storage.create_bucket("stills")) == DUPLICATE
    assert await refused(storage.get_bucket("none")) == NO_BUCKET
    await storage.from_("stills").upload("a.png", PNG, AS_PNG)
    status, code, _ = await refused(storage.delete_bucket("stills"))
    assert (status, code) == ("409", "ResourceNotEmpty")
    await storage.empty_bucket("stills")
    await storage.delete_bucket("stills")


# Uploads -----------------------------------------------------------------------------------------


async def test_an_upload_is_stored_with_its_type_and_hash(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    answer = await storage.from_("stills").upload("a/b.png", PNG, AS_PNG)
    assert answer.full_path == "stills/a/b.png"
    [stored] = bare_storage.objects()
    assert (stored["bucket"], stored["name"]) == ("stills", "a/b.png")
    assert (stored["media_type"], stored["bytes"]) == ("image/png", len(PNG))
    assert stored["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert await storage.from_("stills").download("a/b.png") == PNG


async def test_a_file_is_uploaded_from_its_path(
    storage: AsyncStorageClient, tmp_path: Path
) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(CLIP)
    await storage.from_("films").upload("clip.mp4", file, {"content-type": "video/mp4"})
    assert await storage.from_("films").download("clip.mp4") == CLIP


async def test_a_bare_body_is_an_upload_too(
    storage: AsyncStorageClient, bare_storage: StorageControl, http: httpx.AsyncClient
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield CLIP

    answer = await http.post(
        f"{bare_storage.url}/storage/v1/object/films/clip.mp4",
        content=chunks(),
        headers={
            "Authorization": f"Bearer {bare_storage.keys.service_role}",
            "Content-Type": "video/mp4",
            "x-upsert": "true",
        },
    )
    assert answer.json()["Key"] == "films/clip.mp4"
    assert await storage.from_("films").download("clip.mp4") == CLIP * 10


@pytest.mark.parametrize(
    ("bucket", "name", "content", "options", "error"),
    [
        ("none", "a.png", PNG, AS_PNG, NO_BUCKET),
        ("stills", "a.png", PNG, {}, ("415", "invalid_mime_type", "mime type text/plain is")),
        ("stills", "é.png", PNG, AS_PNG, ("400", "InvalidKey", "Invalid key: é.png")),
        ("stills", "a" * 1100, PNG, AS_PNG, ("500", "Internal", "Internal Server Error")),
        ("stills", "a.png", PNG * 3, AS_PNG, ("413", "Payload too large", "The object exceeded")),
    ],
    ids=["no bucket", "no type", "bad name", "long name", "too large"],
)
async def test_uploads_are_refused_as_observed(  # noqa: PLR0913, PLR0917 - a table
    storage: AsyncStorageClient,
    bare_storage: StorageControl,
    bucket: str,
    name: str,
    content: bytes,
    options: Any,  # noqa: ANN401 - storage3's own type is not exported
    error: tuple[str, str, str],
) -> None:
    status, code, message = await refused(storage.from_(bucket).upload(name, content, options))
    assert (status, code) == error[:2]
    assert str(message).startswith(error[2])
    assert bare_storage.objects() == []


async def test_without_upsert_an_existing_name_is_refused(storage: AsyncStorageClient) -> None:
    stills = storage.from_("stills")
    await stills.upload("a.png", PNG, AS_PNG)
    assert await refused(stills.upload("a.png", PNG, AS_PNG)) == DUPLICATE


async def test_upsert_and_update_overwrite(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    films = storage.from_("films")
    for content in (b"one", b"two"):
        await films.upload("a.mp4", content, {"content-type": "video/mp4", "upsert": "true"})
    await films.update("new.mp4", b"three", {"content-type": "video/mp4"})
    assert await films.download("a.mp4") == b"two"
    assert await films.download("new.mp4") == b"three"
    assert len(bare_storage.objects()) == 2


async def test_uploads_at_once_end_with_one_whole_object(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    contents = [bytes([number]) * 50_000 for number in range(5)]
    options: Any = {"content-type": "video/mp4", "upsert": "true"}
    await asyncio.gather(
        *(storage.from_("films").upload("a.mp4", content, options) for content in contents)
    )
    assert await storage.from_("films").download("a.mp4") in contents
    assert len(bare_storage.objects()) == 1


async def test_user_metadata_is_kept(storage: AsyncStorageClient) -> None:
    options: Any = {"content-type": "video/mp4", "metadata": {"scene": "7"}}
    await storage.from_("films").upload("a.mp4", CLIP, options)
    assert (await storage.from_("films").info("a.mp4"))["metadata"] == {"scene": "7"}


async def test_a_type_with_parameters_passes_the_buckets_list(storage: AsyncStorageClient) -> None:
    options: Any = {"content-type": "Image/PNG; charset=binary"}
    await storage.from_("stills").upload("a.png", PNG, options)


@pytest.mark.parametrize("drop", ["before", "during"])
async def test_a_broken_upload_leaves_nothing(
    storage: AsyncStorageClient, bare_storage: StorageControl, tmp_path: Path, drop: str
) -> None:
    bare_storage.fail("upload", drop=drop)
    with pytest.raises(httpx.TransportError):
        await storage.from_("films").upload("a.mp4", CLIP * 100, {"content-type": "video/mp4"})
    assert bare_storage.objects() == []
    left = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "storage").rglob("*")}
    assert left == {"storage/blobs", "storage/incoming"}


# Reading -----------------------------------------------------------------------------------------


async def test_a_public_bucket_is_read_by_anybody(
    storage: AsyncStorageClient, http: httpx.AsyncClient
) -> None:
    await storage.from_("stills").upload("a/b.png", PNG, AS_PNG)
    answer = await http.get(await storage.from_("stills").get_public_url("a/b.png"))
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "max-age=3600"
    head = await http.head(await storage.from_("stills").get_public_url("a/b.png"))
    assert head.headers["content-length"] == str(len(PNG))


async def test_a_private_bucket_has_no_public_urls(
    storage: AsyncStorageClient, http: httpx.AsyncClient
) -> None:
    await storage.from_("films").upload("a.mp4", CLIP, {"content-type": "video/mp4"})
    answer = await http.get(await storage.from_("films").get_public_url("a.mp4"))
    assert answer.status_code == 400
    assert answer.json()["error"] == "Bucket not found"


async def test_a_signed_url_is_good_until_it_expires(
    storage: AsyncStorageClient, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = storage.from_("films")
    await films.upload("a/b +1.mp4", CLIP, {"content-type": "video/mp4"})
    url = (await films.create_signed_url("a/b +1.mp4", 3600))["signedURL"]
    assert url is not None
    assert (await http.get(url)).content == CLIP
    part = await http.get(url, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"clip")
    then = time.time() - 3601
    monkeypatch.setattr(time, "time", lambda: then)
    old = (await films.create_signed_url("a/b +1.mp4", 3600))["signedURL"]
    monkeypatch.undo()
    assert old is not None
    answer = await http.get(old)
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidJWT")


async def test_a_signed_url_belongs_to_one_object(
    storage: AsyncStorageClient, http: httpx.AsyncClient
) -> None:
    films = storage.from_("films")
    for name in ("a.mp4", "b.mp4"):
        await films.upload(name, CLIP, {"content-type": "video/mp4"})
    url = (await films.create_signed_url("a.mp4", 3600))["signedURL"]
    assert url is not None
    answer = await http.get(url.replace("a.mp4", "b.mp4"))
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidSignature")
    assert (await http.get(url + "x")).json()["error"] == "InvalidJWT"
    await films.remove(["a.mp4"])
    assert (await http.get(url)).json()["statusCode"] == "404"


async def test_a_signed_url_may_ask_for_a_download(
    storage: AsyncStorageClient, http: httpx.AsyncClient
) -> None:
    films = storage.from_("films")
    await films.upload("a.mp4", CLIP, {"content-type": "video/mp4"})
    url = (await films.create_signed_url("a.mp4", 60, {"download": "my film.mp4"}))["signedURL"]
    assert url is not None
    disposition = (await http.get(url)).headers["content-disposition"]
    name = "my%20film.mp4"
    assert disposition == f"attachment; filename={name}; filename*=UTF-8''{name}"


async def test_signing_is_refused_as_observed(storage: AsyncStorageClient) -> None:
    films = storage.from_("films")
    await films.upload("a.mp4", CLIP, {"content-type": "video/mp4"})
    assert await refused(films.create_signed_url("none.mp4", 60)) == NO_OBJECT
    assert await refused(storage.from_("none").create_signed_url("a.mp4", 60)) == NO_OBJECT
    status, code, message = await refused(films.create_signed_url("a.mp4", 0))
    assert (status, code, message) == ("400", "Error", "body/expiresIn must be >= 1")


async def test_many_urls_are_signed_with_an_error_for_each_missing_one(
    storage: AsyncStorageClient,
) -> None:
    films = storage.from_("films")
    await films.upload("a.mp4", CLIP, {"content-type": "video/mp4"})
    good, bad = await films.create_signed_urls(["a.mp4", "none.mp4"], 60)
    assert (good["error"], bad["signedURL"]) == (None, None)
    assert good["signedURL"]
    assert bad["error"]


async def test_objects_are_listed_by_folder(storage: AsyncStorageClient) -> None:
    stills = storage.from_("stills")
    for name in ("a/1.png", "a/2.png", "b.png"):
        await stills.upload(name, PNG, AS_PNG)
    assert [(one["name"], one["id"] is None) for one in await stills.list()] == [
        ("a", True),
        ("b.png", False),
    ]
    options: Any = {"limit": 1, "sortBy": {"column": "name", "order": "desc"}}
    assert [one["name"] for one in await stills.list("a", options)] == ["2.png"]


async def test_looking_for_an_object(storage: AsyncStorageClient) -> None:
    stills = storage.from_("stills")
    await stills.upload("a.png", PNG, AS_PNG)
    assert await stills.exists("a.png") is True
    assert await stills.exists("none.png") is False
    assert await refused(storage.from_("none").exists("a.png")) == NO_BUCKET
    assert await refused(stills.download("none.png")) == NO_OBJECT
    assert (await stills.info("a.png"))["size"] == len(PNG)


async def test_removing_returns_what_was_removed(storage: AsyncStorageClient) -> None:
    stills = storage.from_("stills")
    await stills.upload("a.png", PNG, AS_PNG)
    assert [one["name"] for one in await stills.remove(["a.png", "none.png"])] == ["a.png"]
    assert await stills.exists("a.png") is False
    status, code, _ = await refused(stills.remove([]))
    assert (status, code) == ("400", "Error")


# Who may -----------------------------------------------------------------------------------------


@pytest.fixture
def owners_policy(bare_database_url: str) -> None:
    """Let owners read what is in their folder of `films`."""
    with psycopg.connect(bare_database_url, autocommit=True) as connection:
        connection.execute(
            """
            create policy owners on storage.objects for select to authenticated
            using (bucket_id = 'films'
                   and (storage.foldername(name))[1] = (select auth.uid())::text)
            """
        )


@pytest.mark.usefixtures("owners_policy")
async def test_a_policy_decides_who_signs_lists_and_downloads(
    storage: AsyncStorageClient, clients: Clients
) -> None:
    name = f"{OWNER}/a.mp4"
    await storage.from_("films").upload(name, CLIP, {"content-type": "video/mp4"})
    owner = (await clients(user=OWNER)).from_("films")
    stranger = (await clients(user=STRANGER)).from_("films")
    assert (await owner.create_signed_url(name, 60))["signedURL"]
    assert await owner.download(name) == CLIP
    assert [one["name"] for one in await owner.list(str(OWNER))] == ["a.mp4"]
    assert await refused(stranger.create_signed_url(name, 60)) == NO_OBJECT
    assert await refused(stranger.download(name)) == NO_OBJECT
    assert await stranger.list(str(OWNER)) == []


@pytest.mark.usefixtures("owners_policy")
async def test_without_a_policy_users_neither_write_nor_delete(
    storage: AsyncStorageClient, clients: Clients
) -> None:
    name = f"{OWNER}/a.mp4"
    await storage.from_("films").upload(name, CLIP, {"content-type": "video/mp4"})
    owner = await clients(user=OWNER)
    other: Any = {"content-type": "video/mp4"}
    assert await refused(owner.from_("films").upload(f"{OWNER}/b.mp4", CLIP, other)) == NO_POLICY
    assert await owner.from_("films").remove([name]) == []
    assert await refused(owner.create_bucket("mine")) == NO_POLICY
    assert await owner.list_buckets() == []
    assert await storage.from_("films").exists(name)


async def test_both_kinds_of_keys_are_taken(
    storage: AsyncStorageClient, clients: Clients, bare_storage: StorageControl
) -> None:
    keys = bare_storage.keys
    assert len(await storage.list_buckets()) == 2
    assert len(await (await clients(keys.secret)).list_buckets()) == 2
    assert await (await clients(keys.publishable)).list_buckets() == []
    assert await (await clients(keys.anon)).list_buckets() == []


@pytest.mark.parametrize(
    ("key", "error"),
    [
        # The gateway's own answer, which storage3 can't read.
        ("sb_secret_wrong", (401, "InternalError")),
        ("no.j.wt", ("403", "Unauthorized")),
    ],
)
async def test_a_wrong_key_is_refused(
    clients: Clients, key: str, error: tuple[object, str]
) -> None:
    assert (await refused((await clients(key)).list_buckets()))[:2] == error


async def test_an_expired_token_is_refused(
    bare_storage: StorageControl, http: httpx.AsyncClient
) -> None:
    token = bare_storage.keys.user_token(OWNER, seconds=-5)
    headers = {"Authorization": f"Bearer {token}"}
    answer = await http.get(f"{bare_storage.url}/storage/v1/bucket", headers=headers)
    assert answer.json()["message"] == '"exp" claim timestamp check failed'


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        (403, ("403", "Unauthorized")),
        (404, ("404", "Bucket not found")),
        (413, ("413", "Payload too large")),
        (415, ("415", "invalid_mime_type")),
        (429, ("429", "too_many_connections")),
        (500, ("500", "Internal")),
        (544, ("544", "DatabaseTimeout")),
        (502, (502, "InternalError")),
        (503, (503, "InternalError")),
    ],
)
async def test_requests_fail_as_told_and_as_often_as_told(
    storage: AsyncStorageClient, bare_storage: StorageControl, status: int, seen: tuple[object, str]
) -> None:
    stills = storage.from_("stills")
    bare_storage.fail("upload", times=2, status=status)
    for _ in range(2):
        assert (await refused(stills.upload("a.png", PNG, AS_PNG)))[:2] == seen
    await stills.upload("a.png", PNG, AS_PNG)


async def test_a_lost_answer_is_no_lost_upload(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    bare_storage.fail("upload", drop="after")
    with pytest.raises(httpx.RemoteProtocolError):
        await storage.from_("stills").upload("a.png", PNG, AS_PNG)
    assert [one["name"] for one in bare_storage.objects()] == ["a.png"]


async def test_a_hanging_request_outlasts_its_client(
    storage: AsyncStorageClient, bare_storage: StorageControl, http: httpx.AsyncClient
) -> None:
    bare_storage.fail("bucket", hang=60)
    http.timeout = httpx.Timeout(0.05)
    with pytest.raises(httpx.ReadTimeout):
        await storage.list_buckets()


def service(control: StorageControl) -> dict[str, str]:
    """What a bare request of the service says of itself."""
    key = control.keys.service_role
    return {"apikey": key, "authorization": f"Bearer {key}"}


def soon(look: Callable[[], list[Any]]) -> list[Any]:
    """Look at the double, which serves in a thread of its own, until it has something to show."""
    deadline = time.monotonic() + 20
    while not (found := look()):
        assert time.monotonic() < deadline
    return found


@pytest.mark.parametrize("form", [True, False])
async def test_an_upload_that_was_received_whole_is_stored_when_its_client_has_left(
    storage: AsyncStorageClient, bare_storage: StorageControl, http: httpx.AsyncClient, form: bool
) -> None:
    """As the real server does: who gives up waiting has not taken the upload back."""
    bare_storage.fail("upload", hang=0.5)
    http.timeout = httpx.Timeout(0.1)
    upload: Awaitable[object] = (
        storage.from_("stills").upload("a.png", PNG, AS_PNG) if form
        else http.post(
            f"{bare_storage.url}/storage/v1/object/stills/a.png", content=PNG,
            headers={**service(bare_storage), "content-type": "image/png"},
        )
    )  # fmt: skip
    with pytest.raises(httpx.ReadTimeout):
        await upload
    (stored,) = soon(bare_storage.objects)
    assert (stored["name"], stored["bytes"]) == ("a.png", len(PNG))


async def test_an_upload_that_is_cut_off_while_it_hangs_is_not_stored(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    bare_storage.fail("upload", hang=0.1)
    host, _, port = bare_storage.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    lines = [
        "POST /storage/v1/object/stills/a.png HTTP/1.1", f"host: {host}:{port}",
        "content-type: image/png", "content-length: 100",
        *(f"{name}: {value}" for name, value in service(bare_storage).items()), "", "half",
    ]  # fmt: skip
    writer.write("\r\n".join(lines).encode())
    await writer.drain()
    soon(bare_storage.requests)
    writer.close()
    await writer.wait_closed()
    # The next one is served after it.
    await storage.from_("stills").upload("b.png", PNG, AS_PNG)
    assert [one["name"] for one in bare_storage.objects()] == ["b.png"]


async def test_faults_are_forgotten_on_demand(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    bare_storage.fail("any", times=100, status=500)
    bare_storage.heal()
    await storage.list_buckets()


def test_an_unknown_fault_names_the_known_ones(bare_storage: StorageControl) -> None:
    with pytest.raises(
        ValueError, match="kind, times, status, hang, begin_after, hang_after, drop"
    ):
        bare_storage.fail("any", explode=True)


async def test_a_bucket_disappears_on_demand(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    await storage.from_("stills").upload("a.png", PNG, AS_PNG)
    bare_storage.delete_bucket("stills")
    assert await refused(storage.from_("stills").upload("a.png", PNG, AS_PNG)) == NO_BUCKET
    assert bare_storage.objects() == []


async def test_every_request_is_kept(
    storage: AsyncStorageClient, bare_storage: StorageControl
) -> None:
    await storage.from_("stills").upload("a.png", PNG, AS_PNG)
    *_, last = bare_storage.requests()
    assert (last["kind"], last["method"], last["status"]) == ("upload", "POST", 200)


async def test_a_locked_row_is_a_timeout_of_the_database(
    tmp_path: Path, bare_database_url: str, bare_admin_url: str, http: httpx.AsyncClient
) -> None:
    double = StorageDouble(tmp_path / "impatient", bare_admin_url, database_seconds=0.1)
    with BackgroundServer(double.app) as server, psycopg.connect(bare_database_url) as other:
        other.execute("lock table storage.buckets")
        headers = {"Authorization": f"Bearer {double.keys.service_role}"}
        answer = await http.get(f"{server.url}/storage/v1/bucket", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (544, "DatabaseTimeout")


async def test_without_its_database_it_answers_500_and_recovers(
    tmp_path: Path, bare_admin_url: str, http: httpx.AsyncClient
) -> None:
    absent = bare_admin_url.replace("/vidgen_", "/absent_")
    double = StorageDouble(tmp_path / "lost", absent, connect_seconds=0.2)
    with BackgroundServer(double.app) as server:
        headers = {"Authorization": f"Bearer {double.keys.service_role}"}
        answer = await http.get(f"{server.url}/storage/v1/bucket", headers=headers)
    assert answer.status_code == 500
    assert json.loads(answer.content)["error"] == "Internal"
