-- What a RealtimeListener needs to find again what Realtime lost: `Recovery.versioned()` (the final
-- state of every row, and every delete) or `Recovery.change_log()` (every committed change).
--
-- Optional. Run it in the SQL editor or as a migration, as the role that owns the followed tables
-- (`postgres` on Supabase); may be run again at any time. The common part comes first, then each
-- table.
--
-- It takes short locks only; yet a lock that has to wait for somebody's long transaction holds up
-- all who come after it. On a busy table put `set lock_timeout = '5s';` first, and run it again
-- when it gives up. A table (or key column) that is renamed or made anew has to be followed anew.
--
-- Triggers cannot see what goes past them: `session_replication_role = replica`, disabled triggers.
-- The change log holds whole rows, also of those that were deleted, until its retention is over.

create schema if not exists supabase_resilience;
revoke all on schema supabase_resilience from public, anon, authenticated;
revoke create on schema supabase_resilience from service_role;

create table if not exists supabase_resilience.followed (
  schema_name text not null,
  table_name text not null,
  recovery text not null check (recovery in ('versioned', 'change_log')),
  key text[] not null,
  retention interval not null check (retention > interval '0'),
  -- A cursor below it is too old: what it would need was pruned.
  floor bigint not null default 0,
  -- Another one whenever there may be a hole between what was recorded before and after.
  generation uuid not null default gen_random_uuid(),
  primary key (schema_name, table_name)
);

-- One for all tables, so that the versions of a key grow even across its delete and re-insert.
create sequence if not exists supabase_resilience.sync_ver as bigint;

-- A deleted key and the version it had; key is null for all keys with a smaller one (TRUNCATE).
create table if not exists supabase_resilience.tombstones (
  id bigint generated always as identity primary key,
  schema_name text not null,
  table_name text not null,
  key jsonb,
  ver bigint not null,
  xid bigint not null default pg_current_xact_id()::text::bigint,
  at timestamptz not null default clock_timestamp()
);
create index if not exists tombstones_xid_idx
  on supabase_resilience.tombstones (schema_name, table_name, xid);

-- In the order of seq a row's changes are in the order in which they were made.
create table if not exists supabase_resilience.changes (
  seq bigint generated always as identity primary key,
  xid bigint not null default pg_current_xact_id()::text::bigint,
  schema_name text not null,
  table_name text not null,
  op text not null,
  key jsonb,
  new jsonb,
  old jsonb,
  at timestamptz not null default clock_timestamp()
);
create index if not exists changes_xid_idx
  on supabase_resilience.changes (schema_name, table_name, xid);

alter table supabase_resilience.followed enable row level security;
alter table supabase_resilience.tombstones enable row level security;
alter table supabase_resilience.changes enable row level security;
revoke all on
  supabase_resilience.followed, supabase_resilience.tombstones, supabase_resilience.changes
  from public, anon, authenticated, service_role;
revoke all on all sequences in schema supabase_resilience
  from public, anon, authenticated, service_role;

-- Realtime tells of the log what the subscriber's role may select.
grant usage on schema supabase_resilience to service_role;
grant select on supabase_resilience.changes to service_role;

-- --- triggers ------------------------------------------------------------------------------------
-- They act with the rights of the role that ran this file, for an app's roles have none here. Keys
-- and rows become JSON as PostgREST prints them, whatever the session's settings are.

-- Before each INSERT and UPDATE, over whatever values the caller gave.
create or replace function supabase_resilience.stamp() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  new.sync_ver := nextval('supabase_resilience.sync_ver');
  new.sync_xid := pg_current_xact_id()::text::bigint;
  return new;
end $$;

-- SQL for the key of the row `r`.
create or replace function supabase_resilience.key_of_r(key text[]) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select format('jsonb_build_array(%s)', string_agg(format('to_jsonb(r.%I)', k), ', ' order by n))
  from unnest(key) with ordinality as u (k, n)
$$;

-- After a DELETE statement, for all of its rows at once.
create or replace function supabase_resilience.bury() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, MDY' set intervalstyle = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1 as $$
begin
  execute format(
    $sql$ insert into supabase_resilience.tombstones (schema_name, table_name, key, ver)
    select $1, $2, %s, r.sync_ver from gone r $sql$,
    supabase_resilience.key_of_r(tg_argv)
  ) using tg_table_schema, tg_table_name;
  return null;
