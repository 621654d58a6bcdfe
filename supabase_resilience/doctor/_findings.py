"""What the doctor says: findings, each with its fix, and all of them together."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from supabase_resilience.errors import ResilienceError

__all__ = ["Diagnosis", "DoctorError", "Finding", "Severity"]

Severity = Literal["problem", "warning", "unseen", "ok"]
_ORDER: tuple[Severity, ...] = ("problem", "warning", "unseen", "ok")


class DoctorError(ResilienceError):
    """Nothing could be looked at: no URL or key, or nobody answers. The message says what to do."""

    __module__ = "supabase_resilience.doctor"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found about one subject.

    - `severity`: `problem` (it breaks, or loses something), `warning` (it will, or costs more than
      it should), `unseen` (it could not be looked at), `ok`.
    - `why`: why it matters; `fix`: SQL, a command or a step, with the names as they are here.

    Names, numbers and reasons only: never a key, a password or a row.
    """

    check: str
    severity: Severity
    subject: str
    what: str
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, the worst first."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> "Diagnosis":
        """Each finding once: two parts may share a table."""
        return cls(tuple(sorted(dict.fromkeys(findings), key=lambda f: _ORDER.index(f.severity))))

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What has to be set right."""
        return self._with("problem")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What should be."""
        return self._with("warning")

    @property
    def unseen(self) -> tuple[Finding, ...]:
        """What could not be looked at, and how it could."""
        return self._with("unseen")

    @property
    def exit_code(self) -> int:
        """0 without a problem, else 1."""
        return 1 if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        """What `json.dumps` takes."""
        return {
            "exit_code": self.exit_code,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _with(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)
