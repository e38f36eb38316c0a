"""Runway's double over HTTP: the endpoints this project calls, as strict as the real ones.

Prompt words (`words.py`) make it misbehave; `/sandbox/...` shows what it saw and changes its
settings. It costs nothing, generates nothing, and never calls Runway.
"""

import asyncio
import json
import secrets
import time
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.runway import contract, drawing
from vidgen_worker.sandbox.runway.assets import (
    AssetRefusedError,
    Assets,
    check_aspect,
    check_picture,
    refusal,
)
from vidgen_worker.sandbox.runway.contract import Issue, Kind
from vidgen_worker.sandbox.runway.generations import Generation, Generations, RunwaySettings, State
from vidgen_worker.sandbox.runway.outputs import Output, Outputs
from vidgen_worker.sandbox.runway.words import Moment, Script, Spoken, UnknownWordError, spoken_in
from vidgen_worker.sandbox.serving import drop_connection, hold, truncated

__all__ = ["RunwayDouble", "RunwaySettings"]

VERSION = "2024-11-06"
DOCUMENTATION = "https://docs.dev.runwayml.com/api"
STARTING_CREDITS = 100_000
FIRST_ACCOUNT = "first"
KIND_OF_PATH: Mapping[str, Kind] = {"/v1/text_to_image": "image", "/v1/image_to_video": "video"}
PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"

REFUSALS: Mapping[str, tuple[int, str]] = {
    "no-credits": (400, "You do not have enough credits to run this task."),
    "payment": (402, "Payment required."),
    "denied": (401, "The API key is invalid, disabled or suspended."),
    "forbidden": (403, "Access to this resource is forbidden."),
    "daily-limit": (429, "Your daily task limit has been reached."),
    "busy": (429, "You have exceeded the rate limit for this endpoint."),
    "500-before-accept": (500, "Internal server error."),
}
FAILURES = {
    "SAFETY": "The request was flagged by content moderation.",
    "ASSET": "An asset that was provided is not usable.",
}


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, error: str, issues: list[Issue] | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.body: dict[str, Any] = {"error": error}
        if issues:
            self.body["issues"] = [issue.as_json() for issue in issues]
        # The specification has it for 400 alone, but the daily limit was seen with it.
        if status == HTTPStatus.BAD_REQUEST or error == REFUSALS["daily-limit"][1]:
            self.body["docUrl"] = DOCUMENTATION

    @property
    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body, self.status)


