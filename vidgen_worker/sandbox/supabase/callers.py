"""The caller of a request: the role and the claims of its key and token.

The rules are those of a hosted project's gateway: new keys (`sb_…`) become tokens there, legacy
keys are tokens themselves, and a user's token counts before the key. It never asks the database.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from vidgen_worker.sandbox.supabase.keys import StorageKeys


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller: a role of the database, and the claims of the token."""

    role: str
    claims: Mapping[str, Any]

    @property
    def user_id(self) -> str | None:
        """The signed-in user, None for a service."""
        subject = self.claims.get("sub")
        return None if subject is None else str(subject)

    @property
    def is_expired(self) -> bool:
        """Whether the token's time is over. A key has none."""
        return float(self.claims.get("exp", time.time() + 1)) <= time.time()


ANONYMOUS = Caller("anon", {"role": "anon"})


class TokenError(Exception):
    """A token that identifies nobody. `code` is PostgREST's; the message is what it answers."""

    def __init__(self, code: str, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


def bearer(authorization: str) -> str:
    """Return the token of an Authorization header, empty where there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_api_key(keys: StorageKeys, key: str) -> bool:
    """Whether a key is one of the project's four."""
    return key in (keys.anon, keys.service_role, keys.publishable, keys.secret)


def caller_of(keys: StorageKeys, api_key: str, authorization: str, *, leeway: float = 0) -> Caller:
    """Return who asks, by the headers `apikey` and `Authorization`. Raises `TokenError`."""
    token = bearer(authorization)
    minted = {keys.secret: "service_role", keys.publishable: "anon"}
    if api_key in minted and token in ("", api_key):
        return Caller(minted[api_key], {"role": minted[api_key]})
    if not token:
        return ANONYMOUS
    claims = claims_of(keys, token, leeway=leeway)
    return Caller(str(claims.get("role", "anon")), claims)


def claims_of(keys: StorageKeys, token: str, *, leeway: float = 0) -> dict[str, Any]:
    """Return what a token claims, if its signature and its time are good. Raises `TokenError`.

    A token lives `leeway` seconds beyond its end.
    """
    parts = token.count(".") + 1
    if parts != 3:  # noqa: PLR2004 - header, claims, signature
        raise TokenError("PGRST301", f"Expected 3 parts in JWT; got {parts}")
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            keys.jwt_secret,
            ["HS256"],
            options={"verify_aud": False, "verify_sub": False},
            leeway=leeway,
        )
    except jwt.ExpiredSignatureError as error:
        raise TokenError("PGRST303", "JWT expired") from error
    except jwt.ImmatureSignatureError as error:
        raise TokenError("PGRST303", "JWT not yet valid") from error
    except jwt.InvalidSignatureError as error:
        none = "None of the keys was able to decode the JWT"
        raise TokenError("PGRST301", "No suitable key or wrong key type", none) from error
    except jwt.InvalidAlgorithmError as error:
        text = "Wrong or unsupported encoding algorithm"
        raise TokenError("PGRST301", text) from error
    except jwt.InvalidTokenError as error:
        raise TokenError("PGRST301", "JWT cryptographic operation failed") from error
    return claims
