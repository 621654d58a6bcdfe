
-- --- {table}: the final state of every row ---

select supabase_resilience.check_table({schema_name}, {table_name}, {key});

-- Constant defaults: the table is not rewritten, and the rows that are there keep 0.
alter table {table}
  add column if not exists sync_ver bigint not null default 0,
  add column if not exists sync_xid bigint not null default 0;
comment on column {table}.sync_ver is
  'supabase_resilience: the row''s version, which grows with each change';
comment on column {table}.sync_xid is
  'supabase_resilience: the transaction that changed the row last';

-- Named to fire after other triggers, whatever they do to these columns.
create or replace trigger zzz_supabase_resilience_stamp
  before insert or update on {table}
  for each row execute function supabase_resilience.stamp();
create or replace trigger supabase_resilience_bury
  after delete on {table} referencing old table as gone
  for each statement execute function supabase_resilience.bury({key_literals});
create or replace trigger supabase_resilience_bury_old_key
  after update on {table}
  for each row when (({old_key}) is distinct from ({new_key}))
  execute function supabase_resilience.bury_old_key({key_literals});
create or replace trigger supabase_resilience_bury_all
  after truncate on {table}
  for each statement execute function supabase_resilience.bury_all();

drop trigger if exists "000_supabase_resilience_log" on {table};
drop trigger if exists "000_supabase_resilience_log_truncate" on {table};

select supabase_resilience.publish({schema_name}, {table_name});
select supabase_resilience.follow(
  {schema_name}, {table_name}, 'versioned', {key}, {retention});

