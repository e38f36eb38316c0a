"""The dashboard as a web application: routes, and an answer in one sentence to whatever goes wrong.

It wires reads, pages, actions and pictures together behind the door. It opens no port.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from vidgen_worker import __version__
from vidgen_worker.client.database import (
    ClientError,
    ClientSettings,
    DatabaseUnreachableError,
    TookTooLongError,
)
from vidgen_worker.dashboard import actions, pages
from vidgen_worker.dashboard.access import Door, Keys, RefusedRequestError, read_form
from vidgen_worker.dashboard.ahead import Ahead
from vidgen_worker.dashboard.numbers import numbers
from vidgen_worker.dashboard.pages import Page
from vidgen_worker.dashboard.reads import Reads
from vidgen_worker.dashboard.shown import environment
from vidgen_worker.dashboard.store import Store
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.foreign_text import printable

log = logging.getLogger("vidgen_worker.dashboard")

STATIC = Path(__file__).parent / "static"
Endpoint = Callable[[Request], Awaitable[Response]]
Read = Callable[[Reads, pages.Asked], Page]
T = TypeVar("T")


class Dashboard:
    """One dashboard: its reads, its templates, its routes."""

    def __init__(self, settings: ClientSettings, keys: Keys, *, read_only: bool) -> None:
        self._reads = Reads(settings.database_url.get_secret_value())
        self._store = Store(settings)
        self._keys = keys
        self._read_only = read_only
        self._templates = environment()
        self._ahead = Ahead(self._reads)
        self.has_read_ahead = self._ahead.has_read
        self._templates.globals.update(
            read_only=read_only, version=__version__, pictures=self._store.origin is not None
        )

    @property
    def app(self) -> ASGIApp:
        """The application, behind its door."""
        inner = Starlette(
            routes=self._routes(),
            lifespan=self._lifespan,
            exception_handlers={HTTPException: self._http_error},
        )
        return Door(inner, self._keys, self._refusal, self._store.origin)

    def _routes(self) -> list[Route | Mount]:
        reading: dict[str, Read] = {
            "/": pages.now,
            "/tasks": pages.task_list,
            "/tasks/{id}": pages.task,
            "/users": pages.user_list,
            "/users/{id}": pages.user,
            "/numbers": numbers,
        }
        routes: list[Route | Mount] = [
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/find", self._guarded(self._find), methods=["GET"]),
            Route("/tasks/{id}/{kind}", self._guarded(self._picture), methods=["GET"]),
            Route("/tasks/{id}/files/{name}", self._guarded(self._file), methods=["GET"]),
            *(
                Route(path, self._guarded(self._page(read)), methods=["GET"])
                for path, read in reading.items()
            ),
        ]
        if not self._read_only:
            routes += [
                Route("/act", self._guarded(self._preview_tasks), methods=["GET"]),
                Route("/act", self._guarded(self._change_tasks), methods=["POST"]),
                Route("/gate", self._guarded(self._preview_gate), methods=["GET"]),
                Route("/gate", self._guarded(self._change_gate), methods=["POST"]),
            ]
        return routes

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._ahead.start()
        for name in self._templates.list_templates():
            self._templates.get_template(name)  # compiled, before somebody waits for it
        try:
            yield
        finally:
            await run_in_threadpool(self._ahead.stop)
            await self._store.aclose()
            self._reads.close()

    # Reading.

    def _page(self, read: Read) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            asked = {**request.query_params, **request.path_params}
            return await self._read(request, read, asked)

        return endpoint

    async def _find(self, request: Request) -> Response:
        asked = dict(request.query_params)
        place = await run_in_threadpool(pages.find, self._reads, asked)
        return RedirectResponse(place, HTTPStatus.SEE_OTHER)

    async def _picture(self, request: Request) -> Response:
        """Send the browser on to the still or the clip of a task."""
        path = await run_in_threadpool(pages.picture, self._reads, request.path_params)
        bucket = self._store.buckets.get(request.path_params["kind"])
        return await self._sent_on((bucket, path) if bucket and path else None)

    async def _file(self, request: Request) -> Response:
        """Send the browser on to a file of a film."""
        place = await run_in_threadpool(pages.file, self._reads, request.path_params)
        return await self._sent_on(place)

    async def _sent_on(self, place: tuple[str, str] | None) -> Response:
        address = await self._store.sign(*place) if place else None
        if address is None:
            return PlainTextResponse("The task has no such file.\n", HTTPStatus.NOT_FOUND)
        kept = {"cache-control": "private, max-age=600"}
        return RedirectResponse(address, HTTPStatus.TEMPORARY_REDIRECT, headers=kept)

    # Changing.

    async def _preview_tasks(self, request: Request) -> Response:
        form = _listed(request)
        return await self._read(request, actions.preview_tasks, form)

    async def _change_tasks(self, request: Request) -> Response:
        form = await read_form(request, self._keys)
        page = await run_in_threadpool(actions.change_tasks, self._reads, form)
        # Without a time: what was changed is said even where the database has gone away meanwhile.
        return self._shown(page, request.url.path)

    async def _preview_gate(self, request: Request) -> Response:
        form = _listed(request)
        return await self._read(request, actions.preview_gate, form)

    async def _change_gate(self, request: Request) -> Response:
        form = await read_form(request, self._keys)
        await run_in_threadpool(actions.change_gate, self._reads, form)
        return RedirectResponse("/", HTTPStatus.SEE_OTHER)

    # Answers.

    async def _read(self, request: Request, read: Callable[[Reads, T], Page], asked: T) -> Response:
        """Answer with a page, whose times are told by the database's clock."""
        page = await run_in_threadpool(read, self._reads, asked)
        now = await run_in_threadpool(self._reads.clock)
        return self._shown(page, request.url.path, now)

    def _shown(self, page: Page, path: str = "", now: datetime | None = None) -> Response:
        template = self._templates.get_template(page.template)
        text = template.render(page.values, path=path, form_token=self._keys.form, now=now)
        return HTMLResponse(text, page.status)

    def _refusal(self, status: HTTPStatus, sentence: str) -> Response:
        values = {"sentence": printable(sentence), "status": status}
        # Nobody without the cookie is told which pages there are.
        inside = status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.MISDIRECTED_REQUEST)
        return self._shown(Page("error.html", {**values, "inside": inside}, status))

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """Answer every error of an endpoint with a page of one sentence."""

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except RefusedRequestError as refused:
                return self._refusal(refused.status, refused.sentence)
            except TookTooLongError as error:
                return self._refusal(HTTPStatus.GATEWAY_TIMEOUT, str(error))
            except DatabaseUnreachableError as error:
                return self._refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            except (ClientError, Fault) as error:
                return self._refusal(HTTPStatus.BAD_GATEWAY, str(error))
            except Exception as error:
                # The last place that can answer it with a page.
                log.exception(type(error).__name__, exc_info=log.isEnabledFor(logging.DEBUG))
                return self._refusal(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "Something went wrong that the dashboard did not expect: "
                    f"{type(error).__name__}: {error}. Load the page again; if it stays, report "
                    "this sentence.",
                )

        return guarded

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = HTTPStatus(error.status_code if isinstance(error, HTTPException) else 500)
        path = printable(request.url.path, 100)
        match status:
            case HTTPStatus.NOT_FOUND if self._read_only and path in ("/act", "/gate"):
                sentence = (
                    "Nothing can be changed here: the dashboard was started with --read-only. "
                    "Start it without."
                )
                status = HTTPStatus.FORBIDDEN
            case HTTPStatus.NOT_FOUND:
                sentence = f"There is no page {path}. Choose one from the top of this page."
            case HTTPStatus.METHOD_NOT_ALLOWED:
                sentence = f"{path} does not take {printable(request.method, 20)}. Load it instead."
            case _:
                sentence = f"{status.phrase}. Load the page again."
        answer = self._refusal(status, sentence)
        if isinstance(error, HTTPException) and error.headers:
            answer.headers.update(error.headers)
        return answer


def _listed(request: Request) -> dict[str, list[str]]:
    query = request.query_params
    return {name: query.getlist(name) for name in query}
