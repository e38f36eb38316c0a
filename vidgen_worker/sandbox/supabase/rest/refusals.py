"""PostgREST's error answers: its own codes, and PostgreSQL's with the status that each has there.

Source: the error tables of PostgREST's manual and its `Error.hs`. It never words an error of its
own where PostgREST has a sentence.
"""

import json
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout
from starlette.responses import Response

from vidgen_worker.sandbox.supabase.callers import TokenError

STATES = {
    "23503": 409,
    "23505": 409,
    "25006": 405,
    "42883": 404,
    "42P01": 404,
    "42P17": 500,
    "53400": 500,
    "57P01": 503,
    "P0001": 400,
}
CLASSES = {
    "08": 503,
    "09": 500,
    "0L": 403,
    "0P": 403,
    "25": 500,
    "28": 403,
    "2D": 500,
    "38": 500,
    "39": 500,
    "3B": 500,
    "40": 500,
    "53": 503,
    "54": 500,
    "55": 500,
    "57": 500,
    "58": 500,
    "F0": 500,
    "HV": 500,
    "P0": 500,
    "XX": 500,
}


class RestRefusalError(Exception):
    """An error answer: status and the four fields of its body."""

    def __init__(  # noqa: PLR0913 - the fields of the body, by name but for the first three
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: str | None = None,
        hint: str | None = None,
        authenticate: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "details": details, "hint": hint, "message": message}
        self._authenticate = authenticate

    @property
    def response(self) -> Response:
        """The answer."""
        headers = {"proxy-status": f"PostgREST; error={self.body['code']}"}
        if self._authenticate is not None:
            headers["www-authenticate"] = self._authenticate
        content = json.dumps(self.body)
        return Response(content, self.status, headers, "application/json; charset=utf-8")


def not_one(rows: int) -> RestRefusalError:
    """Return the refusal to make one object of none or of many."""
    return RestRefusalError(
        406,
        "PGRST116",
        "Cannot coerce the result to a single JSON object",
        details=f"The result contains {rows} rows",
    )


def not_parsed(what: str, details: str) -> RestRefusalError:
    """Return the refusal of a query string."""
    return RestRefusalError(400, "PGRST100", f'"failed to parse {what}"', details=details)


def of_token(error: TokenError) -> RestRefusalError:
    """Return the answer to a token that identifies nobody."""
    challenge = f'Bearer error="invalid_token", error_description="{error.message}"'
    return RestRefusalError(
        401, error.code, error.message, details=error.details, authenticate=challenge
    )


def of_database(error: psycopg.Error | PoolTimeout, *, is_known: bool) -> RestRefusalError:
    """Return the answer to PostgreSQL's refusal. `is_known`: the caller is somebody, not `anon`."""
    if isinstance(error, PoolTimeout):
        text = "Timed out acquiring connection from connection pool."
        return RestRefusalError(504, "PGRST003", text)
    said, state = error.diag, error.sqlstate
    if isinstance(error, psycopg.DataError) and state is None:
        # psycopg doesn't even send a NUL; this is what PostgreSQL says to one.
        text = 'invalid byte sequence for encoding "UTF8": 0x00'
        return RestRefusalError(400, "22021", text)
    if state is None:
        text = "Database client error. Retrying the connection."
        return RestRefusalError(503, "PGRST001", text, details=str(error))
    message = said.message_primary or ""
    if state == "PGRST":
        return _raised_as_json(message, said.message_detail)
    status = _status(state, message, is_known=is_known)
    return RestRefusalError(
        status,
        state,
        message,
        details=said.message_detail,
        hint=said.message_hint,
        authenticate="Bearer" if status == 401 else None,  # noqa: PLR2004 - Unauthorized
    )


def _status(state: str, message: str, *, is_known: bool) -> int:
    if state.startswith("PT") and state[2:].isdecimal():
        return int(state[2:])
    if state == "42501":
        return 403 if is_known else 401
    if state == "21000":
        return 400 if message.endswith("requires a WHERE clause") else 500
    if state == "22023":
        return 401 if message.startswith("role") and message.endswith("does not exist") else 400
    return STATES.get(state) or CLASSES.get(state[:2], 400)


def _raised_as_json(message: str, detail: str | None) -> RestRefusalError:
    """Return what `raise sqlstate 'PGRST'` asked for: a body in MESSAGE, a status in DETAIL."""
    try:
        body: dict[str, Any] = json.loads(message)
        rest: dict[str, Any] = json.loads(detail or "")
        return RestRefusalError(
            int(rest["status"]),
            str(body["code"]),
            str(body["message"]),
            details=body.get("details"),
            hint=body.get("hint"),
        )
    except (ValueError, KeyError, TypeError):
        text = "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error"
        return RestRefusalError(500, "PGRST121", text)
