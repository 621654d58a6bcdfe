// A function call: which overload is meant, and the SELECT that calls it.

import { ApiError } from "./errors.mjs";
import { closest } from "./hints.mjs";
import { arrayLiteral, ident, qualified, relationSql } from "./sql.mjs";

/**
 * Find the function that takes exactly these arguments (PGRST202, PGRST203 otherwise).
 * `accepts` names the types that a single unnamed parameter may have for the request's whole body.
 */
export function findFunction(catalog, schema, name, keys, accepts) {
  const overloads = catalog.functions.get(qualified(schema, name)) ?? [];
  const named = overloads.filter((routine) => takes(routine, keys));
  const found = named.length ? named : overloads.filter((routine) => takesWhole(routine, accepts));
  if (found.length === 1) return found[0];
  throw found.length
    ? ambiguous(found)
    : notFound(catalog, { schema, name, keys, overloads, accepts });
}

function takes({ parameters }, keys) {
  if (!parameters.length) return keys.length === 0;
  const required = parameters.filter((parameter) => parameter.required);
  const names = parameters.map((parameter) => parameter.name);
  return (
    required.every(({ name }) => keys.includes(name)) && keys.every((key) => names.includes(key))
  );
}

function takesWhole({ parameters }, accepts) {
  return (
    parameters.length === 1 && parameters[0].name === "" && accepts.includes(parameters[0].type)
  );
}

function ambiguous(routines) {
  const candidates = routines.map(
    ({ schema, name, parameters }) =>
      `${schema}.${name}(${parameters.map((each) => `${each.name} => ${each.type}`).join(", ")})`,
  );
  const message = `Could not choose the best candidate function between: ${candidates.join(", ")}`;
  return new ApiError(300, "PGRST203", message, {
    hint: "Try renaming the parameters or the function itself in the database so function overloading can be resolved",
  });
}

function notFound(catalog, { schema, name, keys, overloads, accepts }) {
  const sorted = [...keys].sort();
  const called = sorted.length ? `(${sorted.join(", ")})` : " without parameters";
  const searched = sorted.length
    ? ` with parameter${sorted.length > 1 ? "s" : ""} ${sorted.join(", ")}`
    : called;
  const whole = accepts.length ? " or with a single unnamed json/jsonb parameter" : "";
  return new ApiError(
    404,
    "PGRST202",
    `Could not find the function ${schema}.${name}${called} in the schema cache`,
    {
      details: `Searched for the function ${schema}.${name}${searched}${whole}, but no matches were found in the schema cache.`,
      hint: functionHint(catalog, { schema, name, sorted, overloads }),
    },
  );
}

function functionHint(catalog, { schema, name, sorted, overloads }) {
  const signature = (names) => `(${names.join(", ")})`;
  const signatures = overloads.map(({ parameters }) =>
    signature(parameters.map((each) => each.name).sort()),
  );
  const names = [...catalog.functions.values()]
    .map(([first]) => first)
    .filter((first) => first.schema === schema);
  const like = overloads.length
    ? closest(signature(sorted), signatures, 0.33)
    : closest(
        name,
        names.map((first) => first.name),
      );
  if (like === null) return null;
  return `Perhaps you meant to call the function ${schema}.${overloads.length ? name : ""}${like}`;
}

/**
 * The SELECT that calls `routine`; `input` is `{ json, keys }`, `{ pairs }` (from a query string)
 * or `{ whole }`.
 */
export function callSql(routine, input, parameters) {
  const { from, inputs } = inputSql(routine, input, parameters);
  const call = `${relationSql([routine.schema, routine.name])}(${inputs})`;
  const sources = from ? `${from}, LATERAL ` : "FROM ";
  if (routine.returns_row) return `SELECT "pgrst_call".* ${sources}${call} "pgrst_call"`;
  return `SELECT "pgrst_call".pgrst_scalar ${sources}(SELECT ${call} AS pgrst_scalar) "pgrst_call"`;
}

function inputSql(routine, input, parameters) {
  if (input.whole !== undefined) {
    return { from: "", inputs: `${parameters.add(input.whole)}::${routine.parameters[0].type}` };
  }
  if (input.pairs) return { from: "", inputs: pairsSql(routine, input.pairs, parameters) };
  const used = routine.parameters.filter(({ name }) => input.keys.includes(name));
  if (!used.length) return { from: "", inputs: "" };
  const typed = used.map(({ name, type }) => `${ident(name)} ${type}`).join(", ");
  return {
    from: `FROM json_to_record(${parameters.add(input.json)}::json) AS "pgrst_body"(${typed})`,
    inputs: used
      .map((parameter) => argumentSql(parameter, `"pgrst_body".${ident(parameter.name)}`))
      .join(", "),
  };
}

function pairsSql(routine, pairs, parameters) {
  const used = routine.parameters.filter(({ name }) => pairs.some(([key]) => key === name));
  return used
    .map((parameter) => {
      const values = pairs.filter(([key]) => key === parameter.name).map(([, value]) => value);
      const value = parameter.variadic ? arrayLiteral(values) : values.at(-1);
      return argumentSql(parameter, `${parameters.add(value)}::${parameter.type}`);
    })
    .join(", ");
}

function argumentSql({ name, variadic }, value) {
  return `${variadic ? "VARIADIC " : ""}${ident(name)} := ${value}`;
}
