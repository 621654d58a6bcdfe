"""Every block of README.md runs, and has the effect that it promises.

A block is named by its heading and its number below it. It knows what a reader knows there: the
imports, functions and classes of the blocks before it, and what README leaves to the reader, which
is in `READER`. A new Python block runs as it is; give it an `@effect` when it promises something,
needs a stage, or never ends by itself.
"""

import argparse
import ast
import asyncio
import builtins
import contextlib
import dis
import functools
import gc
import importlib.util
import inspect
import io
import itertools
import os
import re
import shlex
import sys
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from pydantic import BaseModel
from supabase import Client, create_client

import supabase_resilience
from supabase_resilience import (
    CircuitOpenError,
    Recovery,
    Resilience,
    protect,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience.__main__ import main
from supabase_resilience.local import LocalSupabase, LocalSupabaseError
from supabase_resilience.status import EventLog

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SOON = 30.0  # far more than any block takes: only a hang ends here
# Examples leave open what a process closes at its end.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
# Blocks with these are compiled, and their names looked at; they are not run, because the project
# does not install these frameworks for its tests.
NOT_INSTALLED = {"django", "flask"}

TABLES = """
create table profiles (id int primary key, name text);
create table orders (
  id int primary key, status text, total numeric,
  completion_date timestamptz, updated_at timestamptz not null default now()
);
create table projects (id int primary key, name text);
"""

# --- what is in README ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    heading: str
    number: int
    language: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.heading} {self.number}"

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return f"README.md:{self.line} ({self})"


def blocks_of(text: str) -> Iterator[Block]:
    """Blocks in their order, numbered from 0 under the last heading before them."""
    heading, numbers = "", itertools.count()
    language: str | None = None
    code: list[str] = []
    for place, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, code, begin = line[3:].strip(), [], place
            else:
                yield Block(heading, next(numbers), language, begin, "\n".join(code) + "\n")
                language = None
        elif language is not None:
            code.append(line)
        elif line.startswith("#"):
            heading, numbers = line.lstrip("# "), itertools.count()
    assert language is None, f"README.md:{begin}: the block has no end"


TEXT = README.read_text(encoding="utf-8")
BLOCKS = list(blocks_of(TEXT))
PYTHON = [block for block in BLOCKS if block.language == "python"]
SQL = [block for block in BLOCKS if block.language == "sql"]
SHELL = [block for block in BLOCKS if block.language in {"", "sh", "bash", "console"}]


