"""Reading Runway's answers: from an HTTP response to a value or a `Fault`, and nothing else.

Gateways answer HTML, fields are absent or of another type, statuses are new: all of it ends here
as a value of ours. Fields are read from the JSON itself, because the SDK's classes turn an answer
with one odd field into another status. Nothing here sends a request.
"""

import email.utils
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from httpx import codes

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.providers.protocol import (
    Accepted,
    Account,
    Generation,
    GenerationState,
    ModelLimits,
    Request,
)
from vidgen_worker.providers.runway.inputs import IMAGE_TO_VIDEO

LONGEST_RETRY_AFTER = timedelta(hours=1)
"""A Retry-After beyond this is not believed: the gate's own probes find out sooner."""
TEXT_MAX = 1000
"""How much of the provider's text goes into a fault's details, in characters."""

_SUBMIT_FAULTS: Mapping[int, FaultName] = {
    codes.UNAUTHORIZED: FaultName.PROVIDER_DENIED,
    codes.FORBIDDEN: FaultName.PROVIDER_DENIED,
    codes.PAYMENT_REQUIRED: FaultName.PROVIDER_UNFUNDED,
    codes.REQUEST_TIMEOUT: FaultName.SUBMISSION_UNKNOWN,
    codes.CONFLICT: FaultName.SUBMISSION_UNKNOWN,
    # A proxy, or the wrong server: Runway itself never saw the request.
    codes.PROXY_AUTHENTICATION_REQUIRED: FaultName.PROVIDER_UNREACHABLE,
    codes.MISDIRECTED_REQUEST: FaultName.PROVIDER_UNREACHABLE,
    codes.TOO_EARLY: FaultName.PROVIDER_UNREACHABLE,
}
_OUT_OF_CREDITS = re.compile(
    r"(?:you (?:do not|don.t) have |you have |there are )?(?:not )?enough credits"
    r"|insufficient credits",
    re.IGNORECASE,
)
"""As seen: "You do not have enough credits to run this task."."""
_DAILY_LIMIT = re.compile(r"(?:you have reached )?your daily\b.{0,40}\blimit", re.IGNORECASE)
"""As seen: "Your daily task limit has been reached."."""
_STATES = {state.name: state for state in GenerationState if state is not GenerationState.UNKNOWN}


def accepted(path: str, response: httpx.Response) -> Accepted:
    """Read the answer to a submit.

    Raises Fault `submission_unknown` unless it holds a usable id: Runway said yes to something.
    """
    body = read_json(response)
    generation_id = _uuid(body.get("id")) if isinstance(body, Mapping) else None
    if generation_id is None:
        details = f"POST {path} was accepted, but its answer has no usable id: {said(response)}"
        raise Fault(FaultName.SUBMISSION_UNKNOWN, details=details)
    return Accepted(generation_id, _credits(body.get("estimatedCost")))


def submit_refused(path: str, request: Request, response: httpx.Response) -> Fault:
    """Classify an answer to a submit that is not a success."""
    name = _submit_fault(request, response)
    wait = retry_after(response) if response.status_code == codes.TOO_MANY_REQUESTS else None
    return Fault(name, details=f"POST {path} was answered {said(response)}", retry_after=wait)


def _submit_fault(request: Request, response: httpx.Response) -> FaultName:
    """Name the row of the table of faults.

    Out of credits, the daily limit and asset errors are told apart by their text only
    (https://docs.dev.runwayml.com/errors/errors/, sdk-node issue 28, sdk-python issues 23 and 81).
    """
    match response.status_code:
        case codes.BAD_REQUEST if _is_said(_OUT_OF_CREDITS, request, response):
            return FaultName.PROVIDER_UNFUNDED
        case codes.BAD_REQUEST if request.endpoint == IMAGE_TO_VIDEO and _about_the_frame(response):
            return FaultName.FRAME_REFUSED
        case codes.TOO_MANY_REQUESTS:
            daily = _is_said(_DAILY_LIMIT, request, response)
            return FaultName.PROVIDER_QUOTA if daily else FaultName.PROVIDER_BUSY
        case status if status in _SUBMIT_FAULTS:
            return _SUBMIT_FAULTS[status]
        case status if status < codes.BAD_REQUEST:
            return FaultName.PROVIDER_UNREACHABLE  # a redirect: this is not Runway's address
        case status:
            refused = status < codes.INTERNAL_SERVER_ERROR
            return FaultName.REQUEST_REFUSED if refused else FaultName.SUBMISSION_UNKNOWN


def read_failed(what: str, error: Exception) -> Fault:
    """Classify a free request without an answer; it says nothing about the generation."""
    return Fault(FaultName.POLL_FAILED, details=f"{what} got no answer: {described(error)}")


def read_refused(what: str, response: httpx.Response) -> Fault:
    """Classify an answer to a free request that is not a success."""
    details = f"{what} was answered {said(response)}"
    if response.status_code in (codes.UNAUTHORIZED, codes.FORBIDDEN):
        return Fault(FaultName.POLL_DENIED, details=details)
    return Fault(FaultName.POLL_FAILED, details=details, retry_after=retry_after(response))


def generation(generation_id: UUID, response: httpx.Response) -> Generation:
    """Read a generation by its status string. Raises Fault `poll_failed` for a broken answer."""
    body = read_json(response)
    status = body.get("status") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(status, str):
        raise _broken(generation_id, "has no status", response)
    if (named := body.get("id")) is not None and _uuid(named) != generation_id:
        raise _broken(generation_id, "is about another generation", response)
    found = Generation(
        id=generation_id,
        state=_STATES.get(status.upper(), GenerationState.UNKNOWN),
        progress=_progress(body.get("progress")),
        outputs=tuple(_texts(body.get("output"))),
        failure=_text(body.get("failure")),
        failure_code=_text(body.get("failureCode")) or _text(body.get("failure_code")),
        estimated_cost=_credits(body.get("estimatedCost")),
        cost=_credits(body.get("cost")),
    )
    if found.state is GenerationState.SUCCEEDED and not found.outputs:
        raise _broken(generation_id, "says SUCCEEDED without an output URL", response)
    return found


