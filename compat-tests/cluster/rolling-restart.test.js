// Three nodes behind nginx are restarted one after the other, under traffic: unmodified clients over WebSockets go to the other nodes, spread
// over the configured time, and every one is back in its channels. `RAPTOR_CONNECTIONS` and `RAPTOR_EVENTS_PER_SEC` make it larger.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { test } from 'node:test';

import { atEnd } from '../support/at-end.js';
import { sleep, until } from '../support/events.js';
import { connectionTo, pusherClass } from '../support/in-node.js';
import { startBalancer } from '../support/nginx.js';
import { startRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';
import { Api } from '../rest/api.js';
import { APP } from '../raw/peer.js';

const CONNECTIONS = Number(process.env.RAPTOR_CONNECTIONS ?? 150);
const EVENTS_PER_SEC = Number(process.env.RAPTOR_EVENTS_PER_SEC ?? 50);
const IN_A_ROOM = 5;
const SPREAD_SECS = Number(process.env.RAPTOR_SPREAD_SECS ?? 2);
/** A client that gets no answer within 10 s comes back after 15 s. */
const BACK_WITHIN_MS = 30_000 + CONNECTIONS * 10;

/** A client with a room and a hall. */
function startClient(proxy, nth) {
  const Pusher = pusherClass('8.6');
  const pusher = new Pusher(APP.key, {
    cluster: '', ...connectionTo(proxy, ['ws']), forceTLS: false,
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) => {
        const channel_data = JSON.stringify({ user_id: `${nth}` });
        const signature = createHmac('sha256', APP.secret).update(`${socketId}:${channelName}:${channel_data}`).digest('hex');
        callback(null, { auth: `${APP.key}:${signature}`, channel_data });
      },
    },
  });
  const room = `room-${Math.floor(nth / IN_A_ROOM)}`;
  const client = { pusher, room, heard: new Set(), left: null, errors: [] };
  client.channels = [pusher.subscribe(room), pusher.subscribe(`presence-${room}`)];
  client.channels[0].bind('said', (n) => client.heard.add(n));
  pusher.connection.bind('error', (error) => client.errors.push(error?.error?.data?.code ?? error?.data?.code ?? 'error'));
  pusher.connection.bind('state_change', ({ previous }) => { if (previous === 'connected') client.left = Date.now(); });
  client.isBack = () => client.channels.every((channel) => channel.subscribed) && Object.keys(client.channels[1].members.members).length === IN_A_ROOM;
  atEnd(() => pusher.disconnect());
  return client;
}

test('three nodes are restarted one after the other, and every client is back in its channels', { timeout: 290_000 + CONNECTIONS * 100 }, async (context) => {
  const redis = await startRedis();
  const config = { apps: [APP], redis: { url: redis.url }, shutdown_spread_secs: SPREAD_SECS };
  const nodes = [];
  for (let n = 0; n < 3; n += 1) nodes.push(await startRaptor({ config }));
  const proxy = await startBalancer(nodes, { connectionsMax: CONNECTIONS * 3 + 500 });
  const clients = [];
  for (let nth = 0; nth < CONNECTIONS; nth += 1) {
    clients.push(startClient(proxy, nth));
    if (nth % 50 === 49) await until(() => clients.at(-1).channels[0].subscribed, 'some are there', 20_000);
  }
  const missing = () => clients.filter((client) => !client.isBack()).length;
  const states = () => {
    const counts = {};
    for (const { pusher, channels } of clients.filter((client) => !client.isBack())) {
      const state = [pusher.connection.state, ...channels.map(({ subscribed }) => subscribed), Object.keys(channels[1].members.members).length].join(' ');
      counts[state] = (counts[state] ?? 0) + 1;
    }
    return JSON.stringify(counts);
  };
  const allAreBack = (when) => until(() => missing() === 0, () => `${when}: ${missing()} clients are missing: ${states()}`, BACK_WITHIN_MS);
  await allAreBack('at first');

  let [sent, refused, publishing] = [0, 0, true];
  const api = new Api(proxy, APP);
  const rooms = CONNECTIONS / IN_A_ROOM;
  const pending = new Set();
  const traffic = (async () => {
    for (const begin = Date.now(); publishing; ) {
      while (sent < ((Date.now() - begin) / 1000) * EVENTS_PER_SEC) {
        sent += 1;
        const call = api.trigger(`room-${sent % rooms}`, 'said', sent).catch(() => (refused += 1)).finally(() => pending.delete(call));
        pending.add(call);
        if (pending.size >= 64) await Promise.race(pending);
      }
      await sleep(5);
    }
    await Promise.all(pending);
  })();

  for (const [n, node] of nodes.entries()) {
    clients.forEach((client) => (client.left = null));
    const begin = Date.now();
    const stopped = node.stop();
    await sleep(SPREAD_SECS * 1000 + 500);
    const took = clients.filter(({ left }) => left !== null).map(({ left }) => left - begin).sort((a, b) => a - b);
    assert.deepEqual(await stopped, { code: 0, signal: null });
    assert.ok(took.length > 0.5 * (CONNECTIONS / 3), `${took.length} clients were on node ${n}`);
    const [early, middle, late] = [0.1, 0.5, 0.9].map((share) => took[Math.floor(took.length * share)] / (SPREAD_SECS * 1000));
    const shares = `a tenth had left after ${early.toFixed(2)} of the time, half after ${middle.toFixed(2)}, nine tenths after ${late.toFixed(2)}`;
    assert.ok(early > 0.02 && early < 0.35 && middle > 0.3 && middle < 0.75 && late > 0.65 && late < 1.2, shares);
    nodes[n] = await startRaptor({ config: { ...config, listen: `127.0.0.1:${node.port}` } });
    await allAreBack(`after node ${n}`);
    context.diagnostic(`node ${n}: ${took.length} clients left it, ${shares}; all were back ${Date.now() - begin} ms after its SIGTERM`);
    // nginx finds out that it is there again.
    await sleep(1_200);
  }
  publishing = false;
  await traffic;
  assert.ok(refused <= sent * 0.01, `${refused} of ${sent} publishes failed`);
  for (let room = 0; room < rooms; room += 1) await api.trigger(`room-${room}`, 'said', `last-${room}`);
  await until(() => clients.every(({ room, heard }) => heard.has(`last-${room.slice(5)}`)), 'everybody hears its room', BACK_WITHIN_MS);
  const codes = new Set(clients.flatMap(({ errors }) => errors));
  assert.ok([...codes].every((code) => code === 4200), `errors ${[...codes]}`);
  const heard = clients.reduce((sum, client) => sum + client.heard.size, 0);
  context.diagnostic(`${sent} events, ${refused} refused; ${heard} of ${(sent - refused + rooms) * IN_A_ROOM} deliveries were heard`);
});
