// PostgREST's query-string grammar: select=, filters, and=/or=, order=, columns=. One small
// recursive-descent parser; what it returns is plain data that the SQL modules turn into text.

import { ApiError } from "./errors.mjs";
import { Scanner } from "./scanner.mjs";

export const OPERATORS = {
  eq: "=",
  neq: "<>",
  gt: ">",
  gte: ">=",
  lt: "<",
  lte: "<=",
  like: "LIKE",
  ilike: "ILIKE",
  match: "~",
  imatch: "~*",
  isdistinct: "IS DISTINCT FROM",
  cs: "@>",
  cd: "<@",
  ov: "&&",
  sl: "<<",
  sr: ">>",
  nxl: "&>",
  nxr: "&<",
  adj: "-|-",
};
export const TEXT_SEARCH = {
  fts: "to_tsquery",
  plfts: "plainto_tsquery",
  phfts: "phraseto_tsquery",
  wfts: "websearch_to_tsquery",
};
const QUANTIFIABLE = new Set(["eq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch"]);
const IS_VALUES = ["null", "not_null", "true", "false", "unknown"];
const AGGREGATES = new Set(["count", "sum", "avg", "min", "max"]);

const NAME = /[\p{L}\p{N}_$ ]+(?:-(?!>)[\p{L}\p{N}_$ ]+)*/uy;
const QUOTED = /"((?:[^"\\]|\\.)*)"/sy;
const CAST = /[\p{L}\p{N}_$ ]+/uy;
const INDEX = /-?\d+(?=->|::|[.,)]|$)/y;

function name(scanner) {
  const quoted = scanner.match(QUOTED);
  if (quoted) return quoted[1].replace(/\\(.)/gs, "$1");
  return (
    scanner.match(NAME)?.[0] ?? scanner.fail("expecting field name (* or [a..z0..9_$])")
  ).trim();
}

function seesName(scanner) {
  return /^["\p{L}\p{N}_$ ]/u.test(scanner.text.slice(scanner.at, scanner.at + 2));
}

function jsonPathOf(scanner) {
  const path = [];
  while (scanner.sees("->")) {
    const arrow = scanner.next("->>") ? "->>" : (scanner.next("->"), "->");
    const index = scanner.match(INDEX);
    path.push(index ? { arrow, index: Number(index[0]) } : { arrow, key: name(scanner) });
  }
  return path;
}

function field(scanner) {
  scanner.spaces();
  const column = name(scanner);
  const jsonPath = jsonPathOf(scanner);
  scanner.spaces();
  return { column, jsonPath };
}

// --- select=alias:column->key::cast,alias:relation!hint!inner(...),...relation(...) ---

/**
 * Parse `select`: a list of `{ column, jsonPath, cast, alias }`, `{ star }` or `{ relation, items,
 * ... }`.
 */
export function parseSelect(text) {
  const scanner = new Scanner(text, "select parameter");
  if (text === "") return [];
  return scanner.complete(selectItems(scanner));
}

function selectItems(scanner) {
  return scanner.list(() => {
    scanner.spaces();
    const item = scanner.attempt(() => relation(scanner)) ?? selectField(scanner);
    scanner.spaces();
    return item;
  });
}

function relation(scanner) {
  const spread = scanner.next("...");
  const alias = spread ? null : aliasOf(scanner);
  if (!seesName(scanner)) return null;
  const target = name(scanner);
  const hints = {};
  while (scanner.next("!")) {
    const word = name(scanner);
    if (word === "inner" || word === "left") hints.join = word;
    else hints.hint = word;
  }
  if (AGGREGATES.has(target) && scanner.sees("()")) return null;
  if (!scanner.next("(")) return null;
  const items = scanner.sees(")") ? [] : selectItems(scanner);
  scanner.expect(")");
  return {
    relation: target,
    alias,
    spread,
    hint: hints.hint ?? null,
    inner: hints.join === "inner",
    items,
  };
}

function aliasOf(scanner) {
  return scanner.attempt(() => {
    if (!seesName(scanner)) return null;
    const alias = name(scanner);
    return scanner.sees("::") || !scanner.next(":") ? null : alias;
  });
}

function selectField(scanner) {
  if (scanner.next("*")) return { star: true };
  const alias = aliasOf(scanner);
  if (scanner.match(/count\(\)/y)) throw aggregatesNotAllowed();
  const { column, jsonPath } = field(scanner);
  const cast = scanner.next("::") ? castOf(scanner) : null;
  if (scanner.match(/\.(?:count|sum|avg|min|max)\(\)/y)) throw aggregatesNotAllowed();
  if (!scanner.atEnd && !scanner.sees(",") && !scanner.sees(")")) {
    scanner.fail('expecting letter, digit, "-", "->>", "->", "::", ")", "," or end of input');
  }
  return { column, jsonPath, cast, alias };
}

// As on Supabase, unless a project turns them on.
function aggregatesNotAllowed() {
  return new ApiError(400, "PGRST123", "Use of aggregate functions is not allowed");
}

function castOf(scanner) {
  return (scanner.match(CAST)?.[0] ?? scanner.fail("expecting letter or digit")).trim();
}

// --- filters ---

/** Parse `column=operator.value` into `{ path: [embed...], filter: { field, ...operation } }`. */
export function parseFilter(key, value) {
  const { path, ...target } = embeddedField(key);
  const scanner = new Scanner(value, "filter");
  const operation = operationOf(scanner, () => scanner.match(/.*/sy)[0]);
  return { path, filter: { field: target, ...operation } };
}

/** Whether a value of `GET /rpc/function` is a filter of its result, or else an argument. */
export function looksLikeFilter(value) {
  try {
    parseFilter("_", value);
    return true;
  } catch {
    return false;
  }
}

function embeddedField(key) {
  const scanner = new Scanner(key, "tree path");
  const names = [name(scanner)];
  while (scanner.next(".")) names.push(name(scanner));
  const jsonPath = jsonPathOf(scanner);
  return scanner.complete({ path: names.slice(0, -1), column: names.at(-1), jsonPath });
}

function operationOf(scanner, singleValue) {
  const negated = scanner.next("not.");
  const word = scanner.match(/[a-z]+/y)?.[0];
  if (word === "in" && scanner.next(".")) return { negated, in: listOf(scanner) };
  if (word === "is" && scanner.next(".")) return { negated, is: isValue(scanner) };
  if (Object.hasOwn(TEXT_SEARCH, word ?? "")) {
    const language = scanner.match(/\(([\p{L}\p{N}_ $]+)\)/uy)?.[1] ?? null;
    scanner.expect(".");
    return { negated, search: word, language, value: singleValue() };
  }
  return { negated, ...comparison(scanner, word, singleValue) };
}

function comparison(scanner, word, singleValue) {
  if (!word) scanner.fail('expecting "not" or operator (eq, gt, ...)');
  const quantifier = QUANTIFIABLE.has(word) ? scanner.match(/\((any|all)\)/y)?.[1] : undefined;
  if (!scanner.next(".")) scanner.fail("expecting delimiter (.)");
  if (!Object.hasOwn(OPERATORS, word)) scanner.fail("", `unknown single value operator ${word}`);
  return { operator: word, quantifier: quantifier ?? null, value: singleValue() };
}

function isValue(scanner) {
  const word = scanner.match(/[a-z_]+/iy)?.[0]?.toLowerCase();
  if (!IS_VALUES.includes(word)) {
    scanner.fail("expecting null or trilean value (unknown, true, false)");
  }
  return word;
}

function listOf(scanner) {
  scanner.spaces();
  scanner.expect("(");
  const values = scanner.list(() => quotedWhole(scanner) ?? scanner.match(/[^,)]*/y)[0]);
  scanner.expect(")");
  scanner.spaces();
  return values.length === 1 && values[0] === "" ? [] : values;
}

