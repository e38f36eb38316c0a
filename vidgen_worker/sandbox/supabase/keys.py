"""The keys of a sandbox project: API keys in both of Supabase's shapes, and users' tokens.

All JWTs are HS256, signed with one secret, as on a project with a legacy JWT secret.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self
from uuid import UUID

import jwt

TEN_YEARS = 10 * 365 * 86_400
HOUR = 3600


@dataclass(frozen=True, slots=True)
class StorageKeys:
    """One project's secrets."""

    jwt_secret: str = field(repr=False)
    service_role: str = field(repr=False)
    anon: str = field(repr=False)
    secret: str = field(repr=False)
    publishable: str
    url_secret: str = field(repr=False)
    """Signs Storage's URLs: no rotation of the JWT secret ends them."""

    @classmethod
    def generate(cls) -> Self:
        """Return the keys of a new project."""
        jwt_secret = secrets.token_hex(32)

        def api_key(role: str) -> str:
            now = int(time.time())
            claims = {"iss": "supabase", "role": role, "iat": now, "exp": now + TEN_YEARS}
            return jwt.encode(claims, jwt_secret, "HS256")

        return cls(
            jwt_secret,
            api_key("service_role"),
            api_key("anon"),
            f"sb_secret_{secrets.token_urlsafe(24)}",
            f"sb_publishable_{secrets.token_urlsafe(24)}",
            secrets.token_hex(32),
        )

    @classmethod
    def loaded(cls, text: str) -> Self:
        """Return the keys that `dumped` has written."""
        return cls(**json.loads(text))

    def dumped(self) -> str:
        """Return all of them as JSON, for a file that nobody else may read."""
        return json.dumps(asdict(self))

    def user_token(
        self, user_id: UUID | str, *, seconds: float = HOUR, claims: Mapping[str, Any] | None = None
    ) -> str:
        """Return the access token of a signed-in user, role `authenticated`."""
        now = time.time()
        said = {
            "sub": str(user_id),
            "role": "authenticated",
            "aud": "authenticated",
            "iat": int(now),
            "exp": int(now + seconds),
            **(claims or {}),
        }
        return jwt.encode(said, self.jwt_secret, "HS256")
