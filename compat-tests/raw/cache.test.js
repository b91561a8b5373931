// Cache channels hand their last event to whoever comes later (`pusher.md` 2.7).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed } from './peer.js';

const forgetful = appNamed('forgetful', { limits: { cache_ttl_secs: 1 } });
const raptor = await startRaptor({ config: { apps: [APP, forgetful] } });
const api = new Api(raptor, APP);

const member = { channelData: '{"user_id":"1"}' };
const miss = (channel) => ({ event: 'pusher:cache_miss', channel, data: '{}' });

for (const [channel, options] of [['cache-x'], ['private-cache-x'], ['private-encrypted-cache-x'], ['presence-cache-x', member]]) {
  test(`${channel}: nothing is cached, then the last event is, as it was published`, async () => {
    const early = await Peer.connect(raptor);
    await early.subscribe(channel, options);
    await early.receives(miss(channel));
    await api.trigger(channel, 'first', '1');
    await api.trigger(channel, 'App\\Events\\Last', '{"n":  2, "s":"\\u00eb\\/"}');
    await early.receives({ event: 'first', channel, data: '1' }, { event: 'App\\Events\\Last', channel, data: '{"n":  2, "s":"\\u00eb\\/"}' });

    const late = await Peer.connect(raptor);
    await late.subscribe(channel, options);
    await late.receives({ event: 'App\\Events\\Last', channel, data: '{"n":  2, "s":"\\u00eb\\/"}' });
    await late.receivesNothing();
    await early.receivesNothing();
  });
}

for (const channel of ['room', 'cacheable', 'x-cache-y', 'private-x', 'private-encrypted-x', 'presence-x']) {
  test(`${channel} caches nothing and sends no miss`, async () => {
    await api.trigger(channel, 'e', 'x');
    const peer = await Peer.connect(raptor);
    await peer.subscribe(channel, channel.startsWith('presence-') ? member : undefined);
    await peer.receivesNothing();
  });
}

test('the cache outlives its subscribers and their absence', async () => {
  await api.trigger('cache-alone', 'e', 'kept');
  for (let i = 0; i < 2; i += 1) {
    const peer = await Peer.connect(raptor);
    await peer.subscribe('cache-alone');
    await peer.receives({ event: 'e', channel: 'cache-alone', data: 'kept' });
    await peer.close();
  }
});

test('a batch fills the cache with its last event', async () => {
  const batch = [1, 2, 3].map((n) => ({ channel: 'cache-batch', name: `e${n}`, data: String(n) }));
  assert.equal((await api.post('/batch_events', { batch })).status, 200);
  const peer = await Peer.connect(raptor);
  await peer.subscribe('cache-batch');
  await peer.receives({ event: 'e3', channel: 'cache-batch', data: '3' });
});

test('the excluded connection finds the event in the cache', async () => {
  const peer = await Peer.connect(raptor);
  await api.trigger('cache-excluded', 'e', 'x', { socket_id: peer.socketId });
  await peer.subscribe('cache-excluded');
  await peer.receives({ event: 'e', channel: 'cache-excluded', data: 'x' });
});

test('client events are not cached', async () => {
  const [one, two] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  await one.subscribe('private-cache-client');
  await one.receives(miss('private-cache-client'));
  one.send({ event: 'client-e', channel: 'private-cache-client', data: {} });
  await one.receivesNothing();
  await two.subscribe('private-cache-client');
  await two.receives(miss('private-cache-client'));
});

test('member_added and member_removed are not cached', async () => {
  const [one, two] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  await one.join('presence-cache-members', 'one');
  await one.receives(miss('presence-cache-members'));
  await two.join('presence-cache-members', 'two');
  await two.receives(miss('presence-cache-members'));
  await two.close();
  await api.trigger('presence-cache-members', 'e', 'x');
  const three = await Peer.connect(raptor);
  await three.join('presence-cache-members', 'three');
  await three.receives({ event: 'e', channel: 'presence-cache-members', data: 'x' });
});

test('the cache is read through the API, with the seconds it has left', async () => {
  const read = async (channel) => (await api.get(`/channels/${channel}`, { info: 'cache' })).json();
  assert.deepEqual(await read('cache-read'), { occupied: false, cache: null });
  await api.trigger('cache-read', 'e', 'plain text');
  const { occupied, cache } = await read('cache-read');
  assert.equal(occupied, false);
  assert.deepEqual(cache, { data: 'plain text', ttl: cache.ttl });
  assert.ok(Number.isInteger(cache.ttl) && cache.ttl > 1790 && cache.ttl <= 1800, String(cache.ttl));
});

test('after its time the cache is empty', async () => {
  const quick = new Api(raptor, forgetful);
  await quick.trigger('cache-brief', 'e', 'x');
  const early = await Peer.connect(raptor, { app: forgetful });
  await early.subscribe('cache-brief');
  await early.receives({ event: 'e', channel: 'cache-brief', data: 'x' });
  await sleep(1_200);
  const late = await Peer.connect(raptor, { app: forgetful });
  await late.subscribe('cache-brief');
  await late.receives(miss('cache-brief'));
  assert.deepEqual((await quick.get('/channels/cache-brief', { info: 'cache' })).json(), { occupied: true, cache: null });
});

test('apps do not share their caches', async () => {
  await api.trigger('cache-apps', 'e', 'x');
  const peer = await Peer.connect(raptor, { app: forgetful });
  await peer.subscribe('cache-apps');
  await peer.receives(miss('cache-apps'));
});

test('no event is lost or doubled between the cache and the stream', async () => {
  let publishing = true;
  const publisher = (async () => {
    for (let n = 0; publishing; n += 1) await api.trigger('cache-torrent', 'n', String(n));
  })();
  await sleep(50);
  for (let round = 0; round < 20; round += 1) {
    const peer = await Peer.connect(raptor);
    await peer.subscribe('cache-torrent');
    const numbers = [];
    while (numbers.length < 5) numbers.push(Number((await peer.frame()).data));
    assert.deepEqual(numbers, [0, 1, 2, 3, 4].map((i) => numbers[0] + i));
    await peer.close();
  }
  publishing = false;
  await publisher;
});
