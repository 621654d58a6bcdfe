"""How an app is doing, for probes, scripts and people: an ASGI app with a read-only page.

`status_app()` needs the extra `status` and is loaded on first use; `EventLog`, the hook that
remembers what happened lately, needs nothing.
"""

from typing import TYPE_CHECKING, Any

from supabase_resilience.status._log import EventLog, Failure, LoggedEvent

if TYPE_CHECKING:
    from supabase_resilience.status._app import status_app as status_app

__all__ = ["EventLog", "Failure", "LoggedEvent", "status_app"]


def __getattr__(name: str) -> Any:
    if name != "status_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from supabase_resilience.status._app import status_app  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "starlette":
            raise
        raise ImportError(
            "status_app needs starlette, which is not installed."
            ' Run `pip install "supabase-resilience[status]"`.'
        ) from error
    return status_app
