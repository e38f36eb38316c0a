"""The protocol of a provider: declare a request, submit, poll, cancel.

An adapter retries what is free and safe by itself and raises `Fault` for all else; foreign
exceptions never leave it. `submit` is sent exactly once per call, whatever happens.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Request:
    """A paid request, ready to be frozen: only the provider that declared it reads all of it.

    `endpoint` is the provider's own word for what is asked for, `body` is JSON with its own field
    names. `source` is the address of what it is made from, known when that is stored: the
    provider puts it where it belongs when it sends the request.
    """

    endpoint: str
    model: str
    body: Mapping[str, Any]
    source: str | None = None

    def fingerprint(self) -> str:
        """A short digest of the request, to find it again at the provider and in the log."""
        return _digest(self.endpoint, self.body, self.source)[:16]

    def digest(self) -> str:
        """A digest of the whole input: model, prompt, pictures, size.

        The source is left out, because its address differs at each reading: the database adds the
        digest of its bytes.
        """
        return _digest(self.endpoint, self.model, self.body)


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


class GenerationState(StrEnum):
    """The state of a generation. `UNKNOWN` is a status that we do not know: polling continues."""

    THROTTLED = "throttled"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider's yes to a submit. `estimated_cost` is in the provider's credits."""

    generation_id: UUID
    estimated_cost: float | None


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation as a poll found it.

    `progress` is 0 to 1 or None; `cost` is the provider's final charge in its credits, None while
    it runs or where the answer lacks it.
    """

    id: UUID
    state: GenerationState
    progress: float | None = None
    outputs: tuple[str, ...] = ()
    failure: str | None = None
    failure_code: str | None = None
    estimated_cost: float | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The tier's limits for one model; None means no limit."""

    max_concurrent: int | None
    max_daily: int | None
    daily_generations: int


@dataclass(frozen=True, slots=True)
class Account:
    """The provider's account: balance in the provider's credits, limits and use by model."""

    credit_balance: int
    models: Mapping[str, ModelLimits]


class Provider(Protocol):
    """One key at one provider."""

    name: str
    key_fingerprint: str
    """Tells keys apart without telling the key: gates and limits belong to it."""

    def still(self, model: str, prompt: str | None, ratio: str, reference: str | None) -> Request:
        """Declare a still: a prompt, a size, the address of a picture that it refers to.

        The size is the model's nearest to `ratio`. Raises Fault naming the scene's field at fault.
        """
        ...

    def clip(self, model: str, prompt: str | None, ratio: str, seconds: int) -> Request:
        """Declare a clip: a prompt, a size, a duration; its first frame is the request's source.

        The size is the model's nearest to `ratio`. Raises Fault naming the scene's field at fault.
        """
        ...

    async def submit(self, request: Request) -> Accepted:
        """Send the paid POST once. Raises Fault; `submission_unknown` where it may be paid."""
        ...

    async def poll(self, generation_id: UUID) -> Generation:
        """Read a generation. Raises Fault `poll_failed`, `poll_denied` or `generation_gone`."""
        ...

    async def cancel(self, generation_id: UUID) -> None:
        """Cancel what still runs. An absent generation is fine.

        The caller polls first: on a finished generation the same verb destroys its output.
        Raises Fault `poll_failed` or `poll_denied`.
        """
        ...

    async def account(self) -> Account:
        """Read the account; free. Raises Fault as `poll` does."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
