// Which relations can be embedded in which: foreign keys read in both directions, and junction
// tables in between. A view takes part through the columns that it shares with its base tables.

import { ApiError } from "./errors.mjs";
import { qualified } from "./sql.mjs";
import { closest } from "./hints.mjs";

/** Turn foreign keys into a map from a relation to its relationships. */
export function relationshipsOf(foreignKeys, relations) {
  const keys = foreignKeys.flatMap((key) => [key, ...keysThroughViews(key, relations)]);
  const map = new Map();
  const add = (relationship) => {
    const origin = qualified(...relationship.origin);
    map.set(origin, [...(map.get(origin) ?? []), relationship]);
  };
  for (const key of keys) {
    add(toOne(key));
    add(toMany(key));
  }
  for (const relationship of junctions(keys, relations)) add(relationship);
  return map;
}

function toOne(key) {
  return {
    origin: [key.schema, key.table],
    target: [key.foreign_schema, key.foreign_table],
    cardinality: key.is_unique ? "one-to-one" : "many-to-one",
    toOne: true,
    constraint: key.name,
    pairs: zip(key.columns, key.foreign_columns),
    holdsKey: true,
  };
}

function toMany(key) {
  return {
    origin: [key.foreign_schema, key.foreign_table],
    target: [key.schema, key.table],
    cardinality: key.is_unique ? "one-to-one" : "one-to-many",
    toOne: key.is_unique,
    constraint: key.name,
    pairs: zip(key.foreign_columns, key.columns),
    holdsKey: false,
  };
}

// A table whose primary key contains two foreign keys joins their targets many-to-many.
function* junctions(keys, relations) {
  for (const [left, right] of pairsWithin(keys)) {
    const primaryKey = relations.get(qualified(left.schema, left.table))?.primary_key ?? [];
    if (![...left.columns, ...right.columns].every((column) => primaryKey.includes(column)))
      continue;
    yield {
      origin: [left.foreign_schema, left.foreign_table],
      target: [right.foreign_schema, right.foreign_table],
      cardinality: "many-to-many",
      toOne: false,
      junction: {
        relation: [left.schema, left.table],
        constraints: [left.name, right.name],
        originPairs: zip(left.foreign_columns, left.columns),
        targetPairs: zip(right.foreign_columns, right.columns),
      },
    };
  }
}

function* pairsWithin(keys) {
  for (const own of byTable(keys).values()) {
    for (const left of own) for (const right of own) if (left !== right) yield [left, right];
  }
}

function byTable(keys) {
  const groups = new Map();
  for (const key of keys) {
    const table = qualified(key.schema, key.table);
    groups.set(table, [...(groups.get(table) ?? []), key]);
  }
  return groups;
}

function keysThroughViews(key, relations) {
  const holders = [
    [key.schema, key.table],
    ...viewsOn(key.schema, key.table, key.columns, relations),
  ];
  const targets = [
    [key.foreign_schema, key.foreign_table],
    ...viewsOn(key.foreign_schema, key.foreign_table, key.foreign_columns, relations),
  ];
  const through = holders.flatMap((holder) => targets.map((target) => [holder, target]));
  return through.slice(1).map(([[schema, table], [foreign_schema, foreign_table]]) => ({
    ...key,
    schema,
    table,
    foreign_schema,
    foreign_table,
  }));
}

function viewsOn(schema, table, columns, relations) {
  return [...relations.values()]
    .filter(({ bases }) =>
      bases.some(([baseSchema, base]) => baseSchema === schema && base === table),
    )
    .filter((view) => columns.every((column) => view.columns.has(column)))
    .map((view) => [view.schema, view.name]);
}

function zip(left, right) {
  return left.map((value, at) => [value, right[at]]);
}

/**
 * The one relationship that `target` (with an optional hint) means, seen from `origin`; PGRST200 or
 * PGRST201 otherwise.
 */
export function findRelationship(catalog, [schema, table], target, hint) {
  const all = (catalog.relationships.get(qualified(schema, table)) ?? []).filter(
    (relationship) => relationship.target[0] === schema,
  );
  const found = all.filter((one) =>
    hint === null ? isMeant(one, target) : isHinted(one, target, hint),
  );
  if (found.length === 1) return found[0];
  throw found.length
    ? ambiguous(table, target, found)
    : unrelated([schema, table], target, hint, all);
}

function isMeant(relationship, target) {
  const isSelf = qualified(...relationship.origin) === qualified(...relationship.target);
  const byName = relationship.target[1] === target && !(isSelf && relationship.holdsKey);
  return byName || relationship.constraint === target || keyColumn(relationship) === target;
}

function isHinted(relationship, target, hint) {
  if (relationship.target[1] !== target) return false;
  const { constraint, junction, pairs } = relationship;
  if (junction) return junction.relation[1] === hint;
  return constraint === hint || (pairs.length === 1 && pairs[0].includes(hint));
}

// books?select=author_id(*) names the relation by the column that holds its key.
function keyColumn({ holdsKey, pairs }) {
  return holdsKey && pairs.length === 1 ? pairs[0][0] : undefined;
}

function unrelated([schema, table], target, hint, all) {
  const hinted = hint === null ? "" : ` using the hint '${hint}'`;
  return new ApiError(
    400,
    "PGRST200",
    `Could not find a relationship between '${table}' and '${target}' in the schema cache`,
    {
      details:
        `Searched for a foreign key relationship between '${table}' and '${target}'${hinted} in the schema '${schema}'` +
        ", but no matches were found.",
      hint: suggestion(target, [...new Set(all.map((one) => one.target[1]))]),
    },
  );
}

function suggestion(target, names) {
  if (names.includes(target)) return null;
  const name = closest(target, names, 0.33);
  return name === null ? null : `Perhaps you meant '${name}' instead of '${target}'.`;
}

function ambiguous(table, target, found) {
  const choices = found
    .map((one) => `'${one.target[1]}!${one.constraint ?? one.junction.relation[1]}'`)
    .join(", ");
  return new ApiError(
    300,
    "PGRST201",
    `Could not embed because more than one relationship was found for '${table}' and '${target}'`,
    {
      details: found.map(described),
      hint: `Try changing '${target}' to one of the following: ${choices}. Find the desired relationship in the 'details' key.`,
    },
  );
}

function described({ origin, target, cardinality, constraint, junction, pairs }) {
  const columns = (names) => `(${names.join(", ")})`;
  const relationship = junction
    ? `${junction.relation[1]} using ${junction.constraints[0]}${columns(junction.originPairs.map(([, own]) => own))}` +
      ` and ${junction.constraints[1]}${columns(junction.targetPairs.map(([, own]) => own))}`
    : `${constraint} using ${origin[1]}${columns(pairs.map(([left]) => left))}` +
      ` and ${target[1]}${columns(pairs.map(([, right]) => right))}`;
  return { cardinality, embedding: `${origin[1]} with ${target[1]}`, relationship };
}
