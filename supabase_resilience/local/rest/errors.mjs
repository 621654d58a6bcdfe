// What goes wrong, as PostgREST tells it: an HTTP status, a code, a message, details and a hint.

/** A request that cannot be served; carries everything of its response. */
export class ApiError extends Error {
  constructor(status, code, message, { details = null, hint = null, headers = {} } = {}) {
    super(message);
    Object.assign(this, { status, code, details, hint, headers });
  }

  get body() {
    const { code, message, details, hint } = this;
    return { code, message, details, hint };
  }
}

/** The database cannot be reached, or was lost in the middle of the request (503). */
export class DatabaseGone extends ApiError {
  static notReached(cause) {
    return new DatabaseGone(
      503,
      "PGRST000",
      "Database connection error. Retrying the connection.",
      {
        details: cause.message,
      },
    );
  }

  static lost(cause) {
    return new DatabaseGone(503, "PGRST001", "Database client error. Retrying the connection.", {
      details: cause.message,
    });
  }

  static withoutSchemaCache() {
    return new DatabaseGone(
      503,
      "PGRST002",
      "Could not query the database for the schema cache. Retrying.",
    );
  }
}

export function timedOut() {
  return new ApiError(504, "PGRST003", "Timed out acquiring connection from connection pool.");
}

export function badQuery(message, details) {
  return new ApiError(400, "PGRST100", message, { details });
}

export function badBody(message) {
  return new ApiError(400, "PGRST102", message);
}

export function badRange(details) {
  return new ApiError(416, "PGRST103", "Requested range not satisfiable", { details });
}

export function notOneRow(rows) {
  return new ApiError(406, "PGRST116", "Cannot coerce the result to a single JSON object", {
    details: `The result contains ${rows} rows`,
  });
}

/** PostgreSQL's own error, with the status that PostgREST gives its SQLSTATE. */
export function fromPostgres(error, { authenticated }) {
  if (error.code === "PGRST") return raisedResponse(error);
  const status = statusOf(error, authenticated);
  return new ApiError(status, error.code, error.message, {
    details: error.detail ?? null,
    hint: error.hint ?? null,
    headers: status === 401 ? { "WWW-Authenticate": "Bearer" } : {},
  });
}

// The most specific prefix first: a single state before its class.
const STATUS_BY_SQLSTATE = [
  ["23503", 409],
  ["23505", 409],
  ["25006", 405],
  ["42883", 404],
  ["42P01", 404],
  ["42P17", 500],
  ["53400", 500],
  ["57P01", 503],
  ["P0001", 400],
  ["08", 503],
  ["09", 500],
  ["0L", 403],
  ["0P", 403],
  ["21", 500],
  ["25", 500],
  ["28", 403],
  ["2D", 500],
  ["38", 500],
  ["39", 500],
  ["3B", 500],
  ["40", 500],
  ["53", 503],
  ["54", 500],
  ["55", 500],
  ["57", 500],
  ["58", 500],
  ["F0", 500],
  ["HV", 500],
  ["P0", 500],
  ["XX", 500],
];

function statusOf({ code, message }, authenticated) {
  if (code === "42501") return authenticated ? 403 : 401;
  if (code === "22023") return /^role .* does not exist$/s.test(message) ? 401 : 400;
  if (code === "21000" && message.endsWith("requires a WHERE clause")) return 400;
  if (code.startsWith("PT")) return customStatus(code);
  return STATUS_BY_SQLSTATE.find(([prefix]) => code.startsWith(prefix))?.[1] ?? 400;
}

// RAISE ... USING errcode = 'PT402' asks for that status.
function customStatus(code) {
  const status = Number(code.slice(2));
  return status >= 200 && status <= 599 ? status : 500;
}

// RAISE SQLSTATE 'PGRST' hands over a whole response as JSON in MESSAGE and DETAIL.
function raisedResponse({ message, detail }) {
  const body = objectWith(message, ["code", "message"]);
  if (!body) {
    return unreadableRaise(`Invalid JSON value for MESSAGE: '${message}'`, MESSAGE_HINT);
  }
  if (!detail) return unreadableRaise("DETAIL is missing in the RAISE statement", DETAIL_HINT);
  const response = objectWith(detail, ["status", "headers"]);
  if (!response) return unreadableRaise(`Invalid JSON value for DETAIL: '${detail}'`, DETAIL_HINT);
  return new ApiError(response.status, body.code, body.message, {
    details: body.details ?? null,
    hint: body.hint ?? null,
    headers: response.headers,
  });
}

const MESSAGE_HINT =
  "MESSAGE must be a JSON object with obligatory keys: 'code', 'message' and optional keys: 'details', 'hint'.";
const DETAIL_HINT =
  "DETAIL must be a JSON object with obligatory keys: 'status', 'headers' and optional key: 'status_text'.";

function unreadableRaise(details, hint) {
  const message = `Could not parse JSON in the "RAISE SQLSTATE 'PGRST'" error`;
  return new ApiError(500, "PGRST121", message, { details, hint });
}

function objectWith(text, keys) {
  try {
    const value = JSON.parse(text);
    return keys.every((key) => Object.hasOwn(value, key)) ? value : null;
  } catch {
    return null;
  }
}
