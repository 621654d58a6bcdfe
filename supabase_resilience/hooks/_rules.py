"""Alert rules for Prometheus, written from the table of metrics.

What users notice is critical and worth waking somebody; what will lead there is a warning.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from supabase_resilience.hooks._metrics import NAMESPACE
from supabase_resilience.hooks._promql import expand

__all__ = ["AlertRule", "alert_rules", "rules_yaml"]

_MISSED = 3  # so many intervals without success are an alert


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One rule; `query` names metrics as `$name`, and `hold` is how long it has to be so."""

    name: str
    query: str
    hold: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str
    runbook: str


_BREAKERS = (
    AlertRule(
        name="SupabaseCircuitOpen",
        query='sum by (job, breaker) ($circuit_state{state=~"open|half_open|forced_open"}) > 0',
        hold="5m",
        severity="critical",
        summary="The circuit {{ $labels.breaker }} has not been closed for 5 minutes",
        description="{{ $value }} processes of {{ $labels.job }} refuse calls to Supabase.",
        runbook="Look at status.supabase.com and at the project's health in its dashboard. The "
        "cause is in the panel of causes, the reason in the log line circuit.opened. The circuit "
        "closes by itself when a probe succeeds; one that was forced open needs reset().",
    ),
    AlertRule(
        name="SupabaseBlocked",
        query='sum by (job, breaker) ($circuit_cause{cause="blocked"}) > 0',
        hold="0m",
        severity="critical",
        summary="Supabase refuses all calls of {{ $labels.breaker }}",
        description="No waiting heals this: a wrong key, an unpaid bill, a paused project.",
        runbook="Read the reason in the log line circuit.opened. Renew the key, pay, or restore "
        "the project, then call reset() or wait for the next probe.",
    ),
    AlertRule(
        name="SupabaseTableCircuitOpen",
        query="sum by (job, breaker) ($circuit_keys_open) > 0",
        hold="15m",
        severity="warning",
        summary="Calls to single tables or functions of {{ $labels.breaker }} are refused",
        description="Circuits of {{ $value }} tables or functions have not closed for 15 minutes.",
        runbook="get_stats() of the breaker names them. Usually their statements run into the "
        "timeout: look for a missing index, a lock, or a policy that is slow.",
    ),
    AlertRule(
        name="SupabaseRetryShareHigh",
        query='sum by (job, breaker) (rate($retry_attempts_total{outcome="made"}[5m]))'
        ' / sum by (job, breaker) (rate($circuit_calls_total{outcome!="refused"}[5m])) > 0.1',
        hold="10m",
        severity="warning",
        summary="More than a tenth of the attempts of {{ $labels.breaker }} are retries",
        description="{{ $value | humanizePercentage }} of all attempts repeat a failed one.",
        runbook="Something fails often and is healed by trying again, so users see it as "
        "slowness. Look at the outcomes of attempts, and at the project's load.",
    ),
)

_QUEUES = (
    AlertRule(
        name="SupabaseQueueUnreachable",
        query="sum by (job, queue) ($queue_unreachable) > 0",
        hold="5m",
        severity="critical",
        summary="The queue {{ $labels.queue }} cannot be read",
        description="In {{ $value }} processes; jobs wait.",
        runbook="The log line queue.unreachable has the reason. If it says needs_you, the queue, "
        "its schema pgmq_public or the key is missing; else Supabase is out, and workers go on by "
        "themselves afterwards.",
    ),
    AlertRule(
        name="SupabaseQueueOld",
        query="max by (job, queue) ($queue_oldest_age_seconds) > 300",
        hold="5m",
        severity="critical",
        summary="The oldest job of {{ $labels.queue }} has waited for more than 5 minutes",
        description="It has waited for {{ $value | humanizeDuration }}, as the server knows.",
        runbook="Are workers running, and is the queue paused? If they are busy, add workers or "
        "raise concurrency; look at the duration of handlers, too.",
    ),
    AlertRule(
        name="SupabaseJobsWait",
        query="histogram_quantile(0.95, "
        "sum by (job, queue, le) (rate($job_wait_seconds_bucket[10m]))) > 120",
        hold="5m",
        severity="warning",
        summary="Jobs of {{ $labels.queue }} wait for more than 2 minutes",
        description="One job in twenty had waited for {{ $value | humanizeDuration }} or longer.",
        runbook="More comes in than is done: add workers or raise concurrency, or look for what "
        "made handlers slow. Retries count as waiting, so look at failures, too.",
    ),
    AlertRule(
        name="SupabaseDeadLetters",
        query='sum by (job, queue) (increase($jobs_total{outcome="dead"}[15m])) > 0',
        hold="0m",
        severity="warning",
        summary="Jobs of {{ $labels.queue }} were given up on",
        description="{{ $value | humanize }} in the last 15 minutes; they are kept.",
        runbook="`python -m supabase_resilience queue NAME --dead` lists them with their errors. "
        "Set right what they say, then replay them.",
    ),
)


