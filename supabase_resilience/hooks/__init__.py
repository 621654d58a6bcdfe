"""Hooks for monitoring systems, each in a module of its own that needs an extra.

- `prometheus`: `PrometheusHook`, for prometheus-client (extra `prometheus`)
- `otel`: `OpenTelemetryHook`, metrics and spans for OpenTelemetry (extra `otel`)

Both read one table of metrics; `python -m supabase_resilience monitoring table` prints it.
"""