def commands() -> list[str]:
    """Each line of a shell block, and each command in the running text, once."""
    lines = [line for block in SHELL for line in block.code.splitlines() if line.strip()]
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:python -m supabase_resilience|make|pip install) [^`]+)`", prose)
    return list(dict.fromkeys(lines + [re.sub(r"\s+", " ", each) for each in inline]))


def known_before(block: Block) -> str:
    """Imports, functions and classes of the blocks before it; decorated ones need more."""
    found: list[ast.stmt] = []
    for earlier in PYTHON[: PYTHON.index(block)]:
        for node in ast.parse(earlier.code).body:
            is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            is_import = isinstance(node, ast.Import | ast.ImportFrom)
            if (is_definition and not node.decorator_list) or (is_import and not is_foreign(node)):
                found.append(node)
    return ast.unparse(ast.Module(found, []))


def is_foreign(node: ast.AST) -> bool:
    """Whether it imports what is not installed, and need not be."""
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    roots = {module.partition(".")[0] for module in modules} & NOT_INSTALLED
    return any(importlib.util.find_spec(root) is None for root in roots)


def compiled(code: str, name: str) -> CodeType:
    return compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def names_in(code: CodeType) -> tuple[set[str], set[str]]:
    """The global names that it reads, and those that it makes; functions within it included."""
    reads, makes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in {"LOAD_NAME", "LOAD_GLOBAL"}:
            reads.add(step.argval)
        elif step.opname in {"STORE_NAME", "STORE_GLOBAL"}:
            makes.add(step.argval)
    for inner in (each for each in code.co_consts if inspect.iscode(each)):
        inner_reads, inner_makes = names_in(inner)  # the body of a class makes names, too
        reads |= inner_reads - inner_makes
    return reads, makes


# --- what README leaves to its readers ------------------------------------------------------------


class World:
    """One local Supabase for all blocks, with what README's own SQL makes in it."""

    def __init__(self, local: LocalSupabase) -> None:
        self.local = local
        self.database = psycopg.connect(local.dsn, autocommit=True)
        self.plain = create_client(local.url, local.secret_key)
        self.client = protect(self.plain)

    @functools.cached_property
    def migrated(self) -> bool:
        """The SQL blocks, and the SQL that the commands `sql …` print, have been run."""
        for block in SQL:
            self.database.execute(block.code)
        for command in commands():
            if command.startswith("python -m supabase_resilience sql ") and "…" not in command:
                self.database.execute(printed_by(words_of(command)[3:]))
        return True

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database itself says."""
        return self.database.execute(query).fetchall()

    def write(self, statement: str) -> None:
        """Change the database itself."""
        self.database.execute(statement)


async def paid(*_: Any) -> str:
    return "paid"


class OrderModel(BaseModel):
    id: int


class Run:
    """A block with its names, and what it has called of the reader's functions."""

    def __init__(self, world: World, block: Block) -> None:
        self.world, self.block = world, block
        self.local = world.local
        self.calls: defaultdict[str, list[Any]] = defaultdict(list)
        self.names: dict[str, Any] = {"__name__": "readme"}
        self.printed = io.StringIO()
        self._error: BaseException | None = None

    def __getitem__(self, name: str) -> Any:
        """What the block has made under this name."""
        return self.names[name]

    def told(self, name: str, answer: Any = None) -> Callable[..., Any]:
        """A function of the reader's that writes down what it is called with."""

        def tell(*given: Any, **named: Any) -> Any:
            self.calls[name].append((*given, *named.values()))
            return answer

        return tell

    def prepare(self) -> CodeType:
        """Compile it, and give it the names that it uses and does not make."""
        before = compiled(known_before(self.block), "<the blocks before>")
        code = compiled(self.block.code, self.block.place)
        (reads, makes), (reads_before, makes_before) = names_in(code), names_in(before)
        missing = reads - makes - makes_before - {*READER, *vars(builtins), *self.names}
        assert not missing, (
            f"{self.block.place} uses {sorted(missing)}, which no block before it imports or"
            " defines: import it there, or add what a reader would have to READER in this test"
        )
        needed = (reads - makes) | reads_before
        for name in (needed & {*READER}) - makes_before - {*self.names}:
            self.names[name] = READER[name](self)
        exec(before, self.names)
        return code

    def go(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Run it to its end on a thread, and `meanwhile` here."""
        code = self.prepare()
        if any(is_foreign(node) for node in ast.walk(ast.parse(self.block.code))):
            return
        thread = threading.Thread(target=self._execute, args=(code,), daemon=True)
        thread.start()
        if meanwhile is not None:
            meanwhile()
        thread.join(SOON)
        if self._error is not None:
            raise self._error
        assert not thread.is_alive(), (
            f"{self.block.place} has not ended after {SOON:.0f} s: give it an @effect that ends it"
        )

    def _execute(self, code: CodeType) -> None:
        try:
            with contextlib.redirect_stdout(self.printed):
                result = eval(code, self.names)
                if inspect.iscoroutine(result):
                    asyncio.run(result)
        except BaseException as error:  # noqa: BLE001 - raised again by go()
            self._error = error

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for it while the block runs; what the block raises ends that."""
        end = time.monotonic() + SOON
        while not self._holds(condition):
            if self._error is not None:
                raise self._error
            assert time.monotonic() < end, f"{self.block.place}: what is waited for never came"
            threading.Event().wait(0.01)

    def _holds(self, condition: Callable[[], Any]) -> bool:
        try:
            return bool(condition())
        except KeyError:  # a name that the block has not made yet
            return False


def made_resilience(run: Run) -> Resilience:
    return Resilience(run.world.client, queue_processor(run.world.client, "onboarding", None))


READER: dict[str, Callable[[Run], Any]] = {
    "url": lambda run: run.local.url,
    "key": lambda run: run.local.secret_key,
    "secret_key": lambda run: run.local.secret_key,
    "client": lambda run: run.world.client,
    "supabase": lambda run: run.world.client,
    "keep_for_later": lambda run: run.told("keep_for_later", "kept"),
    "page_somebody": lambda run: run.told("page_somebody"),
    "call_payment_api": lambda _: paid,
    "use_cache": lambda run: run.told("use_cache", "from the cache"),
    "order": lambda _: {"id": 1},
    "order_id": lambda _: 4711,
    "send_welcome_mail": lambda run: run.told("send_welcome_mail"),
    "send_mail": lambda run: run.told("send_mail"),
    "show": lambda run: lambda rows: run.calls["show"].append(dict(rows)),
    "OrderModel": lambda _: OrderModel,
    "queue": lambda run: queue_processor(run.world.client, "onboarding", lambda _: None),
    "listener": lambda run: realtime_listener(
        run.world.client, "projects", recovery=Recovery.versioned()
    ),
    "verification": lambda run: server_side_verification(
        run.world.client, "orders", data_validator=lambda _: True
    ),
    "resilience": made_resilience,
    "log": lambda _: EventLog(),
    "is_staff": lambda _: lambda request: request.headers.get("x-staff") == "yes",
    "bearer_token": lambda run: lambda _: run.local.jwt(sub="7"),
}


@contextlib.contextmanager
def served_at(app: Any) -> Iterator[httpx.Client]:
    """A client for the app, on a server with its lifespan."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the app did not start"
        threading.Event().wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON) as web:
            yield web
    finally:
        server.should_exit = True
        thread.join(SOON)


# --- what the blocks promise ----------------------------------------------------------------------

Effect = Callable[[Run], None]
EFFECTS: dict[str, Effect] = {}


def effect(phrase: str) -> Callable[[Effect], Effect]:
    """What the block has done in which this phrase stands; the effect calls `run.go()`."""
    return lambda check: EFFECTS.setdefault(phrase, check)


@effect("def save_user_profile")
def saved_or_kept(run: Run) -> None:
    """Saved; in an outage and while the circuit is open kept; a mistake of one's own is raised."""
    run.go()
    save = run["save_user_profile"]
    assert {"id": 7, "name": "Ada"} == save(7, {"name": "Ada"}).data
    down = run.local.faults.add(match="/rest/v1/profiles", times=None, status=503)
    assert "kept" == save(7, {"name": "Grace"})
    down.remove()
    with pytest.raises(Exception, match="no_such_column"):
        save(7, {"no_such_column": 1})
    run["supabase"].breaker.project.force_open()
    assert "kept" == save(7, {"name": "Edsger"})
    assert [{"name": "Grace"}, {"name": "Edsger"}] == [
        kept[0] for kept in run.calls["keep_for_later"]
    ]
    assert [("Ada",)] == run.world.rows("select name from profiles where id = 7")


@effect("breaker = CircuitBreaker(reset_timeout=10.0")
def guarded(run: Run) -> None:
    """Whatever goes through it counts, and once it is open, the fallback answers."""
    run.names["client"] = run.world.plain
    run.go()
    breaker = run["breaker"]
    assert ("paid", 2) == (run["value"], breaker.get_stats().successes)
    for _ in range(5):
        with contextlib.suppress(ConnectionError), breaker.guard():
            raise ConnectionError
    assert [()] == run.calls["page_somebody"]
    with pytest.raises(CircuitOpenError):
        run["exchange_rates"]()
    with pytest.raises(CircuitOpenError):
        run["supabase"].table("profiles").select("*").execute()
    refused = breaker.execute(lambda: "paid", fallback=run["use_cache"])
    assert "from the cache" == refused


@effect("with idempotent():")
def inserted_once(run: Run) -> None:
    """The answer is lost, the insert repeated, and the row there once, without an error."""
    lost = run.local.faults.add(match="/rest/v1/orders", method="POST", drop="after")
    run.go()
    assert 1 == lost.count
    assert [(4711,)] == run.world.rows("select id from orders where id = 4711")


@effect("resilient_http_client()")
def guarded_services(run: Run) -> None:
    """Auth goes through a breaker of its own."""
    run.go()
    run["supabase"].auth.sign_up({"email": "ada@example.org", "password": "a long one, 7"})
    breaker = run["options"].httpx_client.breakers["auth"]
    assert 1 == breaker.get_stats().successes
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        run["supabase"].auth.sign_in_with_password({"email": "ada@example.org", "password": "x"})


@effect("queue.run()")
def handled(run: Run) -> None:
    """The job is handled: a profile, and one mail with the job's id."""
    assert run.world.migrated

    def meanwhile() -> None:
        run.until(lambda: run["queue"].get_stats().succeeded)
        run["queue"].request_stop()

    run.go(meanwhile)
    assert [("Ada",)] == run.world.rows("select name from profiles where id = 7")
    ((to, key),) = run.calls["send_welcome_mail"]
    assert ("ada@example.org", 32) == (to, len(key))
    assert [(0,)] == run.world.rows("select queue_length from pgmq.metrics('onboarding')")


@effect("fail_attempts(onboard")
def handled_by_hand(run: Run) -> None:
    """Only the attempt that was not planned to fail sends a mail."""
    run.go()
    assert 1 == len(run.calls["send_welcome_mail"])


@effect("projects = LiveTable(listener)")
def followed(run: Run) -> None:
    """A change is shown with the rows of before, the handler is called; stop() ends the loop."""
    assert run.world.migrated
    run.world.write("insert into projects values (1, 'new'), (2, 'old')")

    def is_shown() -> bool:
        run.world.write("update projects set name = 'changed' where id = 1")
        shown = run.calls["show"]
        return bool(shown) and "changed" == shown[-1][1]["name"] and "old" == shown[-1][2]["name"]

    def meanwhile() -> None:
        run.until(lambda: "live" == run["listener"].get_stats().state)
        run.until(is_shown)
        run.until(lambda: run.calls["send_mail"])
        run["listener"].stop()

    run.go(meanwhile)
    assert "changed" == run.calls["send_mail"][-1][0].new["name"]


@effect("verification = server_side_verification(")
def fixed(run: Run) -> None:
    """The broken order is found and fixed, and the report says so."""
    run.world.write("insert into orders (id, status) values (1, 'completed'), (2, 'open')")
    with pytest.MonkeyPatch.context() as patch:  # the grace of 5 s is somebody else's test
        quick = functools.partial(server_side_verification, grace=0.05)
        patch.setattr(supabase_resilience, "server_side_verification", quick)
        run.go()
    assert (2, 1, 1) == (run["report"].rows, run["report"].violations, run["report"].fixed)
    assert [(1, True), (2, False)] == run.world.rows(
        "select id, completion_date is not null from orders order by id"
    )
    assert "completed orders have a date" in run.printed.getvalue()


@effect("resilience = Resilience(")
def watched(run: Run) -> None:
    """All parts are listed with their health, and the alerts find the names that they look at."""
    assert run.world.migrated
    run.go()
    parts = {"breaker:supabase", "queue:onboarding", "listener:projects", "verification:orders"}
    assert parts <= set(run["stats"])
    shown = run.printed.getvalue().splitlines()
    assert shown[0] in {"ok", "degraded"}
    assert parts <= {line.split()[0] for line in shown[1:]}
    for alert in run["resilience"]._watch.alerts._watches:
        assert not alert.alert.settings.when(run["stats"])


@effect('app.mount("/status"')
def mounted(run: Run) -> None:
    """Probes answer everybody, the rest those who may."""
    run.go()
    with served_at(run["app"]) as web:
        assert 200 == web.get("/status/livez").status_code
        for path in ("/status/", "/status/status.json", "/status/metrics"):
            assert 401 == web.get(path).status_code
            assert 200 == web.get(path, headers={"x-staff": "yes"}).status_code


@effect("with LocalSupabase(schema=")
def started_and_gone(run: Run) -> None:
    """It is a whole Supabase, and nothing stays of it."""
    run.go()
    assert isinstance(run["client"], Client)
    with pytest.raises(LocalSupabaseError):
        _ = run["local"].url


@effect('@app.get("/profiles/{user_id}")')
def served(run: Run) -> None:
    """A user gets the profile, and 503 with Retry-After while the circuit is open."""
    assert run.world.migrated
    run.world.write("insert into profiles values (8, 'Barbara')")
    run.go()
    with served_at(run["app"]) as web:
        assert [{"id": 8, "name": "Barbara"}] == web.get("/profiles/8").json()
        run["app"].state.supabase.breaker.project.force_open()
        refused = web.get("/profiles/8")
    assert 503 == refused.status_code
    assert int(refused.headers["retry-after"]) >= 1


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with LocalSupabase(schema=TABLES) as local:
        made = World(local)
        yield made
        made.database.close()
    gc.collect()  # what was left open is not to be found amid other tests


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_runs_and_does_what_it_promises(world, block):
    """As it stands in README, with what a reader has to bring."""
    run = Run(world, block)
    world.local.faults.clear()
    world.write("truncate orders, profiles")
    checks = [check for phrase, check in EFFECTS.items() if phrase in block.code]
    assert len(checks) <= 1, f"{block.place}: several effects are for this block"
    checks[0](run) if checks else run.go()


def test_each_effect_has_a_block():
    """What README no longer says is not looked for in vain."""
    code = [block.code for block in PYTHON]
    left_over = [phrase for phrase in EFFECTS if not any(phrase in each for each in code)]
    assert [] == left_over, "no block has these phrases: change the @effect, or remove it"


def test_the_sql_blocks_make_what_the_other_blocks_use(world):
    """The queue and its dead letters, and what the printed migrations make."""
    assert world.migrated
    queues = {name for (name,) in world.rows("select queue_name from pgmq.list_queues()")}
    assert {"onboarding", "onboarding_dead"} <= queues


def test_no_block_is_of_a_kind_that_nobody_runs():
    """Python, SQL and commands are run; of another language, add here how."""
    kinds = {block.language for block in BLOCKS}
    assert set() == kinds - {"python", "sql", "", "sh", "bash", "console"}


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def printed_by(arguments: list[str]) -> str:
    """What our own command prints; it has to end with 0."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            ended = main(arguments)
        except SystemExit as exited:
            ended = exited.code
    assert 0 == ended, printed.getvalue()
    return printed.getvalue()


class Parsed(Exception):  # noqa: N818 - it ends a command before it does anything
    """A command line that was understood."""


def check_ours(arguments: list[str], command: str) -> None:
    """Our parser takes the line, and each option of its comment is one of the command's."""
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, given):
        raise Parsed(parse(parser, given))

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        try:
            main(arguments)
        except Parsed:
            pass
        except SystemExit:
            pytest.fail(f"{command}: {said.getvalue()}")
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    options = set(re.findall(r"--[a-z][a-z-]*", command))
    assert options <= set(re.findall(r"--[a-z][a-z-]*", printed_by([*words, "--help"])))


def check_target(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for word in words[1:] if "=" not in word}
    assert targets <= set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def check_extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, _, extras = words[-1].partition("[")
    assert project["name"] == name
    assert {*filter(None, extras.rstrip("]").split(","))} <= {*project["optional-dependencies"]}


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one(command):
    """Each command can be given: its target, extra, file, or our own options are there."""
    words = words_of(command.replace("…", ""))
    if words[0] == "make":
        check_target(words)
    elif words[:2] == ["pip", "install"]:
        check_extras(words)
    elif words[:3] == ["python", "-m", "supabase_resilience"]:
        if "…" in command:  # the text speaks of a family of commands
            assert printed_by([*words[3:], "--help"])
        else:
            check_ours(words[3:], command)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        pytest.fail(f"{command!r}: say in this test how to check a command of {words[0]!r}")


def test_the_commands_that_ask_supabase_run(world, monkeypatch, tmp_path):
    """`queue`, `verify` and `doctor` answer for the parts of README's app."""
    assert world.migrated
    world.write("delete from orders")
    for name, value in (("URL", world.local.url), ("KEY", world.local.secret_key)):
        monkeypatch.setenv(f"SUPABASE_{name}", value)
    monkeypatch.setenv("DATABASE_DSN", world.local.dsn)
    monkeypatch.chdir(tmp_path)
    verification = server_side_verification(world.client, "orders", data_validator=dict)
    parts = SimpleNamespace(verification=verification, resilience=Resilience(verification))
    for module in ("app.checks", "app.parts"):
        monkeypatch.setitem(sys.modules, module, parts)
    said = {
        words[3]: printed_by([os.path.expandvars(word) for word in words[3:]])
        for words in map(words_of, commands())
        if words[:1] == ["python"] and words[3:4] in (["queue"], ["verify"], ["doctor"])
    }
    assert {"queue", "verify"} <= {*said}
    assert "onboarding" in said["queue"]
    for command in {"verify", "doctor"} & {*said}:
        assert "public.orders" in said[command]
    (report,) = tmp_path.glob("*.html")
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
