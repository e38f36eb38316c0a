"""What the pipeline asks of a provider: submit, poll, cancel.

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

from vidgen_worker.domain.task import StageName


@dataclass(frozen=True, slots=True)
class Request:
    """A paid request, ready to be frozen: `body` is JSON with the provider's own field names."""

    stage: StageName
    model: str
    body: Mapping[str, Any]

    def fingerprint(self) -> str:
        """A short digest of the request, to find it again at the provider and in the log."""
        text = json.dumps(dict(self.body), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{self.stage}\n{text}".encode()).hexdigest()[:16]

    def digest(self) -> str:
        """Tell the whole input apart from every other: model, prompt, pictures, size.

        Without a clip's first frame, whose address is another one at each reading: the database
        adds the digest of its bytes.
        """
        body = {name: value for name, value in self.body.items() if name != "promptImage"}
        text = json.dumps([self.stage, self.model, body], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class GenerationState(StrEnum):
    """Where a generation stands. `UNKNOWN` is a status we have never heard of: keep polling."""

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
