"""An app that writes each row in two steps, and a verifier beside it: neither harms the other."""

import random
import threading
import time

import httpx
from supabase import ClientOptions, create_client

from supabase_resilience.verification import Rule

from .worlds import TLS, eventually

ROWS, BROKEN, WRITES, GRACE = 200, 40, 120, 1.5
FIXED = 7  # what the fix sets; the app never does


class App:
    """Sets the total of a row, and a little later its fee: in between the row looks broken."""

    def __init__(self, local, table: str, seed: int) -> None:
        self.written: dict[int, int] = {}
        self.slow: set[int] = set()
        self._local = local
        self._table = table
        self._random = random.Random(seed)
        self._pause = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=30.0, verify=TLS) as session:
            options = ClientOptions(httpx_client=session)
            client = create_client(self._local.url, self._local.secret_key, options)
            for number in range(WRITES):
                self._write(client, self._random.randint(BROKEN + 1, ROWS), 1000 + 10 * number)

    def _write(self, client, key: int, total: int) -> None:
        row = client.table(self._table)
        began = time.monotonic()
        row.update({"total": total}).eq("id", key).execute()
        self._pause.wait(self._random.uniform(0.005, 0.05))
        row.update({"fee": total // 10, "writes": total}).eq("id", key).execute()
        self.written[key] = total
        if time.monotonic() - began >= GRACE:  # then it was not as quick as the app has to be
            self.slow.add(key)


def test_nobody_is_raced(bench):
    """No needless fix, no value of the app destroyed, and whatever is really broken is fixed."""
    table = bench.table("id int primary key, total int, fee int, writes int, fixed int default 0")
    table.run(
        "insert into {} (id, total, fee) select i, 100, case when i > %s then 10 end"
        " from generate_series(1, %s) i",
        BROKEN,
        ROWS,
    )
    rule = Rule(
        "fees",
        check=lambda row: row["fee"] is not None and row["fee"] * 10 == row["total"],
        fix=lambda row: {"fee": row["total"] // 10, "fixed": FIXED},
    )
    settled = []

    def hear(event):
        if event.name == "verification.pass_completed":
            settled.append(verification.stats.last_report.rules["fees"].settled)

    verification = bench.verification(
        table, rules=[rule], interval=0.01, grace=GRACE, on_event=hear
    )
    app = App(bench.local, table.name, seed=1)
    verification.start()
    eventually(lambda: app.is_done and verification.stats.passes >= 2)
    app.join()
    verification.stop()
    fixed = {key for (key,) in table.run("select id from {} where fixed = %s", FIXED)}
    assert set(range(1, BROKEN + 1)) == fixed - app.slow
    totals, fees = table.rows("id, total"), table.rows("id, fee")
    assert app.written == {key: totals[key] for key in app.written}
    assert {key: total // 10 for key, total in totals.items()} == fees
    assert sum(settled) > 0  # it has met rows that the app was about to complete
