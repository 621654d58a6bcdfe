-- The roles of a fresh Supabase project. Roles belong to the whole server, so those that exist are left as they are.
do $$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      ('postgres', 'login createdb createrole replication bypassrls', null),
      ('anon', 'nologin', '3s'),
      ('authenticated', 'nologin', '8s'),
      ('service_role', 'nologin bypassrls', null),
      ('authenticator', 'login noinherit', '8s')
    ) as roles (name, attributes, timeout)
  loop
    if not exists (select from pg_roles where rolname = wanted.name) then
      execute format('create role %I %s', wanted.name, wanted.attributes);
      if wanted.timeout is not null then
        execute format('alter role %I set statement_timeout = %L', wanted.name, wanted.timeout);
      end if;
    end if;
  end loop;
end $$;

grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role, authenticator to postgres with admin option;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;

do $$
begin
  execute format('alter database %I owner to postgres', current_database());
  execute format('alter database %I set search_path = "$user", public, extensions', current_database());
end $$;

create schema extensions authorization postgres;
grant usage on schema extensions to anon, authenticated, service_role;

-- What the user makes in public is open to the API's roles; row level security is what closes it.
grant usage on schema public to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on functions to anon, authenticated, service_role;
