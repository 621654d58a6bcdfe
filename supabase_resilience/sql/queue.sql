-- Supabase Queues, better: what a QueueProcessor can use and the six functions of pgmq_public lack.
--
-- Optional. Run it in the SQL editor or as a migration, as the role that owns the queues (`postgres`
-- on Supabase); may be run again at any time, also after pgmq was upgraded (it works on 1.4.4 and
-- later). Then, for each queue: select public.supabase_resilience_queue_create('<name>');
--
-- The functions act with the rights of the role that ran this file, and only service_role may call
-- them. pgmq_public is not needed by them.

create schema if not exists supabase_resilience;
revoke all on schema supabase_resilience from public, anon, authenticated;
revoke create on schema supabase_resilience from service_role;

-- A dedupe key belongs to one job while that job waits or runs. A row whose message is gone (somebody
-- purged the queue) is stale, and the next job with the key takes it over.
create table if not exists supabase_resilience.job_keys (
  queue text not null,
  key text not null,
  job_id text not null,
  msg_id bigint,
  primary key (queue, key)
);
alter table supabase_resilience.job_keys enable row level security;
revoke all on supabase_resilience.job_keys from public, anon, authenticated, service_role;

-- --- inner functions -----------------------------------------------------------------------------

-- pgmq's table of a queue; to be quoted with %I and found in the schema pgmq.
create or replace function supabase_resilience.queue_table(queue_name text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(queue_name, '') = '' or octet_length(queue_name) > 47 or queue_name ~ '\$|;|--|''' then
    raise exception 'invalid name of a queue: %', coalesce(queue_name, 'null')
      using errcode = '22023', hint = 'up to 47 bytes, without $, ;, -- and quotes';
  end if;
  return lower('q_' || queue_name);
end $$;

-- Our part of a message; null for a message that somebody else wrote, which is all payload.
create or replace function supabase_resilience.job_envelope(message jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
  ours jsonb := message -> 'supabase_resilience';
begin
  if message ? 'data' and jsonb_typeof(ours -> 'id') = 'string' and ours ->> 'id' <> '' then
    return ours;
  end if;
  return null;
end $$;

-- The same payload in another envelope.
create or replace function supabase_resilience.job_message(message jsonb, ours jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  if supabase_resilience.job_envelope(message) is not null then
    message := message -> 'data';
  end if;
  return jsonb_build_object('data', message, 'supabase_resilience', ours);
end $$;

-- For an index: never fails, whatever the message is. Whoever adds a message to a queue calls it, and
-- has no other rights here, so it must not call anything of ours in turn.
create or replace function supabase_resilience.job_priority(message jsonb) returns integer
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
  ours jsonb := message -> 'supabase_resilience';
  priority text := (ours -> 'priority')::text;
begin
  if message ? 'data' and jsonb_typeof(ours -> 'id') = 'string' and ours ->> 'id' <> '' then
    return case
      when priority ~ '^-?[0-9]{1,9}$' then priority::integer
      when priority ~ '^[0-9]+$' then 2147483647
      when priority ~ '^-[0-9]+$' then -2147483648
      else 0
    end;
  end if;
  return 0;
end $$;

create or replace function supabase_resilience.is_waiting(queue_name text, id bigint, job_id text)
returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  found_it boolean;
begin
  execute format(
    $sql$ select exists (
      select from pgmq.%I
      where msg_id = $1 and supabase_resilience.job_envelope(message) ->> 'id' = $2) $sql$,
    supabase_resilience.queue_table(queue_name)
  ) into found_it using id, job_id;
  return found_it;
end $$;

-- Give a key to a job; false when another one (or this very one) has it. The row stays locked until
-- the end of the transaction. Callers with several keys go in the order of the keys: no deadlocks.
create or replace function supabase_resilience.claim_key(queue_name text, wanted text, id text)
returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  holder supabase_resilience.job_keys;
begin
  loop
    insert into supabase_resilience.job_keys (queue, key, job_id)
    values (lower(queue_name), wanted, id) on conflict do nothing;
    if found then
      return true;
    end if;
    select * into holder from supabase_resilience.job_keys
    where queue = lower(queue_name) and key = wanted for update;
    continue when not found;  -- released in between
    if supabase_resilience.is_waiting(queue_name, holder.msg_id, holder.job_id) then
      return false;
    end if;
    update supabase_resilience.job_keys set job_id = id, msg_id = null
    where queue = holder.queue and key = holder.key;
    return true;
  end loop;
end $$;

create or replace function supabase_resilience.release_keys(queue_name text, released jsonb)
returns void language sql set search_path = pg_catalog, pg_temp as $$
  delete from supabase_resilience.job_keys k
  using (
    select j.queue, j.key
    from supabase_resilience.job_keys j
    join jsonb_to_recordset(released) as r (key text, job_id text)
      on j.key = r.key and j.job_id = r.job_id
    where j.queue = lower(queue_name)
    order by j.key
    for update of j
  ) held
  where k.queue = held.queue and k.key = held.key;
$$;

-- Add messages in order; those that have a key must own it by now.
create or replace function supabase_resilience.add_jobs(
  queue_name text, messages jsonb, delay double precision
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  keyed jsonb;
begin
  execute format(
    $sql$ with added as (
      insert into pgmq.%I (vt, message)
      select clock_timestamp() + make_interval(secs => $2), m.message
      from jsonb_array_elements($1) with ordinality as m (message, n)
      order by m.n
      returning msg_id, supabase_resilience.job_envelope(message) as ours
    )
    select jsonb_agg(jsonb_build_object(
      'msg_id', msg_id, 'key', ours ->> 'dedupe_key', 'job_id', ours ->> 'id'))
    from added where ours ->> 'dedupe_key' is not null $sql$,
    supabase_resilience.queue_table(queue_name)
  ) into keyed using messages, delay;
  if keyed is not null then
    update supabase_resilience.job_keys k set msg_id = a.msg_id
    from jsonb_to_recordset(keyed) as a (msg_id bigint, key text, job_id text)
    where k.queue = lower(queue_name) and k.key = a.key and k.job_id = a.job_id;
  end if;
end $$;

-- Settle what is still in the caller's hands: a message that was read again since then has another
-- read_ct. Rows are locked in the order of msg_id, then keys in theirs: no deadlocks.
create or replace function supabase_resilience.settle_jobs(
  queue_name text, settled jsonb, dead_queue text
) returns jsonb language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  result jsonb;
  letters jsonb;
  released jsonb;
begin
  execute format(
    $sql$ with held as materialized (
      select m.msg_id, s.kind, s.delay, s.ours
      from jsonb_to_recordset($1) as s (
        id bigint, fence integer, kind text, delay double precision, ours jsonb)
      join pgmq.%1$I m on m.msg_id = s.id and m.read_ct = s.fence
      order by m.msg_id
      for update of m
    ), kept as (
      update pgmq.%1$I m
      set vt = clock_timestamp() + make_interval(secs => coalesce(h.delay, 0)),
          message = case when h.ours is null then m.message
            else supabase_resilience.job_message(m.message, h.ours) end
      from held h
      where m.msg_id = h.msg_id and h.kind in ('retry', 'postponed')
      returning m.msg_id
    ), gone as (
      delete from pgmq.%1$I m
      using held h
      where m.msg_id = h.msg_id and h.kind in ('done', 'dead')
      returning m.msg_id, m.message, h.kind, h.ours,
        supabase_resilience.job_envelope(m.message) as envelope
    )
    select
      (select coalesce(jsonb_agg(msg_id), '[]')
        from (select msg_id from kept union all select msg_id from gone) s),
      (select jsonb_agg(supabase_resilience.job_message(message, ours) order by msg_id)
        from gone where kind = 'dead'),
      (select jsonb_agg(jsonb_build_object(
          'key', envelope ->> 'dedupe_key', 'job_id', envelope ->> 'id'))
        from gone where envelope ->> 'dedupe_key' is not null) $sql$,
    supabase_resilience.queue_table(queue_name)
  ) into result, letters, released using settled;
  if letters is not null then
    execute format(
      $sql$ insert into pgmq.%I (vt, message)
      select clock_timestamp(), message from jsonb_array_elements($1) as l (message) $sql$,
      supabase_resilience.queue_table(dead_queue)
    ) using letters;
  end if;
  if released is not null then
    perform supabase_resilience.release_keys(queue_name, released);
  end if;
  return result;
end $$;

-- Lease up to `take` jobs, `oldest` of them by age and the others by priority.
create or replace function supabase_resilience.take_jobs(
  queue_name text, take integer, oldest integer, lease double precision, by_priority boolean
) returns jsonb language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  relation text := supabase_resilience.queue_table(queue_name);
  result jsonb;
begin
  execute format(
    $sql$ with aged as materialized (
      select msg_id from pgmq.%1$I
      where vt <= clock_timestamp()
      order by msg_id
      limit least($1, $2)
      for update skip locked
    ), others as materialized (
      select msg_id from pgmq.%1$I
      where vt <= clock_timestamp() and msg_id <> all (array(select msg_id from aged))
      order by %2$s
      limit $1 - (select count(*) from aged)
      for update skip locked
    ), taken as (
      update pgmq.%1$I
      set read_ct = read_ct + 1, vt = clock_timestamp() + make_interval(secs => $3) %3$s
      where msg_id = any (array(select msg_id from aged union all select msg_id from others))
      returning msg_id, read_ct, enqueued_at, vt, message
    )
    select coalesce(jsonb_agg(to_jsonb(taken)), '[]') from taken $sql$,
    relation,
    case when by_priority then 'supabase_resilience.job_priority(message) desc, msg_id'
      else 'msg_id' end,
    case when exists (  -- pgmq 1.8 and later
      select from pg_catalog.pg_attribute
      where attrelid = to_regclass(format('pgmq.%I', relation)) and attname = 'last_read_at'
        and not attisdropped
    ) then ', last_read_at = clock_timestamp()' else '' end
  ) into result using take, oldest, lease;
  return result;
end $$;

-- --- what the store calls ------------------------------------------------------------------------

create or replace function public.supabase_resilience_queue_check(queues text[]) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return jsonb_build_object('version', 1, 'queues', (
    select coalesce(jsonb_object_agg(name, jsonb_build_object(
      'exists', to_regclass(format('pgmq.%I', relation)) is not null,
      'prepared', to_regclass(format('pgmq.%I', relation || '_priority_idx')) is not null)), '{}')
    from unnest(queues) name, supabase_resilience.queue_table(name) relation));
end $$;

-- Make what is missing: the queue, the queue of its dead letters, the index of its priorities (which
-- holds up writers while it is built). Row level security is on, as for queues of the dashboard.
create or replace function public.supabase_resilience_queue_create(
  queue_name text, with_dead_letters boolean default true
) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  relation text := supabase_resilience.queue_table(queue_name);
  wanted text;
begin
  foreach wanted in array
    array[queue_name] || case when with_dead_letters then array[queue_name || '_dead'] end
  loop
    if to_regclass(format('pgmq.%I', supabase_resilience.queue_table(wanted))) is null then
      perform pgmq.create(wanted);
      execute format('alter table pgmq.%I enable row level security',
        supabase_resilience.queue_table(wanted));
      execute format('alter table pgmq.%I enable row level security', lower('a_' || wanted));
    end if;
  end loop;
  execute format(
    'create index if not exists %I on pgmq.%I (supabase_resilience.job_priority(message) desc, msg_id)',
    relation || '_priority_idx', relation);
end $$;

-- The ids of the jobs, in order; that of a job whose key is taken is the id of the job that has it.
create or replace function public.supabase_resilience_queue_send(
  queue_name text, messages jsonb, delay double precision
) returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  fresh bigint[] := '{}';
  wanted record;
begin
  for wanted in
    select distinct on (ours ->> 'dedupe_key') n, ours ->> 'dedupe_key' as key, ours ->> 'id' as id
    from jsonb_array_elements(messages) with ordinality as m (message, n),
      supabase_resilience.job_envelope(message) ours
    where ours ->> 'dedupe_key' is not null
    order by ours ->> 'dedupe_key', n
  loop
    if supabase_resilience.claim_key(queue_name, wanted.key, wanted.id) then
      fresh := fresh || wanted.n;
    end if;
  end loop;
  perform supabase_resilience.add_jobs(queue_name, coalesce(jsonb_agg(message order by n), '[]'), delay)
  from jsonb_array_elements(messages) with ordinality as m (message, n)
  where supabase_resilience.job_envelope(message) ->> 'dedupe_key' is null or n = any (fresh);
  return (
    select coalesce(jsonb_agg(coalesce(k.job_id, ours ->> 'id') order by n), '[]')
    from jsonb_array_elements(messages) with ordinality as m (message, n)
    cross join supabase_resilience.job_envelope(message) ours
    left join supabase_resilience.job_keys k
      on k.queue = lower(queue_name) and k.key = ours ->> 'dedupe_key');
end $$;

-- One round trip of a worker: settle, then take. A repeated call settles nothing twice.
create or replace function public.supabase_resilience_queue_exchange(
  queue_name text, settled jsonb, take integer, oldest integer, lease double precision,
  by_priority boolean, dead_queue text
) returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  over jsonb := '[]';
  jobs jsonb := '[]';
begin
  if jsonb_array_length(settled) > 0 then
    over := supabase_resilience.settle_jobs(queue_name, settled, dead_queue);
  end if;
  if take > 0 then
    jobs := supabase_resilience.take_jobs(queue_name, take, oldest, lease, by_priority);
  end if;
  return jsonb_build_object('settled', over, 'jobs', jobs);
end $$;

create or replace function public.supabase_resilience_queue_extend(
  queue_name text, held jsonb, lease double precision
) returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  result jsonb;
begin
  execute format(
    $sql$ with held as materialized (
      select m.msg_id
      from jsonb_to_recordset($1) as h (id bigint, fence integer)
      join pgmq.%1$I m on m.msg_id = h.id and m.read_ct = h.fence
      order by m.msg_id
      for update of m
    ), extended as (
      update pgmq.%1$I m set vt = clock_timestamp() + make_interval(secs => $2)
      from held where m.msg_id = held.msg_id
      returning m.msg_id
    )
    select coalesce(jsonb_agg(msg_id), '[]') from extended $sql$,
    supabase_resilience.queue_table(queue_name)
  ) into result using held, lease;
  return result;
end $$;

create or replace function public.supabase_resilience_queue_dead_letters(
  queue_name text, at_most integer
) returns jsonb language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  result jsonb;
begin
  execute format(
    $sql$ select coalesce(jsonb_agg(to_jsonb(l) order by msg_id), '[]')
    from (
      select msg_id, read_ct, enqueued_at, vt, message from pgmq.%I order by msg_id limit $1
    ) l $sql$,
    supabase_resilience.queue_table(queue_name || '_dead')
  ) into result using at_most;
  return result;
end $$;

-- A dead letter becomes a job again, as new, in the first of `lanes` that takes its priority, else in
-- the queue itself. False when there is none; copies of the same job go with it.
create or replace function public.supabase_resilience_queue_replay(
  queue_name text, id text, lanes jsonb
) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  letter jsonb;
  ours jsonb;
  target text;
begin
  execute format(
    $sql$ with gone as (
      delete from pgmq.%1$I where msg_id = any (array(
        select msg_id from pgmq.%1$I
        where coalesce(supabase_resilience.job_envelope(message) ->> 'id', $2 || '/' || msg_id) = $1
        order by msg_id
        for update skip locked))
      returning msg_id, message
    )
    select message from gone order by msg_id limit 1 $sql$,
    supabase_resilience.queue_table(queue_name || '_dead')
  ) into letter using id, queue_name;
  if letter is null then
    return false;
  end if;
  select lane.queue into target
  from jsonb_to_recordset(lanes) as lane (at_least integer, queue text)
  where lane.at_least <= supabase_resilience.job_priority(letter)
  order by lane.at_least desc limit 1;
  target := coalesce(target, queue_name);
  ours := supabase_resilience.job_envelope(letter) - array['attempts', 'outlived', 'dead'];
  if ours is not null then
    letter := supabase_resilience.job_message(letter, ours || jsonb_build_object(
      'enqueued_at', extract(epoch from clock_timestamp())));
    if ours ->> 'dedupe_key' is not null then
      perform supabase_resilience.claim_key(target, ours ->> 'dedupe_key', ours ->> 'id');
    end if;
  end if;
  perform supabase_resilience.add_jobs(target, jsonb_build_array(letter), 0);
  return true;
end $$;

create or replace function public.supabase_resilience_queue_purge_dead_letters(queue_name text)
returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  result bigint;
begin
  execute format(
    $sql$ with gone as (
      delete from pgmq.%1$I where msg_id = any (array(
        select msg_id from pgmq.%1$I order by msg_id for update skip locked))
      returning msg_id
    )
    select count(*) from gone $sql$,
    supabase_resilience.queue_table(queue_name || '_dead')
  ) into result;
  return result;
end $$;

-- Per queue: how many can be taken now, how many cannot, and for how long the first has been ready.
create or replace function public.supabase_resilience_queue_metrics(queues text[]) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  result jsonb := '{}';
  measured jsonb;
  wanted text;
begin
  foreach wanted in array queues loop
    execute format(
      $sql$ select jsonb_build_object(
        'ready', count(*) filter (where vt <= now()),
        'delayed', count(*) filter (where vt > now()),
        'oldest_age', extract(epoch from now() - min(vt) filter (where vt <= now())))
      from pgmq.%I $sql$,
      supabase_resilience.queue_table(wanted)
    ) into measured;
    result := result || jsonb_build_object(wanted, measured);
  end loop;
  return result;
end $$;

-- PostgreSQL lets every role call what is made, and Supabase says so for each one, so that has to be
-- taken back. The priorities are what whoever adds a message has to compute, for the index.
revoke all on function
  supabase_resilience.queue_table, supabase_resilience.job_envelope, supabase_resilience.job_message,
  supabase_resilience.job_priority, supabase_resilience.is_waiting, supabase_resilience.claim_key,
  supabase_resilience.release_keys, supabase_resilience.add_jobs, supabase_resilience.settle_jobs,
  supabase_resilience.take_jobs
  from public, anon, authenticated, service_role;
grant execute on function supabase_resilience.job_priority to public;
do $$
declare
  callable regprocedure;
begin
  for callable in
    select oid from pg_catalog.pg_proc
    where pronamespace = 'public'::regnamespace and proname like 'supabase\_resilience\_queue\_%'
  loop
    execute format('revoke all on function %s from public, anon, authenticated', callable);
    execute format('grant execute on function %s to service_role', callable);
  end loop;
end $$;

notify pgrst, 'reload schema';
