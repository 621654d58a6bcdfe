"""A report as one page of HTML that needs nothing else."""

from supabase_resilience.verification._report import Report


def page(report: Report) -> str:
    """The page."""
    return f"<!doctype html><title>{report.table}</title>"
