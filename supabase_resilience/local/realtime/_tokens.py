"""Who a token speaks for: the project's two API keys, or a JWT signed with its secret.

The texts of the refusals are Realtime's; the same fault reads differently in a join's reply and
in the message that answers a refreshed token.
"""

import time
from collections.abc import Mapping
from typing import Any

import jwt

Claims = Mapping[str, Any]


class TokenError(Exception):
    """The token is refused. `code` and `reason` make up the reason in a join's reply.

    `pushed` answers a refreshed token, `connecting` a key that a client connects with.
    """

    def __init__(
        self, code: str, reason: str, *, pushed: str | None = None, connecting: str | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.pushed = pushed or reason
        self.connecting = connecting or reason

    @property
    def join_reason(self) -> str:
        """The reason as a join's error reply shows it."""
        return f"{self.code}: {self.reason}"


class Keyring:
    """Checks tokens against the keys and the secret of one project."""

    def __init__(self, *, jwt_secret: str, publishable_key: str, secret_key: str) -> None:
        self._secret = jwt_secret
        self._roles = {publishable_key: "anon", secret_key: "service_role"}

    def claims(self, token: str) -> Claims:
        """Return the claims of a valid token. Raises `TokenError`."""
        if token in self._roles:
            return {"role": self._roles[token]}
        claims = self._verified(token)
        if claims.get("role") is None or claims.get("exp") is None:
            raise TokenError("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
        _check_expiry(claims["exp"])
        return claims

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._secret,
                ["HS256"],
                options={
                    "verify_exp": False,  # _check_expiry says it in Realtime's words
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                    "verify_iss": False,
                },
            )
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
            raise TokenError(
                "JwtSignatureError", "Failed to validate JWT signature", pushed=":signature_error"
            ) from None
        except jwt.PyJWTError:
            raise TokenError("MalformedJWT", "The token provided is not a valid JWT") from None


def is_api_key(token: str) -> bool:
    """Tell an opaque API key from a JWT; in a join it means 'use the connection's key'."""
    return token.startswith("sb_")


def seconds_left(claims: Claims) -> float | None:
    """Return the seconds until the claims expire; None if they never do."""
    return claims["exp"] - time.time() if "exp" in claims else None


def expiry_message(seconds_ago: float) -> str:
    """Say that a token has expired."""
    return f"Token has expired {int(max(0, seconds_ago))} seconds ago"


def _check_expiry(expiry: Any) -> None:
    if isinstance(expiry, bool) or not isinstance(expiry, int | float):
        raise TokenError("InvalidJWTToken", "Token expiration time is invalid")
    if expiry <= time.time():
        reason = expiry_message(time.time() - expiry)
        raise TokenError("InvalidJWTToken", reason, connecting="Token has expired")
