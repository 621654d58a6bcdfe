-- Takes back what listener.sql and its parts for each table made, with the columns sync_ver and
-- sync_xid of the tables, the tombstones and the change log. Tables stay in the publication
-- supabase_realtime.

do $$
declare
  f record;
  ours text;
begin
  if to_regclass('supabase_resilience.followed') is not null then
    for f in select schema_name, table_name from supabase_resilience.followed loop
      perform supabase_resilience.unfollow(f.schema_name, f.table_name);
    end loop;
  end if;
  for ours in
    select format('drop function %s cascade', oid::regprocedure)  -- with triggers on renamed tables
    from pg_catalog.pg_proc
    where (pronamespace = to_regnamespace('public') and proname in (
        'supabase_resilience_horizon', 'supabase_resilience_tombstones',
        'supabase_resilience_changes', 'supabase_resilience_prune'))
      or (pronamespace = to_regnamespace('supabase_resilience') and proname in (
        'stamp', 'key_of_r', 'bury', 'bury_old_key', 'bury_all', 'image', 'log_change',
        'log_truncate', 'is_recorded', 'check_table', 'follow', 'publish', 'unfollow', 'history',
        'key_columns', 'r_has_key_of_t', 'start_of', 'prune_table'))
  loop
    execute ours;
  end loop;
  if to_regclass('cron.job') is not null then
    perform cron.unschedule(jobid) from cron.job where jobname = 'supabase-resilience-prune';
  end if;
end $$;

drop table if exists
  supabase_resilience.changes, supabase_resilience.tombstones, supabase_resilience.followed;
drop sequence if exists supabase_resilience.sync_ver;

do $$
begin
  drop schema if exists supabase_resilience;
exception when dependent_objects_still_exist then
  null;  -- another migration lives there, too
end $$;

notify pgrst, 'reload schema';
