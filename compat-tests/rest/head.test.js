// How long the head of a request may be: its path, its query and its headers together.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { Api } from './api.js';

const api = new Api(await startRaptor());

test('a head of 16,000 bytes is read, one of more than 16 KiB is a 431', async () => {
  const answer = await api.get('/channels', { note: 'x'.repeat(15_600) });
  assert.deepEqual([answer.status, answer.text], [200, '{"channels":{}}']);
  const refused = await api.get('/channels', { note: 'x'.repeat(16_384) });
  assert.equal(refused.status, 431);
  assert.equal((await api.get('/channels')).status, 200);
});
