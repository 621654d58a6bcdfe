-- Realtime tells of the tables in this publication; it starts empty.
create publication supabase_realtime;
