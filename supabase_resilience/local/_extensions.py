"""Extensions that a schema written for Supabase may create, where a plain server would refuse.

On Supabase the schema's owner may create what elsewhere only a superuser may, and some extensions
are there from the start. PostgreSQL 18 looks for extensions in several places, so both can be had
without touching the installation: ours before the server's for rights, after it for what it lacks.
"""

import shutil
from pathlib import Path

_STAND_INS = Path(__file__).parent / "sql" / "extensions"
_OWNER_MAY_CREATE = ("vector", "postgres_fdw", "dblink", "pg_stat_statements", "moddatetime")
FIRST_VERSION = 18  # the first PostgreSQL that has the setting


def extension_path(directory: Path, share: Path) -> str:
    """Lay out the extensions in `directory`; return the value for `extension_control_path`.

    `share` is the server's own directory of shared files.
    """
    before, after = directory / "before", directory / "after"
    shutil.copytree(_STAND_INS, after / "extension")
    _allow(share / "extension", before / "extension")
    for path in (directory, *directory.rglob("*")):
        # The server may run as another user than the one whose umask this is.
        path.chmod(0o755 if path.is_dir() else 0o644)
    return f"{before}:$system:{after}"


def _allow(installed: Path, place: Path) -> None:
    """Copy the control files with the right added; they go on pointing at the installed scripts."""
    place.mkdir(parents=True)
    for name in _OWNER_MAY_CREATE:
        control = installed / f"{name}.control"
        if control.is_file():
            right = f"\ntrusted = true\ndirectory = '{installed}'\n"
            text = control.read_text(encoding="utf-8") + right
            (place / control.name).write_text(text, encoding="utf-8")
