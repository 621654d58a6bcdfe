-- As much of pgmq as pgmq_public needs, with the tables, row shapes and signatures of the versions
-- that hosted projects run: 1.4.4 as it stands here; 1.5.1 with the lines after "1.5.1: ".
create schema pgmq;
create table pgmq.meta (
  queue_name varchar unique not null,
  is_partitioned boolean not null,
  is_unlogged boolean not null,
  created_at timestamptz default now() not null
);
create type pgmq.message_record as (
  msg_id bigint, read_ct integer, enqueued_at timestamptz, vt timestamptz, message jsonb
  -- 1.5.1: , headers jsonb
);

create function pgmq.create(queue_name text) returns void language plpgsql as $$
declare
  kind text;
begin
  foreach kind in array array['q', 'a'] loop
    execute format(
      'create table if not exists pgmq.%I (
        msg_id bigint primary key %s,
        read_ct int default 0 not null,
        enqueued_at timestamptz default now() not null,
        %s
        vt timestamptz not null,
        message jsonb
        -- 1.5.1: , headers jsonb
      )',
      lower(kind || '_' || queue_name),
      case kind when 'q' then 'generated always as identity' else '' end,
      case kind when 'a' then 'archived_at timestamptz default now() not null,' else '' end);
  end loop;
  execute format('create index if not exists %I on pgmq.%I (vt)',
    lower('q_' || queue_name || '_vt_idx'), lower('q_' || queue_name));
  insert into pgmq.meta (queue_name, is_partitioned, is_unlogged)
  values (queue_name, false, false) on conflict do nothing;
end $$;

create function pgmq.send_batch(queue_name text, msgs jsonb[], delay integer default 0)
returns setof bigint language plpgsql as $$
begin
  return query execute format(
    'insert into pgmq.%I (vt, message)
    select clock_timestamp() + make_interval(secs => $2), unnest($1) returning msg_id',
    lower('q_' || queue_name)) using msgs, delay;
end $$;

create function pgmq.send(queue_name text, msg jsonb, delay integer default 0)
returns setof bigint language sql as $$
  select * from pgmq.send_batch(queue_name, array[msg], delay);
$$;

create function pgmq.read(
  queue_name text, vt integer, qty integer
  -- 1.5.1: , conditional jsonb default '{}'
) returns setof pgmq.message_record language plpgsql as $$
begin
  return query execute format(
    'with visible as (
      select msg_id from pgmq.%1$I where vt <= clock_timestamp()
      order by msg_id limit $2 for update skip locked
    )
    update pgmq.%1$I m
    set vt = clock_timestamp() + make_interval(secs => $1), read_ct = read_ct + 1
    from visible where m.msg_id = visible.msg_id
    returning m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message
    -- 1.5.1: , m.headers
    ',
    lower('q_' || queue_name)) using vt, qty;
end $$;

create function pgmq.delete(queue_name text, msg_id bigint) returns boolean language plpgsql as $$
declare
  count integer;
begin
  execute format('delete from pgmq.%I where msg_id = $1', lower('q_' || queue_name)) using msg_id;
  get diagnostics count = row_count;
  return count > 0;
end $$;
