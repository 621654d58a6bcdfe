// "Perhaps you meant ...": the closest known name, by shared pairs of letters.

/** The name most like `wanted`, or null if none is at least `threshold` (0 to 1) alike. */
export function closest(wanted, names, threshold = 0.75) {
  let best = { name: null, score: threshold };
  for (const name of names) {
    const score = likeness(wanted.toLowerCase(), name.toLowerCase());
    if (score >= best.score && name !== wanted) best = { name, score };
  }
  return best.name;
}

function likeness(one, other) {
  const [left, right] = [pairs(one), pairs(other)];
  const shared = left.filter((pair) => right.includes(pair)).length;
  return shared / Math.max(1, Math.sqrt(left.length * right.length));
}

function pairs(word) {
  const padded = `-${word}-`;
  return [...padded].slice(1).map((letter, at) => padded[at] + letter);
}
