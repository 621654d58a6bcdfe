// Keeps the schema cache fresh: a connection that listens for `NOTIFY pgrst`, and reads the catalog
// again after each notification and each return of PostgreSQL.

import pg from "pg";
import { connectionTo } from "./database.mjs";

const RECONNECT_DELAYS = [50, 100, 200, 400, 800]; // milliseconds; the last one repeats

export class Listener {
  #url;
  #refresh;
  #client = null;
  #running = Promise.resolve();
  #waiting = null;

  /** `refresh(client)` reads what depends on the database. */
  constructor(url, refresh) {
    this.#url = url;
    this.#refresh = refresh;
  }

  /** False while PostgreSQL is away. */
  get connected() {
    return this.#client !== null;
  }

  /**
   * Connect and refresh; throws when PostgreSQL cannot be reached within `patience` milliseconds.
   */
  async start(patience) {
    await this.#connect(Date.now() + patience);
  }

  /**
   * Refresh now; while PostgreSQL is away, as soon as it is back. Throws when that takes more than
   * `patience` milliseconds.
   */
  async refresh(patience) {
    const giveUp = Date.now() + patience;
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.#refreshNext();
      } catch (error) {
        if (Date.now() > giveUp) throw error;
        await pause(attempt);
      }
    }
  }

  // One refresh at a time; those asked for meanwhile share the next one, which sees everything that
  // they want seen.
  #refreshNext() {
    this.#waiting ??= this.#running
      .catch(() => {})
      .then(() => {
        this.#waiting = null;
        this.#running = this.#refreshOnce();
        return this.#running;
      });
    return this.#waiting;
  }

  async #refreshOnce() {
    if (this.#client === null) throw new Error("PostgreSQL cannot be reached");
    await this.#refresh(this.#client);
  }

  async #connect(giveUp = Infinity) {
    for (let attempt = 0; ; attempt++) {
      try {
        this.#client = await this.#newClient();
        return;
      } catch (error) {
        if (Date.now() > giveUp) throw new Error(`PostgreSQL cannot be reached: ${error.message}`);
        await pause(attempt);
      }
    }
  }

  async #newClient() {
    const client = new pg.Client(connectionTo(this.#url, "rest-listener"));
    let ended = false;
    client.on("error", (error) =>
      console.error("the listening connection was lost:", error.message),
    );
    client.on("end", () => {
      ended = true;
      if (this.#client === client) this.#reconnect();
    });
    client.on("notification", ({ payload }) => {
      if (payload !== "reload config")
        this.#refreshNext().catch((error) => console.error(error.message));
    });
    try {
      await client.connect();
      await client.query("listen pgrst");
      await this.#refresh(client);
      if (ended) throw new Error("the connection was lost at once");
      return client;
    } catch (error) {
      client.end().catch(() => {});
      throw error;
    }
  }

  #reconnect() {
    this.#client = null;
    this.#connect();
  }
}

function pause(attempt) {
  const delay = RECONNECT_DELAYS[Math.min(attempt, RECONNECT_DELAYS.length - 1)];
  return new Promise((resolve) => setTimeout(resolve, delay));
}
