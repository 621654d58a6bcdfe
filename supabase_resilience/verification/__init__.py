"""ServerSideVerification: finds rows that break a rule, and fixes them without racing the app.

From the floor up: what must be true (`_rules`), the life of a violation (`_pass`) as plans of
commands (`_commands`), its budgets and report (`_tally`, `_report`), how it is written (`_writers`,
`_lease`); `_core` puts a pass together, and the hands of each colour carry it out.
"""

from supabase_resilience.verification._async import AsyncServerSideVerification
from supabase_resilience.verification._factory import server_side_verification
from supabase_resilience.verification._paging import KeyRange
from supabase_resilience.verification._report import Problem, Report, RuleReport
from supabase_resilience.verification._rules import SKIP, Rule
from supabase_resilience.verification._stats import VerificationStats
from supabase_resilience.verification._sync import ServerSideVerification

__all__ = [
    "SKIP",
    "AsyncServerSideVerification",
    "KeyRange",
    "Problem",
    "Report",
    "Rule",
    "RuleReport",
    "ServerSideVerification",
    "VerificationStats",
    "server_side_verification",
]
