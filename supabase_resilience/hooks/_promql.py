"""Names of metrics in PromQL: `$circuit_state` is a row of the table, or it is an error."""

from string import Template

from supabase_resilience.hooks._metrics import METRICS

__all__ = ["expand"]

_NAMES = {metric.name: metric.full_name for metric in METRICS} | {
    f"{metric.name}_{part}": f"{metric.full_name}_{part}"
    for metric in METRICS
    if metric.kind == "histogram"
    for part in ("bucket", "count", "sum")
}
# Grafana's own.
_VARIABLES = {name: f"${name}" for name in ("job", "__rate_interval", "__range")}


def expand(query: str) -> str:
    """The query with full names; raises `KeyError` for a metric that the table does not have."""
    return Template(query).substitute(_NAMES | _VARIABLES)
