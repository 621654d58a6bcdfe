// Which representation the client accepts, and the SQL that produces it. PostgreSQL prints every
// body itself.

import { ApiError } from "./errors.mjs";

const ARRAY = /^application\/vnd\.pgrst\.array(\+json)?$/;
const OBJECT = /^application\/vnd\.pgrst\.object(\+json)?$/;
const PLAN = /^application\/vnd\.pgrst\.plan(\+json|\+text)?$/;

/**
 * Choose the representation for an `Accept` header: `{ type, kind, stripNulls, plan }`; PGRST107
 * when there is none.
 */
export function chooseMedia(accept) {
  const wanted = (accept || "*/*")
    .split(",")
    .map(parseMedia)
    .sort((one, other) => other.quality - one.quality);
  for (const media of wanted) {
    const chosen = representation(media);
    if (chosen) return chosen;
  }
  throw new ApiError(
    406,
    "PGRST107",
    `None of these media types are available: ${wanted.map(({ name }) => name).join(", ")}`,
  );
}

function parseMedia(text) {
  const [name, ...rest] = text.split(";").map((part) => part.trim());
  const options = Object.fromEntries(
    rest.map((option) => option.split("=").map((part) => part.replaceAll('"', ""))),
  );
  return { name: name.toLowerCase(), options, quality: Number(options.q ?? 1) };
}

function representation({ name, options }) {
  const stripNulls = options.nulls === "stripped";
  const suffix = stripNulls ? ";nulls=stripped" : "";
  if (["*/*", "application/*", "application/json"].includes(name))
    return { type: "application/json", kind: "json" };
  if (name === "text/csv") return { type: name, kind: "csv" };
  if (ARRAY.test(name))
    return { type: `application/vnd.pgrst.array+json${suffix}`, kind: "json", stripNulls };
  if (OBJECT.test(name))
    return { type: `application/vnd.pgrst.object+json${suffix}`, kind: "object", stripNulls };
  return PLAN.test(name) ? planned(name, options) : null;
}

function planned(name, options) {
  const format = name.endsWith("+json") ? "json" : "text";
  const extras = (options.options ?? "")
    .split("|")
    .filter((option) => /^(analyze|verbose|settings|buffers|wal)$/.test(option));
  const inner = options.for ? representation(parseMedia(options.for)) : null;
  return {
    ...(inner ?? { kind: "json" }),
    type: `application/vnd.pgrst.plan+${format}`,
    plan: `EXPLAIN (${[`FORMAT ${format}`, ...extras].join(", ")})`,
  };
}

/**
 * The SQL expression of the body, over the rows `_postgrest_t`; `routine` says what a function
 * returns.
 */
export function bodySql({ kind, stripNulls }, routine = null) {
  if (kind === "csv") return CSV;
  const value = routine && !routine.returns_row ? "_postgrest_t.pgrst_scalar" : "_postgrest_t";
  const aggregate = stripNulls ? `json_strip_nulls(json_agg(${value}))` : `json_agg(${value})`;
  const single = kind === "object" || (routine && !routine.returns_set);
  return single ? `coalesce(${aggregate}->0, 'null')::text` : `coalesce(${aggregate}, '[]')::text`;
}

const CSV = `
  (SELECT coalesce(string_agg(key, ','), '') FROM (
    SELECT json_object_keys(row_to_json(first)) AS key FROM (SELECT * FROM pgrst_source LIMIT 1) first) header)
  || E'\\n' ||
  coalesce(string_agg(substring(_postgrest_t::text, 2, length(_postgrest_t::text) - 2), E'\\n'), '')`;
