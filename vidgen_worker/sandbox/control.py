"""Clients for the `/sandbox/...` side of the doubles: what they saw, and how they shall behave.

For tests and the command line, synchronous because neither waits on it. Never used by the worker.
"""

from dataclasses import dataclass, field
from typing import Any

import httpx

from vidgen_worker.providers.http_client import certificates
from vidgen_worker.sandbox.supabase.keys import StorageKeys

CONTROL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RunwayControl:
    """The Runway double at `url`; `key` is what the worker takes as RUNWAYML_API_SECRET."""

    url: str
    key: str = field(repr=False)

    def generations(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the generations in order, those with these values only (`kind="video"`)."""
        found: list[dict[str, Any]] = _ask("GET", f"{self.url}/sandbox/generations")
        return [one for one in found if all(one[name] == value for name, value in wanted.items())]

    def requests(self) -> list[dict[str, Any]]:
        """Return every POST: path, body, headers, status (None: unanswered), generation."""
        received: list[dict[str, Any]] = _ask("GET", f"{self.url}/sandbox/requests")
        return received

    def settings(self) -> dict[str, Any]:
        """Return the settings in force, and the credit balance."""
        settings: dict[str, Any] = _ask("GET", f"{self.url}/sandbox/settings")
        return settings

    def set(self, **changes: object) -> dict[str, Any]:
        """Change settings (`RunwaySettings`) or `credit_balance`; return all of them."""
        settings: dict[str, Any] = _ask("PATCH", f"{self.url}/sandbox/settings", changes)
        return settings

    def another_key(self, account: str = "first") -> str:
        """Return a further key of an account; the one of `key` is the first."""
        made: dict[str, str] = _ask("POST", f"{self.url}/sandbox/keys", {"account": account})
        return made["key"]

    def revoke(self, key: str) -> None:
        """Let a key be refused from now on."""
        _ask("DELETE", f"{self.url}/sandbox/keys/{key}")


@dataclass(frozen=True, slots=True)
class StorageControl:
    """The Storage double at `url`, which is what clients take as SUPABASE_URL."""

    url: str
    keys: StorageKeys = field(repr=False)

    def fail(self, kind: str = "any", times: int = 1, **fault: object) -> None:
        """Let the next requests of a kind (`StorageFault`) fail: `status=500`, `hang=20`..."""
        body = {"kind": kind, "times": times, **fault}
        _ask("PATCH", f"{self.url}/sandbox/storage/faults", body)

    def heal(self) -> None:
        """Forget all faults."""
        _ask("DELETE", f"{self.url}/sandbox/storage/faults")

    def objects(self) -> list[dict[str, Any]]:
        """Return every object: bucket, name, media type, bytes, sha256, owner."""
        objects: list[dict[str, Any]] = _ask("GET", f"{self.url}/sandbox/storage/objects")
        return objects

    def requests(self) -> list[dict[str, Any]]:
        """Return every request: kind, method, path, status."""
        received: list[dict[str, Any]] = _ask("GET", f"{self.url}/sandbox/storage/requests")
        return received

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it."""
        _ask("DELETE", f"{self.url}/sandbox/storage/buckets/{name}")


def _ask(method: str, url: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    # A client of its own per request would read all certificates each time: 40 ms CPU.
    answer = httpx.request(method, url, json=body, timeout=CONTROL_SECONDS, verify=certificates())
    if answer.is_error:
        message = f"The sandbox refused {method} {url}: {answer.text}"
        raise ValueError(message)
    return answer.json() if answer.content else None
