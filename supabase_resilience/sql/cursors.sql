-- Where listeners keep how far their handlers have come: `TableCursor(client, name)`.
--
-- Optional. Run it in the SQL editor or as a migration; may be run again at any time. Only
-- service_role may call the functions, which act with the rights of the role that ran this file.

create schema if not exists supabase_resilience;
revoke all on schema supabase_resilience from public, anon, authenticated;
revoke create on schema supabase_resilience from service_role;

create table if not exists supabase_resilience.cursors (
  name text primary key,
  value jsonb not null,
  updated_at timestamptz not null default clock_timestamp()
);
alter table supabase_resilience.cursors enable row level security;
revoke all on supabase_resilience.cursors from public, anon, authenticated, service_role;

-- Null when nothing was saved yet.
create or replace function public.supabase_resilience_load_cursor(p_name text) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select value from supabase_resilience.cursors where name = p_name
$$;

-- The last one wins: a name belongs to one process at a time.
create or replace function public.supabase_resilience_save_cursor(p_name text, p_value jsonb)
returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
  insert into supabase_resilience.cursors (name, value) values (p_name, p_value)
  on conflict (name) do update set value = excluded.value, updated_at = excluded.updated_at
$$;

-- Supabase lets every role call what is made in public, so that has to be taken back.
revoke all on function
  public.supabase_resilience_load_cursor, public.supabase_resilience_save_cursor
  from public, anon, authenticated, service_role;
grant execute on function
  public.supabase_resilience_load_cursor, public.supabase_resilience_save_cursor
  to service_role;

notify pgrst, 'reload schema';
