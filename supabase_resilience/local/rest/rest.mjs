// REST (`/rest/v1`): one request becomes one transaction with one statement, whose row is the
// response.

import { findFunction } from "./call.mjs";
import { ApiError, badBody, DatabaseGone } from "./errors.mjs";
import { looksLikeFilter, parseColumns, parseSelect } from "./grammar.mjs";
import { closest } from "./hints.mjs";
import { applyEmbeddedRanges, applyParameters, readTree } from "./read.mjs";
import { parseRequest } from "./request.mjs";
import {
  callResponse,
  checkCall,
  checkRead,
  checkWrite,
  readResponse,
  writeResponse,
} from "./respond.mjs";
import { qualified } from "./sql.mjs";
import { callStatement, readStatement, writeStatement } from "./statement.mjs";
import { transaction } from "./transaction.mjs";
import { payloadOf, pinnedKey, primaryKeyOf, returningColumns } from "./write.mjs";

const WRITE_METHODS = new Set(["POST", "PUT", "PATCH", "DELETE"]);
// A function with one unnamed parameter of such a type takes the whole body.
const WHOLE_BODY = {
  "text/plain": ["text"],
  "text/xml": ["xml"],
  "application/octet-stream": ["bytea"],
};

export class Rest {
  #database;
  #schemas;
  #maxRows;
  /** What the database contains; null until it was read. */
  catalog = null;

  constructor(database, { schemas, max_rows = 1000 }) {
    this.#database = database;
    this.#schemas = schemas;
    this.#maxRows = max_rows;
  }

  /** Answer a request with `{ status, headers, body }`, or throw what went wrong. */
  async answer(incoming, identity) {
    if (!this.catalog) throw DatabaseGone.withoutSchemaCache();
    const request = parseRequest(incoming, this.#schemas);
    if (request.isCall) return this.#call(request, identity);
    if (request.target === null) return this.#overview(request);
    this.#checkRelation(request);
    if (request.isRead) return this.#read(request, identity);
    if (WRITE_METHODS.has(request.method)) return this.#write(request, identity);
    throw unsupported(request.method);
  }

  #overview({ schema, isRead, method }) {
    if (!isRead) throw unsupported(method);
    const own = (map) => [...map.values()].flat().filter((one) => one.schema === schema);
    const relations = own(this.catalog.relations).map(({ name }) => [`/${name}`, {}]);
    const functions = own(this.catalog.functions).map(({ name }) => [`/rpc/${name}`, {}]);
    const paths = Object.fromEntries([...relations, ...functions]);
    const body = { swagger: "2.0", info: { title: "PostgREST API", version: "14" }, paths };
    const headers = { "Content-Type": "application/openapi+json; charset=utf-8" };
    return { status: 200, headers, body: method === "HEAD" ? "" : JSON.stringify(body) };
  }

  async #read(request, identity) {
    const root = this.#tree(request, [request.schema, request.target]);
    Object.assign(root, this.#capped(request.range));
    const statement = readStatement(request, root, this.#maxRows);
    const check = (row) => checkRead(request, row);
    return readResponse(
      request,
      await this.#run({ request, identity, statement, check, readOnly: true }),
    );
  }

  async #write(request, identity) {
    const write = this.#plannedWrite(request, [request.schema, request.target]);
    const statement = writeStatement(request, write);
    const check = (row) => checkWrite(request, write, row);
    return writeResponse(request, write, await this.#run({ request, identity, statement, check }));
  }

  #plannedWrite(request, relation) {
    const { method, preferences, parameters, body } = request;
    const root = this.#tree(request, relation, "pgrst_source");
    const primaryKey = primaryKeyOf(this.catalog, relation);
    const write = { relation, root, preferences, primaryKey };
    write.returning = returningColumns(root, preferences, primaryKey);
    if (method === "POST") write.conflict = conflictOf(request, primaryKey);
    if (method === "PUT") Object.assign(write, pinnedTo(request, root, primaryKey));
    if (method === "PATCH" || method === "DELETE") checkIsFiltered(request, root);
    if (method !== "DELETE") write.payload = payloadOf(body, columnsOf(parameters));
    return write;
  }