end $$;

-- After an UPDATE that gave a row another key.
create or replace function supabase_resilience.bury_old_key() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, MDY' set intervalstyle = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1 as $$
begin
  execute format(
    $sql$ insert into supabase_resilience.tombstones (schema_name, table_name, key, ver)
    select $1, $2, %s, r.sync_ver from (select ($3).*) r $sql$,
    supabase_resilience.key_of_r(tg_argv)
  ) using tg_table_schema, tg_table_name, old;
  return null;
end $$;

create or replace function supabase_resilience.bury_all() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into supabase_resilience.tombstones (schema_name, table_name, ver)
  values (tg_table_schema, tg_table_name, nextval('supabase_resilience.sync_ver'));
  return null;
end $$;

-- A row as JSON; never fails. Only a column of type json can hold what jsonb cannot: NUL
-- characters.
create or replace function supabase_resilience.image(given record) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return to_jsonb(given);
exception when untranslatable_character then
  return replace(row_to_json(given)::text, '\u0000', '\ufffd')::jsonb;
end $$;

-- After a change of a row; its key is that which it has now. Fires before other triggers, for they
-- may change the row again. (What one changes of the *other* rows of its own statement is in the
-- log ahead of that statement's change of them.)
create or replace function supabase_resilience.log_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, MDY' set intervalstyle = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1 as $$
declare
  before jsonb := case when tg_op <> 'INSERT' then supabase_resilience.image(old) end;
  after jsonb := case when tg_op <> 'DELETE' then supabase_resilience.image(new) end;
begin
  insert into supabase_resilience.changes (schema_name, table_name, op, key, new, old)
  select tg_table_schema, tg_table_name, tg_op,
    jsonb_agg(coalesce(after, before) -> k order by n), after, before
  from unnest(tg_argv) with ordinality as u (k, n);
  return null;
end $$;

create or replace function supabase_resilience.log_truncate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into supabase_resilience.changes (schema_name, table_name, op)
  values (tg_table_schema, tg_table_name, tg_op);
  return null;
end $$;

-- --- to follow a table, or no longer -------------------------------------------------------------

-- Whether all triggers of a followed table are there and enabled.
create or replace function supabase_resilience.is_recorded(f supabase_resilience.followed)
returns boolean language sql stable set search_path = pg_catalog, pg_temp as $$
  select count(*) = case f.recovery when 'versioned' then 4 else 2 end
  from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where t.tgrelid = to_regclass(format('%I.%I', f.schema_name, f.table_name))
    and t.tgenabled in ('O', 'A') and p.pronamespace = 'supabase_resilience'::regnamespace
    and p.proname = any (case f.recovery
      when 'versioned' then array['stamp', 'bury', 'bury_old_key', 'bury_all']
      else array['log_change', 'log_truncate'] end)
$$;

create or replace function supabase_resilience.check_table(
  p_schema text, p_table text, p_key text[]
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  named text := format('%I.%I', p_schema, p_table);
  relation pg_class;
  primary_key text[];
  wrong text;
begin
  select * into relation from pg_class where oid = to_regclass(named);
  select array_agg(a.attname::text order by n) into primary_key
  from pg_index i
  cross join unnest(i.indkey) with ordinality as u (attnum, n)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum
  where i.indrelid = relation.oid and i.indisprimary and n <= i.indnkeyatts;
  select string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ')
  into wrong
  from pg_attribute a join pg_type t on t.oid = a.atttypid
  where a.attrelid = relation.oid and (
    (a.attname = any (p_key) and (t.typcategory in ('A', 'C') or t.typname in ('json', 'jsonb')))
    or (a.attname in ('sync_ver', 'sync_xid') and a.atttypid <> 'bigint'::regtype));
  if relation.oid is null then
    raise exception 'there is no table %', named using errcode = '42P01';
  elsif relation.relkind <> 'r' or relation.relpersistence <> 'p' or relation.relispartition
      or exists (select from pg_inherits where inhrelid = relation.oid) then
    raise exception '% cannot be followed', named using errcode = '42809',
      hint = 'Only an ordinary table can: no view, partition, unlogged or inheriting table.';
  elsif (p_key @> primary_key and cardinality(p_key) = cardinality(primary_key)) is not true then
    raise exception 'the key of % is not its primary key', named using errcode = '22023',
      hint = coalesce(format('Use --key %s', array_to_string(primary_key, ',')),
        'It has none; Realtime needs one, too.');
  elsif wrong is not null then
    raise exception '% has a column of a type that does not go: %', named, wrong
      using errcode = '42804';
  end if;
  -- Somebody took the triggers away: what is recorded from now on is another history.
  delete from supabase_resilience.followed f
  where schema_name = p_schema and table_name = p_table and not supabase_resilience.is_recorded(f);
end $$;

create or replace function supabase_resilience.follow(
  p_schema text, p_table text, p_recovery text, p_key text[], p_retention interval
) returns void language sql set search_path = pg_catalog, pg_temp as $$
  insert into supabase_resilience.followed as f (schema_name, table_name, recovery, key, retention)
  values (p_schema, p_table, p_recovery, p_key, p_retention)
  on conflict (schema_name, table_name) do update set
    recovery = excluded.recovery, key = excluded.key, retention = excluded.retention,
    generation = case
      when (f.recovery, f.key) = (excluded.recovery, excluded.key) then f.generation
      else excluded.generation end
$$;

-- Have Realtime tell of a table.
create or replace function supabase_resilience.publish(p_schema text, p_table text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime') then
    raise notice 'there is no publication supabase_realtime; Realtime makes none of %.% known',
      p_schema, p_table;
  elsif not exists (  -- it also lists what FOR ALL TABLES or IN SCHEMA brings in
    select from pg_publication_tables
    where pubname = 'supabase_realtime' and schemaname = p_schema and tablename = p_table
  ) then
    execute format('alter publication supabase_realtime add table %I.%I', p_schema, p_table);
  end if;
end $$;

-- Take back everything but the place in the publication, which it may have had before. Columns go
-- only if their comment says that they are ours.
create or replace function supabase_resilience.unfollow(p_schema text, p_table text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  relation regclass := to_regclass(format('%I.%I', p_schema, p_table));
  ours text;
begin
  for ours in
    select format('drop trigger %I on %s', t.tgname, relation)
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where t.tgrelid = relation and p.pronamespace = 'supabase_resilience'::regnamespace
    union all
    select format('alter table %s drop column %I', relation, a.attname)
    from pg_attribute a
    where a.attrelid = relation and a.attname in ('sync_ver', 'sync_xid')
      and col_description(relation, a.attnum) like 'supabase\_resilience:%'
  loop
    execute ours;
  end loop;
  delete from supabase_resilience.tombstones where schema_name = p_schema and table_name = p_table;
  delete from supabase_resilience.changes where schema_name = p_schema and table_name = p_table;
  delete from supabase_resilience.followed where schema_name = p_schema and table_name = p_table;
end $$;

-- --- what the listener calls ---------------------------------------------------------------------

-- What tells one history of a table from another: that of the server (it is another one after a
-- restore or a failover), the table itself, and for how long it has been recorded without a hole.
create or replace function supabase_resilience.history(
  p_schema text, p_table text, p_generation uuid
) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  server text;
  timeline text := 'standby';
begin
  if has_function_privilege('pg_catalog.pg_control_system()', 'execute') then
    select system_identifier::text into server from pg_control_system();
  end if;
  if not pg_is_in_recovery() then
    timeline := left(pg_walfile_name(pg_current_wal_lsn()), 8);
  end if;
  return md5(concat_ws('/', server, timeline,
    to_regclass(format('%I.%I', p_schema, p_table))::oid, p_generation));
end $$;

-- How the table is followed (recovery is null when it is not), and where a reader of now goes on:
-- whatever is not visible yet has an xid of at least xmin.
create or replace function public.supabase_resilience_horizon(p_schema text, p_table text)
returns jsonb language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set timezone = 'UTC' as $$
declare
  f supabase_resilience.followed;
  oldest bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  newest bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
begin
  select * into f from supabase_resilience.followed c
  where c.schema_name = p_schema and c.table_name = p_table and supabase_resilience.is_recorded(c);
  return jsonb_build_object(
    'migration', 1,
    'recovery', f.recovery,
    'key', f.key,
    -- After a dump was restored elsewhere it may be ahead of all there is.
    'floor', least(coalesce(f.floor, 0), oldest),
    'xmin', oldest,
    'xmax', newest,
    -- Those in between that have not ended.
    'xip', coalesce((
      select jsonb_agg(x::text::bigint) from pg_snapshot_xip(pg_current_snapshot()) x), '[]'),
    'now', clock_timestamp(),
    'history', supabase_resilience.history(p_schema, p_table, f.generation),
    -- A server that crashed may give the xids again that left no trace in its WAL.
    'started', extract(epoch from pg_postmaster_start_time())::text);
end $$;

create or replace function supabase_resilience.key_columns(
  p_schema text, p_table text, p_recovery text
) returns text[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  result text[];
begin
  select key into result from supabase_resilience.followed
  where schema_name = p_schema and table_name = p_table and recovery = p_recovery;
  if result is null then
    raise exception '%.% is not followed by %', p_schema, p_table, p_recovery
      using errcode = '22023',
      hint = 'Run the SQL of `python -m supabase_resilience sql listener`.';
  end if;
  return result;
end $$;

-- SQL that is true for the row `r` with the key of the tombstone `t`.
create or replace function supabase_resilience.r_has_key_of_t(relation regclass, key text[])
returns text language sql stable set search_path = pg_catalog, pg_temp as $$
  select string_agg(
    format('r.%I = (t.key ->> %s)::%s', k, n - 1, format_type(a.atttypid, a.atttypmod)), ' and ')
  from unnest(key) with ordinality as u (k, n)
  join pg_attribute a on a.attrelid = relation and a.attname = k and not a.attisdropped
$$;

-- Where a first page starts: below all that is recorded from p_since on. Records are nearly in the
-- order of xid, but a planner does not know that, and would walk over all that is older. Null for
-- none or very many.
create or replace function supabase_resilience.start_of(
  log text, id text, p_schema text, p_table text, p_since bigint
) returns bigint language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  result bigint;
begin
  execute format(
    $sql$ select case when count(*) < 1000000 then min(m.id) - 1 end
    from (
      select l.%2$I as id from supabase_resilience.%1$I l
      where l.schema_name = $1 and l.table_name = $2 and l.xid >= $3
      order by l.xid limit 1000000
    ) m $sql$,
    log, id
  ) into result using p_schema, p_table, p_since;
  return result;
end $$;

-- The keys deleted from p_since on; a key that is alive was used again.
create or replace function public.supabase_resilience_tombstones(
  p_schema text, p_table text, p_since bigint, p_after bigint default 0, p_limit integer default 1000
) returns table (id bigint, key jsonb, ver bigint, xid bigint, alive boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set timezone = 'UTC' as $$
declare
  columns text[] := supabase_resilience.key_columns(p_schema, p_table, 'versioned');
begin
  if p_after = 0 then
    p_after := coalesce(
      supabase_resilience.start_of('tombstones', 'id', p_schema, p_table, p_since), 0);
  end if;
  return query execute format(
    $sql$ select t.id, t.key, t.ver, t.xid, found.it is not null
    from (
      select * from supabase_resilience.tombstones
      where schema_name = $1 and table_name = $2 and xid >= $3 and id > $4
      order by id limit $5
    ) t
    left join lateral (  -- with a limit, so that it is looked up key by key, by index
      select true as it from %I.%I r where %s limit 1
    ) found on true
    order by t.id $sql$,
    p_schema, p_table, supabase_resilience.r_has_key_of_t(
      to_regclass(format('%I.%I', p_schema, p_table)), columns)
  ) using p_schema, p_table, p_since, p_after, p_limit;
end $$;

-- The changes made from p_since on; with p_seqs exactly those.
create or replace function public.supabase_resilience_changes(
  p_schema text, p_table text, p_since bigint, p_after bigint default 0, p_limit integer default 1000,
  p_seqs bigint[] default null
) returns table (
  seq bigint, xid bigint, op text, key jsonb, new jsonb, old jsonb, at timestamptz
) language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  perform supabase_resilience.key_columns(p_schema, p_table, 'change_log');
  if p_seqs is not null then
    return query select c.seq, c.xid, c.op, c.key, c.new, c.old, c.at
      from supabase_resilience.changes c
      where c.schema_name = p_schema and c.table_name = p_table and c.seq = any (p_seqs)
      order by c.seq;
  else
    if p_after = 0 then
      p_after := coalesce(
        supabase_resilience.start_of('changes', 'seq', p_schema, p_table, p_since), 0);
    end if;
    return query select c.seq, c.xid, c.op, c.key, c.new, c.old, c.at
      from supabase_resilience.changes c
      where c.schema_name = p_schema and c.table_name = p_table
        and c.xid >= p_since and c.seq > p_after
      order by c.seq limit p_limit;
  end if;
end $$;

-- Delete what is older than the retention, at most that many rows; the number of them. Only what
-- has an xid that no open transaction can still come before; and what has one that is yet to come,
-- for it was restored from elsewhere.
create or replace function supabase_resilience.prune_table(
  f supabase_resilience.followed, log text, id text, at_most integer
) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  pruned integer;
  above bigint;
begin
  execute format(
    $sql$ with bounds as materialized (
      select pg_snapshot_xmin(s)::text::bigint as oldest, pg_snapshot_xmax(s)::text::bigint as next
      from pg_current_snapshot() s
    ), first as materialized (
      select l.%2$I as id, l.at
      from supabase_resilience.%1$I l
      where l.schema_name = $1 and l.table_name = $2
        and (l.xid < (select oldest from bounds) or l.xid >= (select next from bounds))
      order by l.xid
      limit $4
    ), due as materialized (
      select l.%2$I as id
      from supabase_resilience.%1$I l join first f on f.id = l.%2$I
      where f.at < clock_timestamp() - $3
      for update of l skip locked
    ), gone as (
      delete from supabase_resilience.%1$I l
      using due d
      where l.%2$I = d.id
      returning l.xid
    )
    select count(*), max(xid) filter (where xid < (select oldest from bounds)) + 1 from gone $sql$,
    log, id
  ) into pruned, above using f.schema_name, f.table_name, f.retention, at_most;
  update supabase_resilience.followed c
  set floor = above
  where c.schema_name = f.schema_name and c.table_name = f.table_name and c.floor < above;
  return pruned;
end $$;

-- One batch; it waits for nobody, and of two at a time the second does nothing.
create or replace function public.supabase_resilience_prune() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  f supabase_resilience.followed;
  rest integer := 50000;
begin
  for f in
    select * from supabase_resilience.followed order by random() for update skip locked
  loop
    rest := rest - supabase_resilience.prune_table(f, 'tombstones', 'id', rest);
    rest := rest - supabase_resilience.prune_table(f, 'changes', 'seq', rest);
  end loop;
end $$;

-- Supabase lets every role call what is made in public, so that has to be taken back.
revoke all on function
  supabase_resilience.stamp, supabase_resilience.key_of_r, supabase_resilience.bury,
  supabase_resilience.bury_old_key, supabase_resilience.bury_all, supabase_resilience.image,
  supabase_resilience.log_change, supabase_resilience.log_truncate, supabase_resilience.is_recorded,
  supabase_resilience.check_table, supabase_resilience.follow, supabase_resilience.publish,
  supabase_resilience.unfollow, supabase_resilience.history, supabase_resilience.key_columns,
  supabase_resilience.r_has_key_of_t, supabase_resilience.start_of, supabase_resilience.prune_table
  from public, anon, authenticated, service_role;
revoke all on function
  public.supabase_resilience_horizon, public.supabase_resilience_tombstones,
  public.supabase_resilience_changes, public.supabase_resilience_prune
  from public, anon, authenticated, service_role;
grant execute on function public.supabase_resilience_horizon to anon, authenticated, service_role;
grant execute on function
  public.supabase_resilience_tombstones, public.supabase_resilience_changes,
  public.supabase_resilience_prune
  to service_role;

-- Where pg_cron is enabled it prunes; elsewhere the listener does.
do $$
begin
  if to_regprocedure('cron.schedule(text, text, text)') is not null then
    perform cron.schedule('supabase-resilience-prune', '*/10 * * * *',
      'select public.supabase_resilience_prune()');
  end if;
end $$;
