
-- --- {table}: every change ---

select supabase_resilience.check_table({schema_name}, {table_name}, {key});

-- Named to fire before other triggers, which may change the row again.
create or replace trigger "000_supabase_resilience_log"
  after insert or update or delete on {table}
  for each row execute function supabase_resilience.log_change({key_literals});
create or replace trigger "000_supabase_resilience_log_truncate"
  after truncate on {table}
  for each statement execute function supabase_resilience.log_truncate();

drop trigger if exists zzz_supabase_resilience_stamp on {table};
drop trigger if exists supabase_resilience_bury on {table};
drop trigger if exists supabase_resilience_bury_old_key on {table};
drop trigger if exists supabase_resilience_bury_all on {table};

select supabase_resilience.publish('supabase_resilience', 'changes');
select supabase_resilience.follow(
  {schema_name}, {table_name}, 'change_log', {key}, {retention});
