// The one statement of a request: its source (what is read, written or called) and around it the
// SELECT whose single row is the response. PostgreSQL prints the body, so nothing is lost on the
// way.

import { callSql } from "./call.mjs";
import { bodySql } from "./media.mjs";
import { countSql, selectSql } from "./read.mjs";
import { guc, literal, Parameters } from "./sql.mjs";
import { deleteSql, insertSql, updateSql } from "./write.mjs";

const NULL = "null";
const NO_BODY = "''";
const ALL_ROWS = "SELECT * FROM pgrst_source";

/** A read of `root`; the total is counted when the client prefers so. */
export function readStatement(request, root, maxRows) {
  const parameters = new Parameters();
  const parts = {
    source: selectSql(root, parameters),
    ...counted(root, parameters, request.preferences.count, maxRows),
    rows: ALL_ROWS,
    body: printed(request),
  };
  return { ...assembled(request, parts, parameters), ...estimate(root, request.preferences) };
}

/** A call of `routine`; filters, order and range apply to what it returns. */
export function callStatement(request, root, routine, input, maxRows) {
  const parameters = new Parameters();
  const parts = {
    source: callSql(routine, input, parameters),
    ...counted(root, parameters, request.preferences.count, maxRows),
    rows: selectSql(root, parameters),
    body: printed(request, routine),
  };
  return assembled(request, parts, parameters);
}

/** A write; `write` is what `write.mjs` needs to know. */
export function writeStatement(request, write) {
  const parameters = new Parameters();
  const source = WRITES[request.method](write, parameters);
  if (request.preferences.return === "representation") {
    // The filters chose what to write; what was written is shown whether or not it still fits.
    const rows = selectSql({ ...write.root, conditions: [] }, parameters);
    return assembled(request, { source, rows, body: printed(request) }, parameters);
  }
  const headersOnly = request.preferences.return === "headers-only";
  const location = headersOnly ? locationSql(write.primaryKey) : NULL;
  return assembled(request, { source, rows: ALL_ROWS, body: NO_BODY, location }, parameters);
}

function printed({ method, media }, routine = null) {
  return method === "HEAD" ? NO_BODY : bodySql(media, routine);
}

const WRITES = { POST: insertSql, PUT: insertSql, PATCH: updateSql, DELETE: deleteSql };

function assembled(
  { media },
  { source, cte = "", total = NULL, rows, body, location = NULL },
  { values },
) {
  const text = `
    WITH pgrst_source AS (${source})${cte}
    SELECT ${total}, pg_catalog.count(_postgrest_t), ${body}, ${guc("response.headers")},
      ${guc("response.status")}, ${guc("pgrst.inserted")}, ${location}
    FROM (${rows}) _postgrest_t`;
  return { text: media.plan ? `${media.plan} ${text}` : text, values };
}

// An estimated count is exact up to the cap on rows; only above it the planner is asked.
function counted(root, parameters, kind, maxRows) {
  if (kind !== "exact" && kind !== "estimated") return {};
  const cap = kind === "estimated" ? ` LIMIT ${maxRows + 1}` : "";
  return {
    cte: `, pgrst_source_count AS (${countSql(root, parameters)}${cap})`,
    total: "(SELECT pg_catalog.count(*) FROM pgrst_source_count)",
  };
}

function estimate(root, { count }) {
  if (count !== "planned" && count !== "estimated") return {};
  const parameters = new Parameters();
  return {
    planned: {
      text: `EXPLAIN (FORMAT JSON) ${countSql(root, parameters)}`,
      values: parameters.values,
    },
  };
}

function locationSql(primaryKey) {
  const names = primaryKey.map(literal).join(", ");
  if (!names) return NULL;
  return `CASE WHEN pg_catalog.count(_postgrest_t) = 1 THEN (
    SELECT json_object_agg(key, coalesce('eq.' || value, 'is.null'))
    FROM json_each_text((SELECT row_to_json(one) FROM pgrst_source one LIMIT 1))
    WHERE key IN (${names})) END`;
}
