"""`module:name`, as commands are given it: found from the current directory, with clear errors."""

import importlib
import os
import sys
import traceback
from typing import Any

__all__ = ["LoadError", "load"]


class LoadError(Exception):
    """What was named cannot be had; the message is one sentence for a person."""


def load(spec: str) -> Any:
    """The object that `module:name` names; `name` may have dots.

    The current directory is searched first. Raises `LoadError`.
    """
    module_name, separator, name = spec.partition(":")
    if not (module_name and separator and name):
        raise LoadError(f"{spec!r} is not of the form module:name, for example app.jobs:queue.")
    found: Any = _import(module_name)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(f"{module_name} has no {name!r}.") from None
    return found


def _import(name: str) -> Any:
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module may raise anything
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, name):
            here = os.getcwd()  # noqa: PTH109
            raise LoadError(
                f"there is no module {error.name!r} in {here} or on sys.path."
            ) from error
        raise LoadError(f"importing {name} failed: {describe(error)}.") from error


def _is_part_of(missing: str | None, name: str) -> bool:
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def describe(error: BaseException) -> str:
    """Type, message and place of an error, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said
