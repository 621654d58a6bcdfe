"""The walls of the house, read from the imports: who may lean on whom, and who may know what."""

import ast
import graphlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "supabase_resilience"
NAME = PACKAGE.name

# From the floor up: a module may import its own floor and those below it. A new module gets its
# place here first.
FLOORS: dict[str, set[str]] = {
    "words": {"errors", "events", "_clock", "_checks", "_calls", "_telling"},
    "decisions": {
        "_failure_table",
        "failures",
        "trip",
        "_alerts",
        "_budget",
        "_queries",
        "_circuit",
        "breaker",
        "_decorate",
        "_requests",
        "breakers",
        "retry",
        "deadline",
    },
    "drivers": {
        "_countdown",
        "_session",
        "protect",
        "http",
        "_services",
        "_exchange",
        "_identity",
        "_builders",
        "_handler_threads",
        "_signals",
        "cursors",
    },
    "patterns": {"queues", "listener", "verification"},
    "together": {"_health", "together", "hooks"},
    "page": {"status"},
    "top": {"__init__", "testing"},
}
# What shows and combines: it may import all of the above and `local`, and nobody imports it.
ROOF = {"__main__", "cli", "doctor"}
BACKENDS = {
    "httpx",
    "postgrest",
    "realtime",
    "storage3",
    "supabase",
    "supabase_auth",
    "supabase_functions",
    "websockets",
}
KNOW_BACKENDS = {
    "_exchange",
    "_failure_table",
    "failures",
    "_countdown",
    "_session",
    "protect",
    "http",
    "_services",
    # The colour of a client, and what a call of the API raises.
    "queues._factory",
    "queues._plans",
    "queues._queue_errors",
    "queues._rpc",
    "queues._supabase",
    "_identity",
    "cursors",
    # The listener's seam to realtime-py, its factory, and what a catch-up raises.
    "listener._async",
    "listener._sync",
    "listener._factory",
    "listener._generation",
    "listener._refusals",
    "verification._async",
    "verification._core",
    "verification._factory",
    "verification._lease",
    "verification._pass",
    "verification._patience",
    "verification._sync",
    "verification._writers",
}
# Inside the doctor: who asks a server.
LOOKERS = {"doctor._api", "doctor._dsn"}
# Inside a pattern: what both colours share neither waits nor starts anything.
COLOURLESS = {
    "queues._books",
    "queues._core",
    "queues._decisions",
    "queues._hand",
    "queues._jobs",
    "queues._memory",
    "queues._migrated",
    "queues._plans",
    "queues._queue_errors",
    "queues._rpc",
    "queues._stock",
    "queues._store",
    "listener._changes",
    "listener._follower",
    "listener._levels",
    "listener._log",
    "listener._pacing",
    "listener._passes",
    "listener._reads",
    "listener._recovery",
    "listener._refusals",
    "listener._settings",
    "listener._stats",
    "listener._stream",
    "verification._commands",
    "verification._core",
    "verification._html",
    "verification._lease",
    "verification._paging",
    "verification._pass",
    "verification._patience",
    "verification._report",
    "verification._rules",
    "verification._settings",
    "verification._stats",
    "verification._table",
    "verification._tally",
    "verification._writers",
}


