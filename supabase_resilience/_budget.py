"""The retry budget: retries are paid for by successes, so they cannot multiply an outage.

A token bucket after Marc Brooker's "Fixing retries with token buckets and circuit breakers": each
success deposits a share of a token, each retry costs one. When everything fails the reserve is soon
gone, and calls are sent once; with three attempts each, everything would be sent three times.
"""

__all__ = ["RESERVE", "RetryBudget"]

RESERVE = 10.0


class RetryBudget:
    """At most `share` retries per success, and a reserve of 10; None: without limit.

    It wants external locking, and is told how many successes there have been in all.
    """

    def __init__(self, share: float | None) -> None:
        self._share = share
        self._tokens = RESERVE if share else 0.0
        self._seen = 0

    def left(self, successes: int) -> float | None:
        """How many retries are left; None without limit."""
        if self._share is None:
            return None
        return min(RESERVE, self._tokens + self._share * (successes - self._seen))

    def spend(self, successes: int) -> bool:
        """Pay for one retry, if there is enough."""
        left = self.left(successes)
        if left is None:
            return True
        if left < 1.0:
            return False
        self._tokens, self._seen = left - 1.0, successes
        return True
