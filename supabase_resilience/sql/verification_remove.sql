-- Takes back what verification.sql made. A verification with lease= refuses to start afterwards.

drop function if exists public.supabase_resilience_verification_fix;
drop function if exists public.supabase_resilience_lease_acquire;
drop function if exists public.supabase_resilience_lease_renew;
drop function if exists public.supabase_resilience_lease_release;
drop function if exists public.supabase_resilience_lease_holds;
drop table if exists supabase_resilience.leases;

do $$
begin
  drop schema if exists supabase_resilience;
exception when dependent_objects_still_exist then
  null;  -- another migration lives there, too
end $$;

notify pgrst, 'reload schema';
