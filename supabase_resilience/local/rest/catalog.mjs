// The schema cache: what the database contains, read in one go and kept until `NOTIFY pgrst,
// 'reload schema'`.

import { relationshipsOf } from "./relationships.mjs";
import { qualified } from "./sql.mjs";

/** Read everything that requests need to know about the exposed schemas, through `client`. */
export async function readCatalog(client, schemas) {
  const rows = async (sql, values) => (await client.query(sql, values)).rows;
  const relations = indexRelations(await rows(RELATIONS, [schemas]));
  const foreignKeys = await rows(FOREIGN_KEYS);
  return {
    relations,
    relationships: relationshipsOf(foreignKeys, relations),
    functions: groupByName(await rows(FUNCTIONS, [schemas])),
    roleSettings: new Map(
      (await rows(ROLE_SETTINGS)).map(({ role, settings }) => [role, settings]),
    ),
  };
}

function indexRelations(rows) {
  return new Map(
    rows.map((row) => {
      const columns = new Map(row.columns.map((column) => [column.name, column]));
      return [qualified(row.schema, row.name), { ...row, columns }];
    }),
  );
}

function groupByName(functions) {
  const groups = new Map();
  for (const routine of functions) {
    const name = qualified(routine.schema, routine.name);
    groups.set(name, [...(groups.get(name) ?? []), routine]);
  }
  return groups;
}

// Identity columns have no stored default; `missing=default` needs the expression that they stand
// for.
const RELATIONS = `
  with exposed as (
    select c.oid, n.nspname, c.relname, c.relkind
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = any ($1) and c.relkind in ('r', 'v', 'm', 'f', 'p') and not c.relispartition
  ), primary_key as (
    select i.indrelid as oid, array_agg(a.attname::text order by k.position) as columns
    from pg_index i
    cross join unnest(i.indkey::int2[]) with ordinality as k (attnum, position)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indisprimary and k.position <= i.indnkeyatts
    group by i.indrelid
  ), view_base as (
    select distinct r.ev_class as view, d.refobjid as base
    from pg_rewrite r
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
      and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0 and d.refobjid <> r.ev_class
  )
  select e.nspname as schema, e.relname as name,
    (select coalesce(json_agg(json_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'baseType', coalesce(b.typname, t.typname),
        'default', case
          when a.attidentity <> ''
            then format('nextval(%L)', pg_get_serial_sequence(e.oid::regclass::text, a.attname))
          when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end
      ) order by a.attnum), '[]')
      from pg_attribute a
      join pg_type t on t.oid = a.atttypid
      left join pg_type b on b.oid = t.typbasetype
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      where a.attrelid = e.oid and a.attnum > 0 and not a.attisdropped) as columns,
    coalesce(
      (select columns from primary_key p where p.oid = e.oid),
      (select p.columns from primary_key p join view_base v on v.base = p.oid
        where v.view = e.oid and p.columns <@ array(
          select attname::text from pg_attribute where attrelid = e.oid and attnum > 0)
        limit 1),
      '{}') as primary_key,
    array(select json_build_array(n.nspname, c.relname)
      from view_base v
      join pg_class c on c.oid = v.base
      join pg_namespace n on n.oid = c.relnamespace
      where v.view = e.oid) as bases
  from exposed e
  order by e.nspname, e.relname`;

const FOREIGN_KEYS = `
  select c.conname as name, tn.nspname as schema, t.relname as table,
    fn.nspname as foreign_schema, f.relname as foreign_table,
    array(select a.attname::text
      from unnest(c.conkey) with ordinality k (attnum, position)
      join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.attnum
      order by k.position) as columns,
    array(select a.attname::text
      from unnest(c.confkey) with ordinality k (attnum, position)
      join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.attnum
      order by k.position) as foreign_columns,
    exists (select from pg_index i
      where i.indrelid = c.conrelid and i.indisunique and i.indpred is null
        and i.indkey::int2[] <@ c.conkey) as is_unique
  from pg_constraint c
  join pg_class t on t.oid = c.conrelid join pg_namespace tn on tn.oid = t.relnamespace
  join pg_class f on f.oid = c.confrelid join pg_namespace fn on fn.oid = f.relnamespace
  where c.contype = 'f' and c.conparentid = 0
  order by c.conname`;

// Parameters that only return something (out, table) are no arguments.
const FUNCTIONS = `
  select n.nspname as schema, p.proname as name, p.provolatile = 'v' as is_volatile,
    p.proretset as returns_set, p.prorettype = 'void'::regtype as returns_void,
    coalesce(b.typtype, t.typtype) = 'c' or p.prorettype = 'record'::regtype as returns_row,
    case when r.oid is not null then json_build_array(rn.nspname, r.relname)
      end as returns_relation,
    (select coalesce(json_agg(json_build_object(
        'name', i.name,
        'type', case when i.type = 'bpchar'::regtype then 'character varying'
          else format_type(i.type, null) end,
        'required', i.position <= p.pronargs - p.pronargdefaults,
        'variadic', p.provariadic <> 0 and i.position = p.pronargs
      ) order by i.position), '[]')
      from (
        select a.type, coalesce(p.proargnames[a.place], '') as name,
          row_number() over (order by a.place) as position
        from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]))
          with ordinality as a (type, place)
        where coalesce(p.proargmodes[a.place], 'i') in ('i', 'b', 'v')
      ) as i) as parameters,
    coalesce(p.proconfig, '{}') as settings
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  join pg_type t on t.oid = p.prorettype
  left join pg_type b on b.oid = t.typbasetype
  left join pg_class r on r.oid = coalesce(b.typrelid, t.typrelid)
    and r.relkind in ('r', 'v', 'm', 'f', 'p')
  left join pg_namespace rn on rn.oid = r.relnamespace
  where n.nspname = any ($1) and p.prokind = 'f'
  order by n.nspname, p.proname, p.oid`;

// Only what `authenticator` may set itself, or every request of such a role would fail.
const ROLE_SETTINGS = `
  select r.rolname as role, array_agg(own.text order by s.setdatabase) as settings
  from pg_db_role_setting s
  join pg_roles r on r.oid = s.setrole
  cross join unnest(s.setconfig) as own (text)
  left join pg_settings known on known.name = split_part(own.text, '=', 1)
  where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
    and coalesce(known.context, 'user') = 'user'
  group by r.rolname`;
