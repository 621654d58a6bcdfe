// Pieces of SQL text. Values always travel as parameters of unknown type, so PostgreSQL reads them
// as it reads literals: no value is ever converted here, which is why every integer, number and
// timestamp is exact.

import { OPERATORS, TEXT_SEARCH } from "./grammar.mjs";

/** Collects the parameters of one statement. */
export class Parameters {
  values = [];

  add(value) {
    this.values.push(value);
    return `$${this.values.length}`;
  }
}

export function ident(name) {
  return `"${name.replaceAll("\0", "").replaceAll('"', '""')}"`;
}

export function literal(text) {
  return `'${text.replaceAll("\0", "").replaceAll("'", "''")}'`;
}

export function relationSql([schema, name]) {
  return `${ident(schema)}.${ident(name)}`;
}

/** The key of a relation or function in the catalog's maps. */
export function qualified(schema, name) {
  return `${schema}.${name}`;
}

export function arrayLiteral(values) {
  return `{${values.map((value) => `"${value.replace(/["\\]/g, "\\$&")}"`).join(",")}}`;
}

export function guc(name) {
  return `nullif(current_setting('${name}', true), '')`;
}

/** A column or a path into it; `columns` (if known) tell whether it is JSON already. */
export function fieldSql(qualifier, { column, jsonPath = [] }, columns, parameters) {
  const plain = `${qualifier}.${ident(column)}`;
  if (!jsonPath.length) return plain;
  const isJson = ["json", "jsonb"].includes(columns?.get(column)?.baseType);
  const steps = jsonPath.map(({ arrow, key, index }) =>
    key === undefined
      ? `${arrow}${parameters.add(String(index))}::int`
      : `${arrow}${parameters.add(key)}`,
  );
  return (isJson ? plain : `to_jsonb(${plain})`) + steps.join("");
}

/** The name that a selected path gets: its last key. */
export function jsonPathName(jsonPath) {
  return jsonPath.findLast(({ key }) => key !== undefined)?.key;
}

/** One filter; `subject(field)` gives the SQL of its left side. */
export function filterSql(filter, subject, columns, parameters) {
  const not = filter.negated ? "NOT " : "";
  if (filter.search) return not + searchSql(filter, subject, columns, parameters);
  const left = subject(filter.field);
  if (filter.in) return `${not}${left} = ANY (${parameters.add(arrayLiteral(filter.in))})`;
  if (filter.is) return `${not}${left} IS ${filter.is.replace("_", " ").toUpperCase()}`;
  return `${not}${left} ${OPERATORS[filter.operator]} ${comparedSql(filter, parameters)}`;
}

function comparedSql({ operator, quantifier, value }, parameters) {
  const pattern = operator === "like" || operator === "ilike";
  const placeholder = parameters.add(pattern ? value.replaceAll("*", "%") : value);
  return quantifier ? `${quantifier.toUpperCase()}(${placeholder})` : placeholder;
}

function searchSql({ field, search, language, value }, subject, columns, parameters) {
  const dictionary = language === null ? "" : `${parameters.add(language)}::regconfig, `;
  const isVector = columns?.get(field.column)?.baseType === "tsvector";
  const left = isVector ? subject(field) : `to_tsvector(${dictionary}${subject(field)})`;
  return `${left} @@ ${TEXT_SEARCH[search]}(${dictionary}${parameters.add(value)})`;
}

/** A filter or a group of them. */
export function logicSql(tree, filter) {
  if (!tree.logic) return filter(tree);
  const joined = tree.trees
    .map((each) => logicSql(each, filter))
    .join(` ${tree.logic.toUpperCase()} `);
  return `${tree.negated ? "NOT " : ""}(${joined})`;
}
