"""`monitoring rules|dashboard|table`: what belongs to the metrics, printed from their one table."""

import argparse
from typing import Any

from supabase_resilience.hooks._dashboard import dashboard_json
from supabase_resilience.hooks._metrics import METRICS, Metric
from supabase_resilience.hooks._rules import rules_yaml

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "monitoring",
        help="print alert rules, a dashboard, or the table of metrics",
        description="Print what belongs to the metrics of PrometheusHook and OpenTelemetryHook.",
    )
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    rules = kinds.add_parser("rules", help="alert rules for Prometheus, as YAML")
    for name, default, what in (
        ("catch-up", 60.0, "catch_up_interval of the listeners"),
        ("verification", 3600.0, "interval of the verifications"),
    ):
        rules.add_argument(
            f"--{name}-interval",
            type=_seconds,
            default=default,
            metavar="SECONDS",
            help=f"{what} ({default:g}); three without success are an alert",
        )
    rules.set_defaults(run=_rules)
    dashboard = kinds.add_parser("dashboard", help="a dashboard for Grafana, as JSON")
    dashboard.set_defaults(run=_dashboard)
    table = kinds.add_parser("table", help="the metrics with labels and units, as Markdown")
    table.set_defaults(run=_table)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _rules(options: argparse.Namespace) -> int:
    text = rules_yaml(
        catch_up_interval=options.catch_up_interval,
        verification_interval=options.verification_interval,
    )
    print(text, end="")
    return 0


def _dashboard(_: argparse.Namespace) -> int:
    print(dashboard_json(), end="")
    return 0


def _table(_: argparse.Namespace) -> int:
    print("| metric | kind | unit | labels | what |\n|---|---|---|---|---|")
    for metric in METRICS:
        print(f"| {' | '.join(_cells(metric))} |")
    return 0


def _cells(metric: Metric[Any]) -> tuple[str, ...]:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"`{metric.full_name}`", metric.kind, metric.unit.strip("{}"), labels, metric.help
