-- Takes back what cursors.sql made, and forgets how far each listener has come.

drop function if exists public.supabase_resilience_load_cursor;
drop function if exists public.supabase_resilience_save_cursor;
drop table if exists supabase_resilience.cursors;

do $$
begin
  drop schema if exists supabase_resilience;
exception when dependent_objects_still_exist then
  null;  -- another migration lives there, too
end $$;

notify pgrst, 'reload schema';
