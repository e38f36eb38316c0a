"""Runway's double over HTTP: the endpoints this project calls, as strict as the real ones.

Prompt words (`words.py`) make it misbehave; `/sandbox/...` shows what it saw and changes its
settings. It costs nothing, generates nothing, and never calls Runway.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.runway import contract
from vidgen_worker.sandbox.runway.accounts import Accounts
from vidgen_worker.sandbox.runway.assets import (
    AssetRefusedError,
    Assets,
    check_aspect,
    check_picture,
    refusal,
)
from vidgen_worker.sandbox.runway.contract import Issue, Kind
from vidgen_worker.sandbox.runway.desk import Desk, Received
from vidgen_worker.sandbox.runway.generations import (
    FAILURES,
    Generation,
    Generations,
    RunwaySettings,
    State,
)
from vidgen_worker.sandbox.runway.outputs import Output, Outputs
from vidgen_worker.sandbox.runway.refusals import (
    PAGE,
    REFUSALS,
    RefusedError,
    answer_refusal,
    spoilt,
)
from vidgen_worker.sandbox.runway.words import Moment, Script, Spoken, UnknownWordError, spoken_in
from vidgen_worker.sandbox.serving import drop_connection, failed, hold, truncated

__all__ = ["RunwayDouble", "RunwaySettings"]

VERSION = "2024-11-06"
MOST_REMEMBERED = 10_000
KIND_OF_PATH: Mapping[str, Kind] = {"/v1/text_to_image": "image", "/v1/image_to_video": "video"}


class RunwayDouble:
    """The application and its state. Serve `app`; give clients `key`.

    `POST /sandbox/keys` makes further keys, of the same account or of others: an account's
    generations are 404 under any other account's key, and its credits and limits are its own.
    """

    def __init__(  # noqa: PLR0913 - each has a default and is given by name
        self,
        folder: Path,
        settings: RunwaySettings | None = None,
        *,
        key: str | None = None,
        allow_loopback_assets: bool = True,
        fetch_remote_assets: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep outputs below `folder`.

        `allow_loopback_assets` lets requests name http URLs on 127.0.0.1. Pictures on other hosts
        are looked at only with `fetch_remote_assets`; otherwise they count as good.
        """
        self._accounts = Accounts(clock, settings or RunwaySettings(), key)
        self.key = self._accounts.key
        self.generations = self._accounts.first
        self.received: deque[Received] = deque(maxlen=MOST_REMEMBERED)
        self._allow_loopback_assets = allow_loopback_assets
        self._assets = Assets.fetcher(remote=fetch_remote_assets)
        self._outputs = Outputs(folder, self._accounts.all)
        self._script = Script()
        self.app = Starlette(
            routes=[
                *(Route(path, self._post, methods=["POST"]) for path in KIND_OF_PATH),
                Route("/v1/tasks/{id}", self._get, methods=["GET"]),
                Route("/v1/tasks/{id}", self._delete, methods=["DELETE"]),
                Route("/v1/organization", self._organization, methods=["GET"]),
                Route("/outputs/{name}", self._download, methods=["GET"]),
                *Desk(self._accounts, self.received).routes(),
            ],
            exception_handlers={RefusedError: answer_refusal, Exception: failed},
            lifespan=self.lifespan,
        )

    @property
    def settings(self) -> RunwaySettings:
        """The settings in force."""
        return self._accounts.settings

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Run what the application needs while it serves."""
        yield
        await self._outputs.aclose()
        await self._assets.client.aclose()

    # The API --------------------------------------------------------------------------------

    async def _post(self, request: Request) -> Response:
        """Accept a generation, or refuse it, or do what its prompt says."""
        raw = await request.body()
        try:
            body: Any = json.loads(raw)
        except ValueError:
            body = raw.decode(errors="replace")
        received = Received(request.url.path, body, dict(request.headers))
        self.received.append(received)
        try:
            response = await self._accept(request, KIND_OF_PATH[request.url.path], body, received)
        except RefusedError as refused:
            response = refused.response
        received.status = response.status_code
        return response

    async def _accept(
        self,
        request: Request,
        kind: Kind,
        body: Any,  # noqa: ANN401 - JSON
        received: Received,
    ) -> Response:
        account = self._authenticate(request)
        issues = contract.check(kind, body, allow_loopback_assets=self._allow_loopback_assets)
        if issues:
            raise RefusedError(400, "Validation of body failed", issues)
        prompt = str(body.get("promptText", ""))
        try:
            spoken_in(prompt)
        except UnknownWordError as error:
            issue = Issue("custom", ("promptText",), str(error))
            raise RefusedError(400, "Validation of body failed", [issue]) from error
        await self._refuse_as_told(request, self._script.firing(kind, prompt, Moment.REFUSAL))
        self._refuse_beyond_limits(account, kind, body)
        inputs = await self._inputs(request, str(body["model"]), body)
        words = self._script.firing(kind, prompt, Moment.GENERATION)
        generation = account.create(kind, body, words, inputs)
        received.generation = generation.id
        return await self._answer(request, generation)

    def _authenticate(self, request: Request) -> Generations:
        """Return the account that the key belongs to."""
        if self.settings.outage:
            raise RefusedError(503, "Service unavailable.")
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        account = self._accounts.of_key(key)
        if self.settings.key_disabled or account is None:
            raise RefusedError(401, "The API key is invalid, disabled or suspended.")
        if request.headers.get("x-runway-version") != VERSION:
            issue = Issue("invalid_value", ("X-Runway-Version",), f'Expected "{VERSION}"')
            raise RefusedError(400, "Validation of headers failed", [issue])
        return account

    async def _refuse_as_told(self, request: Request, words: Mapping[str, Spoken]) -> None:
        if "drop-before-accept" in words:
            await drop_connection(request)
        if "400" in words:
            field = words["400"].argument("promptText")
            issue = Issue("custom", (field,), "Refused because the prompt says so")
            raise RefusedError(400, "Validation of body failed", [issue])
        for name in words:
            status, error = REFUSALS[name]
            raise RefusedError(status, error)

    def _refuse_beyond_limits(
        self, account: Generations, kind: Kind, body: Mapping[str, Any]
    ) -> None:
        used = account.daily_generations(str(body["model"]))
        if used >= self.settings.daily_limit_of(kind):
            raise RefusedError(*REFUSALS["daily-limit"])
        if account.credits_left < contract.cost(kind, body):
            raise RefusedError(*REFUSALS["no-credits"])

    async def _inputs(
        self, request: Request, model: str, body: Mapping[str, Any]
    ) -> tuple[bytes | str, ...]:
        """Look at every picture that the request names, as Runway does before it accepts."""
        inputs: list[bytes | str] = []
        for path, uri in contract.assets(body):
            try:
                inputs.append(await self._input(request, model, path, uri))
            except AssetRefusedError as error:
                raise RefusedError(400, str(error)) from error
        return tuple(inputs)

    async def _input(
        self, request: Request, model: str, path: contract.Path, uri: str
    ) -> bytes | str:
        parts = urlsplit(uri)
        if parts.netloc == request.url.netloc and parts.path.startswith("/outputs/"):
            return self._own_output(model, path, parts.path, parts.query)
        is_elsewhere = uri.startswith("https:") and not contract.is_loopback(uri)
        if uri.startswith("runway:") or (is_elsewhere and not self._assets.remote):
            return b""
        content = await self._assets.fetch(path, uri)
        await asyncio.to_thread(check_picture, path, model, content)
        return content

    def _own_output(self, model: str, path: contract.Path, url_path: str, query: str) -> str:
        """Take an output of ours without a request to ourselves."""
        token = dict(part.partition("=")[::2] for part in query.split("&")).get("_jwt", "")
        generation = self._outputs.whose(url_path.rpartition("/")[2], token)
        if generation is None or generation.kind != "image":
            raise AssetRefusedError(
                refusal(path, "Failed to fetch asset. Received HTTP status 403.")
            )
        if "garbage" in generation.words:
            raise AssetRefusedError(refusal(path, "Invalid asset: not a valid image."))
        check_aspect(path, model, generation.size)
        return generation.id

    async def _answer(self, request: Request, generation: Generation) -> Response:
        """Answer an accepted POST, correctly or as wrongly as the prompt says."""
        words = self._script.firing(generation.kind, generation.prompt, Moment.ANSWER)
        answer: dict[str, Any] = {"id": generation.id}
        if "no-cost" not in generation.words:
            answer["estimatedCost"] = {"credits": generation.price}
        for name, spoken in words.items():
            match name:
                case "drop-after-accept":
                    await drop_connection(request)
                case "hang-after-accept":
                    await hold(request, spoken.seconds(90))
                    await drop_connection(request)
                case "late":
                    if not await hold(request, spoken.seconds(5)):
                        await drop_connection(request)
                case _:
                    return spoilt(name, answer)

        # Before it is sent: whoever has the answer asks at once what was delivered.
        generation.delivered = True
        return JSONResponse(answer)

    async def _get(self, request: Request) -> Response:
        account, generation = self._find(request)
        state = account.state(generation)
        firing = self._script.firing
        kind, prompt = generation.kind, generation.prompt
        words = firing(kind, prompt, Moment.POLL, "poll-500", "poll-html", "weird-status")
        if "poll-500" in words:
            raise RefusedError(500, "Internal server error.")
        if "poll-html" in words:
            return HTMLResponse(PAGE)
        if state is State.GONE:
            raise RefusedError(404, "Task not found.")
        answer = self._view(request, account, generation)
        if "weird-status" in words:
            answer["status"] = "PAUSED"
        return JSONResponse(answer)

    async def _delete(self, request: Request) -> Response:
        account, generation = self._find(request)
        account.delete(generation)
        return Response(status_code=204)

    async def _organization(self, request: Request) -> Response:
        return JSONResponse(self._authenticate(request).organization())

    def _find(self, request: Request) -> tuple[Generations, Generation]:
        """Return the generation that a path names, with its account.

        Raises 404 for a deleted one, and for another account's.
        """
        account = self._authenticate(request)
        generation = account.all.get(request.path_params["id"])
        if generation is None or generation.deleted:
            raise RefusedError(404, "Task not found.")
        return account, generation

    def _view(
        self, request: Request, account: Generations, generation: Generation
    ) -> dict[str, Any]:
        """Return a generation as GET shows it."""
        state = account.state(generation)
        created = generation.created_at.isoformat(timespec="milliseconds")
        view: dict[str, Any] = {
            "id": generation.id,
            "createdAt": created.replace("+00:00", "Z"),
            "status": state.value,
        }
        if state is State.RUNNING:
            view["progress"] = generation.progress(account.clock())
        if state is State.SUCCEEDED:
            view["output"] = [self._output_url(request, generation)]
        if state is State.FAILED:
            code, _ = generation.failure
            group = (code or "").partition(".")[0]
            view["failure"] = FAILURES.get(group, "An unexpected error occurred.")
            if code is not None:
                view["failureCode"] = code
        if "no-cost" not in generation.words:
            if state.is_unfinished:
                view["estimatedCost"] = {"credits": generation.price}
            else:
                view["cost"] = {"credits": generation.final_cost}
        return view

    # Outputs --------------------------------------------------------------------------------

    def _output_url(self, request: Request, generation: Generation) -> str:
        """Return a fresh URL, one that has expired already when the prompt says so."""
        words = self._script.firing(generation.kind, generation.prompt, Moment.POLL, "expire-urls")
        seconds = -1 if "expire-urls" in words else self.settings.url_seconds
        named = self._outputs.signed(generation, seconds)
        return f"{request.url.scheme}://{request.url.netloc}/outputs/{named}"

    async def _download(self, request: Request) -> Response:
        generation = self._outputs.whose(
            request.path_params["name"], request.query_params.get("_jwt", "")
        )
        if self.settings.outage or generation is None:
            return Response("Access denied", 403, media_type="text/plain")
        output = await self._outputs.get(generation, is_plain=self.settings.render == "cached")
        if request.method == "HEAD":
            return Response(output.content, media_type=output.media_type)
        words = self._script.firing(generation.kind, generation.prompt, Moment.DOWNLOAD)
        if "truncate-download" in words:
            return truncated(request, output.content, output.media_type)
        if "zero-bytes" in words:
            output = Output(b"", output.media_type)
        if "page-download" in words:
            output = Output(PAGE.encode(), output.media_type)
        odd = {"content-encoding": "aws-chunked"} if "odd-encoding" in words else None
        return Response(output.content, media_type=output.media_type, headers=odd)
