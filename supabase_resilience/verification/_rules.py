"""What must be true of a row, and how a row of which it is not is set right."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from supabase_resilience._checks import check_callable, check_text, is_async

__all__ = ["SKIP", "Judgment", "Row", "Rule", "Severity", "check_rules", "suspects"]

Row = Mapping[str, Any]
Severity = Literal["error", "warning"]


class _Skip:
    """The type of `SKIP`."""

    def __repr__(self) -> str:
        return "SKIP"


SKIP: Final = _Skip()
"""What a `fix` returns to leave the row as it is."""


class Judgment(NamedTuple):
    """What a rule says of a row; `reason` is for people, and empty when there is nothing to say."""

    state: Literal["right", "broken", "error"]
    reason: str = ""


_RIGHT = Judgment("right")


class Rule:
    """Something that must be true of every row.

    - `check`: a function that returns True for a row that is right, or a pydantic model, whose
      errors become the reason. Every row is fetched for it.
    - `violates`: instead of `check`, filters of supabase-py that select the broken rows, so that
      only these travel: `violates=lambda q: q.eq("status", "done").is_("done_at", "null")`. Mind
      SQL's logic of three values: no filter but `is_` finds a NULL.
    - `fix`: a function that is given the broken row and returns the columns to set, or `SKIP`. What
      it returns is written only if the row is still what it was.
    - `guard`: the columns by which that is seen; None for the row as a whole (PostgreSQL's `xmin`),
      which works on every table. A view needs a guard.
    - `severity`: `error` or `warning`, for the report.

    Raises `ValueError` and `TypeError` for arguments that make no sense.
    """

    __slots__ = ("check", "fix", "guard", "name", "severity", "violates")

    def __init__(
        self,
        name: str,
        *,
        check: Callable[[dict[str, Any]], Any] | type[BaseModel] | None = None,
        violates: Callable[[Any], Any] | None = None,
        fix: Callable[[dict[str, Any]], Any] | None = None,
        guard: Sequence[str] | None = None,
        severity: Severity = "error",
    ) -> None:
        check_text("name", name)
        if (check is None) == (violates is None):
            raise ValueError(f"rule {name!r} needs one of check= and violates=")
        for argument, value in (("check", check), ("violates", violates), ("fix", fix)):
            if value is not None:
                check_callable(argument, value)
        for argument, value in (("check", check), ("violates", violates)):
            if is_async(value):
                raise TypeError(f"{argument} must not be a coroutine function: nobody awaits it")
        if severity not in {"error", "warning"}:
            raise ValueError(f"severity must be 'error' or 'warning', got {severity!r}")
        self.name: str = name
        self.check: Callable[[dict[str, Any]], Any] | type[BaseModel] | None = check
        self.violates: Callable[[Any], Any] | None = violates
        self.fix: Callable[[dict[str, Any]], Any] | None = fix
        self.guard: tuple[str, ...] | None = _checked_guard(guard)
        self.severity: Severity = severity

    def __repr__(self) -> str:
        """Show the name and how it is judged."""
        return f"<Rule {self.name!r} {'check' if self.violates is None else 'violates'}>"

    def judge(self, row: dict[str, Any]) -> Judgment:
        """What `check` says of a row; an exception of it is an `error` of that row."""
        try:
            if isinstance(self.check, type) and issubclass(self.check, BaseModel):
                return _by_model(self.check, row)
            check: Any = self.check
            if check is None or check(row):
                return _RIGHT
        except Exception as error:  # noqa: BLE001 - a bad row must not end the pass
            return Judgment("error", f"check raised {type(error).__name__}")
        return Judgment("broken")


def suspects(rule: Rule, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows that have to be judged one by one: all that a plain check does not pass."""
    check = rule.check
    if check is None or isinstance(check, type):
        yield from rows
        return
    for row in rows:
        try:
            if check(row):
                continue
        except Exception:  # noqa: BLE001, S110 - judge() says what it was
            pass
        yield row


def check_rules(rules: Sequence[Any]) -> None:
    """Raises `TypeError` and `ValueError` for what are no rules, or not to be told apart."""
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"rules must be a sequence of Rule, got {rule!r} in it")
    names = [rule.name for rule in rules]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"rules must have names of their own, got {sorted(twice)!r} twice")
    if not rules:
        raise ValueError("there is nothing to verify: give rules= or data_validator=")


def _checked_guard(guard: Any) -> tuple[str, ...] | None:
    if guard is None:
        return None
    if isinstance(guard, str) or not isinstance(guard, Sequence):
        raise TypeError(f"guard must be a tuple of column names, got {guard!r}")
    if not guard:
        raise ValueError(
            "guard must not be empty: name the columns that the rule looks at, or None"
        )
    for column in guard:
        check_text("guard", column)
    return tuple(guard)


def _by_model(model: type[BaseModel], row: dict[str, Any]) -> Judgment:
    try:
        model.model_validate(row)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        reasons = (f"{'.'.join(map(str, each['loc'])) or 'row'}: {each['msg']}" for each in found)
        return Judgment("broken", "; ".join(reasons))
    return _RIGHT
