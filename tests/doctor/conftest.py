"""Two local projects: one in which all is well, and a bare one that has no migration at all."""

import pytest

from supabase_resilience import (
    Recovery,
    Rule,
    SupabaseQueue,
    TableCursor,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience.local import LocalSupabase

from .projects import Project, migration

# As few rows as tests can make: what the API cuts off is found at any number.
MAX_ROWS = 60
SCHEMA = """
create table orders (id int primary key, kind text, updated_at timestamptz not null default now());
create index on orders (updated_at, id);
create table items (id int primary key);
create table notes (id int primary key);
alter table notes enable row level security;
alter publication supabase_realtime add table orders, notes;
"""
QUEUES = """
select supabase_resilience_queue_create('mails');
select supabase_resilience_queue_create('mails_high', false);
"""


@pytest.fixture(scope="session")
def sound():
    """A project in which all is well."""
    schema = [
        SCHEMA,
        migration("listener", "--table", "items"),
        *map(migration, ("cursors", "verification", "queue")),
        QUEUES,
    ]
    with LocalSupabase(schema=schema, max_rows=MAX_ROWS) as local:
        yield Project(local)


@pytest.fixture(scope="session")
def bare():
    """A project without our migrations, whose queues the API does not serve."""
    with LocalSupabase(schema=SCHEMA, schemas=("public",)) as local:
        yield Project(local)


@pytest.fixture
def parts(sound):
    """One of each pattern, as an app would have them."""
    client = sound.client
    by_column = Recovery.by_column(key_diff=True)
    cursor = TableCursor(client, "items")
    return [
        realtime_listener(client, "orders", filter="kind=eq.a", recovery=by_column),
        realtime_listener(client, "items", recovery=Recovery.versioned(), cursor=cursor),
        realtime_listener(client, "notes"),
        server_side_verification(client, "orders", rules=[Rule("a", check=bool)], lease="orders"),
        queue_processor(client, "mails", print, lanes={10: "_high"}, strict_order=True),
        SupabaseQueue(client, "mails"),
    ]
