// The connections that requests run on, and what happens when PostgreSQL goes away: every request
// gets an answer, none takes the process down, and the first one after its return succeeds.

import pg from "pg";
import { ApiError, DatabaseGone, fromPostgres, timedOut } from "./errors.mjs";

const ACQUISITION_TIMEOUT = 10_000; // milliseconds, PostgREST's db-pool-acquisition-timeout

/** How to connect; `ssl` is said so that the user's PGSSLMODE has no say. */
export function connectionTo(url, application_name) {
  return {
    connectionString: url,
    application_name,
    connectionTimeoutMillis: ACQUISITION_TIMEOUT,
    ssl: false,
  };
}

export class Database {
  #url;
  #pool;
  #timeout;

  /**
   * `pool` is the number of connections, `request_timeout` the seconds after which a request is
   * given up.
   */
  constructor({ pg_url, pool = 10, request_timeout = 30 }) {
    this.#url = pg_url;
    this.#timeout = request_timeout * 1000;
    this.#pool = new pg.Pool({ ...connectionTo(pg_url, "rest"), max: pool, onConnect: prepare });
    this.#pool.on("error", () => {}); // `surviveLoss` has logged it
  }

  /**
   * Run `work(client)`; a connection that cannot be had or is lost meanwhile is told as
   * `DatabaseGone`.
   */
  async withClient(work) {
    const client = await this.#acquire();
    const deadline = this.#deadline(client);
    let broken = true;
    try {
      const result = await Promise.race([work(client), deadline.passed]);
      broken = false;
      return result;
    } catch (error) {
      broken = deadline.hasPassed || isLost(error) || !(await rolledBack(client));
      throw isLost(error) ? DatabaseGone.lost(error) : error;
    } finally {
      deadline.clear();
      client.release(broken);
    }
  }

  async #acquire() {
    try {
      return await this.#pool.connect();
    } catch (error) {
      throw /^timeout exceeded/.test(error.message) ? timedOut() : DatabaseGone.notReached(error);
    }
  }

  // The last resort: no request hangs, whatever happened to its connection.
  #deadline(client) {
    const deadline = { hasPassed: false };
    deadline.passed = new Promise((_, reject) => {
      const timer = setTimeout(() => {
        deadline.hasPassed = true;
        this.#cancel(client.processID);
        reject(timedOut());
      }, this.#timeout);
      deadline.clear = () => clearTimeout(timer);
    });
    return deadline;
  }

  // PostgreSQL would go on with the statement for nobody, and keep its locks.
  async #cancel(processId) {
    const client = new pg.Client(connectionTo(this.#url, "rest-cancel"));
    client.on("error", () => {});
    try {
      await client.connect();
      await client.query("select pg_cancel_backend($1)", [processId]);
    } catch (error) {
      console.error("a statement could not be cancelled:", error.message);
    } finally {
      client.end().catch(() => {});
    }
  }
}

/** Let a lost connection fail the query of whoever holds the client, and never the process. */
export function surviveLoss(client) {
  client.on("error", (error) => console.error("a connection was lost:", error.message));
}

async function prepare(client) {
  surviveLoss(client);
  // As on Supabase, a token can name no role that `authenticator` may not become.
  await client.query("set session authorization authenticator");
}

// What is neither PostgreSQL's answer, nor ours, nor a mistake in the program is told by the
// driver or the socket: the connection is gone.
function isLost(error) {
  return !ANSWERS_AND_MISTAKES.some((type) => error instanceof type);
}

const ANSWERS_AND_MISTAKES = [ApiError, pg.DatabaseError, TypeError, RangeError, ReferenceError];

async function rolledBack(client) {
  try {
    await client.query("rollback");
    return true;
  } catch {
    return false;
  }
}

/**
 * What to answer for something that `withClient` threw; a mistake of ours passes through unchanged.
 */
export function asResponse(error, identity) {
  return error instanceof pg.DatabaseError ? fromPostgres(error, identity) : error;
}
