"""The lease that makes one runner of many: a row in the database, with a fencing token."""

import secrets
from collections.abc import Callable
from typing import Any

from postgrest.exceptions import APIError

from supabase_resilience._clock import Clock
from supabase_resilience._queries import Rpc
from supabase_resilience.errors import VerificationError
from supabase_resilience.events import Event, LeaseTaken, RunnerLeaseLost
from supabase_resilience.verification._commands import Plan

__all__ = ["Lease"]

SECONDS = 60.0
_ACQUIRE = "supabase_resilience_lease_acquire"
_RENEW = "supabase_resilience_lease_renew"
_RELEASE = "supabase_resilience_lease_release"
_MARGIN = 0.1


class Lease:
    """`name` is that of the row. Held for `seconds`, by our own clock a little less."""

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        tell: Callable[[Event], None],
        seconds: float = SECONDS,
    ) -> None:
        self.name = name
        self.token: int | None = None
        self.seconds = seconds
        self._holder = secrets.token_hex(8)
        self._clock = clock
        self._tell = tell
        self._ends_at = 0.0

    @property
    def is_held(self) -> bool:
        """Whether it is ours, as far as we can know without asking."""
        return self.token is not None and self._clock() < self._ends_at

    @property
    def is_renewal_due(self) -> bool:
        """Whether a third of it is over."""
        return self.token is not None and self._clock() > self._ends_at - self.seconds * 2 / 3

    def acquire(self) -> Plan[bool]:
        """Take it if it is free; False if another holds it."""
        return (yield from self._ask(_ACQUIRE))

    def renew(self) -> Plan[bool]:
        """Hold it longer; False if it is lost."""
        if self.token is None:
            return False
        is_ours = yield from self._ask(_RENEW)
        if not is_ours:
            self.lose()
        return is_ours

    def release(self) -> Plan[None]:
        """Let another have it at once."""
        if self.token is not None:
            token, self.token = self.token, None
            yield Rpc(_RELEASE, {"p_name": self.name, "p_token": token})

    def lose(self) -> None:
        """It is another's."""
        if self.token is not None:
            self.token = None
            self._tell(RunnerLeaseLost(lease=self.name))

    def _ask(self, function: str) -> Plan[bool]:
        asked_at = self._clock()
        arguments: dict[str, Any] = {"p_name": self.name, "p_seconds": self.seconds}
        if function == _ACQUIRE:
            arguments["p_holder"] = self._holder
        else:
            arguments["p_token"] = self.token
        try:
            token = yield Rpc(function, arguments)
        except APIError as error:
            raise explained(error) from error
        if token is None:
            return False
        if self.token is None:
            self._tell(LeaseTaken(lease=self.name, token=token))
        self.token = token
        self._ends_at = asked_at + self.seconds * (1 - _MARGIN)
        return True


def explained(error: APIError) -> Exception:
    """An error that says what to do, where waiting does not help."""
    if error.code == "PGRST202":
        return VerificationError(
            "lease= needs our migration. Run the SQL that this prints: "
            "python -m supabase_resilience sql verification"
        )
    if error.code == "42501":
        return VerificationError("lease= needs the secret key (role service_role)")
    return error
