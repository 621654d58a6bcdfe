"""A class and its `Async` twin have one surface: what one can do, the other can, by the same name.

Pairs are found by their names in every module of the package, so a later pair needs no test here.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import supabase_resilience

PACKAGE = supabase_resilience.__name__
# Names that httpx and supabase-py spell otherwise in their async classes.
SPELLED = {"aclose": "close"}


def classes() -> Iterator[tuple[str, type]]:
    """Each class of the package, by module and name; `local` is an extra, and sync alone."""
    for found in pkgutil.walk_packages(supabase_resilience.__path__, f"{PACKAGE}."):
        parts = found.name.split(".")
        if parts[1] in {"local", "cli"} or parts[-1] == "__main__" or _is_inner(parts[-1]):
            continue
        module = importlib.import_module(found.name)
        yield from (
            (f"{found.name}.{name}", value)
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == found.name
        )


def _is_inner(module: str) -> bool:
    """What a pattern is made of: threads are watched where tasks are canceled."""
    return module.endswith(("_crew", "_link", "_parking", "_hands"))


def pairs() -> list[tuple[type, type]]:
    by_name = dict(classes())
    twins = []
    for path, kind in by_name.items():
        module, _, name = path.rpartition(".")
        # A pair may live in one module, or in `_sync` and `_async` side by side.
        for home in (module, module.replace("._sync", "._async")):
            if twin := by_name.get(f"{home}.Async{name}"):
                twins.append((kind, twin))
                break
    return twins


PAIRS = pairs()


def surface(kind: type) -> dict[str, object]:
    """The public attributes that classes of this package define on `kind`, as they stand."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith(PACKAGE)]
    return {
        SPELLED.get(name, name): inspect.getattr_static(kind, name)
        for base in ours
        for name in vars(base)
        if not name.startswith("_")
    }


def shape(value: object) -> object:
    """What a caller must know of an attribute: its kind, and the parameters with their defaults."""
    if not inspect.isroutine(value):
        return type(value)
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


def test_pairs_are_found() -> None:
    """The pairs that the package has today are among those compared."""
    names = {kind.__name__ for kind, _ in PAIRS}
    ours = {"ProtectedClient", "GuardedSession", "QueueProcessor", "SupabaseQueue", "Store"}
    assert ours <= names


def test_no_async_class_is_alone() -> None:
    """Each public class named `Async…` has a twin without the prefix."""
    paired = {twin for _, twin in PAIRS}
    alone = {kind.__name__ for _, kind in classes() if kind.__name__.startswith("Async")}
    assert alone == {kind.__name__ for kind in paired}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_same_names(pair: tuple[type, type]) -> None:
    """Neither of a pair has a public name that the other lacks."""
    sync, asynchronous = map(surface, pair)
    assert sorted(sync) == sorted(asynchronous)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_same_parameters(pair: tuple[type, type]) -> None:
    """Each name of a pair takes the same parameters, with the same defaults."""
    sync, asynchronous = map(surface, pair)
    assert {name: shape(each) for name, each in sync.items()} == {
        name: shape(each) for name, each in asynchronous.items()
    }


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_colours(pair: tuple[type, type]) -> None:
    """No method of the sync class is a coroutine function."""
    for name, value in surface(pair[0]).items():
        assert not inspect.iscoroutinefunction(value), name
        assert not inspect.isasyncgenfunction(value), name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_same_words(pair: tuple[type, type]) -> None:
    """Both of a pair promise: a method documented in one is documented in the other."""
    sync, asynchronous = map(surface, pair)
    documented = [
        {n for n, v in each.items() if inspect.getdoc(v)} for each in (sync, asynchronous)
    ]
    assert documented[0] == documented[1]