@dataclass(slots=True)
class Received:
    """One POST as it arrived. `status` is None until, or unless, it was answered."""

    path: str
    body: object
    headers: Mapping[str, str]
    status: int | None = None
    generation: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it for `GET /sandbox/requests`."""
        return asdict(self)


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
        self.key = key or new_key()
        self.generations = Generations(clock, STARTING_CREDITS)
        self.generations.settings = settings or RunwaySettings()
        self._accounts = {FIRST_ACCOUNT: self.generations}
        self._account_of_key = {self.key: FIRST_ACCOUNT}
        self._all = ChainMap(self.generations.all)
        self.received: list[Received] = []
        self._allow_loopback_assets = allow_loopback_assets
        self._assets = Assets.fetcher(remote=fetch_remote_assets)
        self._outputs = Outputs(folder, self._all)
        self._script = Script()
        self._secret = secrets.token_hex(32)
        self.app = Starlette(
            routes=[
                *(Route(path, self._post, methods=["POST"]) for path in KIND_OF_PATH),
                Route("/v1/tasks/{id}", self._get, methods=["GET"]),
                Route("/v1/tasks/{id}", self._delete, methods=["DELETE"]),
                Route("/v1/organization", self._organization, methods=["GET"]),
                Route("/outputs/{name}", self._download, methods=["GET"]),
                Route("/sandbox/generations", self._show_generations, methods=["GET"]),
                Route("/sandbox/requests", self._show_requests, methods=["GET"]),
                Route("/sandbox/settings", self._show_settings, methods=["GET"]),
                Route("/sandbox/settings", self._change_settings, methods=["PATCH"]),
                Route("/sandbox/keys", self._make_key, methods=["POST"]),
                Route("/sandbox/keys/{key}", self._revoke_key, methods=["DELETE"]),
                Route("/sandbox/product.png", self._product, methods=["GET"]),
            ],
            exception_handlers={RefusedError: _answer_refusal},
            lifespan=self.lifespan,
        )

    @property
    def settings(self) -> RunwaySettings:
        """The settings in force."""
        return self.generations.settings

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
        if self.settings.key_disabled or key not in self._account_of_key:
            raise RefusedError(401, "The API key is invalid, disabled or suspended.")
        if request.headers.get("x-runway-version") != VERSION:
            issue = Issue("invalid_value", ("X-Runway-Version",), f'Expected "{VERSION}"')
            raise RefusedError(400, "Validation of headers failed", [issue])
        return self._accounts[self._account_of_key[key]]

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
        generation = self._generation_of_output(url_path.rpartition("/")[2], token)
        if generation is None or generation.kind != "image":
            raise AssetRefusedError(
                refusal(path, "Failed to fetch asset. Received HTTP status 403.")
            )
        if "garbage" in generation.words:
            raise AssetRefusedError(refusal(path, "Invalid asset: not a valid image."))
        check_aspect(path, model, generation.size)
        return generation.id

    async def _answer(self, request: Request, generation: Generation) -> Response:
        """Answer an accepted POST, well or as badly as the prompt says."""
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
                    return _spoilt(name, answer)

        def delivered() -> None:
            generation.delivered = True

        return JSONResponse(answer, background=BackgroundTask(delivered))

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
        """Return a fresh URL, dead on arrival when the prompt says so."""
        words = self._script.firing(generation.kind, generation.prompt, Moment.POLL, "expire-urls")
        name = f"{generation.id}.{'png' if generation.kind == 'image' else 'mp4'}"
        seconds = -1 if "expire-urls" in words else self.settings.url_seconds
        claims = {"name": name, "exp": time.time() + seconds, "jti": secrets.token_hex(8)}
        token = jwt.encode(claims, self._secret, "HS256")
        return f"{request.url.scheme}://{request.url.netloc}/outputs/{name}?_jwt={token}"

    def _generation_of_output(self, name: str, token: str) -> Generation | None:
        """Return whose output a URL names; None when the URL is not, or no longer, good."""
        try:
            claims = jwt.decode(token, self._secret, ["HS256"])
        except jwt.InvalidTokenError:
            return None
        generation = self._all.get(name.partition(".")[0])
        if claims.get("name") != name or generation is None or generation.deleted:
            return None
        return generation

    async def _download(self, request: Request) -> Response:
        generation = self._generation_of_output(
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

    async def _product(self, _request: Request) -> Response:
        return Response(await asyncio.to_thread(drawing.product), media_type="image/png")

    # What tests and the command line ask for --------------------------------------------------

    async def _show_generations(self, _request: Request) -> Response:
        shown = [
            (one.created, self._record(name, account, one))
            for name, account in self._accounts.items()
            for one in account.all.values()
        ]
        return JSONResponse([record for _, record in sorted(shown, key=lambda pair: pair[0])])

    def _record(self, name: str, account: Generations, generation: Generation) -> dict[str, Any]:
        state = account.state(generation)
        finished = not state.is_unfinished and not generation.deleted
        return {
            "id": generation.id,
            "account": name,
            "kind": generation.kind,
            "model": generation.model,
            "prompt": generation.prompt,
            "state": state.value,
            "price": generation.price,
            "cost": generation.final_cost if finished else None,
            "createdAt": generation.created_at.isoformat(),
            "throttledSeconds": account.throttled_seconds(generation),
            "delivered": generation.delivered,
            "body": generation.body,
        }

    async def _show_requests(self, _request: Request) -> Response:
        return JSONResponse([received.as_json() for received in self.received])

    async def _show_settings(self, _request: Request) -> Response:
        shown = asdict(self.settings) | {"credit_balance": self.generations.credits_left}
        return JSONResponse(shown)

    async def _change_settings(self, request: Request) -> Response:
        changes: dict[str, Any] = await request.json()
        balance = changes.pop("credit_balance", None)
        known = [field.name for field in fields(RunwaySettings)]
        if unknown := [name for name in changes if name not in known]:
            names = ", ".join(["credit_balance", *known])
            raise RefusedError(400, f"The sandbox has no setting {unknown[0]!r}. It has: {names}.")
        settings = replace(self.settings, **changes)
        for account in self._accounts.values():
            account.settings = settings
        if balance is not None:
            self.generations.credits_left = int(balance)
        return await self._show_settings(request)

    async def _make_key(self, request: Request) -> Response:
        """Make a key of an account; an account that is not there yet comes with it."""
        name = str((await request.json()).get("account", FIRST_ACCOUNT))
        if name not in self._accounts:
            account = Generations(self.generations.clock, STARTING_CREDITS)
            account.settings = self.settings
            self._accounts[name] = account
            self._all.maps.append(account.all)
        key = new_key()
        self._account_of_key[key] = name
        return JSONResponse({"key": key, "account": name}, HTTPStatus.CREATED)

    async def _revoke_key(self, request: Request) -> Response:
        """From now on the key is refused."""
        if self._account_of_key.pop(request.path_params["key"], None) is None:
            raise RefusedError(404, "The sandbox has no such key.")
        return Response(status_code=HTTPStatus.NO_CONTENT)


def new_key() -> str:
    """Return a key in Runway's shape."""
    return f"key_{secrets.token_hex(64)}"


def _spoilt(word: str, answer: Mapping[str, Any]) -> Response:
    """Return what arrives in place of a good answer."""
    match word:
        case "html-200":
            return HTMLResponse(PAGE)
        case "empty-200":
            return JSONResponse({})
        case "broken-json-200":
            return Response(json.dumps(answer)[:-15], media_type="application/json")
        case "bad-id-200":
            return JSONResponse({**answer, "id": "../organization"})
        case _:
            return JSONResponse({"error": "Something went wrong."}, int(word[:3]))


async def _answer_refusal(_request: Request, refused: Exception) -> Response:
    assert isinstance(refused, RefusedError)  # noqa: S101 - Starlette's type is wider
    return refused.response
