// From the statement's row to the HTTP response: status, headers, and what makes a finished
// statement roll back.

import { ApiError, badRange, notOneRow } from "./errors.mjs";
import { appliedPreferences, maxAffected } from "./preferences.mjs";

const READ_PREFERENCES = ["count", "handling", "timezone"];
const CALL_PREFERENCES = [...READ_PREFERENCES, "max-affected"];
const WRITE_PREFERENCES = {
  POST: ["resolution", "missing", "return", "count", "handling", "timezone"],
  PUT: ["return", "count", "handling", "timezone"],
  PATCH: ["missing", "return", "count", "handling", "timezone", "max-affected"],
  DELETE: ["return", "count", "handling", "timezone", "max-affected"],
};

// --- Checks before the commit ---

/** Throw what must undo a read (a single object was asked for, and the rows are not one). */
export function checkRead({ media, range }, { page, total }) {
  if (media.kind === "object" && page !== 1) throw notOneRow(page);
  if (total !== null && range.offset > total) throw outOfBounds(range.offset, total);
}

/** Throw what must undo a write. */
export function checkWrite(request, { pinned }, { page, plan }) {
  if (plan) return;
  if (pinned && page !== 1) {
    throw new ApiError(400, "PGRST115", "Payload values do not match URL in primary key column(s)");
  }
  if (request.media.kind === "object" && page !== 1) throw notOneRow(page);
  if (request.method === "PATCH" || request.method === "DELETE") checkMaxAffected(request, page);
}

/** Throw what must undo a call. */
export function checkCall(request, routine, row) {
  if (maxAffected(request.preferences) !== Infinity && !routine.returns_set) {
    const message =
      "Function must return SETOF or TABLE when max-affected preference is used with handling=strict";
    throw new ApiError(400, "PGRST128", message);
  }
  checkRead(request, row);
  checkMaxAffected(request, row.page);
}

function checkMaxAffected({ preferences }, rows) {
  if (rows <= maxAffected(preferences)) return;
  throw new ApiError(400, "PGRST124", "Query result exceeds max-affected preference constraint", {
    details: `The query affects ${rows} rows`,
  });
}

function outOfBounds(offset, total) {
  const error = badRange(`An offset of ${offset} was requested, but there are only ${total} rows.`);
  error.headers = { "Content-Range": `*/${total}` };
  return error;
}

// --- Responses ---

export function readResponse(request, row) {
  const { offset } = request.range;
  const headers = {
    ...contentHeaders(request),
    "Content-Range": contentRange(offset, offset + row.page - 1, row.total),
    "Content-Location": `/${request.target}${request.canonicalQuery}`,
    ...applied(request, READ_PREFERENCES),
  };
  return overridden(row, { status: rangeStatus(offset, row), headers, body: row.body });
}

export function callResponse(request, routine, row) {
  const { offset } = request.range;
  const headers = {
    "Content-Range": contentRange(offset, offset + row.page - 1, row.total),
    ...applied(request, CALL_PREFERENCES),
  };
  if (routine.returns_void) return overridden(row, { status: 204, headers, body: "" });
  Object.assign(headers, contentHeaders(request));
  return overridden(row, { status: rangeStatus(offset, row), headers, body: row.body });
}

export function writeResponse(request, write, row) {
  const isFull = request.preferences.return === "representation" || row.plan;
  const headers = {
    ...(isFull ? contentHeaders(request) : {}),
    ...writtenRange(request, row),
    ...(row.location ? { Location: locationOf(request, row.location) } : {}),
    ...appliedToWrite(request, write),
  };
  return overridden(row, {
    status: writeStatus(request, row, isFull),
    headers,
    body: isFull ? row.body : "",
  });
}

function writeStatus({ method, preferences }, row, isFull) {
  if (row.plan) return 200;
  const merged = preferences.resolution === "merge-duplicates" && row.inserted <= 0;
  if (method === "POST") return merged ? 200 : 201;
  if (method === "PUT" && isFull) return row.inserted > 0 ? 201 : 200;
  return isFull ? 200 : 204;
}

function writtenRange({ method, preferences }, { page }) {
  if (method === "PUT") return {};
  const total = ["exact", "estimated"].includes(preferences.count) ? page : null;
  return {
    "Content-Range":
      method === "PATCH" ? contentRange(0, page - 1, total) : contentRange(1, 0, total),
  };
}

function appliedToWrite(request, { conflict }) {
  const names = WRITE_PREFERENCES[request.method].filter(
    (name) => name !== "resolution" || conflict.columns.length,
  );
  return applied(request, names);
}

function applied({ preferences }, names) {
  const allowed = names.filter(
    (name) => name !== "max-affected" || preferences.handling === "strict",
  );
  const value = appliedPreferences(preferences, allowed);
  return value ? { "Preference-Applied": value } : {};
}

function contentHeaders({ media, hasProfile, schema }) {
  return {
    "Content-Type": `${media.type}; charset=utf-8`,
    ...(hasProfile ? { "Content-Profile": schema } : {}),
  };
}

function contentRange(first, last, total) {
  const range = total !== 0 && first <= last ? `${first}-${last}` : "*";
  return `${range}/${total ?? "*"}`;
}

function rangeStatus(offset, { page, total }) {
  return total !== null && page < total ? 206 : 200;
}

function locationOf({ target }, key) {
  return `/${target}?${new URLSearchParams(key)}`;
}

// A function may set `response.status` and `response.headers` itself.
function overridden({ headers, status }, response) {
  return {
    ...response,
    status: status === null ? response.status : statusFrom(status),
    headers: { ...response.headers, ...(headers === null ? {} : headersFrom(headers)) },
  };
}

function statusFrom(text) {
  if (/^[2-5]\d\d$/.test(text)) return Number(text);
  throw new ApiError(500, "PGRST112", "response.status guc must be a valid status code");
}

function headersFrom(text) {
  try {
    return Object.fromEntries(JSON.parse(text).map(singleHeader));
  } catch {
    const message =
      "response.headers guc must be a JSON array composed of objects with a single key and a string value";
    throw new ApiError(500, "PGRST111", message);
  }
}

function singleHeader(header) {
  const entries = Object.entries(header);
  if (entries.length === 1 && typeof entries[0][1] === "string") return entries[0];
  throw new TypeError("not a single header");
}
