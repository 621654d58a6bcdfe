"""The keys of a local project: made anew for each stack, in the shapes of Supabase's own."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

_ALGORITHM = "HS256"


def _key(kind: str) -> str:
    return f"sb_{kind}_{secrets.token_urlsafe(16)}_{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The keys of the roles anon and service_role, and the secret that signs users' tokens."""

    publishable: str = field(default_factory=lambda: _key("publishable"))
    secret: str = field(default_factory=lambda: _key("secret"))
    jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(40))

    def config(self) -> dict[str, str]:
        """Return the part of a child's config that names the keys."""
        return {
            "publishable_key": self.publishable,
            "secret_key": self.secret,
            "jwt_secret": self.jwt_secret,
        }

    def token(self, *, issuer: str, role: str, expires_in: float, claims: Mapping[str, Any]) -> str:
        """Return a signed access token; `expires_in` is in seconds and may be negative."""
        now = time.time()
        payload = {
            "iss": issuer,
            "aud": "authenticated",
            "role": role,
            "iat": int(now),
            "exp": int(now + expires_in),
            **claims,
        }
        return jwt.encode(payload, self.jwt_secret, algorithm=_ALGORITHM)
