// How many are subscribed, told to all of them (`pusher.md` 2.8).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { Peer, appNamed, compare, json } from './peer.js';

const silent = appNamed('silent', { subscription_count_events: false });
const raptor = await startRaptor({ config: { apps: [TEST_APP, silent] } });
const app = TEST_APP;
const api = new Api(raptor, app);

const count = (channel, n) => ({ event: 'pusher_internal:subscription_count', channel, data: json({ subscription_count: n }) });

test('every subscriber is told on each subscribe and unsubscribe, the new one after its acknowledgement', async () => {
  const [a, b, c] = await Promise.all([1, 2, 3].map(() => Peer.connect(raptor, { app })));
  await a.subscribe('counted');
  await a.receives(count('counted', 1));
  await b.subscribe('counted');
  await b.receives(count('counted', 2));
  await a.receives(count('counted', 2));
  await c.subscribe('counted');
  for (const peer of [a, b, c]) await peer.receives(count('counted', 3));
  b.unsubscribe('counted');
  for (const peer of [a, c]) await peer.receives(count('counted', 2));
  await b.receivesNothing();
  await c.close();
  await a.receives(count('counted', 1));
  await a.receivesNothing();
});

for (const channel of ['private-counted', 'private-encrypted-counted']) {
  test(`${channel} is counted`, async () => {
    const peer = await Peer.connect(raptor, { app });
    await peer.subscribe(channel);
    await peer.receives(count(channel, 1));
  });
}

test('a cache channel sends its cache first, then the count', async () => {
  const peer = await Peer.connect(raptor, { app });
  await peer.subscribe('cache-counted');
  await peer.receives({ event: 'pusher:cache_miss', channel: 'cache-counted', data: '{}' }, count('cache-counted', 1));
});

test('connections of one user are counted one by one', async () => {
  const [a, b] = await Promise.all([1, 2].map(() => Peer.connect(raptor, { app })));
  await a.signIn({ id: 'same' });
  await b.signIn({ id: 'same' });
  await a.subscribe('counted-user');
  await a.receives(count('counted-user', 1));
  await b.subscribe('counted-user');
  await a.receives(count('counted-user', 2));
});

for (const channel of ['presence-counted', 'presence-cache-counted']) {
  test(`${channel} is not counted`, async () => {
    const peer = await Peer.connect(raptor, { app });
    await peer.join(channel, '1');
    assert.ok((await peer.arrivingNow()).every((frame) => frame.event === 'pusher:cache_miss'));
  });
}

test('without the setting nobody is told', async () => {
  const peer = await Peer.connect(raptor, { app: silent });
  await peer.subscribe('uncounted');
  await peer.receivesNothing();
});

test('when many come and go at once, the last count that each is told is the right one', async () => {
  const peers = await Promise.all(Array.from({ length: 60 }, () => Peer.connect(raptor, { app })));
  for (const peer of peers) peer.askToSubscribe('rush');
  await settled(peers);
  for (const peer of peers) assert.equal(await lastCount(peer), 60);
  const [leaving, staying] = [peers.slice(0, 30), peers.slice(30)];
  leaving.forEach((peer, i) => (i % 2 ? peer.unsubscribe('rush') : peer.socket.vanish()));
  await until(async () => (await api.get('/channels/rush', { info: 'subscription_count' })).json().subscription_count === 30);
  for (const peer of staying) assert.equal(await lastCount(peer), 30);
});

/** Everything the peers have sent so far has been acted upon. Frames that came meanwhile are kept for `lastCount`. */
async function settled(peers) {
  for (const peer of peers) peer.seen = await peer.arrivingNow();
}

async function lastCount(peer) {
  const counts = [...(peer.seen ?? []), ...(await peer.arrivingNow())].filter(({ event }) => event === 'pusher_internal:subscription_count');
  peer.seen = [];
  return JSON.parse(counts.at(-1).data).subscription_count;
}

test('beyond 100 connections the count comes at most every 5 seconds, and ends right', async () => {
  const first = await Peer.connect(raptor, { app });
  await first.subscribe('crowded');
  await first.receives(count('crowded', 1));
  const others = await Promise.all(Array.from({ length: 119 }, () => Peer.connect(raptor, { app })));
  for (let n = 2; n <= 120; n += 1) await others[n - 2].subscribe('crowded');

  const told = (await first.arrivingNow()).map((frame) => JSON.parse(frame.data).subscription_count);
  assert.deepEqual(told.slice(0, 99), Array.from({ length: 99 }, (_, i) => i + 2));
  assert.ok(told.length - 99 <= 1, `told ${told.length - 99} times within a moment: ${told.slice(99)}`);
  if (told.at(-1) !== 120) compare(await first.frame(6_000), count('crowded', 120));
  await sleep(5_500);
  await first.receivesNothing();
});
