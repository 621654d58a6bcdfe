"""What is written and what goes wrong meanwhile, all of it drawn from the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

KEYS = 300
LONG = (0.2, 3.0)  # seconds
_OPS = {"insert": 30, "update": 40, "delete": 18, "replace": 8, "rekey": 4}
_FAULTS = {
    "Realtime killed": 14,
    "REST killed": 10,
    "PostgreSQL killed": 10,
    "connections aborted": 10,
    "closed with 1012": 10,
    "channels crashed": 6,
    "stalled": 6,
    "stream of changes dead": 8,
    "changes lost": 10,
    "lost to the rate limit": 6,
    "token expired": 4,
    "refused for a while": 3,
    "requests lost": 7,
    "our loop stood still": 2,
}
# What else may happen while one of these lasts; the other way round the server may be away.
_OUTER = {"REST killed", "requests lost"}
_INNER = {"connections aborted", "closed with 1012", "stream of changes dead", "changes lost"}
_IN_PAIRS = 0.3


class Op(NamedTuple):
    """A statement; `other` is the new key of a rekey, `n` decides the values."""

    kind: str
    key: int
    other: int
    n: int


class Transaction(NamedTuple):
    """Some statements, how long they stay uncommitted, and the pause before."""

    ops: Sequence[Op]
    lasts: float = 0.0
    rolls_back: bool = False
    pause: float = 0.0


@dataclass(frozen=True)
class Blow:
    """A fault once so many statements were executed, with another one inside of it or not."""

    at: int
    kind: str
    chance: float
    inner: "Blow | None" = None


def transactions(seed: str, ops: int, *, pause: float) -> list[Transaction]:
    """One writer's work: so many statements in all."""
    chance, drawn, left = random.Random(seed), list[Transaction](), ops
    while left > 0:
        size = min(left, chance.choice((1, 1, 1, 2, 3, 5)))
        left -= size
        drawn.append(_transaction(chance, size, pause))
    return drawn


def _transaction(chance: random.Random, size: int, pause: float) -> Transaction:
    # In the order of keys, for else half of them would end in deadlocks.
    ops = sorted((_op(chance, alone=size == 1) for _ in range(size)), key=lambda op: op.key)
    is_long = chance.random() < 0.01
    return Transaction(
        ops,
        chance.uniform(*LONG) if is_long else 0.0,
        chance.random() < 0.03,
        chance.expovariate(1 / pause) if pause else 0.0,
    )


def _op(chance: random.Random, *, alone: bool) -> Op:
    kind = chance.choices(list(_OPS), list(_OPS.values()))[0]
    if kind == "rekey" and not alone:
        kind = "update"
    return Op(kind, chance.randint(1, KEYS), chance.randint(1, KEYS), chance.randint(1, 1000))


def blows(seed: str, count: int, ops: int) -> list[Blow]:
    """Every kind once, as far as there are so many, the rest at random; in order."""
    chance = random.Random(seed)
    kinds = chance.sample(list(_FAULTS), min(count, len(_FAULTS)))
    kinds += chance.choices(list(_FAULTS), list(_FAULTS.values()), k=count - len(kinds))
    chance.shuffle(kinds)
    groups = _in_pairs(chance, kinds)
    places = sorted(chance.sample(range(ops // 20, ops * 19 // 20), len(groups)))
    drawn = []
    for at, (outer, *inner) in zip(places, groups, strict=True):
        within = Blow(at, inner[0], chance.random()) if inner else None
        drawn.append(Blow(at, outer, chance.random(), within))
    return drawn


def _in_pairs(chance: random.Random, kinds: list[str]) -> list[list[str]]:
    inner = [kind for kind in kinds if kind in _INNER]
    groups = [[kind] for kind in kinds if kind not in _INNER]
    for group in groups:
        if group[0] in _OUTER and inner and chance.random() < _IN_PAIRS:
            group.append(inner.pop())
    groups += [[kind] for kind in inner]
    chance.shuffle(groups)
    return groups
