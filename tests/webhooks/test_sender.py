"""Where a request may go, and how little a receiver can do to the worker that sends it."""

import asyncio
import contextlib
import functools
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import certificates_below
from tests.support.receiver import Receiver, receiving, status
from vidgen_worker.media import public_address
from vidgen_worker.webhooks import sender as sender_module
from vidgen_worker.webhooks.sender import Answer, Sender, Trouble

HEADERS = {"webhook-id": "1"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as listening:
        yield listening


async def sent(url: str, *, allow_loopback: bool = False) -> Answer:
    one = Sender(allow_loopback=allow_loopback)
    try:
        return await one.send(url, HEADERS, b"{}")
    finally:
        await one.aclose()


@pytest.mark.parametrize("host", [
    "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "[fd00::1]", "100.100.100.200",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0",  # noqa: S104 - to be refused
    "192.0.2.1", "198.18.0.1", "224.0.0.1",
    "[fe80::1%25eth0]", "255.255.255.255", "[::]", "10.0.0.1", "172.16.0.1", "192.168.1.1",
    "168.63.129.16", "[2001:db8::1]", "[ff02::1]", "[::127.0.0.1]", "[2001:0:7f00:1::]",
    # What a resolver makes an address of:
    "127.1", "0x7f000001", "2130706433", "017700000001", "localhost", "127.0.0.1.",
])  # fmt: skip
async def test_no_form_of_a_forbidden_address_is_reached(host: str) -> None:
    answer = await sent(f"https://{host}/hook")
    assert answer.status is None
    assert answer.trouble in (Trouble.REFUSED, Trouble.NAME)
    if answer.trouble is Trouble.NAME:  # not an address at all, to this machine's resolver
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(host.strip("[]"), 443)


@pytest.mark.parametrize("url", [
    "http://example.com/", "https://user:word@example.com/", "https://user@example.com/",
    "https://example.com:8443/", "ftp://example.com/", "file:///etc/passwd", "https://", "//x/y",
    "https://exa mple.com/", "https://[::1", "gopher://127.0.0.1:6379/", "https://%31%32%37.0.0.1/",
])  # fmt: skip
async def test_a_url_of_another_form_is_refused(url: str) -> None:
    assert (await sent(url)).status is None


async def test_a_name_that_turns_to_this_machine_gains_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resolves to a public address when it is looked at, and to loopback when it is asked."""
    port = int(receiver.url.rsplit(":", 1)[1].partition("/")[0])
    real: Any = socket.getaddrinfo
    looked: list[str] = []

    def resolve(host: object, *args: object, **options: object) -> object:
        if host not in ("rebinding.example", b"rebinding.example"):
            return real(host, *args, **options)
        looked.append(str(host))
        address = "8.8.8.8" if len(looked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    answer = await sent("https://rebinding.example/")
    assert answer == Answer(None, Trouble.REFUSED)
    assert len(looked) == 2
    assert receiver.connections == 0


async def test_one_private_address_among_public_ones_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Any = socket.getaddrinfo

    def resolve(host: object, *args: object, **options: object) -> object:
        if host != "both.example":
            return real(host, *args, **options)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))
            for address in ("8.8.8.8", "10.0.0.7")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert await sent("https://both.example/") == Answer(None, Trouble.REFUSED)


async def test_the_environment_s_proxy_is_not_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, receiver.url)
    assert await sent("https://10.0.0.1/") == Answer(None, Trouble.REFUSED)
    assert receiver.told == []


async def test_a_redirect_is_an_answer_and_not_a_way(receiver: Receiver) -> None:
    receiver.answers.append(status(302, f"location: {receiver.url}?followed"))
    answer = await sent(receiver.url, allow_loopback=True)
    assert (answer.status, answer.arrived) == (302, False)
    assert [one.path for one in receiver.told] == ["/hook"]


@pytest.mark.parametrize(
    ("number", "arrived", "gone"),
    [(200, True, False), (204, True, False), (299, True, False), (300, False, False),
     (404, False, False), (410, False, True), (500, False, False)],
)  # fmt: skip
async def test_only_200_to_299_is_taken_for_an_arrival(
    receiver: Receiver, number: int, *, arrived: bool, gone: bool
) -> None:
    receiver.answers.append(status(number))
    answer = await sent(receiver.url, allow_loopback=True)
    assert (answer.status, answer.arrived, answer.gone) == (number, arrived, gone)
    assert receiver.told[0].headers["content-type"] == "application/json"
    assert receiver.told[0].body == b"{}"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120), ("0", 0), ("-5", None), ("soon", None), ("9" * 400, 1e9), ("\uff11\uff12", None),
     ("Wed, 21 Oct 1998 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", None)],
)  # fmt: skip
async def test_retry_after_is_read_in_both_forms(
    receiver: Receiver, value: str, seconds: float | None
) -> None:
    receiver.answers.append(status(503, f"retry-after: {value}".encode().decode("latin-1")))
    wish = (await sent(receiver.url, allow_loopback=True)).wish
    if "9999" in value:
        assert wish is not None
        assert wish.days > 100
    else:
        assert (wish.total_seconds() if wish else 0 if wish is not None else None) == seconds


@pytest.mark.parametrize("body", [b"x" * 200_000, (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 40])
async def test_a_long_answer_is_not_read_to_its_end(receiver: Receiver, body: bytes) -> None:
    framing = b"transfer-encoding: chunked" if body[:1] == b"1" else b"content-length: 9000000"
    receiver.answers.append(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + body)
    one = Sender(allow_loopback=True)
    assert (await one.send(receiver.url, HEADERS, b"{}")).arrived
    assert (await one.send(receiver.url, HEADERS, b"{}")).arrived
    assert [told.connection for told in receiver.told] == [1, 2]
    await one.aclose()


async def test_a_connection_is_used_again_after_a_short_answer(receiver: Receiver) -> None:
    one = Sender(allow_loopback=True)
    for _ in range(3):
        assert (await one.send(receiver.url, HEADERS, b"{}")).arrived
    assert receiver.connections == 1
    await one.aclose()


async def test_an_answer_that_does_not_come_ends_in_time(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "TIMEOUT", 0.3)
    receiver.open.clear()
    began = time.monotonic()
    assert await sent(receiver.url, allow_loopback=True) == Answer(None, Trouble.TIMEOUT)
    assert time.monotonic() - began < 5


async def test_an_answer_that_drips_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "TIMEOUT", 0.3)

    hung_up = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x-a: b\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        answer = await sent(f"http://127.0.0.1:{port}/", allow_loopback=True)
        await hung_up.wait()
    assert answer.status is None


async def test_what_is_no_http_and_a_cut_connection_are_a_broken_one(receiver: Receiver) -> None:
    for odd in (b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-le"):
        server = await asyncio.start_server(functools.partial(_cut, odd), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            answer = await sent(f"http://127.0.0.1:{port}/", allow_loopback=True)
        assert answer == Answer(None, Trouble.BROKEN)
    assert receiver.told == []


async def _cut(answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    writer.write(answer)
    await writer.drain()
    writer.close()


async def test_a_certificate_of_nobody_is_not_accepted(receiver: Receiver, tmp_path: Path) -> None:
    files = certificates_below(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        answer = await sent(f"https://127.0.0.1:{port}/", allow_loopback=True)
    assert answer == Answer(None, Trouble.TLS)
    assert receiver.told == []


def test_the_port_of_https_is_the_only_one() -> None:
    assert public_address.HTTPS_PORT == 443
