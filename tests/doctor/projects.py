"""A local project as the tests use it: SQL as its owner, and the SQL that our commands print."""

import contextlib
import io

import psycopg
from supabase import create_client

from supabase_resilience.__main__ import main
from supabase_resilience.doctor import diagnose


def migration(*arguments):
    """The SQL that the command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert 0 == main(["sql", *arguments])
    return printed.getvalue()


class Project:
    """A local project, and a client of it."""

    def __init__(self, local):
        self.local = local
        self.client = create_client(local.url, local.secret_key)

    def run(self, sql, *, dsn=None):
        with psycopg.connect(dsn or self.local.dsn, autocommit=True) as connection:
            connection.execute(sql.encode())
        self.local.rest.reload()

    def as_admin(self, sql):
        self.run(sql, dsn=self.local.admin_dsn)

    def ask(self, sql):
        with psycopg.connect(self.local.dsn, autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchone()

    def diagnose(self, *parts, **options):
        where = {"url": self.local.url, "key": self.local.secret_key, "dsn": self.local.dsn}
        return diagnose(*parts, **(where | options))
