"""Writers that execute their plans straight in PostgreSQL, and know what was committed.

When the server dies during a COMMIT, they look in its next life for what the transaction left. (Its
xid says nothing: one that never reached the disk is given to another transaction.)
"""

import random
import threading
import uuid
from collections.abc import Sequence
from typing import Any

import psycopg
from listener_plan import Op, Transaction

Effects = list[tuple[str, int]]
"""What a transaction has done to `logged`: operations and keys, in order."""

_BY_KIND = {
    "insert": (
        "INSERT",
        """insert into {} (id, n, amount, data, at, note)
        values (%(key)s, %(n)s, %(amount)s, %(data)s, now(), %(note)s)
        on conflict (id) do nothing returning id""",
    ),
    "update": (
        "UPDATE",
        """update {} set n = %(n)s, amount = %(amount)s, data = %(data)s where id = %(key)s
        returning id""",
    ),
    "delete": ("DELETE", "delete from {} where id = %(key)s returning id"),
    "rekey": ("UPDATE", "update {} set id = %(other)s, n = %(n)s where id = %(key)s returning id"),
}
_SIGN = "insert into signed values (%s) returning pg_current_xact_id()::text::bigint"
_SIGNED = "select from signed where token = %s"
TABLES = ("items", "logged")


class Pace:
    """Counts executed statements, and holds writers that are ahead of the faults."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = 0
        self.done = 0

    def allow(self, statements: int) -> None:
        with self._changed:
            self._allowed = statements
            self._changed.notify_all()

    def wait_for_leave(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.done < self._allowed)

    def count(self, statements: int) -> None:
        with self._changed:
            self.done += statements
            self._changed.notify_all()

    def wait_until(self, done: int, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.done >= done, timeout)


class Scribe:
    """One connection, made anew when it is lost; `committed` are the transactions and effects."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self.committed: dict[int, Effects] = {}
        self.aborted = 0

    def commit(self, transaction: Transaction) -> None:
        """Again until it is committed, or aborted for a reason of its own."""
        while not self._try(transaction):
            pass

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _try(self, transaction: Transaction) -> bool:
        token, xid, effects = uuid.uuid4(), 0, Effects()
        try:
            connection = self._connect()
            xid = self._sign(connection, token)
            for op in transaction.ops:
                effects += _execute(connection, op)
            threading.Event().wait(transaction.lasts)
            if transaction.rolls_back:
                connection.rollback()
                return True
            connection.commit()
        except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
            self.aborted += 1
            self._connect().rollback()
            return True
        except psycopg.OperationalError:
            if not self._is_signed(token):
                return False
        self.committed[xid] = effects
        return True

    def _sign(self, connection: psycopg.Connection[Any], token: uuid.UUID) -> int:
        found = connection.execute(_SIGN, (token,)).fetchone()
        return int(found[0]) if found else 0

    def _is_signed(self, token: uuid.UUID) -> bool:
        while True:
            try:
                found = self._connect().execute(_SIGNED, (token,)).fetchone()
                self._connect().rollback()
            except psycopg.OperationalError:
                continue
            return found is not None

    def _connect(self) -> psycopg.Connection[Any]:
        while self._connection is None or self._connection.closed:
            try:
                self._connection = psycopg.connect(self._dsn, connect_timeout=5)
            except psycopg.OperationalError:
                threading.Event().wait(0.05)
        return self._connection


class Writer(threading.Thread):
    """A thread that goes through its transactions."""

    def __init__(self, dsn: str, plan: Sequence[Transaction], pace: Pace) -> None:
        super().__init__(daemon=True)
        self.scribe = Scribe(dsn)
        self._plan = plan
        self._pace = pace

    def run(self) -> None:
        for transaction in self._plan:
            self._pace.wait_for_leave()
            threading.Event().wait(transaction.pause)
            self.scribe.commit(transaction)
            self._pace.count(len(transaction.ops))
        self.scribe.close()


def _execute(connection: psycopg.Connection[Any], op: Op) -> Effects:
    kinds = ("delete", "insert") if op.kind == "replace" else (op.kind,)
    effects: Effects = []
    for kind in kinds:
        name, query = _BY_KIND[kind]
        for table in TABLES:
            found = connection.execute(query.format(table).encode(), _values(op)).fetchall()
            if table == "logged":
                effects += [(name, key) for (key,) in found]
    return effects


def _values(op: Op) -> dict[str, Any]:
    return {
        "key": op.key,
        "other": op.other,
        "n": op.n,
        "amount": op.n / 100,
        "data": op.n.to_bytes(4, "big"),
        "note": _note(op.n),
    }


def _note(n: int) -> str:
    """Short, or stored apart so that updates leave it out, or more than Realtime tells of."""
    if n == 1000:
        return "x" * 1_100_000
    return random.Random(n).randbytes(4000).hex() if n % 20 == 0 else f"number {n}"
