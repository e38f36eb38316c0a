"""GoTrue's error answers: `error_code` and `msg`, or `code` and `message` for newer clients.

Source: `internal/api` of supabase/auth. A client that says API version 2024-01-01 gets the newer
shape.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

VERSION_HEADER = "x-supabase-api-version"
NEWER = "2024-01-01"


class AuthRefusalError(Exception):
    """An error answer."""

    def __init__(
        self, status: int, code: str, message: str, more: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.more = more or {}

    def response(self, request: Request) -> JSONResponse:
        """The answer, in the shape that the client knows."""
        headers = {"x-sb-error-code": self.code}
        if request.headers.get(VERSION_HEADER, "") >= NEWER:
            headers[VERSION_HEADER] = NEWER
            body = {"code": self.code, "message": self.message, **self.more}
        else:
            body = {
                "code": self.status,
                "error_code": self.code,
                "msg": self.message,
                **self.more,
            }
        return JSONResponse(body, self.status, headers)


BAD_CREDENTIALS = AuthRefusalError(400, "invalid_credentials", "Invalid login credentials")
ALREADY_THERE = AuthRefusalError(422, "user_already_exists", "User already registered")
ADDRESS_TAKEN = AuthRefusalError(
    422, "email_exists", "A user with this email address has already been registered"
)
NO_USER = AuthRefusalError(404, "user_not_found", "User not found")
NO_TOKEN = AuthRefusalError(401, "no_authorization", "This endpoint requires a valid Bearer token")
NO_SESSION = AuthRefusalError(
    403, "session_not_found", "Session from session_id claim in JWT does not exist"
)
NO_REFRESH_TOKEN = AuthRefusalError(
    400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found"
)
USED_REFRESH_TOKEN = AuthRefusalError(
    400, "refresh_token_already_used", "Invalid Refresh Token: Already Used"
)
NOT_ALLOWED = AuthRefusalError(403, "not_admin", "User not allowed")
WEAK_PASSWORD = AuthRefusalError(
    422,
    "weak_password",
    "Password should be at least 6 characters.",
    {"weak_password": {"reasons": ["length"]}},
)
LONG_PASSWORD = AuthRefusalError(
    400, "validation_failed", "Password cannot be longer than 72 characters"
)
SAME_PASSWORD = AuthRefusalError(
    422, "same_password", "New password should be different from the old password."
)
BANNED = AuthRefusalError(400, "user_banned", "User is banned")
NOT_CONFIRMED = AuthRefusalError(400, "email_not_confirmed", "Email not confirmed")
BAD_PAGE = AuthRefusalError(
    400, "validation_failed", "Bad Pagination Parameters: page and per_page are whole numbers"
)
NO_PHONE = AuthRefusalError(
    400, "phone_provider_disabled", "The sandbox knows users by their addresses, not by phones"
)
DATABASE = AuthRefusalError(500, "unexpected_failure", "Database error")
NO_PASSWORD = AuthRefusalError(400, "validation_failed", "Signup requires a valid password")
NO_EMAIL = AuthRefusalError(400, "validation_failed", "missing email or phone")
BAD_EMAIL = AuthRefusalError(
    400, "validation_failed", "Unable to validate email address: invalid format"
)
BAD_JSON = AuthRefusalError(
    400, "bad_json", "Could not parse request body as JSON: it is no object"
)
NO_GRANT = AuthRefusalError(400, "invalid_credentials", "unsupported_grant_type")
NO_ANONYMOUS = AuthRefusalError(
    422, "anonymous_provider_disabled", "Anonymous sign-ins are disabled"
)


def not_here(method: str, path: str) -> AuthRefusalError:
    """Return the refusal of what GoTrue has and the double has not."""
    text = (
        f"The sandbox has no {method} {path}: it signs users in by address and password, and sends "
        "no mail"
    )
    return AuthRefusalError(404, "not_found", text)
