// How a statement runs: as the request's role, with the request's settings, all or nothing.

import pg from "pg";
import { asResponse } from "./database.mjs";

// Settings of a role or function that must be in force before the statement starts; PostgreSQL
// applies a function's own too late for them (db-hoisted-tx-settings).
const HOISTED = new Set([
  "statement_timeout",
  "plan_filter.statement_cost_limit",
  "default_transaction_isolation",
]);
const TEXT = { getTypeParser: () => String };

/**
 * Run `statement` in one transaction and return its row. `check(row)` may still throw: then
 * everything is rolled back. A serialization failure or deadlock (40001, 40P01) is an error at
 * once.
 */
export async function transaction(database, work) {
  try {
    return await database.withClient((client) => runOn(client, work));
  } catch (error) {
    throw asResponse(error, work.identity);
  }
}

async function runOn(client, work) {
  const { statement, check } = work;
  // One message for the begin and all settings: each round trip costs as much as the statement
  // itself.
  await client.query(`${beginSql(work)}; ${settingsSql(work)}`);
  const { rows } = await client.query({ ...statement, rowMode: "array", types: TEXT });
  const row = work.request.media.plan ? planRow(rows) : responseRow(rows[0]);
  if (statement.planned) {
    row.total = withEstimate(row.total, await estimated(client, statement.planned), work);
  }
  check?.(row);
  await client.query("commit");
  return row;
}

function responseRow([total, page, body, headers, status, inserted, location]) {
  return {
    total: total === null ? null : Number(total),
    page: Number(page),
    body,
    headers,
    status,
    inserted: Number(inserted ?? 0),
    location: location === null ? null : JSON.parse(location),
  };
}

function planRow(rows) {
  return {
    plan: true,
    total: null,
    page: 1,
    body: rows.map(([line]) => line).join("\n"),
    headers: null,
    status: null,
  };
}

async function estimated(client, query) {
  const { rows } = await client.query({ ...query, rowMode: "array", types: TEXT });
  return JSON.parse(rows[0][0])[0].Plan["Plan Rows"];
}

function withEstimate(total, estimate, { request, maxRows }) {
  if (request.preferences.count === "planned") return estimate;
  return total > maxRows ? Math.max(total, estimate) : total;
}

function beginSql({ readOnly, routine, identity, catalog }) {
  const isolation = [
    ...hoisted(catalog.roleSettings.get(identity.role)),
    ...hoisted(routine?.settings),
  ]
    .filter(([name]) => name === "default_transaction_isolation")
    .at(-1)?.[1];
  return ["begin", isolation && `isolation level ${isolation}`, readOnly && "read only"]
    .filter(Boolean)
    .join(" ");
}

function settingsSql(work) {
  return `select ${[...settingsOf(work)].map(setSql).join(", ")}`;
}

function setSql([name, value]) {
  return `set_config(${pg.escapeLiteral(name)}, ${pg.escapeLiteral(value)}, true)`;
}

function* settingsOf({ request, identity, routine, catalog }) {
  yield ["search_path", searchPath(request.schema)];
  // The role's own settings come first: once in the role, it may not be allowed to change them.
  yield* asSettings(catalog.roleSettings.get("authenticator"));
  yield* asSettings(catalog.roleSettings.get(identity.role));
  yield ["role", identity.role];
  yield ["request.jwt.claims", JSON.stringify(identity.claims)];
  yield ["request.method", request.method];
  yield ["request.path", request.path];
  yield ["request.headers", JSON.stringify(request.headers)];
  yield ["request.cookies", JSON.stringify(cookiesOf(request.headers.cookie))];
  if (request.preferences.timezone) yield ["timezone", request.preferences.timezone];
  yield* hoisted(routine?.settings);
}

function searchPath(schema) {
  return [...new Set([schema, "public", "extensions"])].map(pg.escapeIdentifier).join(", ");
}

function* asSettings(settings) {
  for (const [name, value] of split(settings)) {
    if (name !== "default_transaction_isolation") yield [name, value]; // which `begin` names
  }
}

function hoisted(settings) {
  return split(settings).filter(([name]) => HOISTED.has(name));
}

function split(settings) {
  return (settings ?? []).map((setting) => {
    const at = setting.indexOf("=");
    return [setting.slice(0, at), setting.slice(at + 1)];
  });
}

function cookiesOf(header) {
  const pairs = (header ?? "").split(";").map((pair) => pair.trim().split("="));
  return Object.fromEntries(
    pairs.filter(([name]) => name).map(([name, ...rest]) => [name, rest.join("=")]),
  );
}
