"""What only the database's catalogue tells: publications, policies, indexes, timeouts.

One read-only transaction, in which PostgreSQL itself refuses every write.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from supabase_resilience.doctor._facts import DatabaseFacts, RelationFacts, RoleFacts
from supabase_resilience.doctor._findings import DoctorError
from supabase_resilience.doctor._subjects import Subjects

if TYPE_CHECKING:
    import psycopg

__all__ = ["look_at_database"]

Clock = Callable[[], float]
Name = tuple[str, str]
API_ROLES = ("anon", "authenticated", "service_role")

_SERVER = """
select current_setting('server_version_num')::int as version,
  (select reset_val from pg_settings where name = 'statement_timeout' and source in
    ('default', 'configuration file', 'command line', 'environment variable')) as timeout,
  extract(epoch from clock_timestamp())::float as now,
  (select extversion from pg_extension e where extname = 'pgmq' and exists (
    select from pg_depend d where d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
      and d.deptype = 'e' and d.classid = 'pg_proc'::regclass)) as pgmq,
  greatest(1, extract(epoch from clock_timestamp() - coalesce(
    (select stats_reset from pg_stat_database where datname = current_database()),
    (select stats_reset from pg_stat_bgwriter)))::float) as seconds
"""
_PUBLICATION = """
select pubinsert as insert, pubupdate as update, pubdelete as delete
from pg_publication where pubname = 'supabase_realtime'
"""
_RELATION = """
select c.oid, c.relkind, c.relreplident, c.relrowsecurity,
  exists (select from pg_publication_tables p where p.pubname = 'supabase_realtime'
    and p.schemaname = n.nspname and p.tablename = c.relname) as published,
  array(select a.attname::text from pg_index i
    cross join unnest(i.indkey) with ordinality as u (attnum, n)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum
    where i.indrelid = c.oid and i.indisprimary and u.n <= i.indnkeyatts order by u.n) as key,
  array(select a.attname::text from pg_index i
    join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = c.oid and i.indisvalid and i.indpred is null
      and m.amname = 'btree') as leading,
  coalesce((select n_tup_ins + n_tup_upd + n_tup_del
    from pg_stat_all_tables s where s.relid = c.oid), 0) as writes
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""
_HAS_SUBSCRIPTIONS = """
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'realtime' and c.relname = 'subscription'
    and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')) as readable
"""
_SUBSCRIBERS = "select count(*) as n from realtime.subscription where entity = %s::oid::regclass"
# The role's own setting is what PostgREST applies; else it is that of the role it connects as.
_ROLE = """
select r.oid, r.rolbypassrls or r.rolsuper as bypasses, coalesce(
  (select split_part(c, '=', 2) from pg_roles o
    join pg_db_role_setting s on s.setrole = o.oid
    cross join unnest(s.setconfig) c
    where o.rolname in (r.rolname, 'authenticator') and c like 'statement\\_timeout=%%'
      and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
    order by o.rolname = r.rolname desc, s.setdatabase desc limit 1),
  (select split_part(c, '=', 2) from pg_db_role_setting s cross join unnest(s.setconfig) c
    where s.setrole = 0 and c like 'statement\\_timeout=%%'
      and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
    order by s.setdatabase desc limit 1),
  %s, '0') as timeout
from pg_roles r where r.rolname = %s
"""
_ACCESS = """
select has_schema_privilege(%(role)s::oid, c.relnamespace, 'usage')
    and has_any_column_privilege(%(role)s::oid, c.oid, 'select') as may_read,
  exists (select from pg_policy p where p.polrelid = c.oid and p.polpermissive
    and p.polcmd in ('r', '*') and exists (
      select from unnest(p.polroles) as g (member)
      where g.member = 0 or pg_has_role(%(role)s::oid, g.member, 'usage'))) as has_policy
from pg_class c where c.oid = %(table)s
"""
_QUEUE = """
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'pgmq' and c.relname = 'q_' || lower(%s::text)) as there
"""


def look_at_database(
    subjects: Subjects, *, dsn: str, roles: Iterable[str], timeout: float, clock: Clock
) -> DatabaseFacts:
    """Look at the catalogue. Raises `DoctorError` when it cannot be had; no password is shown."""
    try:
        import psycopg  # noqa: PLC0415 - an extra
        from psycopg.rows import dict_row  # noqa: PLC0415
    except ModuleNotFoundError:
        raise DoctorError(
            "to look through a DSN, psycopg is needed. "
            'Run `pip install "supabase-resilience[doctor]"`.'
        ) from None
    try:
        # No prepared statements, no session settings: it may be a pooler's connection.
        with psycopg.connect(
            dsn,
            connect_timeout=max(2, int(timeout)),
            prepare_threshold=None,
            application_name="supabase-resilience doctor",
        ) as connection:
            connection.read_only = True
            with connection.cursor(row_factory=dict_row) as cursor:
                return _Look(cursor, clock, timeout).everything(subjects, roles)
    except psycopg.Error as error:
        raise DoctorError(
            f"the database of the DSN could not be looked at ({_reason(error)}): check the DSN"
        ) from None


