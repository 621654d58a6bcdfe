"""How the parts of a stack are started: in which order, with which command and config.

A part is noted for its end as soon as it runs, so a start that fails half-way leaves nothing.
"""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supabase_resilience.local._child import Child
from supabase_resilience.local._external import VARIABLE, ExternalPostgres
from supabase_resilience.local._guardian import Guardian
from supabase_resilience.local._keys import Keys
from supabase_resilience.local._node import Command, Progress, rest_command
from supabase_resilience.local._postgres import ManagedPostgres, Postgres, as_url
from supabase_resilience.local._schema import (
    Script,
    make_project,
    read_pgmq,
    read_scripts,
    run_schema,
)
from supabase_resilience.local._services import Realtime, Rest

_HERE = Path(__file__).parent
# By this package's own place, appended to the path: the working directory cannot come in between.
_RUN_REALTIME = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1));"
    " runpy.run_module('supabase_resilience.local.realtime', run_name='__main__')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user chose."""

    schema: Script | Sequence[Script]
    port: int
    pgmq_sql: Script | None
    max_rows: int
    schemas: Sequence[str]
    subscribe_delay: float
    progress: Progress


@dataclass(frozen=True, slots=True)
class Parts:
    """A running stack."""

    directory: Path
    keys: Keys
    gateway: Child
    postgres: Postgres
    rest: Rest
    realtime: Realtime


def assemble(options: Options, cleanup: ExitStack) -> Parts:
    """Start a stack; `cleanup` ends it. Raises `LocalSupabaseError`."""
    scripts, pgmq = read_scripts(options.schema), read_pgmq(options.pgmq_sql)
    # The first use installs, while nothing else is running.
    rest_run = rest_command(options.progress)
    guardian, directory = cleanup.enter_context(_guarded_directory())
    make = _Maker(directory, cleanup, rest_run, Keys(), options)
    gateway = make.gateway()
    postgres = make.postgres(guardian)
    make_project(postgres, pgmq)
    rest = make.rest(gateway, postgres)
    # After REST, which makes auth.users, to which a schema may refer.
    run_schema(postgres, scripts)
    rest.reload()
    realtime = make.realtime(gateway, postgres)
    return Parts(directory, make.keys, gateway, postgres, rest, realtime)


@contextmanager
def _guarded_directory() -> Generator[tuple[Guardian, Path], None, None]:
    """Yield a guardian and a new directory that it knows; both are gone afterwards."""
    guardian = Guardian()
    try:
        directory = Path(tempfile.gettempdir()) / f"supabase-resilience-{secrets.token_hex(6)}"
        guardian.watch(directory)
        directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            directory.chmod(0o711)  # PostgreSQL runs as somebody else, who must get through
        yield guardian, directory
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        guardian.dismiss()


@dataclass(frozen=True, slots=True)
class _Maker:
    """Starts the parts of one stack and notes how each is ended."""

    directory: Path
    cleanup: ExitStack
    rest_run: Command
    keys: Keys
    options: Options

    def gateway(self) -> Child:
        node = self.rest_run.argv[0]
        command = Command([node, str(_HERE / "gateway.mjs")], self.directory, self.rest_run.env)
        config = {"port": self.options.port, "upstreams": {"rest": None, "realtime": None}}
        gateway = self._child("gateway", command, config)
        self.cleanup.callback(gateway.stop)
        return gateway

    def postgres(self, guardian: Guardian) -> Postgres:
        dsn = os.environ.get(VARIABLE)
        postgres = (
            ExternalPostgres(dsn, self.directory.name, guardian)
            if dsn
            else ManagedPostgres(self.directory)
        )
        self.cleanup.callback(postgres.shut_down)
        return postgres

    def rest(self, gateway: Child, postgres: Postgres) -> Rest:
        config = {
            "pg_url": as_url(postgres.admin_dsn),
            "port": 0,
            "schemas": list(self.options.schemas),
            "max_rows": self.options.max_rows,
            **self.keys.config(),
        }
        rest = Rest("rest", lambda: self._child("rest", self.rest_run, config), gateway)
        self.cleanup.callback(rest.shut_down)
        rest.start()
        return rest

    def realtime(self, gateway: Child, postgres: Postgres) -> Realtime:
        package_parent = str(_HERE.parent.parent)
        command = Command(
            [sys.executable, "-P", "-c", _RUN_REALTIME, package_parent],
            self.directory,
            dict(os.environ),
        )
        config = {"dsn": postgres.admin_dsn, "port": 0, "publication": "supabase_realtime"}
        config |= self.keys.config()

        def spawn(settings: dict[str, Any]) -> Child:
            return self._child("realtime", command, {**config, "settings": settings})

        realtime = Realtime(spawn, gateway, subscribe_delay=self.options.subscribe_delay)
        self.cleanup.callback(realtime.shut_down)
        realtime.start()
        return realtime

    def _child(self, name: str, command: Command, config: dict[str, Any]) -> Child:
        # By this argument the guardian recognises the process.
        argv = [*command.argv, f"--stack={self.directory.name}"]
        log = self.directory / f"{name}.log"
        return Child(name, Command(argv, command.cwd, command.env), config, log=log)
