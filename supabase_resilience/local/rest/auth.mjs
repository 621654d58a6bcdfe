// Auth (`/auth/v1`) by @supabase/lite, on our own connections. lite ships its own PostgreSQL
// driver, which throws outside of any promise when a backend dies in the middle of a write; its
// queries go through Kysely, so Kysely on `pg` replaces that driver without touching lite.

import { getRequestListener } from "@hono/node-server";
import { App } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { connectionTo, surviveLoss } from "./database.mjs";

const CONNECTIONS = 4;

/**
 * Create the tables that Auth needs (those that exist are kept) and return the listener for its
 * HTTP requests.
 */
export async function openAuth(config) {
  const app = new App({
    connection: connect(config.pg_url),
    api: { schemas: config.schemas },
    auth: {
      enabled: true,
      jwt_secret: config.jwt_secret,
      publishable_key: config.publishable_key,
      secret_key: config.secret_key,
    },
  });
  await app.ensureSystemSchema();
  return getRequestListener((request, { incoming }) =>
    app.fetch(request, { peerAddress: incoming.socket.remoteAddress ?? null }),
  );
}

function connect(url) {
  const connection = createPostgresConnection({ url });
  connection.kysely = new Kysely({ dialect: new PostgresDialect({ pool: poolOf(url) }) });
  // lite's own auth.uid() and the like would replace those of the stack, but they do not read
  // `request.jwt.claims`.
  connection.config.baseSchema = "create schema if not exists auth;";
  return connection;
}

function poolOf(url) {
  const pool = new pg.Pool({
    ...connectionTo(url, "auth"),
    max: CONNECTIONS,
    onConnect: surviveLoss,
    options: "-c timezone=UTC",
    types: { getTypeParser },
  });
  pool.on("error", () => {}); // `surviveLoss` has logged it
  return pool;
}

const DATE = 1082;
const TIMES = new Set([1114, 1184]);
const NUMBERS = new Set([20, 1700]);

// What lite expects: dates as text, times as GoTrue prints them, bigint and numeric as numbers.
function getTypeParser(oid, format) {
  if (oid === DATE) return String;
  if (TIMES.has(oid)) return (text) => text.replace(" ", "T").replace(/\+00$/, "Z");
  if (NUMBERS.has(oid)) return Number;
  return pg.types.getTypeParser(oid, format);
}
