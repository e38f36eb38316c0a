"""The headers of a delivery, as Standard Webhooks 1.0.0 describes them. No I/O."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID


def headers(delivery: UUID, at: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """Return id, time and signatures of a request.

    `at` is in seconds since 1970; each secret signs, so that a receiver may know only one of them.
    """
    return {
        "webhook-id": str(delivery),
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(
            _signature(delivery, at, body, secret) for secret in secrets
        ),
    }  # fmt: skip


def _signature(delivery: UUID, at: int, body: bytes, secret: bytes) -> str:
    signed = f"{delivery}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
