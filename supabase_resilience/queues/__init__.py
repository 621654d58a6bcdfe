"""QueueProcessor: every job is handled at least once, in memory or durable on Supabase Queues.

- words: `_jobs` (a job, its envelope, its dead letter), `_store` (what is asked of a durable queue)
- decisions, no I/O: `_decisions`, `_books` (counts and events), `_core`, `_hand` (state)
- stores: `_memory`; `_supabase`, in two dialects: `_stock` and `_migrated`
- drivers: `_sync` and `_async`, each a surface, a crew that runs handlers, and a link to the store
"""

from supabase_resilience.queues._async import AsyncQueueProcessor
from supabase_resilience.queues._books import QueueStats
from supabase_resilience.queues._factory import queue_processor
from supabase_resilience.queues._jobs import DeadLetter, Job, Postpone, QueueMetrics, current_job
from supabase_resilience.queues._memory import MemoryQueue
from supabase_resilience.queues._supabase import AsyncSupabaseQueue, SupabaseQueue
from supabase_resilience.queues._sync import QueueProcessor

__all__ = [
    "AsyncQueueProcessor",
    "AsyncSupabaseQueue",
    "DeadLetter",
    "Job",
    "MemoryQueue",
    "Postpone",
    "QueueMetrics",
    "QueueProcessor",
    "QueueStats",
    "SupabaseQueue",
    "current_job",
    "queue_processor",
]
