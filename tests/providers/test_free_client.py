"""What is free goes over aiohttp, what is paid over httpx's own; errors are the same on both."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiohttp
import httpcore
import httpx
import pytest

from tests.support.certificates import Certificates, certificates_below
from vidgen_worker.domain.faults import Fault
from vidgen_worker.providers.aiohttp_transport import AiohttpTransport
from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.providers.http_client import HttpClient, PaidClient
from vidgen_worker.providers.protocol import Request
from vidgen_worker.providers.runway.adapter import Runway
from vidgen_worker.storage.storage import Storage

GENERATION = UUID("17f20503-6c24-4c16-946b-35dbbce2af2f")
SECONDS = 5.0
PATIENCE = 60.0
SECRET = "?_jwt=a%2Bb%7E~+SECRET"

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(
    act: Act, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[SimpleNamespace]:
    """Let `act` have each connection; `ended` counts those that the client has hung up."""
    seen = SimpleNamespace(url="", connections=0, ended=asyncio.Semaphore(0))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            await act(reader, writer)
            await reader.read()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has hung up, or was to be shaken off
        finally:
            writer.close()
            seen.ended.release()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    seen.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        yield seen
    finally:
        server.close()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answers(head: bytes, body: bytes = b"", *, then: str = "wait") -> Act:
    """Answer each request with this; then wait for the next one, close, or reset."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            writer.write(head + body)
            await writer.drain()
            if then == "close":
                writer.close()
                return
            if then == "reset":
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                writer.transport.abort()
                return

    return act


def client(kind: str, *, seconds: float = SECONDS, places: int = 10) -> HttpClient:
    """The free client on aiohttp, or httpx's own transport."""
    timeout = httpx.Timeout(seconds)
    limits = httpx.Limits(max_connections=places, max_keepalive_connections=places)
    if kind == "aiohttp":
        return FreeClient(timeout=timeout, limits=limits)
    return HttpClient(timeout=timeout, limits=limits)


both = pytest.mark.parametrize("kind", ["httpx", "aiohttp"])
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


# Errors


