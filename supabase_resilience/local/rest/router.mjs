// The HTTP side: which path belongs to whom, and how answers and errors are written.

import { ApiError } from "./errors.mjs";

const REST = "/rest/v1";
const METHODS = "OPTIONS,GET,HEAD,POST,PUT,PATCH,DELETE";
const ANY_ORIGIN = {
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Expose-Headers":
    "Content-Location, Content-Range, Content-Type, Location, Preference-Applied, Proxy-Status, Retry-After",
};
const NOT_HERE = {
  "/functions/v1": {
    code: "NOT_FOUND",
    message: "Requested function was not found: the local stack runs no Edge Functions",
  },
  "/storage/v1": {
    statusCode: "404",
    error: "not_found",
    message: "The local stack has no Storage",
  },
};

/** Return the request listener of the server. */
export function router({ rest, auth, identities, listener }) {
  return (request, response) => {
    const url = new URL(`http://localhost${request.url}`);
    if (isBelow(url.pathname, "/auth/v1")) return auth(request, response);
    if (!isBelow(url.pathname, REST)) return writeJson(response, 404, missing(url.pathname));
    if (request.method === "OPTIONS") return write(response, preflight(request));
    return answer({ rest, identities }, request, url)
      .then((answered) => write(response, answered))
      .catch((error) => writeError(response, error, listener));
  };
}

async function answer({ rest, identities }, request, url) {
  const incoming = await read(request, url);
  return rest.answer(incoming, identities.identify(incoming.headers, url.searchParams));
}

function isBelow(path, prefix) {
  return path === prefix || path.startsWith(`${prefix}/`);
}

function missing(path) {
  const service = Object.keys(NOT_HERE).find((prefix) => isBelow(path, prefix));
  return NOT_HERE[service] ?? { message: "no Route matched with those values" };
}

async function read(request, url) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return {
    method: request.method,
    path: url.pathname.slice(REST.length) || "/",
    query: url.searchParams,
    headers: request.headers,
    body: Buffer.concat(chunks).toString(),
  };
}

// What a browser asks before the request itself, without any key.
function preflight({ headers }) {
  const allowed = {
    Allow: METHODS,
    "Access-Control-Allow-Methods": METHODS,
    "Access-Control-Allow-Headers": headers["access-control-request-headers"] ?? "*",
    "Access-Control-Max-Age": "86400",
  };
  return { status: 200, headers: allowed, body: "" };
}

function write(response, { status, headers, body }) {
  const content = Buffer.from(body);
  const length = status === 204 ? {} : { "Content-Length": content.length };
  response.writeHead(status, { ...ANY_ORIGIN, ...headers, ...length }).end(content);
}

function writeJson(response, status, body, headers = {}) {
  write(response, {
    status,
    headers: { "Content-Type": "application/json; charset=utf-8", ...headers },
    body: JSON.stringify(body),
  });
}

function writeError(response, error, listener) {
  if (!(error instanceof ApiError)) {
    console.error(error);
    return writeJson(response, 500, {
      code: "PGRSTX00",
      message: "Internal error of the local stack",
      details: null,
      hint: null,
    });
  }
  const headers = { ...retryHeader(error, listener), ...error.headers };
  // HEAD has no body: this header is where a client finds the code.
  if (error.code !== null) headers["Proxy-Status"] = `PostgREST; error=${error.code}`;
  writeJson(response, error.status, error.body, headers);
}

// Whole seconds until a retry is worth it; PostgREST sends its own back-off, 0 while it reconnects.
function retryHeader({ status }, listener) {
  if (status !== 503) return {};
  return { "Retry-After": listener.connected ? "0" : "1" };
}