def _listeners(interval: float) -> Iterator[AlertRule]:
    late = _MISSED * interval
    yield AlertRule(
        name="SupabaseListenerRefused",
        query='sum by (job, listener) ($listener_state{state="refused"}) > 0',
        hold="1m",
        severity="critical",
        summary="The listener of {{ $labels.listener }} is refused",
        description="No waiting heals this; the handlers hear nothing.",
        runbook="The log line listener.refused has the reason and the remedy: a table outside of "
        "the publication, a policy, a key, a migration.",
    )
    yield AlertRule(
        name="SupabaseListenerNotLive",
        query='sum by (job, listener) ($listener_state{state=~"connecting|catching_up"}) > 0',
        hold="5m",
        severity="critical",
        summary="The listener of {{ $labels.listener }} has not been live for 5 minutes",
        description="In {{ $value }} processes; changes are late.",
        runbook="The log lines listener.lost and listener.catch_up_failed have the reason. Nothing "
        "is lost meanwhile: what was missed is found when it is back.",
    )
    yield AlertRule(
        name="SupabaseCatchUpOverdue",
        query="time() - min by (job, listener) ($listener_last_catch_up_timestamp_seconds)"
        f" > {late:g} and on (job, listener)"
        ' sum by (job, listener) ($listener_state{state!="stopped"}) > 0',
        hold="1m",
        severity="critical",
        summary="{{ $labels.listener }} has not caught up for three intervals",
        description="For {{ $value | humanizeDuration }} nobody has looked for changes that "
        "Realtime lost.",
        runbook="The log line listener.catch_up_failed has the reason: a slow query (is there an "
        "index on the cursor column?), a key without rights, Supabase out.",
    )
    yield AlertRule(
        name="SupabaseRealtimeLosesChanges",
        query="sum by (job, listener) (increase($listener_changes_lost_total[1h])) > 0",
        hold="0m",
        severity="warning",
        summary="Realtime did not deliver changes of {{ $labels.listener }}",
        description="{{ $value | humanize }} in the last hour, found by catching up.",
        runbook="Handlers got them, only later. Usually the rate of the plan is exceeded: follow "
        "fewer tables, filter, or have fewer listeners.",
    )
    yield AlertRule(
        name="SupabaseChangesSkipped",
        query="sum by (job, listener, handler) (increase($listener_handler_changes_total"
        '{outcome="skipped"}[15m])) > 0',
        hold="0m",
        severity="warning",
        summary="{{ $labels.handler }} has missed changes of {{ $labels.listener }} for good",
        description="It raised for {{ $value | humanize }} changes, and went on without them.",
        runbook="The log line listener.change_skipped has the row's key and the type of the error. "
        "Set the handler right, then have it look at those rows again.",
    )


