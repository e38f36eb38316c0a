"""How Storage, and its gateway, answer: `classify` is the one place that knows. It asks nothing."""

from datetime import timedelta
from typing import Any

import httpx
from httpx import codes
from storage3.exceptions import StorageApiError
from storage3.utils import StorageException
from supabase import AsyncSupabaseException

from vidgen_worker.domain.faults import Fault, FaultName

LONGEST_RETRY_AFTER = timedelta(hours=1)
"""A Retry-After beyond this is not believed."""

# The errors of supabase-py: its own, httpx's, and those of reading a broken answer.
FOREIGN = (
    StorageException,
    AsyncSupabaseException,
    httpx.HTTPError,
    httpx.InvalidURL,
    ValueError,
    KeyError,
    TypeError,
)
# Statuses below 500 that pass by themselves; 409 is two uploads of one object that met.
_PASSING = (
    codes.REQUEST_TIMEOUT,
    codes.CONFLICT,
    codes.LOCKED,
    codes.TOO_EARLY,
    codes.TOO_MANY_REQUESTS,
)


def checked(response: httpx.Response) -> Any:  # noqa: ANN401 - JSON
    """Return what Storage answered. Raises as storage3 does, for `classify`."""
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        try:
            body = response.json()
            refusal = StorageApiError(body["message"], body["error"], body["statusCode"])
        except (KeyError, TypeError, ValueError) as odd:
            message = f"Unable to parse error message: {response.text[:500]}"
            raise StorageApiError(message, "InternalError", response.status_code) from odd
        raise refusal from error
    return response.json()


def classify(error: BaseException, what: str) -> Fault:
    """Turn whatever supabase-py raised into a fault; `what` says what was being done.

    Storage wraps its status in a 400 and in a string; a gateway before it answers for itself, with
    or without JSON; transport errors come raw from httpx (facts observed with storage3 2.34).
    """
    return Fault(
        _fault_name(error, status_of(error)),
        details=f"{what}: {type(error).__name__}: {error}",
        retry_after=_retry_after(error),
    )


def _fault_name(error: BaseException, status: int | None) -> FaultName:  # noqa: PLR0911 - a table
    match error, status:
        case AsyncSupabaseException() | httpx.InvalidURL() | httpx.UnsupportedProtocol(), _:
            return FaultName.STORAGE_DENIED  # an address or a key that can't be right
        case _, codes.UNAUTHORIZED | codes.FORBIDDEN:
            return FaultName.STORAGE_DENIED
        case StorageApiError(message="Bucket not found"), _:
            return FaultName.BUCKET_MISSING
        case StorageApiError(message=str(message)), codes.NOT_FOUND if message.startswith("Route "):
            return FaultName.STORAGE_DENIED  # no Storage at this address, whatever else is
        case StorageApiError(code=code), int(status):
            if status in _PASSING or status >= codes.INTERNAL_SERVER_ERROR:
                return FaultName.STORAGE_UNAVAILABLE
            # Not Storage's own words (a paused project, a proxy's page) are no verdict on the
            # file, unless they are about its size.
            foreign = code == "InternalError" and status != codes.REQUEST_ENTITY_TOO_LARGE
            return FaultName.STORAGE_UNAVAILABLE if foreign else FaultName.STORAGE_REFUSED
        case _:
            return FaultName.STORAGE_UNAVAILABLE


def status_of(error: BaseException | None) -> int | None:
    """Storage's own status: a string in its JSON, a number from a gateway; None if none."""
    if not isinstance(error, StorageApiError):
        return None
    try:
        return int(str(error.status))
    except ValueError:
        return None


def _retry_after(error: BaseException) -> timedelta | None:
    """Read Retry-After from the answer; it is in a cause where the body could not be parsed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, httpx.HTTPStatusError):
        cause = cause.__cause__ or cause.__context__
    header = cause.response.headers.get("retry-after", "") if cause else ""
    # Only seconds: a date would depend on two clocks.
    wait = timedelta(seconds=int(header[:9])) if header.isdecimal() else timedelta()
    return wait if timedelta() < wait <= LONGEST_RETRY_AFTER else None
