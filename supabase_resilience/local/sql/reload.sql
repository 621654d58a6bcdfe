-- REST learns of new and changed tables by itself, as on Supabase.
create function extensions.tell_rest_of_change() returns event_trigger language plpgsql as $$
begin
  notify pgrst, 'reload schema';
end $$;
create event trigger pgrst_ddl_watch on ddl_command_end execute function extensions.tell_rest_of_change();
create event trigger pgrst_drop_watch on sql_drop execute function extensions.tell_rest_of_change();
