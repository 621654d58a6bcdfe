"""Keep an app on Supabase working while Supabase, the network or its own processes fail.

A thin wrapper bound to a supabase-py client, sync or async. The map, from the floor up:

- words: `errors`, `events`
- decisions, no I/O: `failures` (the one failure table), `breaker`, `breakers`, `trip`, `retry`,
  `deadline`
- drivers: `protect` (a client whose queries are guarded), `http` (the other services)
- `cursors`: where something keeps how far it has come
- patterns: `queues` (jobs, in memory or durable on Supabase Queues), `listener` (changes of a
  table, live and caught up), `verification` (rows that break a rule, found and fixed)
- `together`: all parts of an app as one, with their health and alerts
- for who runs it: `hooks` (Prometheus, OpenTelemetry), `status` (probes and a page), `doctor` (what
  is wrong with a project), each with an extra
- for your tests: `testing`, and `local` (a whole Supabase without Docker, extra `local`)
"""

from supabase_resilience._alerts import Alert
from supabase_resilience._health import Health, PartHealth
from supabase_resilience._requests import Target, by_table, idempotent
from supabase_resilience._telling import Hooks
from supabase_resilience.breaker import BreakerStats, CircuitBreaker
from supabase_resilience.breakers import BreakersStats, CircuitBreakers
from supabase_resilience.cursors import AsyncTableCursor, FileCursor, MemoryCursor, TableCursor
from supabase_resilience.deadline import deadline
from supabase_resilience.errors import (
    CircuitOpenError,
    HandlerTimeoutError,
    ListenerError,
    QueueError,
    ResilienceError,
    VerificationError,
)
from supabase_resilience.events import Event, Hook, log_event
from supabase_resilience.failures import Classification, classify
from supabase_resilience.http import (
    AsyncResilientHttpClient,
    ResilientHttpClient,
    resilient_async_http_client,
    resilient_http_client,
)
from supabase_resilience.listener import (
    AsyncRealtimeListener,
    Change,
    HandlerStats,
    ListenerStats,
    LiveTable,
    RealtimeListener,
    Recovery,
    realtime_listener,
)
from supabase_resilience.protect import AsyncProtectedClient, ProtectedClient, protect
from supabase_resilience.queues import (
    AsyncQueueProcessor,
    AsyncSupabaseQueue,
    DeadLetter,
    Job,
    MemoryQueue,
    Postpone,
    QueueMetrics,
    QueueProcessor,
    QueueStats,
    SupabaseQueue,
    current_job,
    queue_processor,
)
from supabase_resilience.retry import RetryConfig
from supabase_resilience.together import AsyncResilience, Resilience
from supabase_resilience.trip import FailureRate
from supabase_resilience.verification import (
    SKIP,
    AsyncServerSideVerification,
    KeyRange,
    Problem,
    Report,
    Rule,
    RuleReport,
    ServerSideVerification,
    VerificationStats,
    server_side_verification,
)

__version__ = "0.1.0"

__all__ = [
    "SKIP",
    "Alert",
    "AsyncProtectedClient",
    "AsyncQueueProcessor",
    "AsyncRealtimeListener",
    "AsyncResilience",
    "AsyncResilientHttpClient",
    "AsyncServerSideVerification",
    "AsyncSupabaseQueue",
    "AsyncTableCursor",
    "BreakerStats",
    "BreakersStats",
    "Change",
    "CircuitBreaker",
    "CircuitBreakers",
    "CircuitOpenError",
    "Classification",
    "DeadLetter",
    "Event",
    "FailureRate",
    "FileCursor",
    "HandlerStats",
    "HandlerTimeoutError",
    "Health",
    "Hook",
    "Hooks",
    "Job",
    "KeyRange",
    "ListenerError",
    "ListenerStats",
    "LiveTable",
    "MemoryCursor",
    "MemoryQueue",
    "PartHealth",
    "Postpone",
    "Problem",
    "ProtectedClient",
    "QueueError",
    "QueueMetrics",
    "QueueProcessor",
    "QueueStats",
    "RealtimeListener",
    "Recovery",
    "Report",
    "Resilience",
    "ResilienceError",
    "ResilientHttpClient",
    "RetryConfig",
    "Rule",
    "RuleReport",
    "ServerSideVerification",
    "SupabaseQueue",
    "TableCursor",
    "Target",
    "VerificationError",
    "VerificationStats",
    "__version__",
    "by_table",
    "classify",
    "current_job",
    "deadline",
    "idempotent",
    "log_event",
    "protect",
    "queue_processor",
    "realtime_listener",
    "resilient_async_http_client",
    "resilient_http_client",
    "server_side_verification",
]
