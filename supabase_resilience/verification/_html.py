"""A report as one page of HTML that needs nothing else: no network, no script."""

from html import escape
from itertools import islice

from supabase_resilience.verification._report import Problem, Report, RuleReport

__all__ = ["page"]

_MOST_ROWS = 500
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --warn: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #ff7b72; --warn: #d29922 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.verdict { font-size: 1.1rem; font-weight: 600 } .good { color: var(--good) }
.bad { color: var(--bad) } .warn { color: var(--warn) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem }
dt { opacity: .75; font-size: .85rem } dd { margin: 0; font-size: 1.4rem; font-weight: 600 }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
td.key { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
footer { margin-top: 2rem; opacity: .75; font-size: .85rem }
"""
_VERDICTS = {0: ("good", "Clean"), 1: ("bad", "Violations are left"), 2: ("bad", "The pass failed")}
_COLUMNS = ("violations", "fixed", "left", "cas lost", "fix failed", "quarantined", "unsettled")


def page(report: Report) -> str:
    """The page."""
    title = f"Verification of {report.table}"
    kind, verdict = _VERDICTS[report.exit_code]
    if report.is_dry_run:
        verdict += " (dry run: nothing was written)"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {kind}" role="status">{escape(verdict)}</p>',
        *_notes(report),
        _numbers(report),
        "<h2>Rules</h2>",
        _rules(report),
        "<h2>Rows</h2>",
        _problems(report),
        _footer(report),
        "</main></body></html>",
    ]
    return "\n".join(parts)


def _notes(report: Report) -> list[str]:
    notes = [note for note in (report.aborted, report.failure) if note]
    return [f'<p class="bad">{escape(note)}</p>' for note in notes]


def _numbers(report: Report) -> str:
    numbers = {
        "Rows checked": f"{report.rows:,}",
        "Violations": f"{report.violations:,}",
        "Fixed": f"{report.fixed:,}",
        "Open": f"{report.open:,}",
        "Seconds": f"{report.seconds:,.1f}",
        "Rows a second": f"{report.rows_per_second:,.0f}",
    }
    cells = (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    return f"<dl>{''.join(cells)}</dl>"


def _rules(report: Report) -> str:
    head = "".join(f'<th scope="col" class="number">{name}</th>' for name in _COLUMNS)
    rows = "".join(map(_rule, report.rules.values()))
    return (
        '<div class="wide"><table><thead><tr><th scope="col">rule</th><th scope="col">severity</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _rule(rule: RuleReport) -> str:
    counts = [rule.violations, *(rule.fates[name.replace(" ", "_")] for name in _COLUMNS[1:])]
    numbers = "".join(f'<td class="number">{count:,}</td>' for count in counts)
    kind = "" if not rule.open else ' class="bad"' if rule.severity == "error" else ' class="warn"'
    name, severity = escape(rule.name), escape(rule.severity)
    return f'<tr><th scope="row"{kind}>{name}</th><td>{severity}</td>{numbers}</tr>'


def _problems(report: Report) -> str:
    if not len(report.problems):
        return "<p>No row breaks a rule.</p>"
    rows = "".join(map(_problem, islice(report.problems, _MOST_ROWS)))
    more = len(report.problems) - _MOST_ROWS
    rest = f"<p>{more:,} more are in the full report.</p>" if more > 0 else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("key", "rule", "outcome", "reason"))
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{rest}"
    )


def _problem(problem: Problem) -> str:
    key = escape(str(problem.key))
    fate = escape(problem.fate.replace("_", " "))
    kind = "good" if problem.fate == "fixed" else "bad"
    return (
        f'<tr><td class="key">{key}</td><td>{escape(problem.rule)}</td>'
        f'<td class="{kind}">{fate}</td><td>{escape(problem.reason)}</td></tr>'
    )


def _footer(report: Report) -> str:
    kind = "changed rows" if report.is_incremental else "all rows"
    begun = report.started_at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"<footer>Begun {begun}; {kind}. supabase-resilience</footer>"
