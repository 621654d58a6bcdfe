"""JSON text of column values, as PostgreSQL's `to_jsonb` writes them.

Values stay text from the WAL to the socket: a number is copied digit by digit, so integers beyond
2^53 and numerics of any length arrive exact. What needs PostgreSQL itself (arrays, composites,
domains, extension types) has no encoder here.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final

Encoder = Callable[[str], str]

_FIRST_USER_OID: Final = 16384
_BARE_ZONE: Final = re.compile(r"([+-]\d\d)$")


def encoder_of(type_oid: int, kind: str, *, is_array: bool) -> Encoder | None:
    """Choose what turns a type's text into JSON; None if only PostgreSQL can.

    `kind` is the type's `pg_type.typtype`.
    """
    if type_oid in _BY_OID:
        return _BY_OID[type_oid]
    built_in = type_oid < _FIRST_USER_OID and kind in {"b", "r", "m"} and not is_array
    return _string if built_in or kind == "e" else None


_string: Final[Encoder] = json.JSONEncoder(ensure_ascii=False).encode


def _number(text: str) -> str:
    # NaN and the infinities have no JSON number.
    return text if text[-1].isdigit() else f'"{text}"'


def _float(text: str) -> str:
    return format(Decimal(text), "f") if "e" in text else _number(text)


def _boolean(text: str) -> str:
    return "true" if text == "t" else "false"


def _timestamp(text: str) -> str:
    if not text[0].isdigit():
        return f'"{text}"'  # infinity
    iso = _BARE_ZONE.sub(r"\1:00", text.replace(" ", "T", 1))
    return f'"{iso}"'


def _bytea(text: str) -> str:
    digits = text.removeprefix("\\x")
    return f'"{digits}"'


def _json(text: str) -> str:
    return text


_BY_OID: Final[dict[int, Encoder]] = {
    16: _boolean,
    17: _bytea,
    20: _number,
    21: _number,
    23: _number,
    114: _json,
    700: _float,
    701: _float,
    1114: _timestamp,
    1184: _timestamp,
    1700: _number,
    3802: _json,
}
