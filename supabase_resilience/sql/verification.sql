-- One runner of many for ServerSideVerification(lease=…): leases with a fencing token, and a fix that
-- checks it.
--
-- Optional. Run it in the SQL editor or as a migration; may be run again at any time. Only
-- service_role may call the functions.

create schema if not exists supabase_resilience;
revoke all on schema supabase_resilience from public, anon, authenticated;
revoke create on schema supabase_resilience from service_role;

create table if not exists supabase_resilience.leases (
  name text primary key,
  -- Grows with each that takes the lease: who comes with an older one was overtaken.
  token bigint not null default 1,
  holder text not null,
  ends_at timestamptz not null
);
alter table supabase_resilience.leases enable row level security;
revoke all on supabase_resilience.leases from public, anon, authenticated, service_role;

-- The token, or null while another holds the lease. Who asks again as the same holder keeps its token.
create or replace function public.supabase_resilience_lease_acquire(
  p_name text, p_holder text, p_seconds double precision
) returns bigint language sql security definer set search_path = pg_catalog, pg_temp as $$
  insert into supabase_resilience.leases as l (name, holder, ends_at)
  values (p_name, p_holder, clock_timestamp() + make_interval(secs => p_seconds))
  on conflict (name) do update set
    token = case when l.holder = excluded.holder and l.ends_at > clock_timestamp()
      then l.token else l.token + 1 end,
    holder = excluded.holder,
    ends_at = excluded.ends_at
  where l.holder = excluded.holder or l.ends_at <= clock_timestamp()
  returning token
$$;

-- The token, or null when it was overtaken. A lease that has run out and that nobody took is still ours.
create or replace function public.supabase_resilience_lease_renew(
  p_name text, p_token bigint, p_seconds double precision
) returns bigint language sql security definer set search_path = pg_catalog, pg_temp as $$
  update supabase_resilience.leases
  set ends_at = clock_timestamp() + make_interval(secs => p_seconds)
  where name = p_name and token = p_token
  returning token
$$;

create or replace function public.supabase_resilience_lease_release(p_name text, p_token bigint)
returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
  update supabase_resilience.leases set ends_at = '-infinity'
  where name = p_name and token = p_token
$$;

-- Whether the token is the newest and its time is not over. Until the caller's transaction ends nobody
-- can take the lease.
create or replace function public.supabase_resilience_lease_holds(p_name text, p_token bigint)
returns boolean language sql security definer set search_path = pg_catalog, pg_temp as $$
  select coalesce((
    select token = p_token and ends_at > clock_timestamp()
    from supabase_resilience.leases where name = p_name for share
  ), false)
$$;

-- Sets columns of the row with this key if it is still what it was: its xmin, or else the columns of
-- p_guard. The number of rows written. It acts with the caller's own rights on the table.
create or replace function public.supabase_resilience_verification_fix(
  p_lease text, p_token bigint, p_schema text, p_table text,
  p_key jsonb, p_patch jsonb, p_xmin text default null, p_guard jsonb default null
) returns integer language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
  relation regclass := to_regclass(format('%I.%I', p_schema, p_table));
  sets text;
  conditions text;
  written integer;
begin
  if not public.supabase_resilience_lease_holds(p_lease, p_token) then
    raise exception 'the lease % was taken over', p_lease using errcode = 'PT409',
      hint = 'Another runner verifies now.';
  end if;
  if relation is null then
    raise exception 'there is no table %.%', p_schema, p_table using errcode = '42P01';
  end if;
  if p_xmin is null and p_guard is null then
    raise exception 'a fix needs p_xmin or p_guard' using errcode = '22023';
  end if;
  select string_agg(format('%I = p.%I', k, k), ', ') into sets from jsonb_object_keys(p_patch) k;
  select string_agg(format('t.%I is not distinct from g.%I', k, k), ' and ') into conditions
  from jsonb_object_keys(p_key || coalesce(p_guard, '{}')) k;
  execute format(
    $sql$ update %1$s t set %2$s
    from jsonb_populate_record(null::%1$s, $1) p, jsonb_populate_record(null::%1$s, $2) g
    where %3$s and ($3 is null or t.xmin::text = $3) $sql$,
    relation, sets, conditions
  ) using p_patch, p_key || coalesce(p_guard, '{}'), p_xmin;
  get diagnostics written = row_count;
  if written > 1 then
    raise exception 'the key of a fix names % rows of %', written, relation using errcode = '21000';
  end if;
  return written;
end $$;

-- Supabase lets every role call what is made in public, so that has to be taken back.
revoke all on function
  public.supabase_resilience_lease_acquire, public.supabase_resilience_lease_renew,
  public.supabase_resilience_lease_release, public.supabase_resilience_lease_holds,
  public.supabase_resilience_verification_fix
  from public, anon, authenticated, service_role;
grant execute on function
  public.supabase_resilience_lease_acquire, public.supabase_resilience_lease_renew,
  public.supabase_resilience_lease_release, public.supabase_resilience_lease_holds,
  public.supabase_resilience_verification_fix
  to service_role;

notify pgrst, 'reload schema';