def _reason(error: "psycopg.Error") -> str:
    """What went wrong. Without a code it is libpq's text, which may repeat the DSN."""
    if error.sqlstate is None:
        return type(error).__name__
    return f"{error.diag.message_primary}, {error.sqlstate}"


class _Look:
    """One look at a database."""

    def __init__(
        self, cursor: "psycopg.Cursor[dict[str, Any]]", clock: Clock, timeout: float
    ) -> None:
        self._cursor = cursor
        self._clock = clock
        self._timeout = timeout

    def everything(self, subjects: Subjects, roles: Iterable[str]) -> DatabaseFacts:
        """All facts."""
        server = self._one(_SERVER)
        skew = self._clock() - server["now"]
        self._limit_itself()
        publication = self._one(_PUBLICATION)
        tables = [((use.schema, use.table), use.published) for use in subjects.tables]
        names = dict.fromkeys(name for both in tables for name in both)
        oids, relations = self._relations(names)
        queues = dict.fromkeys(queue for use in subjects.queues for queue in use.queues)
        return DatabaseFacts(
            version=server["version"],
            pgmq=server["pgmq"],
            skew=skew,
            has_publication=bool(publication),
            unpublished_kinds=tuple(kind for kind, told in publication.items() if not told),
            relations=relations,
            roles=self._roles([*API_ROLES, *roles], server["timeout"], oids),
            queues={name: self._one(_QUEUE, [name])["there"] for name in queues},
            seconds=server["seconds"],
        )

    def _limit_itself(self) -> None:
        """Until the transaction ends; not before the server's own default was read."""
        milliseconds = str(int(self._timeout * 1000))
        self._one("select set_config('statement_timeout', %s, true)", [milliseconds])

    def _one(self, query: str, arguments: Any = ()) -> dict[str, Any]:
        return self._cursor.execute(query.encode(), arguments or None).fetchone() or {}

    def _relations(
        self, names: Iterable[Name]
    ) -> tuple[dict[Name, int], dict[Name, RelationFacts | None]]:
        counts_subscribers = self._one(_HAS_SUBSCRIPTIONS)["readable"]
        oids: dict[Name, int] = {}
        found: dict[Name, RelationFacts | None] = {}
        for name in names:
            row = self._one(_RELATION, name)
            found[name] = None
            if row:
                oids[name] = row["oid"]
                count = self._one(_SUBSCRIBERS, [row["oid"]])["n"] if counts_subscribers else 0
                found[name] = _relation(row, count)
        return oids, found

    def _roles(
        self, names: Iterable[str], usual: str | None, oids: dict[Name, int]
    ) -> dict[str, RoleFacts]:
        found: dict[str, RoleFacts] = {}
        for name in dict.fromkeys(names):
            role = self._one(_ROLE, [usual, name])
            if role:
                found[name] = self._role(role, oids)
        return found

    def _role(self, role: dict[str, Any], oids: dict[Name, int]) -> RoleFacts:
        access = {
            name: self._one(_ACCESS, {"role": role["oid"], "table": oid})
            for name, oid in oids.items()
        }
        return RoleFacts(
            bypasses=role["bypasses"],
            timeout=self._seconds(role["timeout"]),
            may_read={name: row["may_read"] for name, row in access.items()},
            has_policy={name: row["has_policy"] for name, row in access.items()},
        )

    def _seconds(self, setting: str) -> float:
        """`8s`, `2min` or `200` (milliseconds), as PostgreSQL reads it."""
        text = f"{setting}ms" if setting.isdigit() else setting
        text = text.replace("us", " microseconds").replace("ms", " milliseconds")
        return float(self._one("select extract(epoch from %s::interval)::float as s", [text])["s"])


def _relation(row: dict[str, Any], subscribers: int) -> RelationFacts:
    return RelationFacts(
        kind=row["relkind"],
        identity=row["relreplident"],
        has_primary_key=bool(row["key"]),
        is_published=row["published"],
        has_security=row["relrowsecurity"],
        leading=frozenset(row["leading"]),
        key=tuple(row["key"]),
        writes=row["writes"],
        subscribers=subscribers,
    )
