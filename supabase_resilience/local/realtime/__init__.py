"""A Realtime server for one local PostgreSQL: Phoenix channels fed by the real WAL.

It runs as a process of its own, `python -m supabase_resilience.local.realtime`, so that it can
be killed like the real one. Reading the WAL, deciding who may see a change, and speaking Phoenix
are separate modules; `_server` joins them.
"""
