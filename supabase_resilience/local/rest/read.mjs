// A read: the tree of selected relations, and the one SELECT that answers it.
// Embedded relations are lateral joins that PostgreSQL turns into JSON itself.

import { ApiError } from "./errors.mjs";
import { parseFilter, parseLogic, parseOrder, parseWhole } from "./grammar.mjs";
import { findRelationship } from "./relationships.mjs";
import {
  fieldSql,
  filterSql,
  ident,
  jsonPathName,
  logicSql,
  qualified,
  relationSql,
} from "./sql.mjs";

/**
 * Build the tree of a request.
 *
 * `relation` is `[schema, name]`; `source` is where the root reads from when that is not the
 * relation itself (the rows that a write or a function returned).
 */
export function readTree(catalog, relation, select, source = null) {
  const numbers = { last: 0 };
  const root = newNode(
    catalog,
    relation,
    source === null ? relationSql(relation) : ident(source),
    select,
  );
  root.from = root.qualifier;
  addChildren(catalog, root, numbers);
  return root;
}

function newNode(catalog, relation, qualifier, items) {
  return {
    relation,
    qualifier,
    columns: catalog.relations.get(qualified(...relation))?.columns,
    items: items.filter((item) => !item.relation),
    embeds: items.filter((item) => item.relation),
    children: [],
    conditions: [],
    order: [],
    limit: null,
    offset: 0,
  };
}

function addChildren(catalog, parent, numbers) {
  for (const embed of parent.embeds) {
    const relationship = findRelationship(catalog, parent.relation, embed.relation, embed.hint);
    const alias = `${relationship.target[1]}_${++numbers.last}`;
    const child = newNode(catalog, relationship.target, ident(alias), embed.items);
    const { from, joins } = linked(relationship, parent.qualifier, child.qualifier, numbers);
    Object.assign(child, {
      name: embed.alias ?? embed.relation,
      asked: embed,
      relationship,
      from,
      joins,
      result: ident(`${alias}_result`),
    });
    if (embed.spread && !relationship.toOne) throw notToOneSpread(parent, embed);
    parent.children.push(child);
    addChildren(catalog, child, numbers);
  }
}

function linked({ target, pairs, junction }, parent, child, numbers) {
  const from = `${relationSql(target)} AS ${child}`;
  if (!junction) return { from, joins: equalities(parent, child, pairs) };
  const middle = ident(`${junction.relation[1]}_${++numbers.last}`);
  return {
    from: `${from}, ${relationSql(junction.relation)} AS ${middle}`,
    joins: [
      ...equalities(parent, middle, junction.originPairs),
      ...equalities(child, middle, junction.targetPairs),
    ],
  };
}

function equalities(left, right, pairs) {
  return pairs.map(([one, other]) => `${left}.${ident(one)} = ${right}.${ident(other)}`);
}

function notToOneSpread(parent, embed) {
  return new ApiError(
    400,
    "PGRST119",
    `A spread operation on '${embed.relation}' is not possible`,
    {
      details: `'${parent.relation[1]}' and '${embed.relation}' do not form a many-to-one or one-to-one relationship`,
    },
  );
}

// --- Filters, order and ranges find their node by path ---

/** Put the query string's filters, logic, order, limit and offset where they belong in the tree. */
export function applyParameters(root, parameters) {
  for (const [key, value] of parameters.filters) {
    const { path, filter } = parseFilter(key, value);
    nodeAt(root, path).conditions.push(filter);
  }
  for (const [key, value] of parameters.logic) {
    const { path, tree } = parseLogic(key, value);
    nodeAt(root, path).conditions.push(tree);
  }
  for (const [key, value] of parameters.order) {
    nodeAt(root, key.split(".").slice(0, -1)).order = parseOrder(value);
  }
}

/** Limit the embedded relations: by their own `limit` and `offset`, and never above `maxRows`. */
export function applyEmbeddedRanges(root, parameters, maxRows) {
  for (const child of root.children) {
    child.limit = maxRows;
    applyEmbeddedRanges(child, { limit: [], offset: [] }, maxRows);
  }
  for (const [key, value] of parameters.limit) {
    const limit = parseWhole(value) ?? maxRows;
    nodeAt(root, key.split(".").slice(0, -1)).limit = Math.min(limit, maxRows);
  }
  for (const [key, value] of parameters.offset) {
    nodeAt(root, key.split(".").slice(0, -1)).offset = parseWhole(value) ?? 0;
  }
}

function nodeAt(root, path) {
  return path.reduce((node, name) => {
    const child = node.children.find((each) => each.name === name || each.asked.relation === name);
    if (child) return child;
    throw new ApiError(400, "PGRST108", `'${name}' is not an embedded resource in this request`, {
      hint: `Verify that '${name}' is included in the 'select' query parameter.`,
    });
  }, root);
}

// --- SQL ---

