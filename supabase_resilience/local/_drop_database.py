"""Drop a stack's database from a server that is not ours.

Also run by path, by the guardian, when the owner has crashed.
"""

import json
import sys
import time

import psycopg
from psycopg import sql

_TIMEOUT = 10.0  # seconds


def drop_database(dsn: str, name: str) -> None:
    """Drop a database with its connections; replication slots vanish with their readers."""
    statement = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
    end = time.monotonic() + _TIMEOUT
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            try:
                connection.execute(statement)
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
            else:
                return


if __name__ == "__main__":
    drop_database(**json.load(sys.stdin))
