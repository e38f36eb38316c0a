"""Downloads from the provider: streamed into a file, from public addresses only.

A file that stops before its stated end is kept with a doubt: only decoding it shows whether it is
whole. Nothing here looks at what the bytes mean.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from httpx import codes

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.media.public_address import (
    NotPublicError,
    only_public,
    public_sockets,
    refusal,
)
from vidgen_worker.media.scratch import SHORT, discard, scratch_fault
from vidgen_worker.providers.free_client import FreeClient

CONNECT_SECONDS = 10.0
"""How long a connection to the provider's file server may take."""
CONNECTIONS = 100
"""The most downloads at once; others wait for a place."""
IDLE_CONNECTIONS = 20
"""Idle connections that httpx's own transport keeps; few, because it looks at each of them."""
MAX_REDIRECTS = 5
"""The most redirects that one download follows."""
GZIP = b"\x1f\x8b\x08"
"""No picture or clip begins like this: a server has compressed the file for the transfer."""
UNPACKED_AT_ONCE = 2**20
"""Bytes per step of decompression: a decompression bomb is counted, never held in memory."""

_CONTENT_RANGE = re.compile(r"bytes 0-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A downloaded file. `size` is in bytes, `sha256` the hex digest of those bytes.

    `doubt` says why bytes may be missing; only decoding shows whether they are.
    """

    size: int
    sha256: str
    content_type: str | None
    doubt: str | None = None


class Downloads:
    """Downloads from https at public addresses only, also after redirects.

    `allow_loopback` lets them come from this machine's loopback too, as in a sandbox.
    """

    def __init__(
        self, *, allow_loopback: bool, idle_timeout: timedelta, total_timeout: timedelta
    ) -> None:
        self._allow_loopback = allow_loopback
        self._total_seconds = total_timeout.total_seconds()
        idle = idle_timeout.total_seconds()
        self._http = FreeClient(
            timeout=httpx.Timeout(
                idle, connect=min(CONNECT_SECONDS, idle), pool=self._total_seconds
            ),
            # Outputs are compressed already.
            headers={"accept-encoding": "identity"},
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=IDLE_CONNECTIONS
            ),
            sockets=public_sockets(allow_loopback=allow_loopback),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def fetch(self, url: str, target: Path, max_bytes: int) -> Downloaded:
        """Stream `url` into `target`, which is absent again if that fails.

        A file that stops before its stated end is kept with a doubt. Raises Fault
        `output_unavailable`, `output_too_large` and `scratch_unavailable`.
        """
        # A signed URL is a key: only its path is said.
        what = f"downloading {url.partition('?')[0]}"
        try:
            async with asyncio.timeout(self._total_seconds):
                return await self._stream(url, target, max_bytes, what)
        except BaseException as error:
            discard(target)
            match error:
                case TimeoutError():
                    details = f"{what}: not finished within {self._total_seconds:g} s"
                case httpx.HTTPError() | httpx.InvalidURL():
                    short = _shortage(error)
                    if short is not None:
                        raise scratch_fault(short, what) from error
                    details = f"{what}: {type(error).__name__}: {error}"
                case OSError():
                    raise scratch_fault(error, target.parent) from error
                case _:
                    raise
            raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details) from error

    async def _stream(self, url: str, target: Path, max_bytes: int, what: str) -> Downloaded:
        async with self._answer(url, what) as response:
            doubt: str | None = None
            # Pieces of some 100 KB: written and hashed in well under a millisecond, and constant
            # memory however many downloads run.
            with target.open("wb", buffering=0) as file:
                arriving = _Arriving(file.fileno(), max_bytes, what)
                try:
                    async for piece in response.aiter_raw():
                        arriving.take(piece)
                except httpx.TransportError as error:
                    # The stated length may be wrong, and the bytes all there.
                    doubt = f"{what}: {type(error).__name__}: {error}"
                arriving.end()
                if not arriving.packed_end:
                    doubt = doubt or f"{what}: compressed, and cut short"
            if not arriving.size:
                raise Fault(
                    FaultName.OUTPUT_UNAVAILABLE, details=doubt or f"{what}: no byte arrived"
                )
            content_type = response.headers.get("content-type")
            return Downloaded(arriving.size, arriving.sha256, content_type, doubt)

    @contextlib.asynccontextmanager
    async def _answer(self, url: str, what: str) -> AsyncIterator[httpx.Response]:
        """Ask for a file, and follow redirects. Raises Fault unless a file comes."""
        request = self._http.build_request("GET", url)
        for _ in range(MAX_REDIRECTS + 1):
            await self._public_only(request, what)
            try:
                response = await self._http.send(request, stream=True)
            except (NotPublicError, httpx.ConnectError) as error:
                astray = _first(error, lambda cause: isinstance(cause, NotPublicError))
                if astray is None:
                    raise
                raise _led_astray(what, str(astray)) from error
            try:
                if response.next_request is None:
                    if not _is_whole(response):
                        details = f"{what}: answered {response.status_code}"
                        raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)
                    yield response
                    return
                request = response.next_request
            finally:
                await response.aclose()
        details = f"{what}: redirected more than {MAX_REDIRECTS} times"
        raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)

    async def _public_only(self, request: httpx.Request, what: str) -> None:
        """Allow a request to public addresses only, now and when it connects. Raises Fault."""
        refused = await refusal(request.url, allow_loopback=self._allow_loopback)
        if refused:
            raise _led_astray(what, refused)
        trace = only_public(request.url, allow_loopback=self._allow_loopback)
        request.extensions = {**request.extensions, "trace": trace}


def _is_whole(response: httpx.Response) -> bool:
    """Whether the answer is a whole file: some servers send it as one part."""
    match response.status_code:
        case codes.OK | codes.NON_AUTHORITATIVE_INFORMATION:
            return True
        case codes.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            return found is not None and int(found[1]) + 1 == int(found[2])
        case _:
            return False


def _shortage(error: BaseException) -> OSError | None:
    """Return the error of this machine that prevented a connection, if there is one."""
    return _first(error, lambda cause: cause.errno in SHORT)


def _first(error: BaseException, fits: Callable[[OSError], bool]) -> OSError | None:
    """Return the first error that fits in the chain of an error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and fits(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


class _Arriving:
    """Writes, counts and hashes what arrives; decompresses what a server has compressed."""

    def __init__(self, descriptor: int, max_bytes: int, what: str) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._what = what
        self._digest = hashlib.sha256()
        self._head = b""
        self._unpacker: zlib._Decompress | None = None
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, piece: bytes) -> None:
        """Take the next bytes. Raises Fault `output_too_large`, and OSError."""
        if not self.size and self._unpacker is None:
            piece = self._head + piece
            if len(piece) < len(GZIP):
                self._head = piece
                return
            self._head = b""
            if piece.startswith(GZIP):
                self._unpacker = zlib.decompressobj(wbits=31)
        if self._unpacker is None:
            self._write(piece)
            return
        while not self._unpacker.eof:
            try:
                unpacked = self._unpacker.decompress(piece, UNPACKED_AT_ONCE)
            except zlib.error as error:
                details = f"{self._what}: compressed, and it can't be decompressed: {error}"
                raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details) from error
            self._write(unpacked)
            piece = self._unpacker.unconsumed_tail
            if not piece and len(unpacked) < UNPACKED_AT_ONCE:
                return

    @property
    def packed_end(self) -> bool:
        """Whether a compressed file came to its end; True for one that was not compressed."""
        return self._unpacker is None or self._unpacker.eof

    def end(self) -> None:
        """Write a beginning that was too short to recognize."""
        if self._head:
            self._write(self._head)
            self._head = b""

    def _write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._max_bytes:
            details = f"{self._what}: more than the {self._max_bytes} bytes that are stored"
            raise Fault(FaultName.OUTPUT_TOO_LARGE, details=details)
        self._digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]


def _led_astray(what: str, refused: str) -> Fault:
    details = (
        f"{what}: refused, because it leads to {refused}; "
        "VIDGEN_ALLOW_LOOPBACK_ASSETS allows this machine's own"
    )
    return Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)