def account(response: httpx.Response) -> Account:
    """Read the account. Raises Fault `poll_failed` for a broken answer."""
    body = read_json(response)
    balance = _whole(body.get("creditBalance")) if isinstance(body, Mapping) else None
    if balance is None:
        details = f"GET /v1/organization: the answer has no credit balance: {said(response)}"
        raise Fault(FaultName.POLL_FAILED, details=details)
    limits = _models(body.get("tier"))
    usage = _models(body.get("usage"))
    models = {
        model: ModelLimits(
            max_concurrent=_whole(limits.get(model, {}).get("maxConcurrentGenerations")),
            max_daily=_whole(limits.get(model, {}).get("maxDailyGenerations")),
            daily_generations=_whole(usage.get(model, {}).get("dailyGenerations")) or 0,
        )
        for model in limits.keys() | usage.keys()
    }
    return Account(balance, models)


def read_json(response: httpx.Response) -> Any:  # noqa: ANN401 - whatever the other side wrote
    """Return the body as JSON; None when it is none."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def provider_text(response: httpx.Response) -> str:
    """Return the other side's own words, wherever in the body they are; cut, on one line."""
    body = read_json(response)
    words = []
    if isinstance(body, Mapping):
        words = [value for key in ("error", "message") if (value := _text(body.get(key)))]
        issues = body.get("issues")
        if issues:
            words.append(f"issues {json.dumps(issues)}")
    text = "; ".join(words) or response.text
    return " ".join(text.split())[:TEXT_MAX]


def said(response: httpx.Response) -> str:
    """Return status, words and request id, for details."""
    request_id = response.headers.get("apigw-requestid")
    known_as = f" (apigw-requestid {request_id})" if request_id else ""
    return f"{response.status_code}: {provider_text(response) or 'no text'}{known_as}"


def described(error: BaseException) -> str:
    """Return kind and words of a transport error; many have no words."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def retry_after(response: httpx.Response) -> timedelta | None:
    """Return what Retry-After asks for, in seconds or as a date; None when absent or absurd."""
    header = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(header)
        except (ValueError, TypeError):
            return None
        seconds = (when.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    if not 0 < seconds <= LONGEST_RETRY_AFTER.total_seconds():
        return None
    return timedelta(seconds=seconds)


def _is_said(sentence: re.Pattern[str], request: Request, response: httpx.Response) -> bool:
    """Whether Runway itself says so, which closes a gate for everybody.

    Its sentence begins the text. A validation error (`issues`) quotes the input, a failed fetch the
    server of an asset, and a request that holds the words may be what is quoted: none of these
    decides anything, else one user's prompt could stop all others.
    """
    body = read_json(response)
    if not isinstance(body, Mapping) or body.get("issues"):
        return False
    text = _text(body.get("error")) or _text(body.get("message")) or ""
    if not sentence.match(" ".join(text.split())):
        return False
    return not any(sentence.search(" ".join(sent.split())) for sent in _texts_in(request.body))


def _texts_in(value: object) -> Iterator[str]:
    """Yield every text of a request's body."""
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _texts_in(item)
        case list() | tuple():
            for item in value:
                yield from _texts_in(item)


def _about_the_frame(response: httpx.Response) -> bool:
    """Whether a 400 for a clip is about its first frame, and about nothing else.

    Asset errors come with `issues`, as "promptImage: …", or as "Failed to fetch asset"; the frame
    is the only asset of a clip.
    """
    body = read_json(response)
    issues = body.get("issues") if isinstance(body, Mapping) else None
    if isinstance(issues, list) and issues:
        paths = [issue.get("path") for issue in issues if isinstance(issue, Mapping)]
        return len(paths) == len(issues) and all(
            isinstance(path, list) and path[:1] == ["promptImage"] for path in paths
        )
    text = provider_text(response)
    return text.startswith("promptImage") or "asset" in text.lower()


def _broken(generation_id: UUID, problem: str, response: httpx.Response) -> Fault:
    details = f"GET of generation {generation_id}: the answer {problem}: {said(response)}"
    return Fault(FaultName.POLL_FAILED, details=details)


def _models(part: object) -> dict[str, Mapping[str, Any]]:
    models = part.get("models") if isinstance(part, Mapping) else None
    if not isinstance(models, Mapping):
        return {}
    return {str(name): value for name, value in models.items() if isinstance(value, Mapping)}


def _uuid(value: object) -> UUID | None:
    """Read an id as Runway writes it; `UUID` alone also takes braces and URNs."""
    if not isinstance(value, str):
        return None
    try:
        found = UUID(value)
    except ValueError:
        return None
    return found if str(found) == value.lower() else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A number of hundreds of digits is an int that no float holds.
    if isinstance(value, int) and abs(value) > 2**53:
        return None
    return value if math.isfinite(value) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _progress(value: object) -> float | None:
    number = _number(value)
    return None if number is None else min(max(float(number), 0.0), 1.0)


def _credits(value: object) -> float | None:
    """Read `{"credits": 5}`, and a bare 5 as well."""
    number = _number(value.get("credits") if isinstance(value, Mapping) else value)
    return None if number is None or number < 0 else float(number)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> Iterator[str]:
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if isinstance(item, str) and item:
            yield item
