"""What a measurement was made with and on: versions and size, in one line, without any name."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import psycopg

from supabase_resilience.local import _binaries

GIB = 2**30


def described() -> str:
    return (
        f"Python {platform.python_version()}, supabase-py {version('supabase')}, {_postgres()}, "
        f"{platform.system()}, {_processor()}, {os.cpu_count()} CPUs, {_memory():.0f} GiB of memory"
    )


def load() -> str:
    """Of the last 1, 5 and 15 minutes; empty where the system does not know."""
    try:
        return ", ".join(f"{each:.2f}" for each in os.getloadavg()) + " (1, 5, 15 minutes)"
    except OSError:
        return ""


def _postgres() -> str:
    """The one that a LocalSupabase would run on."""
    if dsn := os.environ.get("SUPABASE_RESILIENCE_PG_DSN"):
        with psycopg.connect(dsn) as connection:
            number = connection.info.server_version
        return f"PostgreSQL {number // 10_000}.{number % 10_000}"
    program = _binaries._directory() / "postgres"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return f"PostgreSQL {re.findall(r'[0-9.]+', said)[0]}"


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    names = re.findall(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return names[0].strip() if names else platform.processor() or platform.machine()


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
