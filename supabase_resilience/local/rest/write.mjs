// A write: INSERT, upsert, UPDATE or DELETE as the source of one statement. The request's JSON goes
// to PostgreSQL as it came; PostgreSQL takes the columns out of it, with their own types.

import { ApiError, badBody } from "./errors.mjs";
import { neededColumns, whereSql } from "./read.mjs";
import { guc, ident, literal, qualified, relationSql } from "./sql.mjs";

/** What is written: the raw JSON, whether it is one object, and the columns that it sets. */
export function payloadOf(body, columns) {
  if (columns) return { json: body, isObject: /^\s*\{/.test(body), columns };
  const value = parsed(body);
  if (!Array.isArray(value)) {
    return isObject(value)
      ? { json: body, isObject: true, columns: Object.keys(value) }
      : EMPTY_ARRAY;
  }
  if (!value.length) return EMPTY_ARRAY;
  const keys = isObject(value[0]) ? Object.keys(value[0]) : [];
  if (!value.every((row) => isObject(row) && hasExactly(row, keys))) {
    throw badBody("All object keys must match");
  }
  return { json: body, isObject: false, columns: keys };
}

const EMPTY_ARRAY = { json: "[]", isObject: false, columns: [] };

function parsed(body) {
  try {
    return JSON.parse(body);
  } catch {
    throw badBody("Empty or invalid json");
  }
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function hasExactly(row, keys) {
  return Object.keys(row).length === keys.length && keys.every((key) => Object.hasOwn(row, key));
}

/** `INSERT`, with `ON CONFLICT` when `resolution` and conflict columns are given. */
export function insertSql(
  { relation, root, payload, preferences, conflict, pinned, returning },
  parameters,
) {
  const columns = typedColumns(relation, root, payload.columns);
  const merges = conflict?.resolution === "merge-duplicates" && conflict.columns.length > 0;
  return [
    `INSERT INTO ${relationSql(relation)}`,
    columns.length ? `(${columns.map(({ name }) => ident(name)).join(", ")})` : "",
    `SELECT ${columns.map(({ name }) => `"pgrst_body".${ident(name)}`).join(", ")}`,
    bodySql(payload, columns, preferences.missing === "default", parameters),
    insertConditions(pinned, merges, parameters),
    conflictSql(conflict, columns),
    returningSql(relation, returning),
  ].join(" ");
}

function insertConditions(pinned, counts, parameters) {
  const conditions = (pinned ?? []).map(
    ({ column, value }) => `"pgrst_body".${ident(column)} = ${parameters.add(value)}`,
  );
  if (counts) conditions.push(`${countInserted("+ 1")} <> '0'`);
  return conditions.length ? `WHERE ${conditions.join(" AND ")}` : "";
}

// Counts rows up when they are about to be inserted and down again when they turn out to be
// updates; the rest are inserts.
function countInserted(step) {
  const count = `(coalesce(${guc("pgrst.inserted")}::int, 0) ${step})::text`;
  return `set_config('pgrst.inserted', ${count}, true)`;
}

function conflictSql(conflict, columns) {
  if (!conflict?.resolution || !conflict.columns.length) return "";
  const target = `ON CONFLICT (${conflict.columns.map(ident).join(", ")})`;
  if (conflict.resolution === "ignore-duplicates" || !columns.length) return `${target} DO NOTHING`;
  const assignments = columns
    .map(({ name }) => `${ident(name)} = EXCLUDED.${ident(name)}`)
    .join(", ");
  return `${target} DO UPDATE SET ${assignments} WHERE ${countInserted("- 1")} <> '-1'`;
}

/** `UPDATE` of the rows that the root's filters select; without columns it changes nothing. */
export function updateSql({ relation, root, payload, preferences, returning }, parameters) {
  const columns = typedColumns(relation, root, payload.columns);
  const table = relationSql(relation);
  if (!columns.length) return `SELECT ${columnsSql(relation, returning)} FROM ${table} WHERE false`;
  const assignments = columns
    .map(({ name }) => `${ident(name)} = "pgrst_body".${ident(name)}`)
    .join(", ");
  return [
    `UPDATE ${table} SET ${assignments}`,
    bodySql(payload, columns, preferences.missing === "default", parameters),
    filteredSql(root, table, parameters),
    returningSql(relation, returning),
  ].join(" ");
}

/** `DELETE` of the rows that the root's filters select. */
export function deleteSql({ relation, root, returning }, parameters) {
  const table = relationSql(relation);
  const filtered = filteredSql(root, table, parameters);
  return `DELETE FROM ${table} ${filtered} ${returningSql(relation, returning)}`;
}

// The root reads from the written rows; the filters of the write itself apply to the table.
function filteredSql(root, table, parameters) {
  return whereSql({ ...root, qualifier: table, children: [] }, parameters);
}

/** What a write has to return, for a representation, a Location header or a mere count. */
export function returningColumns(root, preferences, primaryKey) {
  if (preferences.return === "representation") return neededColumns(root);
  return preferences.return === "headers-only" ? primaryKey : [];
}

function returningSql(relation, columns) {
  return `RETURNING ${columns.length ? columnsSql(relation, columns) : "1"}`;
}

function columnsSql(relation, columns) {
  if (!columns.length) return "1";
  return columns
    .map((name) => `${relationSql(relation)}.${name === "*" ? "*" : ident(name)}`)
    .join(", ");
}

function typedColumns([, table], root, names) {
  return names.map((name) => {
    const column = root.columns?.get(name);
    if (column) return column;
    throw new ApiError(
      400,
      "PGRST204",
      `Could not find the '${name}' column of '${table}' in the schema cache`,
    );
  });
}

// FROM the request's JSON: one row per object, a column per key, NULL (or the column's default) for
// a missing key.
function bodySql({ json, isObject: one }, columns, withDefaults, parameters) {
  const type = withDefaults ? "jsonb" : "json";
  const payload = `FROM (SELECT ${parameters.add(json)}::${type} AS json_data) "pgrst_payload"`;
  const rows = withDefaults ? `"pgrst_defaults".json_data` : `"pgrst_payload".json_data`;
  const defaults = withDefaults ? `, LATERAL (${defaultsSql(columns, one)}) "pgrst_defaults"` : "";
  return `${payload}${defaults}, LATERAL (${rowsSql(type, rows, columns, one)}) "pgrst_body"`;
}

function rowsSql(type, rows, columns, one) {
  if (!columns.length) return one ? "SELECT" : `SELECT FROM ${type}_array_elements(${rows})`;
  const names = columns.map(({ name }) => ident(name)).join(", ");
  const typed = columns
    .map(({ name, type: columnType }) => `${ident(name)} ${columnType}`)
    .join(", ");
  return `SELECT ${names} FROM ${type}_to_record${one ? "" : "set"}(${rows}) AS _(${typed})`;
}

function defaultsSql(columns, one) {
  const pairs = columns
    .filter((column) => column.default !== null)
    .map((column) => `${literal(column.name)}, ${column.default}`);
  const defaults = `jsonb_build_object(${pairs.join(", ")})`;
  const payload = `"pgrst_payload".json_data`;
  if (one) return `SELECT ${defaults} || ${payload} AS json_data`;
  const merged = `jsonb_agg(${defaults} || each) AS json_data`;
  return `SELECT ${merged} FROM jsonb_array_elements(${payload}) each`;
}

/**
 * `PUT /relation?key=eq.value`: the filters must name the whole primary key and nothing else
 * (PGRST105).
 */
export function pinnedKey(root, primaryKey) {
  const pinned = root.conditions.map(({ field, operator, negated, value }) =>
    operator === "eq" && !negated ? { column: field.column, value } : null,
  );
  const names = pinned.map((pin) => pin?.column);
  const complete =
    primaryKey.length === names.length && primaryKey.every((column) => names.includes(column));
  if (complete && primaryKey.length) return pinned;
  throw new ApiError(
    405,
    "PGRST105",
    "Filters must include all and only primary key columns with 'eq' operators",
  );
}

/** The relation's primary key, for conflicts and Location headers. */
export function primaryKeyOf(catalog, relation) {
  return catalog.relations.get(qualified(...relation))?.primary_key ?? [];
}