// A quoted value counts as quoted only when it ends where the element ends.
function quotedWhole(scanner) {
  return scanner.attempt(() => {
    const quoted = scanner.match(QUOTED);
    if (!quoted || !(scanner.atEnd || scanner.sees(",") || scanner.sees(")"))) return null;
    return quoted[1].replace(/\\(.)/gs, "$1");
  });
}

// --- and=(...), or=(...), not.and=(...), embed.or=(...) ---

/**
 * Parse a logic parameter into `{ path, tree }`; a tree is a filter or `{ negated, logic: "and" |
 * "or", trees }`.
 */
export function parseLogic(key, value) {
  const names = key.split(".");
  const logic = names.pop();
  const negated = names.at(-1) === "not";
  if (negated) names.pop();
  const scanner = new Scanner(value, "logic tree");
  return { path: names, tree: { negated, logic, trees: scanner.complete(logicTrees(scanner)) } };
}

function logicTrees(scanner) {
  scanner.spaces();
  scanner.expect("(");
  const trees = scanner.list(() => {
    scanner.spaces();
    const tree = scanner.attempt(() => logicGroup(scanner)) ?? logicFilter(scanner);
    scanner.spaces();
    return tree;
  });
  scanner.expect(")");
  scanner.spaces();
  return trees;
}

function logicGroup(scanner) {
  const negated = scanner.next("not.");
  const logic = scanner.match(/(and|or)(?=\s*\()/y)?.[1];
  return logic ? { negated, logic, trees: logicTrees(scanner) } : null;
}

function logicFilter(scanner) {
  const target = field(scanner);
  scanner.expect(".");
  return { field: target, ...operationOf(scanner, () => logicValue(scanner)) };
}

function logicValue(scanner) {
  return quotedWhole(scanner) ?? scanner.match(/\{[^{}]*\}/y)?.[0] ?? scanner.match(/[^,)]*/y)[0];
}

// --- order=column.desc.nullslast,relation(column).asc ---

/** Parse `order` into a list of `{ relation, field, direction, nulls }`. */
export function parseOrder(text) {
  const scanner = new Scanner(text, "order");
  return scanner.complete(scanner.list(() => orderTerm(scanner)));
}

function orderTerm(scanner) {
  const target = scanner.attempt(() => relatedField(scanner)) ?? {
    relation: null,
    field: field(scanner),
  };
  const direction = scanner.match(/\.(asc|desc)(?=[.,]|$)/y)?.[1] ?? null;
  const nulls = scanner.match(/\.nulls(first|last)(?=,|$)/y)?.[1] ?? null;
  if (!scanner.atEnd && !scanner.sees(",")) {
    scanner.fail('expecting "asc", "desc", "nullsfirst" or "nullslast"');
  }
  return { ...target, direction, nulls };
}

function relatedField(scanner) {
  const related = name(scanner);
  if (!scanner.next("(")) return null;
  const inner = field(scanner);
  scanner.expect(")");
  return { relation: related, field: inner };
}

/** Parse `columns` and `on_conflict`: a list of names. */
export function parseColumns(text, what) {
  const scanner = new Scanner(text, `${what} parameter`);
  return scanner.complete(scanner.list(() => (scanner.spaces(), name(scanner))));
}

/** Parse `limit` and `offset`; what is no whole number counts as not given. */
export function parseWhole(text) {
  return /^-?\d+$/.test(text ?? "") ? Number(text) : null;
}
