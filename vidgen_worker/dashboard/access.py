"""Access to the dashboard: a request needs the link's secret, its own page and this machine.

A browser on this machine reaches a loopback port for any page of the Internet. So a request says by
which name it came (`Host`: a name that suddenly resolves to 127.0.0.1 is refused), shows the cookie
that the link with the token was exchanged for, and one that changes something comes from a page of
this dashboard (`Origin`, and a second token in the form). It knows nothing of what is asked.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD")
STATIC = "/static/"
"""Styles and script: the same for everybody, without anybody's data."""
TOKEN = "token"  # noqa: S105 - the name of a parameter
LONGEST_FORM = 65_536
"""Bytes of a form: two hundred ids of tasks are 9,000."""
_OUR_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?")

Refuse = Callable[[HTTPStatus, str], Response]
"""Makes the page of a refusal out of its status and its sentence."""


class RefusedRequestError(Exception):
    """A request that is not served; `sentence` says why, and what now."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        self.status = status
        self.sentence = sentence
        super().__init__(sentence)


def _random() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets of one run: what the link holds, what the cookie holds, what a form holds."""

    port: int
    link: str = field(default_factory=_random, repr=False)
    once: str = field(default_factory=_random, repr=False)
    """As in the link, and good for one use: other users of this machine see how a browser is
    started, for as long as it runs."""
    session: str = field(default_factory=_random, repr=False)
    form: str = field(default_factory=_random, repr=False)

    @property
    def cookie(self) -> str:
        """The cookie's name, with the port: a browser sends one to every port of a host."""
        return f"vidgen_dashboard_{self.port}"


def policy(store: str | None) -> str:
    """Return the Content-Security-Policy; pictures and clips may come from the origin `store`."""
    media = f" {store}" if store else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        f"img-src 'self'{media}; media-src 'self'{media}; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


class Door:
    """Lets requests through to `app`, and puts security headers on every answer."""

    def __init__(self, app: ASGIApp, keys: Keys, refuse: Refuse, store: str | None) -> None:
        self._app = app
        self._keys = keys
        self._open = {keys.link, keys.once}
        self._refuse = refuse
        self._headers = {
            "content-security-policy": policy(store),
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "same-origin",  # `no-referrer` would make a form's Origin "null"
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_carefully(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            answer = self._entry(scope)
        except RefusedRequestError as refused:
            answer = self._refuse(refused.status, refused.sentence)
        await (answer or self._app)(scope, receive, send_carefully)

    def _entry(self, scope: Scope) -> Response | None:
        """An answer in place of `app`'s; None: `app` answers. Raises RefusedRequestError."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not _OUR_HOST.fullmatch(host):
            raise RefusedRequestError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "The dashboard answers as 127.0.0.1 and localhost only. Open the link that it "
                "printed.",
            )
        if scope["path"].startswith(STATIC):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get(TOKEN)
        if given and scope["method"] in SAFE_METHODS:
            return self._exchanged(given[0], scope["path"])
        shown = cookie_parser(headers.get("cookie", "")).get(self._keys.cookie, "")
        if not _same(shown, self._keys.session):
            raise RefusedRequestError(
                HTTPStatus.UNAUTHORIZED,
                "This browser has not opened the dashboard's link yet, or the dashboard was "
                "started again since. Open the link that `vidgen-worker dashboard` printed.",
            )
        if scope["method"] not in SAFE_METHODS:
            _check_origin(headers, host)
        return None

    def _exchanged(self, token: str, path: str) -> Response:
        """Set the cookie in exchange for the link's token, and redirect to the page without it."""
        if not any(_same(token, one) for one in self._open):
            raise RefusedRequestError(
                HTTPStatus.FORBIDDEN,
                "The token of this link is not this dashboard's. Open the link that "
                "`vidgen-worker dashboard` printed when it was started last.",
            )
        if token != self._keys.link:
            self._open.discard(token)
        answer = RedirectResponse(path, HTTPStatus.SEE_OTHER)
        answer.set_cookie(
            self._keys.cookie, self._keys.session, httponly=True, samesite="strict", path="/"
        )
        return answer


async def read_form(request: Request, keys: Keys) -> dict[str, list[str]]:
    """Return the fields of a form of ours. Raises RefusedRequestError for any other."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LONGEST_FORM:
            raise RefusedRequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "The form is larger than any of the dashboard's. Choose fewer tasks.",
            )
    fields = parse_qs(content.decode("latin-1"), keep_blank_values=True)
    if not _same(fields.pop(TOKEN, [""])[0], keys.form):
        raise RefusedRequestError(
            HTTPStatus.FORBIDDEN,
            "Nothing was changed: the form is not one of this dashboard's pages, or from before it "
            "was started again. Load the page again and send it from there.",
        )
    return fields


def _check_origin(headers: Headers, host: str) -> None:
    if headers.get("origin") != f"http://{host}":
        raise RefusedRequestError(
            HTTPStatus.FORBIDDEN,
            "Nothing was changed: the request does not come from a page of this dashboard.",
        )


def _same(given: str, wanted: str) -> bool:
    """Compare in constant time."""
    return compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())
