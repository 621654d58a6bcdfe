"""RealtimeListener: changes of a table, live, and found again when Realtime has missed them.

From the floor up: what a change is (`_changes`, `_log`), what to believe (`_recovery`), what one
handler has been told (`_follower`), what a catch-up reads (`_reads`, `_passes`), what refusals mean
(`_refusals`, `_pacing`); then the parts on an event loop (`_stream`, `_generation`, `_supervisor`,
`_recoverer`, `_handlers`), wired together in `_engine`.
"""

from supabase_resilience.listener._async import AsyncRealtimeListener
from supabase_resilience.listener._changes import Change
from supabase_resilience.listener._factory import realtime_listener
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._live_table import LiveTable
from supabase_resilience.listener._stats import HandlerStats, ListenerStats
from supabase_resilience.listener._sync import RealtimeListener

__all__ = [
    "AsyncRealtimeListener",
    "Change",
    "HandlerStats",
    "ListenerStats",
    "LiveTable",
    "RealtimeListener",
    "Recovery",
    "realtime_listener",
]
