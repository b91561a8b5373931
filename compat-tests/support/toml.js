/** Writes an object as TOML, one line per top-level key; tables below it are written inline. Undefined values are left out. */
export function toToml(table) {
  return entries(table).map(([key, value]) => `${JSON.stringify(key)} = ${inline(value)}\n`).join('');
}

function inline(value) {
  if (Array.isArray(value)) return `[${value.map(inline).join(', ')}]`;
  if (typeof value === 'object') return `{ ${entries(value).map(([key, v]) => `${JSON.stringify(key)} = ${inline(v)}`).join(', ')} }`;
  return JSON.stringify(value);
}

function entries(table) {
  return Object.entries(table).filter(([, value]) => value !== undefined);
}
