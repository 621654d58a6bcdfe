// REST and Auth of the local stack, in one process: `start` wires the parts together, control.mjs
// talks to the owner.
//
// REST is a small PostgREST of our own on PostgreSQL, because what a resilience library is tested
// against must answer exactly: statuses, codes, headers and every value. As in PostgREST,
// PostgreSQL itself reads and prints all JSON. Auth is @supabase/lite.
//
// Differs from PostgREST 14 on Supabase:
// - 40001 and 40P01 are answered with 500 at once; that version repeats the transaction for ever.
// - No aggregates (PGRST123, as on Supabase by default), no spread of to-many relations (PGRST119),
//   no computed relationships, no media type handlers, no data representations, no pre-request
//   function; bodies are JSON only (no CSV, no forms).
// - A view takes part in embedding through the columns that it shares with its tables under the
//   same name.
// - Parse errors (PGRST100) have PostgREST's code and shape, but not always its column and wording;
//   so have the hints ("Perhaps you meant ...").
// - Query plans are enabled. The root answers with a list of paths, not a full OpenAPI description.
// - `request_timeout` bounds a request's execution, too (504 PGRST003), not only the wait for a
//   connection.
// - `tx=rollback` is ignored, as it is on Supabase.
// - URL and headers of a request may be 64 KiB long; longer ones are answered with 431.
//
// Differs from Supabase Auth: no admin API, no mail is sent, sign-ups are confirmed at once, and
// while PostgreSQL is away the answer is a plain 500.

import { createServer } from "node:http";
import { openAuth } from "./auth.mjs";
import { readCatalog } from "./catalog.mjs";
import { serveControl } from "./control.mjs";
import { Database } from "./database.mjs";
import { Identities } from "./identity.mjs";
import { Listener } from "./listener.mjs";
import { Rest } from "./rest.mjs";
import { router } from "./router.mjs";

const PATIENCE = 10_000; // milliseconds to wait for PostgreSQL
const LONGEST_HEADERS = 64 * 1024; // bytes, URL included; Node.js alone refuses more than 16 KiB
// Longer than any caller keeps a connection: one that we close first may be carrying a request.
const KEEP_ALIVE = 600_000; // milliseconds

async function start(config) {
  const rest = new Rest(new Database(config), config);
  const listener = new Listener(config.pg_url, async (client) => {
    rest.catalog = await readCatalog(client, config.schemas);
  });
  await listener.start(PATIENCE);
  const auth = await openAuth(config);

  const identities = new Identities(config);
  const options = { maxHeaderSize: LONGEST_HEADERS, keepAliveTimeout: KEEP_ALIVE };
  const server = createServer(options, router({ rest, auth, identities, listener }));
  const port = await listen(server, config.port ?? 0);
  const reload = ({ timeout }) =>
    listener.refresh(timeout === undefined ? PATIENCE : timeout * 1000);
  return { port, commands: { ping: async () => null, reload } };
}

function listen(server, port) {
  return new Promise((resolve, reject) => {
    server.once("error", (error) => {
      reject(
        error.code === "EADDRINUSE"
          ? new Error(`port ${port} of 127.0.0.1 is in use; choose another one`)
          : error,
      );
    });
    server.listen(port, "127.0.0.1", () => resolve(server.address().port));
  });
}

// A mistake in one request must not end the server in the middle of somebody's test.
process.on("uncaughtException", (error) => console.error("uncaught:", error));
process.on("unhandledRejection", (error) => console.error("unhandled:", error));

serveControl(start);
