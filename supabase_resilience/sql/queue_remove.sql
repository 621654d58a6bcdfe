-- Takes back what queue.sql made; queues, their messages and their dead letters stay as they are.
-- Workers go on in stock mode once they are started again.

do $$
declare
  callable regprocedure;
begin
  for callable in
    select oid from pg_catalog.pg_proc
    where (pronamespace = to_regnamespace('public') and proname like 'supabase\_resilience\_queue\_%')
      or (pronamespace = to_regnamespace('supabase_resilience') and proname in (
        'queue_table', 'job_envelope', 'job_message', 'job_priority', 'is_waiting', 'claim_key',
        'release_keys', 'add_jobs', 'settle_jobs', 'take_jobs'))
  loop
    -- With the indexes of the priorities.
    execute format('drop function %s cascade', callable);
  end loop;
end $$;

drop table if exists supabase_resilience.job_keys;

do $$
begin
  drop schema if exists supabase_resilience;
exception when dependent_objects_still_exist then
  null;  -- another migration lives there, too
end $$;

notify pgrst, 'reload schema';