  async #call(request, identity) {
    const { routine, input } = this.#plannedCall(request);
    const root = this.#tree(
      request,
      routine.returns_relation ?? [routine.schema, routine.name],
      "pgrst_source",
    );
    Object.assign(root, this.#capped(request.range));
    const statement = callStatement(request, root, routine, input, this.#maxRows);
    const check = (row) => checkCall(request, routine, row);
    const readOnly = request.isRead || !routine.is_volatile;
    return callResponse(
      request,
      routine,
      await this.#run({ request, identity, statement, check, readOnly, routine }),
    );
  }

  #plannedCall(request) {
    if (request.isRead) return this.#callByQuery(request);
    if (request.method === "POST") return this.#callByBody(request);
    throw new ApiError(405, "PGRST101", `Cannot use the ${request.method} method on RPC`);
  }

  #callByQuery({ schema, target, parameters }) {
    const isArgument = ([key, value]) => !key.includes(".") && !looksLikeFilter(value);
    const pairs = parameters.filters.filter(isArgument);
    parameters.filters = parameters.filters.filter((pair) => !isArgument(pair));
    const keys = [...new Set(pairs.map(([key]) => key))];
    return { routine: findFunction(this.catalog, schema, target, keys, []), input: { pairs } };
  }

  #callByBody({ schema, target, headers, parameters, body }) {
    const type = (headers["content-type"] ?? "application/json").split(";")[0].trim();
    if (Object.hasOwn(WHOLE_BODY, type)) {
      return {
        routine: findFunction(this.catalog, schema, target, [], WHOLE_BODY[type]),
        input: { whole: body },
      };
    }
    if (type !== "application/json") throw badBody(`Content-Type not acceptable: ${type}`);
    const { json, columns: keys } = payloadOf(body === "" ? "{}" : body, columnsOf(parameters));
    const routine = findFunction(this.catalog, schema, target, keys, ["json", "jsonb"]);
    const takesWhole = routine.parameters.length === 1 && routine.parameters[0].name === "";
    return { routine, input: takesWhole ? { whole: body } : { json, keys } };
  }

  #tree({ parameters }, relation, source = null) {
    const root = readTree(this.catalog, relation, parseSelect(parameters.select), source);
    applyParameters(root, parameters);
    applyEmbeddedRanges(root, parameters, this.#maxRows);
    return root;
  }

  #capped({ limit, offset }) {
    return { limit: Math.min(limit ?? this.#maxRows, this.#maxRows), offset };
  }

  #checkRelation({ schema, target }) {
    if (this.catalog.relations.has(qualified(schema, target))) return;
    const names = [...this.catalog.relations.values()]
      .filter((one) => one.schema === schema)
      .map(({ name }) => name);
    const like = closest(target, names);
    throw new ApiError(
      404,
      "PGRST205",
      `Could not find the table '${schema}.${target}' in the schema cache`,
      {
        hint: like && `Perhaps you meant the table '${schema}.${like}'`,
      },
    );
  }

  #run(work) {
    return transaction(this.#database, { ...work, catalog: this.catalog, maxRows: this.#maxRows });
  }
}

function unsupported(method) {
  return new ApiError(405, "PGRST117", `Unsupported HTTP method: ${method}`);
}

function columnsOf({ columns }) {
  return columns === null ? null : parseColumns(columns, "columns");
}

function conflictOf({ parameters, preferences }, primaryKey) {
  const { onConflict } = parameters;
  const columns = onConflict === null ? primaryKey : parseColumns(onConflict, "on_conflict");
  return { resolution: preferences.resolution, columns };
}

function pinnedTo({ range }, root, primaryKey) {
  if (range.limit !== null || range.offset) {
    throw new ApiError(
      400,
      "PGRST114",
      "limit/offset querystring parameters are not allowed for PUT",
    );
  }
  const conflict = { resolution: "merge-duplicates", columns: primaryKey };
  return { pinned: pinnedKey(root, primaryKey), conflict };
}

// Supabase loads pg-safeupdate for its API: a forgotten filter must not change a whole table.
function checkIsFiltered({ method }, root) {
  if (root.conditions.length) return;
  const verb = method === "PATCH" ? "UPDATE" : "DELETE";
  throw new ApiError(400, "21000", `${verb} requires a WHERE clause`);
}
