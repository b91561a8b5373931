// How a server that stops lets its clients go.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep } from '../support/events.js';
import { APP, Peer } from '../raw/peer.js';
import { startObserved } from './metrics.js';

test('where others take over, clients go to them one after another, and new ones are not sent here any more', async () => {
  const raptor = await startObserved({ config: { apps: [APP], shutdown_spread_secs: 2 } });
  const peers = await Promise.all(Array.from({ length: 40 }, () => Peer.connect(raptor)));
  const begin = Date.now();
  const ended = raptor.stop('SIGTERM');
  const left = peers.map(async (peer) => {
    await peer.isClosed(4200, 'Generic reconnect immediately');
    return Date.now() - begin;
  });
  await sleep(300);
  const ready = await fetch(`${raptor.status}/readyz`);
  assert.deepEqual([ready.status, await ready.text()], [503, 'stopping\n']);
  const times = (await Promise.all(left)).sort((a, b) => a - b);
  assert.ok(times[10] > 300 && times[10] < 1_500, `a quarter was gone after ${times[10]} ms`);
  assert.ok(times[30] > 1_000 && times[30] < 2_500, `three quarters were gone after ${times[30]} ms`);
  assert.deepEqual(await ended, { code: 0, signal: null });
});

test('a second signal ends it at once', async () => {
  const raptor = await startObserved({ config: { apps: [APP], shutdown_spread_secs: 60 } });
  await Promise.all(Array.from({ length: 20 }, () => Peer.connect(raptor)));
  const begin = Date.now();
  const first = raptor.stop('SIGTERM');
  await sleep(200);
  process.kill(raptor.pid, 'SIGTERM');
  assert.deepEqual(await first, { code: 1, signal: null });
  assert.ok(Date.now() - begin < 5_000);
});
