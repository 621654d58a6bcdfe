"""Which kind of key it is, read from the key itself; no signature is checked, nothing is sent."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

__all__ = ["Key", "read_key", "role_of_token"]

Kind = Literal["secret", "publishable", "legacy", "user", "unknown"]
_HOSTED = re.compile(r"([a-z0-9]{20})\.supabase\.(?:co|in|red)")


@dataclass(frozen=True, slots=True)
class Key:
    """What a key says of itself. `project` and `url_project` are the references of projects."""

    kind: Kind
    role: str | None
    expires_at: float | None = None
    project: str | None = None
    url_project: str | None = None


def read_key(key: str, url: str) -> Key:
    """Read a key; one that is neither a new key nor a JWT is of an unknown kind."""
    found = _HOSTED.fullmatch(urlsplit(url).hostname or "")
    of_url = found[1] if found else None
    if key.startswith("sb_secret_"):
        return Key("secret", "service_role", url_project=of_url)
    if key.startswith("sb_publishable_"):
        return Key("publishable", "anon", url_project=of_url)
    claims = _claims(key)
    if claims is None:
        return Key("unknown", None, url_project=of_url)
    role = _text(claims.get("role")) or "anon"
    # A user's token names the user; a key names none.
    kind_of_jwt: Kind = "user" if claims.get("sub") else "legacy"
    expires = claims.get("exp")
    expires_at = float(expires) if isinstance(expires, int | float) else None
    return Key(kind_of_jwt, role, expires_at, _text(claims.get("ref")), of_url)


def role_of_token(token: Any) -> str | None:
    """The role of a part's own token: its claim, or that of users when it is asked for later."""
    if token is None:
        return None
    claims = _claims(token) if isinstance(token, str) else None
    return "authenticated" if claims is None else _text(claims.get("role")) or "anon"


def _claims(token: str) -> dict[str, Any] | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded))
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
