// The `Prefer` header: which wishes are known, and which were fulfilled.

import { ApiError } from "./errors.mjs";

const KNOWN = {
  resolution: ["merge-duplicates", "ignore-duplicates"],
  return: ["representation", "minimal", "headers-only"],
  count: ["exact", "planned", "estimated"],
  tx: ["commit", "rollback"],
  missing: ["default", "null"],
  handling: ["strict", "lenient"],
};

/** Parse `Prefer`; under `handling=strict` an unknown preference is an error (PGRST122). */
export function parsePreferences(header) {
  const preferences = {};
  const unknown = [];
  for (const wish of (header ?? "")
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean)) {
    const [name, value] = splitOnce(wish);
    if (isKnown(name, value)) preferences[name] ??= value;
    else unknown.push(wish);
  }
  if (preferences.handling === "strict" && unknown.length) {
    throw new ApiError(400, "PGRST122", "Invalid preferences given with handling=strict", {
      details: `Invalid preferences: ${unknown.join(", ")}`,
    });
  }
  return preferences;
}

function splitOnce(wish) {
  const at = wish.indexOf("=");
  return at < 0 ? [wish, ""] : [wish.slice(0, at), wish.slice(at + 1)];
}

function isKnown(name, value) {
  if (name === "max-affected") return true;
  if (name === "timezone") return isTimezone(value);
  return Object.hasOwn(KNOWN, name) && KNOWN[name].includes(value);
}

function isTimezone(name) {
  try {
    return Boolean(new Intl.DateTimeFormat("en", { timeZone: name }));
  } catch {
    return false;
  }
}

/** The most rows that a strict request may change, or Infinity. */
export function maxAffected(preferences) {
  const limit = Number(preferences["max-affected"]);
  return preferences.handling === "strict" && Number.isInteger(limit) ? limit : Infinity;
}

/**
 * The value of `Preference-Applied`, or undefined. `tx` is not among them: it is not allowed, as on
 * Supabase.
 */
export function appliedPreferences(preferences, names) {
  const applied = names
    .filter((name) => preferences[name] !== undefined)
    .map((name) => `${name}=${preferences[name]}`);
  return applied.join(", ") || undefined;
}
