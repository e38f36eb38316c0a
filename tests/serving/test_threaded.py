"""The server in a thread: it answers between start and stop, and says why it can't."""

import contextlib
import socket
import threading
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from vidgen_worker.serving.stoppable import ServingError
from vidgen_worker.serving.threaded import ThreadedServer


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def fail() -> None:
    raise RuntimeError("the application can't begin")


@contextlib.asynccontextmanager
async def broken(_: Starlette) -> AsyncIterator[None]:
    await fail()
    yield


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_server_answers_until_it_is_stopped() -> None:
    server = ThreadedServer(Starlette(routes=[Route("/", hello)]), listening(), ws="none")
    with server:
        assert httpx.get(server.url, trust_env=False).text == "hello"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)
    server.stop()


def test_an_application_that_can_not_begin_is_reported_and_leaves_no_thread() -> None:
    server = ThreadedServer(Starlette(lifespan=broken), listening(), ws="none")
    with pytest.raises(ServingError, match=rf":{server.port} did not start"):
        server.start()
    assert f"http-{server.port}" not in {thread.name for thread in threading.enumerate()}