LOST: dict[str, tuple[Act, tuple[type[Exception], ...]]] = {
    "closed": (answers(b"", then="close"), (httpx.RemoteProtocolError,)),
    "reset": (answers(b"", then="reset"), (httpx.ReadError,)),
    "silent": (answers(b""), (httpx.ReadTimeout,)),
    "no HTTP": (answers(b"SSH-2.0-OpenSSH\r\n\r\n", then="close"), (httpx.RemoteProtocolError,)),
    "half a head": (answers(b"HTTP/1.1 200 OK\r\n"), (httpx.ReadTimeout,)),
    "half a body": (answers(OK, b"o"), (httpx.ReadTimeout,)),
    "half, closed": (answers(OK, b"o", then="close"), (httpx.RemoteProtocolError,)),
    "half, reset": (answers(OK, b"o", then="reset"), (httpx.ReadError, httpx.RemoteProtocolError)),
    "no length": (
        answers(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", then="close"),
        (httpx.RemoteProtocolError,),
    ),
    "no chunk": (
        answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", then="close"),
        (httpx.RemoteProtocolError,),
    ),
}


@pytest.mark.parametrize("how", LOST)
@both
async def test_each_way_to_lose_an_answer_has_one_error_and_is_not_sent_again(
    kind: str, how: str
) -> None:
    act, error = LOST[how]
    waits = httpx.Timeout(0.3, connect=10)  # a busy machine takes its time to connect
    async with serving(act) as server, client(kind) as http:
        with pytest.raises(error) as raised:
            await http.get(f"{server.url}/a{SECRET}", timeout=waits)
        assert server.connections == 1
    assert "SECRET" not in str(raised.value)


@both
async def test_what_is_not_reached_is_a_connect_error(kind: str, unused_tcp_port: int) -> None:
    async with client(kind) as http:
        for place in (f"127.0.0.1:{unused_tcp_port}", "nobody.invalid"):
            with pytest.raises(httpx.ConnectError) as raised:
                await http.get(f"http://{place}/a{SECRET}")
            assert "SECRET" not in str(raised.value)
        for address in (f"ftp://127.0.0.1/a{SECRET}", f"a{SECRET}"):
            with pytest.raises(httpx.UnsupportedProtocol):
                await http.get(address)


@pytest.fixture
def crowded() -> Iterator[int]:
    """Provide a port whose queue is full: a connection neither comes about nor is refused."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for one in waiting:
            one.close()


@both
async def test_a_connection_that_does_not_come_about_ends(kind: str, crowded: int) -> None:
    async with client(kind, seconds=0.2) as http:
        with pytest.raises(httpx.ConnectTimeout) as raised:
            await http.get(f"http://127.0.0.1:{crowded}/a{SECRET}")
    assert "SECRET" not in str(raised.value)


@both
async def test_a_full_pool_is_waited_for_no_longer_than_allowed(kind: str) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asked.set()

    async with serving(silent) as server, client(kind, places=1) as http:
        first = asyncio.create_task(http.get(server.url))
        await asked.wait()
        with pytest.raises(httpx.TimeoutException):
            await http.get(server.url, timeout=httpx.Timeout(0.2))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert server.connections == 1


@both
async def test_a_body_that_nobody_takes_is_given_up(kind: str) -> None:
    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()

    gone = asyncio.Event()
    files = {"file": ("a", b"x" * 20_000_000)}
    async with serving(deaf) as server, client(kind, seconds=0.3) as http:
        with pytest.raises(httpx.WriteTimeout):
            await http.post(server.url, files=files)
        gone.set()


async def test_an_answer_that_comes_before_the_body_is_taken_is_read() -> None:
    refused = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"
    async with serving(answers(refused)) as server, client("aiohttp") as http:
        answer = await http.post(server.url, files={"file": ("a", b"x" * 20_000_000)})
    assert (answer.status_code, answer.text) == (413, "no")


# TLS


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates_below(tmp_path_factory.mktemp("authority"))


@both
async def test_only_an_authority_that_is_trusted_is_talked_to(
    kind: str, own: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await head_of(reader))
        heard.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.write(OK + b"ok")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.chain, own.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(act, tls=context) as server:
        async with client(kind) as http:
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                await http.get(server.url)
        assert not heard
        monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
        async with client(kind) as http:
            assert (await http.get(server.url)).text == "ok"
            wrong = server.url.replace("127.0.0.1", "localhost")
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate|hostname"):
                await http.get(wrong)
    assert heard[1] == "http/1.1"


# What is sent, and what is kept


@both
async def test_a_request_arrives_as_it_was_written(kind: str) -> None:
    heads: list[bytes] = []
    led_on = (
        b"HTTP/1.1 302 Found\r\nx-note: caf\xe9\r\nset-cookie: a=b\r\n"
        b"content-length: 0\r\nlocation: /" + b"a" * 20_000 + b"\r\n\r\n"
    )

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await head_of(reader))
            writer.write(led_on)

    async with serving(act) as server, client(kind) as http:
        for _ in range(2):
            answer = await http.get(f"{server.url}/a%2Fb%20c{SECRET}")
        with pytest.raises((httpx.LocalProtocolError, ValueError)):
            await http.get(server.url, headers={"x": "a\r\nb: c"})
        with pytest.raises(UnicodeEncodeError):
            await http.get(server.url, headers={"x": "caf\u00e9"})
    assert (answer.status_code, len(answer.headers["location"])) == (302, 20_001)
    assert answer.headers["x-note"] == "caf\u00e9"
    assert len(heads) == 2
    for head in heads:
        first, *lines = head.strip().split(b"\r\n")
        assert first == f"GET /a%2Fb%20c{SECRET} HTTP/1.1".encode()
        names = sorted(line.partition(b":")[0].lower() for line in lines)
        assert names == [b"accept", b"accept-encoding", b"connection", b"host", b"user-agent"]


@both
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_connection_that_the_server_has_closed_is_not_used_again(
    kind: str, then: str
) -> None:
    async with serving(answers(OK, b"ok", then=then)) as server, client(kind) as http:
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert (await http.request(method, server.url)).text == "ok"
            await server.ended.acquire()
            await asyncio.sleep(0)
    assert server.connections == 4


@both
async def test_a_connection_that_stays_open_is_used_again(kind: str) -> None:
    async with serving(answers(OK, b"ok")) as server, client(kind) as http:
        for _ in range(3):
            assert (await http.get(server.url)).text == "ok"
    assert server.connections == 1


@both
async def test_the_sixth_version_of_addresses_is_reached(kind: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    async with serving(answers(OK, b"ok"), host="::1") as server, client(kind) as http:
        assert (await http.get(server.url)).text == "ok"


@both
@pytest.mark.parametrize("way", ["a download", "an upload"])
async def test_who_is_cancelled_in_the_middle_leaves_no_connection(kind: str, way: str) -> None:
    middle, kept = asyncio.Event(), list[httpx.Response]()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await head_of(reader)).startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 9999)
        else:
            middle.set()

    async def work(http: HttpClient) -> None:
        if way == "an upload":
            await http.post(server.url, files={"file": ("a", b"x" * 20_000_000)})
        async with http.stream("GET", server.url) as response:
            kept.append(response)  # what is collected is closed anyhow
            async for _ in response.aiter_raw():
                middle.set()

    patient = client(kind, places=1, seconds=4 * PATIENCE)  # no time-out is to close it
    async with serving(act) as server, patient as http:
        for _ in range(2):  # there is one place: a second time it must be free again
            middle.clear()
            task = asyncio.create_task(work(http))
            await middle.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.ended.acquire(), PATIENCE)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_httpx_s_business(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = httpx.Limits()
    assert isinstance(FreeClient(timeout=httpx.Timeout(1), limits=limits)._transport,
                      AiohttpTransport)  # fmt: skip
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert isinstance(FreeClient(timeout=httpx.Timeout(1), limits=limits)._transport,
                      httpx.AsyncHTTPTransport)  # fmt: skip


# Who sends what


async def test_what_is_paid_goes_over_httpx_alone_and_what_is_free_over_aiohttp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Counted below both: where each library takes the requests that a real server answers."""
    taken: dict[str, list[str]] = {"httpx": [], "aiohttp": []}
    send_httpx = httpcore.AsyncConnectionPool.handle_async_request
    send_aiohttp = aiohttp.ClientSession._request

    async def over_httpx(pool: Any, request: httpcore.Request) -> Any:  # noqa: ANN401 - theirs
        taken["httpx"].append(f"{request.method.decode()} {request.url.target.decode()}")
        return await send_httpx(pool, request)

    async def over_aiohttp(session: Any, method: str, url: Any, **more: Any) -> Any:  # noqa: ANN401 - theirs
        taken["aiohttp"].append(f"{method} {url.path}")
        return await send_aiohttp(session, method, url, **more)

    monkeypatch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", over_httpx)
    monkeypatch.setattr(aiohttp.ClientSession, "_request", over_aiohttp)
    said = {"id": str(GENERATION), "status": "RUNNING", "creditBalance": 1, "signedURL": "/x"}
    body = json.dumps(said | {"Key": "b/c", "Id": "1"}).encode()
    requests: list[str] = []

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await head_of(reader)
            requests.append(head.split(b" HTTP")[0].decode())
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    file = tmp_path / "a"
    file.write_bytes(b"a picture")
    async with serving(act) as server:
        runway = Runway("key_x", base_url=server.url, submit_timeout=timedelta(seconds=5))
        storage = Storage(server.url, "key", buckets=())
        for endpoint in ("/v1/text_to_image", "/v1/image_to_video"):
            await runway.submit(Request(endpoint, "gen4_image", {}))
        await runway.poll(GENERATION)
        await runway.cancel(GENERATION)
        await runway.account()
        await storage.put("b", "c", file, "image/png")
        await storage.sign("b", "c", timedelta(hours=1))
        await storage.remove("b", ["c"])
        await storage.aclose()
        await runway.aclose()
    assert taken["httpx"] == ["POST /v1/text_to_image", "POST /v1/image_to_video"]
    assert sorted(taken["httpx"] + taken["aiohttp"]) == sorted(requests)
    assert len(taken["aiohttp"]) == 6


async def test_the_reading_client_sends_no_post() -> None:
    async with serving(answers(OK, b"{}")) as server:
        runway = Runway("key_x", base_url=server.url, submit_timeout=timedelta(seconds=5))
        with pytest.raises(ValueError, match="PaidClient"):
            await runway._reader._client.post(f"{server.url}/v1/text_to_image")
        assert server.connections == 0
        with pytest.raises(Fault, match="poll_failed"):
            await runway.account()
        await runway.aclose()
    assert server.connections > 0


def test_the_paid_client_takes_no_transport() -> None:
    paid: Any = PaidClient
    for name in ("transport", "mounts", "proxy", "timeout"):
        with pytest.raises(TypeError):
            paid(connect=1.0, max_connections=1, **{name: None})
    assert isinstance(PaidClient(connect=1.0, max_connections=1)._transport,
                      httpx.AsyncHTTPTransport)  # fmt: skip
