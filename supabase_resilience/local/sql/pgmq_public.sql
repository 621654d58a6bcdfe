-- Supabase Queues as they are once exposed to the API: six functions that run with the caller's rights.
create schema pgmq_public;
grant usage on schema pgmq_public to anon, authenticated, service_role;

create function pgmq_public.send(queue_name text, message jsonb, sleep_seconds integer default 0)
  returns setof bigint language plpgsql set search_path = '' as $$
begin
  return query select * from pgmq.send(
    queue_name => send.queue_name, msg => send.message, delay => send.sleep_seconds);
end $$;

create function pgmq_public.send_batch(queue_name text, messages jsonb[], sleep_seconds integer default 0)
  returns setof bigint language plpgsql set search_path = '' as $$
begin
  return query select * from pgmq.send_batch(
    queue_name => send_batch.queue_name, msgs => send_batch.messages, delay => send_batch.sleep_seconds);
end $$;

create function pgmq_public.read(queue_name text, sleep_seconds integer, n integer)
  returns setof pgmq.message_record language plpgsql set search_path = '' as $$
begin
  return query select * from pgmq.read(
    queue_name => read.queue_name, vt => read.sleep_seconds, qty => read.n);
end $$;

create function pgmq_public.pop(queue_name text)
  returns setof pgmq.message_record language plpgsql set search_path = '' as $$
begin
  return query select * from pgmq.pop(queue_name => pop.queue_name);
end $$;

create function pgmq_public.archive(queue_name text, message_id bigint)
  returns boolean language plpgsql set search_path = '' as $$
begin
  return pgmq.archive(queue_name => archive.queue_name, msg_id => archive.message_id);
end $$;

create function pgmq_public.delete(queue_name text, message_id bigint)
  returns boolean language plpgsql set search_path = '' as $$
begin
  return pgmq.delete(queue_name => delete.queue_name, msg_id => delete.message_id);
end $$;

grant execute on all functions in schema pgmq_public to anon, authenticated, service_role;

-- Queues themselves: the service role works on every queue, also on those made later; others need grants and policies.
grant usage on schema pgmq to anon, authenticated, service_role;
grant all on all tables in schema pgmq to service_role;
grant usage on all sequences in schema pgmq to anon, authenticated, service_role;
alter default privileges in schema pgmq grant all on tables to service_role;
alter default privileges in schema pgmq grant usage on sequences to anon, authenticated, service_role;