def _verifications(interval: float) -> Iterator[AlertRule]:
    late = _MISSED * interval
    is_running = (
        "and on (job, verification)"
        ' sum by (job, verification) ($verification_state{state!="stopped"}) > 0'
    )
    yield AlertRule(
        name="SupabaseVerificationOverdue",
        query="time() - max by (job, verification)"
        f" ($verification_last_pass_success_timestamp_seconds) > {late:g} {is_running}",
        hold="1m",
        severity="warning",
        summary="{{ $labels.verification }} has not been verified for three intervals",
        description="The last complete pass was {{ $value | humanizeDuration }} ago.",
        runbook="Is a pass under way and only slow, is it paused, or does it fail? The log lines "
        "verification.pass_paused and verification.pass_failed have the reason.",
    )
    yield AlertRule(
        name="SupabaseVerificationNeverDone",
        query="max by (job, verification)"
        f' ($verification_passes_total{{outcome="completed"}}) == 0 {is_running}',
        hold=f"{late:g}s",
        severity="warning",
        summary="{{ $labels.verification }} was never verified since the app started",
        description="No pass was completed in three intervals.",
        runbook="As for SupabaseVerificationOverdue.",
    )
    yield AlertRule(
        name="SupabaseViolations",
        query='max by (job, verification, rule) ($verification_open_violations{severity="error"})'
        " > 0",
        hold="0m",
        severity="critical",
        summary="Rows of {{ $labels.verification }} break the rule {{ $labels.rule }}",
        description="The last pass left {{ $value }} of them.",
        runbook="The report names them: `python -m supabase_resilience verify MODULE:VERIFICATION "
        "--once --report report.html`. Repair them, or find out why the fix did not.",
    )
    yield AlertRule(
        name="SupabaseFixingAborted",
        query="max by (job, verification) ($verification_fixing_aborted) > 0",
        hold="0m",
        severity="critical",
        summary="{{ $labels.verification }}: nothing more is fixed, too many rows break a rule",
        description="The last pass came to its limit of fixes.",
        runbook="Either the rule is wrong, or the data is in a bad way. Look at the report before "
        "you raise max_fixes or max_share.",
    )
    yield AlertRule(
        name="SupabaseFixesFight",
        query='sum by (job, verification) (increase($verification_fixes_total{outcome="cas_lost"}'
        "[6h])) / sum by (job, verification) (increase($verification_fixes_total[6h])) > 0.2",
        hold="0m",
        severity="warning",
        summary="Somebody else changes the rows that {{ $labels.verification }} fixes",
        description="{{ $value | humanizePercentage }} of the fixes came too late.",
        runbook="The app or another verification writes the same rows at the same time. Let only "
        "one of them do it, or verify when it is quiet.",
    )


_APP = AlertRule(
    name="SupabaseAppAlert",
    query="max by (job, alert) ($alert_firing) > 0",
    hold="0m",
    severity="warning",
    summary="The alert {{ $labels.alert }} of the app fires",
    description="Its condition is in the code of {{ $labels.job }}.",
    runbook="See where the app makes Alert({{ $labels.alert }}).",
)


def alert_rules(*, catch_up_interval: float, verification_interval: float) -> list[AlertRule]:
    """All rules; both intervals are in seconds, and those of the app's listeners and passes."""
    return [
        *_BREAKERS,
        *_QUEUES,
        *_listeners(catch_up_interval),
        *_verifications(verification_interval),
        _APP,
    ]


def rules_yaml(*, catch_up_interval: float = 60.0, verification_interval: float = 3600.0) -> str:
    """A rule file for Prometheus; the intervals are the defaults of listener and verification."""
    rules = alert_rules(
        catch_up_interval=catch_up_interval, verification_interval=verification_interval
    )
    return "".join(
        (
            "# Made by `python -m supabase_resilience monitoring rules`; do not edit.\n",
            f"groups:\n  - name: {NAMESPACE}\n    rules:\n",
            *map(_yaml, rules),
        )
    )


def _yaml(rule: AlertRule) -> str:
    # A JSON string is a YAML string, too.
    notes = {"summary": rule.summary, "description": rule.description, "runbook": rule.runbook}
    return "".join(
        (
            f"      - alert: {rule.name}\n",
            f"        expr: {json.dumps(expand(rule.query))}\n",
            f"        for: {rule.hold}\n",
            f"        labels:\n          severity: {rule.severity}\n",
            "        annotations:\n",
            *(f"          {name}: {json.dumps(text)}\n" for name, text in notes.items()),
        )
    )
