"""Bad answers: errors in the words of the real service, and answers that it never gives."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from vidgen_worker.sandbox.runway.contract import Issue

DOCUMENTATION = "https://docs.dev.runwayml.com/api"
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


async def answer_refusal(_request: Request, refused: Exception) -> Response:
    """Answer it, as Starlette's handler of this exception."""
    assert isinstance(refused, RefusedError)  # noqa: S101 - Starlette's type is wider
    return refused.response


def spoilt(word: str, answer: Mapping[str, Any]) -> Response:
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
