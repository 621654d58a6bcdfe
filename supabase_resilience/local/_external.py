"""The user's own PostgreSQL server instead of one of ours: the stack borrows a database from it."""

import json
import sys
from pathlib import Path
from typing import Any, Never

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from supabase_resilience.local import _drop_database
from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local._guardian import Guardian
from supabase_resilience.local._postgres import OWNER, SUPERUSER

VARIABLE = "SUPABASE_RESILIENCE_PG_DSN"


class ExternalPostgres:
    """A new database on a running server, dropped again at the end.

    The server must have wal_level=logical, and the DSN must be a superuser's. Roles belong to the
    whole server: missing ones are made and stay. The server itself is never stopped.
    """

    def __init__(self, dsn: str, name: str, guardian: Guardian) -> None:
        self._server = dsn
        self._name = name
        self._check_server()
        guardian.on_crash(
            [sys.executable, "-P", str(Path(_drop_database.__file__))],
            json.dumps({"dsn": dsn, "name": name}),
        )
        with psycopg.connect(dsn, autocommit=True) as connection:
            create = "create database {} template template0 encoding 'UTF8'"
            connection.execute(sql.SQL(create).format(sql.Identifier(name)))

    @property
    def running(self) -> bool:
        """Whether the server answers."""
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def admin_dsn(self) -> str:
        """How the superuser connects."""
        return make_conninfo(self._server, dbname=self._name)

    @property
    def dsn(self) -> str:
        """The superuser's, too: the password of the role `postgres` is not known here."""
        return self.admin_dsn

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection[Any]:
        """Open a connection in autocommit mode, as the superuser or as `postgres`."""
        connection = psycopg.connect(self.admin_dsn, autocommit=True)
        if role == OWNER:
            connection.execute("set session authorization postgres")
        return connection

    def start(self) -> None:
        """Not possible: raises `LocalSupabaseError`."""
        self._refuse("start")

    def stop(self) -> None:
        """Not possible: raises `LocalSupabaseError`."""
        self._refuse("stop")

    def kill(self) -> None:
        """Not possible: raises `LocalSupabaseError`."""
        self._refuse("kill")

    def shut_down(self) -> None:
        """Drop the database; raises `LocalSupabaseError` when the server does not let us."""
        try:
            _drop_database.drop_database(self._server, self._name)
        except psycopg.Error as error:
            raise LocalSupabaseError(
                f"the database {self._name} stays on the server in {VARIABLE}; drop it by hand:"
                f" {str(error).strip()}"
            ) from None

    def _refuse(self, verb: str) -> Never:
        raise LocalSupabaseError(
            f"postgres.{verb}() would hit everyone who uses the server in {VARIABLE};"
            f" unset {VARIABLE} to get a server that is the stack's own"
        )

    def _check_server(self) -> None:
        try:
            with psycopg.connect(self._server, connect_timeout=10) as connection:
                question = "select current_setting('wal_level'), current_setting('is_superuser')"
                wal_level, superuser = connection.execute(question).fetchone() or ("", "")
        except psycopg.Error as error:
            raise LocalSupabaseError(
                f"the server in {VARIABLE} cannot be reached: {str(error).strip()}"
            ) from None
        if wal_level != "logical":
            raise LocalSupabaseError(
                f"the server in {VARIABLE} has wal_level={wal_level}, but Realtime needs logical:"
                " run `alter system set wal_level = logical` there and restart it"
            )
        if superuser != "on":
            raise LocalSupabaseError(f"the role in {VARIABLE} must be a superuser")
