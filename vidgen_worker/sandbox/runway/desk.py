"""`/sandbox/...`: what the double saw, its settings and keys. Tests and the command line ask it."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.runway import drawing
from vidgen_worker.sandbox.runway.accounts import FIRST_ACCOUNT, Accounts
from vidgen_worker.sandbox.runway.generations import Generation, Generations, RunwaySettings
from vidgen_worker.sandbox.runway.refusals import RefusedError


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


class Desk:
    """Shows and changes what the double keeps."""

    def __init__(self, accounts: Accounts, received: deque[Received]) -> None:
        self._accounts = accounts
        self._received = received

    def routes(self) -> list[Route]:
        """Everything below `/sandbox/`."""
        return [
            Route("/sandbox/generations", self._show_generations, methods=["GET"]),
            Route("/sandbox/requests", self._show_requests, methods=["GET"]),
            Route("/sandbox/settings", self._show_settings, methods=["GET"]),
            Route("/sandbox/settings", self._change_settings, methods=["PATCH"]),
            Route("/sandbox/keys", self._make_key, methods=["POST"]),
            Route("/sandbox/keys/{key}", self._revoke_key, methods=["DELETE"]),
            Route("/sandbox/product.png", self._product, methods=["GET"]),
        ]

    async def _product(self, _request: Request) -> Response:
        return Response(await asyncio.to_thread(drawing.product), media_type="image/png")

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
        return JSONResponse([received.as_json() for received in self._received])

    async def _show_settings(self, _request: Request) -> Response:
        shown = asdict(self._accounts.settings) | {
            "credit_balance": self._accounts.first.credits_left
        }
        return JSONResponse(shown)

    async def _change_settings(self, request: Request) -> Response:
        changes: dict[str, Any] = await request.json()
        balance = changes.pop("credit_balance", None)
        known = [field.name for field in fields(RunwaySettings)]
        if unknown := [name for name in changes if name not in known]:
            names = ", ".join(["credit_balance", *known])
            raise RefusedError(400, f"The sandbox has no setting {unknown[0]!r}. It has: {names}.")
        self._accounts.settings = replace(self._accounts.settings, **changes)
        if balance is not None:
            self._accounts.first.credits_left = int(balance)
        return await self._show_settings(request)

    async def _make_key(self, request: Request) -> Response:
        """Make a key of an account; an account that is not there yet comes with it."""
        name = str((await request.json()).get("account", FIRST_ACCOUNT))
        key = self._accounts.make_key(name)
        return JSONResponse({"key": key, "account": name}, HTTPStatus.CREATED)

    async def _revoke_key(self, request: Request) -> Response:
        """From now on the key is refused."""
        if not self._accounts.revoke_key(request.path_params["key"]):
            raise RefusedError(404, "The sandbox has no such key.")
        return Response(status_code=HTTPStatus.NO_CONTENT)
