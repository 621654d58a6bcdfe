// A REST request, taken apart: what its URL and headers ask for, before the database is asked.

import { ApiError, badRange } from "./errors.mjs";
import { parseWhole } from "./grammar.mjs";
import { chooseMedia } from "./media.mjs";
import { parsePreferences } from "./preferences.mjs";

const READS = new Set(["GET", "HEAD"]);
const NOT_FILTERS = new Set(["select", "columns", "on_conflict", "limit", "offset", "apikey"]);

/** Parse a request whose `path` starts behind `/rest/v1`; the body stays as it came. */
export function parseRequest({ method, path, query, headers, body }, schemas) {
  const isRead = READS.has(method);
  const [target, isCall] = targetOf(path);
  return {
    method,
    path,
    headers,
    body,
    isRead,
    isCall,
    target,
    schema: schemaOf(isRead ? headers["accept-profile"] : headers["content-profile"], schemas),
    hasProfile: Boolean(isRead ? headers["accept-profile"] : headers["content-profile"]),
    media: chooseMedia(headers.accept),
    preferences: parsePreferences(headers.prefer),
    parameters: sortParameters(query),
    canonicalQuery: canonical(query),
    range: rangeOf(method === "GET" ? headers.range : undefined, query),
  };
}

function targetOf(path) {
  const segments = path.split("/").filter(Boolean).map(decoded);
  if (!segments.length) return [null, false];
  if (segments.length === 1 && segments[0] !== "rpc") return [segments[0], false];
  if (segments.length === 2 && segments[0] === "rpc") return [segments[1], true];
  throw new ApiError(404, "PGRST125", "Invalid path specified in request URL");
}

function decoded(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment; // no relation has such a name
  }
}

function schemaOf(profile, schemas) {
  if (!profile) return schemas[0];
  if (schemas.includes(profile)) return profile;
  throw new ApiError(406, "PGRST106", `Invalid schema: ${profile}`, {
    hint: `Only the following schemas are exposed: ${schemas.join(", ")}`,
  });
}

// Which parameter is which is decided by its last word: `author.order=name` orders the embedded
// authors.
function sortParameters(query) {
  const sorted = {
    select: query.get("select") ?? "*",
    filters: [],
    logic: [],
    order: [],
    limit: [],
    offset: [],
  };
  sorted.columns = query.get("columns");
  sorted.onConflict = query.get("on_conflict");
  for (const [key, value] of query) {
    const word = key.slice(key.lastIndexOf(".") + 1);
    if (NOT_FILTERS.has(key)) continue;
    if (word === "and" || word === "or") sorted.logic.push([key, value]);
    else if (["order", "limit", "offset"].includes(word)) sorted[word].push([key, value]);
    else sorted.filters.push([key, value]);
  }
  return sorted;
}

function canonical(query) {
  const sorted = new URLSearchParams(query);
  sorted.sort();
  return sorted.size ? `?${sorted}` : "";
}

/** The root's `{ limit, offset }`: the query string's, narrowed by the `Range` header. */
function rangeOf(header, query) {
  const limit = parseWhole(query.get("limit"));
  if (limit !== null && limit < 0) throw badRange("Limit should be greater than or equal to zero.");
  const range = { limit, offset: Math.max(0, parseWhole(query.get("offset")) ?? 0) };
  const match = /^(?:items=)?(\d+)-(\d*)$/.exec(header ?? "");
  return match
    ? narrowed(range, Number(match[1]), match[2] === "" ? null : Number(match[2]))
    : range;
}

function narrowed({ limit, offset }, first, last) {
  if (last !== null && last < first) {
    throw badRange(
      "The lower boundary must be lower than or equal to the upper boundary in the Range header.",
    );
  }
  const start = Math.max(offset, first);
  const ends = [limit === null ? null : offset + limit, last === null ? null : last + 1].filter(
    (end) => end !== null,
  );
  return { limit: ends.length ? Math.max(0, Math.min(...ends) - start) : null, offset: start };
}
