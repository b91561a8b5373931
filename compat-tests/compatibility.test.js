// COMPATIBILITY.md promises only what a test shows.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { exists, references, unprovenRows } from './support/check-compatibility.js';

const text = readFileSync(new URL('../COMPATIBILITY.md', import.meta.url), 'utf8');

test('every test that it names exists', () => {
  const named = references(text);
  assert.ok(named.length > 600, `it names ${named.length}`);
  assert.deepEqual(named.filter((reference) => !exists(reference)), []);
});

test('every row of its tables names a test, or says why there is none', () => {
  assert.deepEqual(unprovenRows(text), []);
});
