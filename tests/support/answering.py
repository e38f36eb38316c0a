"""Servers that answer as no double of ours does: foreign bytes, bombs, drips."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def server(head: bytes, body: bytes, *, drip: float = 0) -> AsyncIterator[str]:
    """Answers everything with this, as fast as it is taken, or a byte at a time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(65_536)
            writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
            if not drip:
                writer.write(body)
            while drip:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(drip)
            await writer.drain()
        except OSError:
            pass  # the client has heard enough
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def bomb(size: int = 1 << 30) -> bytes:
    """A gigabyte of blanks, packed."""
    packing = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    blanks = b" " * (1 << 20)
    return b"".join([*(packing.compress(blanks) for _ in range(size >> 20)), packing.flush()])


@asynccontextmanager
async def refusing_runway(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A Runway that refuses every POST with these bytes as its body, and notes the POSTs."""
    posts: list[bytes] = []
    account = json.dumps({"creditBalance": 1000, "tier": {"models": {}}, "usage": {"models": {}}})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            length = 0
            while (line := await reader.readline()).strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            await reader.readexactly(length)
            if head.startswith(b"POST"):
                posts.append(head)
                status, body = b"400 Bad Request", answer
            else:
                status, body = b"200 OK", account.encode()
            writer.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\ncontent-length: "
                + str(len(body)).encode() + b"\r\n\r\n" + body
            )  # fmt: skip
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", posts
    finally:
        server.close()
