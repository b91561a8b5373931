// The assertions of the scenario, which runs in Node and in pages.

/** Fails unless both are the same JSON value; the order of keys does not matter. */
export function equal(actual, expected, what = 'value') {
  const [a, e] = [canonical(actual), canonical(expected)];
  if (a !== e) throw new Error(`${what}: expected ${e}, got ${a}`);
}

/** Fails unless `condition` is truthy. */
export function ok(condition, what) {
  if (!condition) throw new Error(what);
}

/** Fails unless `text` is a string that the pattern matches. */
export function match(text, pattern) {
  if (typeof text !== 'string' || !pattern.test(text)) throw new Error(`expected ${pattern}, got ${canonical(text)}`);
}

function canonical(value) {
  return JSON.stringify(value, (_, v) => (v && typeof v === 'object' && !Array.isArray(v) ? Object.fromEntries(Object.entries(v).sort()) : v));
}
