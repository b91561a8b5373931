// What many clients leave behind in Redis: nothing. Clients of every kind come, join and go at three nodes; then Redis has the keys that it
// had before, and they are as large. RAPTOR_JOIN_ROUNDS makes it longer.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { handshake } from '../bayeux/support/http.js';
import { clientOf } from '../fallback/peer.js';
import { Peer } from '../raw/peer.js';
import { Api } from '../rest/api.js';
import { sleep, until } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';

const ROUNDS = Number(process.env.RAPTOR_JOIN_ROUNDS ?? 2_000);
const AT_ONCE = 24;
/** A client over HTTP that vanishes is noticed after some seconds: few of the rounds, or they would be in the way. */
const ROUNDS_OVER_HTTP = 10;
const APP = { ...TEST_APP, bayeux: { mounts: ['/faye'], client_publish: 'open' } };

const redis = await startRedis();
const nodes = await Promise.all([1, 2, 3].map(() => startRaptor({ config: { apps: [APP], redis: { url: redis.url } } })));

/** One client of each kind, from its coming to its going. `n` is never the same. */
const KINDS = [
  (n) => withPeer(n, (peer) => peer.subscribe(`public-${n}`)),
  (n) => withPeer(n, (peer) => peer.subscribe(`private-${n % 50}`)),
  (n) => withPeer(n, (peer) => peer.join(`presence-${n % 50}`, `user-${n}`, { name: 'x'.repeat(200) })),
  (n) => withPeer(n, async (peer) => {
    peer.askToSubscribe(`cache-${n % 10}`);
    await peer.frame();
  }),
  (n) => withPeer(n, async (peer) => {
    peer.askToSignIn({ id: `user-${n}`, watchlist: [`user-${n - 1}`, `watched-${n}`] });
    await peer.frame();
  }),
  (n) => withPeer(n, async (peer) => {
    await peer.subscribe(`left-${n}`);
    peer.unsubscribe(`left-${n}`);
  }),
  async (n) => {
    const session = await handshake(`${nodes[n % 3].url}/faye`);
    assert.equal((await session.subscribe([`/room/${n}`, '/room/*'])).successful, true);
    assert.equal((await session.disconnect()).successful, true);
  },
];

async function withPeer(n, act) {
  const peer = await Peer.connect(nodes[n % 3], { app: APP });
  await act(peer);
  peer.socket.vanish();
}

async function overHttp(n) {
  const client = clientOf(nodes[n % 3], {});
  await client.poll();
  await client.sendAt(nodes[(n + 1) % 3], { event: 'pusher:subscribe', data: { channel: `polled-${n}` } });
}

let begun = 0;
async function rounds(count) {
  const last = begun + count;
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (begun < last) {
      const n = (begun += 1);
      await KINDS[n % KINDS.length](n);
    }
  }));
  await Promise.all(Array.from({ length: ROUNDS_OVER_HTTP }, () => overHttp((begun += 1))));
}

const WEIGH = `
  local bytes, keys = 0, redis.call('KEYS', '*')
  for at = #keys, 1, -1 do
    if string.sub(keys[at], -4) == ':log' then table.remove(keys, at) else bytes = bytes + redis.call('MEMORY', 'USAGE', keys[at]) end
  end
  return cjson.encode({ keys = keys, bytes = bytes })`;

/** The keys but for the logs, which have a length of their own, with what they take in all. */
function held() {
  const { keys, bytes } = JSON.parse(redis.cli('EVAL', WEIGH, '0'));
  return { keys: keys.sort(), bytes };
}

test(`${ROUNDS} clients come to three nodes and go, and Redis keeps nothing of them`, { timeout: 60_000 + ROUNDS * 20 }, async (context) => {
  const api = new Api(nodes[0], APP);
  for (let n = 0; n < 10; n += 1) await api.trigger(`cache-${n}`, 'kept', 'x'.repeat(100));
  await rounds(200);
  const settled = async (expected) => {
    let left;
    await until(async () => {
      const { channels } = (await api.get('/channels')).json();
      left = { channels: Object.keys(channels), sessions: redis.cli('KEYS', '*:session:*') };
      return left.channels.length === 0 && left.sessions === '';
    }, () => `everybody has gone, but ${JSON.stringify(left)}`, 20_000);
    // What is silent for a second is given up.
    if (expected) await until(() => held().keys.length <= expected.keys.length, () => `${JSON.stringify(held())} is not ${JSON.stringify(expected)}`, 10_000);
    return held();
  };
  await sleep(1_500);
  const before = await settled();
  const begin = Date.now();
  await rounds(ROUNDS);
  const secs = (Date.now() - begin) / 1000;
  const after = await settled(before);
  assert.deepEqual(after.keys, before.keys);
  assert.ok(Math.abs(after.bytes - before.bytes) <= before.bytes * 0.02, `${before.bytes} bytes became ${after.bytes}`);
  const logs = redis.cli('--scan', '--pattern', '*:log').split('\n').filter(Boolean);
  const lengths = logs.map((log) => Number(redis.cli('XLEN', log)));
  assert.ok(Math.max(0, ...lengths) <= 1_200, `${Math.max(...lengths)} records in a log`);
  const memory = /used_memory:(\d+)/.exec(redis.cli('INFO', 'memory'))[1];
  context.diagnostic(`${ROUNDS} rounds in ${secs.toFixed(1)} s; ${after.keys.length} keys of ${after.bytes} bytes as before (${before.bytes}); logs have at most ${Math.max(0, ...lengths)} records; Redis uses ${memory} bytes`);
});