/** The SELECT of a node with everything below it. */
export function selectSql(node, parameters) {
  const selected = [...ownItems(node, parameters), ...node.children.flatMap(embeddedItem)];
  return [
    `SELECT ${selected.join(", ") || `${node.qualifier}.*`}`,
    fromSql(node, parameters),
    orderSql(node, parameters),
    rangeSql(node, parameters),
  ].join(" ");
}

/** The SELECT whose rows are counted for `count=`: no order, no range. */
export function countSql(node, parameters) {
  return `SELECT 1 ${fromSql(node, parameters)}`;
}

function fromSql(node, parameters) {
  const joins = node.children.map((child) => joinSql(child, parameters));
  return [`FROM ${node.from}`, ...joins, whereSql(node, parameters)].join(" ");
}

/** `WHERE ...`, or nothing. */
export function whereSql(node, parameters) {
  const conditions = node.conditions.map((tree) =>
    logicSql(tree, (filter) => conditionSql(node, filter, parameters)),
  );
  const all = [...(node.joins ?? []), ...conditions];
  return all.length ? `WHERE ${all.join(" AND ")}` : "";
}

function conditionSql(node, filter, parameters) {
  const child = node.children.find(({ name }) => name === filter.field.column);
  if (child && !filter.field.jsonPath.length) return presenceSql(child, filter);
  return filterSql(filter, (field) => nodeField(node, field, parameters), node.columns, parameters);
}

// author=not.is.null keeps the rows that have an embedded author.
function presenceSql({ result, asked }, { is, negated }) {
  if (is !== "null" && is !== "not_null") {
    throw new ApiError(
      400,
      "PGRST120",
      `Bad operator on the '${asked.relation}' embedded resource`,
      {
        details: "Only is null or not is null filters are allowed on embedded resources",
      },
    );
  }
  const absent = (is === "null") !== negated;
  return `${result} IS ${absent ? "NOT " : ""}DISTINCT FROM NULL`;
}

function nodeField(node, field, parameters) {
  return fieldSql(node.qualifier, field, node.columns, parameters);
}

function ownItems(node, parameters) {
  return node.items.map((item) => {
    if (item.star) return `${node.qualifier}.*`;
    const field = nodeField(node, item, parameters);
    const alias = item.alias ?? jsonPathName(item.jsonPath);
    return (
      (item.cast ? `CAST(${field} AS ${item.cast})` : field) +
      (alias === undefined ? "" : ` AS ${ident(alias)}`)
    );
  });
}

function embeddedItem({ asked, name, result, relationship, items, children }) {
  if (!items.length && !children.length) return [];
  if (asked.spread) return [`${result}.*`];
  if (relationship.toOne) return [`row_to_json(${result}.*) AS ${ident(name)}`];
  return [`COALESCE(${result}.${result}, '[]') AS ${ident(name)}`];
}

function joinSql(child, parameters) {
  const join = child.asked.inner ? "INNER JOIN LATERAL" : "LEFT JOIN LATERAL";
  const query = selectSql(child, parameters);
  if (child.relationship.toOne) return `${join} (${query}) AS ${child.result} ON TRUE`;
  const { result } = child;
  const aggregate = `SELECT json_agg(${result}) AS ${result} FROM (${query}) AS ${result}`;
  const condition = child.asked.inner ? `${result} IS NOT NULL` : "TRUE";
  return `${join} (${aggregate}) AS ${result} ON ${condition}`;
}

function orderSql(node, parameters) {
  if (!node.order.length) return "";
  return `ORDER BY ${node.order.map((term) => orderTermSql(node, term, parameters)).join(", ")}`;
}

function orderTermSql(node, { relation, field, direction, nulls }, parameters) {
  const subject =
    relation === null
      ? nodeField(node, field, parameters)
      : relatedField(node, relation, field, parameters);
  return [subject, direction?.toUpperCase(), nulls && `NULLS ${nulls.toUpperCase()}`]
    .filter(Boolean)
    .join(" ");
}

function relatedField(node, relation, field, parameters) {
  const child = nodeAt(node, [relation]);
  if (child.relationship.toOne) return fieldSql(child.result, field, child.columns, parameters);
  throw new ApiError(400, "PGRST118", `A related order on '${relation}' is not possible`, {
    details: `'${node.relation[1]}' and '${relation}' do not form a many-to-one or one-to-one relationship`,
  });
}

function rangeSql({ limit, offset }, parameters) {
  if (limit === null && !offset) return "";
  const most = limit === null ? "ALL" : parameters.add(String(limit));
  return `LIMIT ${most} OFFSET ${parameters.add(String(offset))}`;
}

/** The root columns that a write must return so that `selectSql` can read them. */
export function neededColumns(root) {
  if (root.items.some(({ star }) => star)) return ["*"];
  const keys = root.children.flatMap(({ relationship: { junction, pairs } }) =>
    (junction ? junction.originPairs : pairs).map(([own]) => own),
  );
  const ordered = root.order
    .filter(({ relation }) => relation === null)
    .map(({ field }) => field.column);
  return [...new Set([...root.items.map(({ column }) => column), ...keys, ...ordered])];
}