def modules() -> dict[str, Path]:
    """Each module outside `local/`, by its dotted name inside the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        found[name if name == "__init__" else name.removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if room(name) != "local"}


def room(module: str) -> str:
    """The first part of a module's name: itself, or the package that it lives in."""
    return module.partition(".")[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """All that a file imports, also inside functions: modules, and what may be modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return frozenset(name for node in ast.walk(tree) for name in _imported_by(node, path))


def _imported_by(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{path} has a relative import; the walls are read from whole names"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """Those rooms of the package that a file imports; `__init__` for names of the package."""
    rooms = {*(room(module) for module in modules()), "local"}
    inside = (name.split(".")[1:2] for name in imports(path) if room(name) == NAME)
    return {part[0] if part and part[0] in rooms else "__init__" for part in inside}


def others(path: Path) -> set[str]:
    """The top-level packages of others that a file imports."""
    return {room(name) for name in imports(path)} - {NAME}


def floor_of(module: str) -> int:
    """How far up a module lives; fails for one that has no place yet."""
    for height, floor in enumerate(FLOORS.values()):
        if room(module) in floor:
            return height
    pytest.fail(f"{module} is on no floor of FLOORS; give it a place in tests/test_architecture.py")


MODULES = sorted(name for name in modules() if room(name) not in ROOF)
each_module = pytest.mark.parametrize("module", MODULES)


@each_module
def test_imports_go_downwards(module: str) -> None:
    """A module imports its own floor and those below, never up."""
    height = floor_of(module)
    upwards = {each for each in own(modules()[module]) if floor_of(each) > height}
    assert upwards == set(), f"{module} imports from a floor above its own"


@each_module
def test_nobody_imports_the_roof_or_the_top(module: str) -> None:
    """The package's own `__init__`, the commands and the test helpers are for users."""
    assert own(modules()[module]).isdisjoint(ROOF | FLOORS["top"])


def test_words_import_words() -> None:
    """Errors, events, clock and checks can be used by anyone, as they need nothing of ours."""
    for module in FLOORS["words"]:
        assert own(modules()[module]) <= FLOORS["words"]
        assert others(modules()[module]).isdisjoint(BACKENDS | {"tenacity"})


def test_no_circles() -> None:
    """No two modules need each other, not even on the same floor."""
    # A package is looked at from outside; inside it Python itself refuses a circle.
    graph = {name: own(modules()[name]) - {"__init__", room(name)} for name in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


@each_module
def test_only_drivers_and_the_failure_table_know_supabase(module: str) -> None:
    """What supabase-py 3 will change is known in three places."""
    if module not in KNOW_BACKENDS:
        assert others(modules()[module]).isdisjoint(BACKENDS)


@pytest.mark.parametrize("module", sorted(FLOORS["words"] | FLOORS["decisions"]))
def test_decisions_do_no_io(module: str) -> None:
    """Below the drivers nobody waits, sends or starts anything; one module names CancelledError."""
    allowed = {"failures": {"asyncio"}, "_failure_table": {"socket"}}.get(module, set())
    doers = {"asyncio", "socket", "select", "selectors", "subprocess", "signal", "anyio"}
    assert (others(modules()[module]) & doers) <= allowed


@pytest.mark.parametrize("module", sorted(COLOURLESS))
def test_what_colours_share_has_none(module: str) -> None:
    """Decisions, state and call plans of a pattern serve threads and tasks alike."""
    assert others(modules()[module]).isdisjoint({"asyncio", "anyio", "socket", "signal"})


# The sync listener is the async one on a thread, as supabase-py has no sync Realtime.
@pytest.mark.parametrize("pattern", ["queues", "verification"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_driver_knows_its_own_colour(colour: str, pattern: str) -> None:
    """No sync driver imports asyncio, nor the other colour's modules."""
    other, loop = {"sync": ("async", {"asyncio"}), "async": ("sync", set())}[colour]
    for module, path in modules().items():
        if module.startswith(f"{pattern}._{colour}"):
            assert not any(f".{pattern}._{other}" in name for name in imports(path))
            assert others(path).isdisjoint(loop)


@each_module
def test_time_is_read_in_one_place(module: str) -> None:
    """Decisions ask `_clock`, so that a test can hand in another clock; drivers may sleep."""
    if module not in {"_clock"} | FLOORS["drivers"]:
        assert "time" not in others(modules()[module])


@pytest.mark.parametrize(
    "module", sorted({each for each in modules() if each.startswith("doctor.")} - LOOKERS)
)
def test_only_who_looks_at_a_project_can(module: str) -> None:
    """What the doctor judges are facts: two modules of it ask a server, the others no one."""
    assert others(modules()[module]).isdisjoint(BACKENDS | {"psycopg", "asyncio", "socket", "time"})


@each_module
def test_nobody_leans_on_the_local_stack(module: str) -> None:
    """The local Supabase is an extra; only commands may start it."""
    assert "local" not in own(modules()[module])


def test_floors_name_real_modules() -> None:
    """No floor lists a module that is gone."""
    assert set().union(*FLOORS.values()) <= {room(module) for module in modules()}
    assert KNOW_BACKENDS | COLOURLESS | LOOKERS <= modules().keys()


# --- the tests' own wall -------------------------------------------------------------------------


CLOCKS = {"time", "asyncio", "anyio"}


def sleeps_in(source: str) -> Iterator[int]:
    """The lines that let time pass; `sleep(0)` only lets others run."""
    nodes = list(ast.walk(ast.parse(source)))
    aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    clocks = {alias.asname or alias.name for alias in aliases if alias.name in CLOCKS}
    harmless = {id(node.func) for node in nodes if _sleeps_for_nothing(node)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr == "sleep" and id(node) not in harmless:
            if isinstance(node.value, ast.Name) and node.value.id in clocks:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in CLOCKS:
            yield from (node.lineno for alias in node.names if alias.name == "sleep")


def _sleeps_for_nothing(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or len(node.args) != 1:
        return False
    argument = node.args[0]
    return isinstance(argument, ast.Constant) and argument.value == 0


def lines_of(sources: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sources
        for line in sleeps_in(path.read_text(encoding="utf-8"))
    ]


def test_no_test_sleeps() -> None:
    """Tests wait for conditions: a pause is too short on a slow machine and too long on a fast."""
    found = lines_of(sorted(TESTS.rglob("*.py")))
    assert found == [], "wait for a condition, or hand in a clock or a sleep of the test's own"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import time\ntime.sleep(1)", [2]),
        ("import asyncio\nawait asyncio.sleep(0.1)", [2]),
        ("import asyncio\nawait asyncio.sleep(0)", []),
        ("from time import sleep", [1]),
        ("import time as t\ncall(t.sleep)", [2]),
        ("import anyio\nawait anyio.sleep(delay)", [2]),
        ("time = FakeClock()\ncall(time.sleep)", []),
        ("run.sleep(3)", []),
        ("'time.sleep(1)'", []),
    ],
)
def test_a_sleep_is_found(source: str, lines: list[int]) -> None:
    """The search above finds what it is for."""
    assert lines == list(sleeps_in(source))
