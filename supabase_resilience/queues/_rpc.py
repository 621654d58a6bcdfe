"""How a queue's procedures are written down without I/O: as plans that ask for one call at a time.

A plan is a generator: it yields a `Call`, is sent the answer's JSON (or thrown the `APIError`), and
returns its result. So each procedure is written once, and the two stores only carry calls out.
"""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from postgrest.exceptions import APIError

from supabase_resilience.errors import QueueError
from supabase_resilience.queues._jobs import Job, Settlement
from supabase_resilience.queues._queue_errors import explained

__all__ = ["Call", "Course", "Plan", "in_order", "letter_of", "message_of", "rounded_up"]

T = TypeVar("T")
# Longer ones fit into no index of PostgreSQL.
_LONGEST_KEY = 1000


class Call(NamedTuple):
    """A function of the API and its arguments; `is_repeatable` after its answer was lost."""

    schema: str
    function: str
    arguments: Mapping[str, Any]
    is_repeatable: bool = True


Plan = Generator[Call, Any, T]


class Course(Generic[T]):
    """A plan under way: `call` is what to do next, None when `result` is there."""

    def __init__(self, plan: Plan[T]) -> None:
        self._plan = plan
        self.result: T
        self.call: Call | None = None
        self.answered(None)

    def answered(self, answer: Any) -> None:
        """Go on with what a call returned."""
        try:
            self.call = self._plan.send(answer)
        except StopIteration as end:
            self._end(end.value)

    def failed(self, error: APIError) -> None:
        """Go on where a call was refused; raises what the plan cannot answer, explained."""
        call = self.call
        try:
            self.call = self._plan.throw(error)
        except StopIteration as end:
            self._end(end.value)
        except APIError as unanswered:
            found = explained(unanswered, {} if call is None else call.arguments)
            if found is None:
                raise
            raise found from unanswered

    def _end(self, result: T) -> None:
        self.call, self.result = None, result


# --- what is sent ---------------------------------------------------------------------------------


def message_of(job: Job) -> dict[str, Any]:
    """The envelope of a new job; raises `QueueError` for what no queue can hold."""
    message = job.to_message()
    problem = _problem_with(message)
    if problem is not None:
        raise QueueError(f"the data of a job must be JSON: {problem}") from None
    if len((job.dedupe_key or "").encode()) > _LONGEST_KEY:
        raise QueueError(
            f"a dedupe_key may have {_LONGEST_KEY} bytes at most; use a hash of what is longer"
        )
    return message


def _problem_with(message: Mapping[str, Any]) -> str | None:
    """What is wrong, without the value: it may be anything."""
    try:
        # As httpx will do it.
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    except TypeError as error:  # its text names types only
        return str(error)
    except UnicodeEncodeError:
        return "a str in it holds half a character (a lone surrogate), which is no Unicode"
    except ValueError:
        return "a float in it is infinite or NaN, or a list or dict contains itself"
    except RecursionError:
        return "it is nested too deeply"
    return None


def letter_of(settlement: Settlement) -> dict[str, Any]:
    """The envelope of a dead letter."""
    letter = settlement.letter
    if letter is None:
        raise ValueError(f"a settlement of the kind 'dead' needs its letter: {settlement!r}")
    note = {key: _printable(value) for key, value in letter.note().items()}
    return settlement.job.to_message(attempts=letter.attempts, dead=note)


def _printable(value: Any) -> Any:
    """Without the characters that PostgreSQL refuses: a letter must not get lost over them."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


def rounded_up(seconds: float) -> int:
    """Whole seconds, as pgmq wants them; never fewer."""
    return math.ceil(seconds)


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """By priority, then by age; rows come in any order."""
    return sorted(jobs, key=lambda job: (-job.priority, job.message_id))
