"""What users can lean on, against the list in `tests/data/public_api.txt`.

A change of that list is a change of the interface: it should be seen in review, and be in the
changelog. `python tests/test_public_api.py --write` writes it anew.
"""

import difflib
import dis
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import supabase_resilience

LIST = Path(__file__).parent / "data" / "public_api.txt"
HOW = "if the change is wanted: python tests/test_public_api.py --write, and tell the changelog"


def public_api() -> list[str]:
    """Each public name, and each public attribute of ours on a public class."""
    lines: list[str] = []
    for name in sorted(supabase_resilience.__all__):
        lines += _lines_of(name, getattr(supabase_resilience, name))
    return lines


def _lines_of(name: str, value: object) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_parameters(value)}"
        return
    yield f"{name}{_parameters(value)}" if _is_made_by_users(value) else name
    for attribute in sorted(_own_attributes(value)):
        yield f"{name}.{attribute}{_parameters(getattr(value, attribute, None))}"


def _own_attributes(kind: type) -> set[str]:
    """Public attributes that a class of ours defines; those of supabase-py are supabase-py's."""
    names = {name for base in _ours(kind) for name in (*vars(base), *_set_by_instances(base))}
    return {name for name in names if not name.startswith("_")}


def _set_by_instances(kind: type) -> Iterator[str]:
    """What the class's own constructor assigns to `self`."""
    constructor = vars(kind).get("__init__", lambda: None)
    for step in dis.get_instructions(constructor):
        if step.opname == "STORE_ATTR":
            yield step.argval


def _ours(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("supabase_resilience")]


def _is_made_by_users(kind: type) -> bool:
    # A protected client is made by protect(), not by its constructor.
    has_init = any("__init__" in vars(base) for base in _ours(kind))
    return has_init and not kind.__name__.endswith("ProtectedClient")


def _parameters(value: object) -> str:
    """Names and kinds of parameters; not types, and of defaults only that there is one."""
    if not (inspect.isroutine(value) or inspect.isclass(value)):
        return ""
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_mark(parameter))
        for parameter in inspect.signature(value).parameters.values()
    ]
    return str(inspect.Signature(bare))


class _Optional:
    def __repr__(self) -> str:
        return "…"


def _mark(parameter: inspect.Parameter) -> object:
    return parameter.default if parameter.default is parameter.empty else _Optional()


def test_public_api() -> None:
    """The public names and attributes are those of the checked-in list."""
    listed = LIST.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(listed, public_api(), "listed", "found", lineterm="", n=0))
    assert not changes, "\n".join([*changes, HOW])


def test_every_public_name_exists_once() -> None:
    """`__all__` has no name twice, none that is missing, and none that is private."""
    names = supabase_resilience.__all__
    assert sorted(set(names)) == sorted(names)
    assert all(hasattr(supabase_resilience, name) for name in names)
    assert [name for name in names if name.startswith("_")] == ["__version__"]


def test_every_public_name_says_what_it_does() -> None:
    """Each public class and function, and each public method of ours, has a docstring."""
    silent = []
    for name in supabase_resilience.__all__:
        value = getattr(supabase_resilience, name)
        if inspect.isclass(value):
            silent += [
                f"{name}.{each}" for each in _own_attributes(value) if _is_silent(value, each)
            ]
        if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value):
            silent.append(name)
    assert silent == []


def _is_silent(kind: type, attribute: str) -> bool:
    value = inspect.getattr_static(kind, attribute, None)
    is_code = isinstance(value, property) or inspect.isroutine(value)
    return is_code and not inspect.getdoc(value)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(HOW)
    LIST.write_text("\n".join([*public_api(), ""]), encoding="utf-8")
