// Webhooks of several nodes with one Redis: told once for the cluster, whatever becomes of a node.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { handshake } from '../bayeux/support/http.js';
import { APP, Peer } from '../raw/peer.js';
import { sleep, until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';
import { archive, billing, replayDeadLetter } from './dead-letters.js';
import { Heard, half } from './lives.js';
import { ANSWER, Receiver } from './receiver.js';

/** `RAPTOR_LIVES=40` makes it a matter of two minutes. */
const LIVES = Number(process.env.RAPTOR_LIVES ?? 4);

const redis = await startRedis();
const app = (webhooks) => ({
  ...APP,
  limits: { client_events_per_sec_max: 10_000, presence_members_max: 1_000 },
  bayeux: { mounts: ['/faye'], client_publish: 'open' },
  webhooks,
});

let clusters = 0;

/** Nodes of a cluster of their own. */
async function startNodes(count, endpoint, { url } = redis) {
  const config = { redis: { url, key_prefix: `webhooks-${++clusters}` }, apps: [app([endpoint])] };
  return Promise.all(Array.from({ length: count }, () => startRaptor({ config })));
}

const about = (receiver, channel) => receiver.events.filter((event) => event.channel === channel && event.name !== 'client_event')
  .map(({ name, user_id: user }) => [name, user].filter(Boolean).join(' '));

test('a channel on three nodes is occupied once and vacated once, and a user who changes node was never away', async () => {
  const receiver = await Receiver.start();
  const nodes = await startNodes(3, receiver.endpoint());
  const join = async (node, user) => {
    const peer = await Peer.connect(node);
    peer.askToSubscribe('presence-room', { channelData: JSON.stringify({ user_id: user }) });
    await until(async () => (await peer.frame()).event === 'pusher_internal:subscription_succeeded');
    return peer;
  };
  const peers = [await join(nodes[0], 'a'), await join(nodes[1], 'a'), await join(nodes[2], 'b')];
  await until(() => about(receiver, 'presence-room').length >= 3, () => JSON.stringify(receiver.events), 15_000);
  peers[0].socket.vanish();
  peers[1].socket.vanish();
  await sleep(500);
  const back = await join(nodes[2], 'a');
  await sleep(4_000);
  assert.deepEqual(about(receiver, 'presence-room'), ['channel_occupied', 'member_added a', 'member_added b']);
  back.socket.vanish();
  peers[2].socket.vanish();
  await until(() => about(receiver, 'presence-room').length >= 6, () => JSON.stringify(receiver.events), 10_000);
  assert.deepEqual(about(receiver, 'presence-room').slice(3).sort(), ['channel_vacated', 'member_removed a', 'member_removed b']);
  receiver.isExact();
  for (const node of nodes) assert.equal((await node.stop()).code, 0);
});

test('a receiver that fails half of its requests gets all that anybody saw, in order, though nodes are killed at random', async () => {
  const receiver = await Receiver.start({ answer: half() });
  const nodes = await startNodes(3, receiver.endpoint());
  const heard = new Heard();
  for (let life = 0; life < LIVES; life++) {
    const at = Math.floor(Math.random() * nodes.length);
    const { end, silent } = await heard.talk(nodes[at], nodes[(at + 1) % nodes.length]);
    await sleep(400 + Math.random() * 2_000);
    await nodes[at].stop('SIGKILL');
    await end();
    await silent();
    nodes[at] = await nodes[at].restart('SIGKILL');
  }
  receiver.answer = ANSWER.well;
  await heard.isReceived(receiver, LIVES, 90_000);
  // Everybody has gone with the last node that was killed: each channel is vacated in the end, in turn with being occupied.
  await until(() => about(receiver, 'private-0').at(-1) === 'channel_vacated', () => about(receiver, 'private-0').join(), 60_000);
  about(receiver, 'private-0').forEach((name, nth) => assert.equal(name, nth % 2 === 0 ? 'channel_occupied' : 'channel_vacated'));
});

test('Redis dies and comes back in the middle of deliveries, with what it kept: all that anybody heard is told, in order', async () => {
  const receiver = await Receiver.start({ answer: half() });
  const kept = await startRedis({ keeps: true });
  const nodes = await startNodes(2, receiver.endpoint(), kept);
  const heard = new Heard();
  const DEATHS = 3;
  const { end, silent } = await heard.talk(...nodes);
  for (let death = 0; death < DEATHS; death++) {
    await sleep(500 + Math.random() * 1_000);
    await kept.kill();
    await sleep(Math.random() * 1_500);
    await kept.restart();
    const ready = async ({ url }) => (await (await fetch(`${url}/readyz`)).text()).trim() === 'ready';
    await until(async () => (await Promise.all(nodes.map(ready))).every(Boolean), 'the nodes are back', 10_000);
  }
  await sleep(1_000);
  await end();
  await silent();
  receiver.answer = ANSWER.well;
  await heard.isReceived(receiver, DEATHS, 60_000);
  assert.deepEqual(about(receiver, 'private-0').slice(0, 1), ['channel_occupied']);
});

test('what happens to Bayeux sessions on any node is told to who asks for it', async () => {
  const receiver = await Receiver.start();
  const nodes = await startNodes(2, receiver.endpoint({ events: ['bayeux_sessions'] }));
  for (const { url } of nodes) {
    const session = await handshake(`${url}/faye`);
    await session.subscribe('/watched/*');
    await session.publish('/watched/1', { text: 'hello' });
    await session.disconnect();
  }
  await until(() => receiver.events.length >= 10, () => JSON.stringify(receiver.events), 15_000);
  const sessions = new Set(receiver.events.map(({ socket_id: id }) => id));
  assert.equal(sessions.size, 2);
  for (const id of sessions) {
    const events = receiver.events.filter((event) => event.socket_id === id);
    assert.deepEqual(events.sort((a, b) => a.name.localeCompare(b.name)), [
      { name: 'disconnect', socket_id: id },
      { name: 'handshake', socket_id: id },
      { name: 'publish', channel: '/watched/1', data: '{"text":"hello"}', socket_id: id },
      { name: 'subscribe', channel: '/watched/*', socket_id: id },
      { name: 'unsubscribe', channel: '/watched/*', socket_id: id },
    ]);
  }
  receiver.isExact();
});

test('dead letters in Redis are listed, shown, and replayed, with every attempt', async () => {
  const receiver = await Receiver.start({ answer: ANSWER.status(503) });
  const [node] = await startNodes(1, billing(receiver));
  const webhooks = archive([], { config: { redis: { url: redis.url, key_prefix: `webhooks-${clusters}` } } });
  const id = await replayDeadLetter(webhooks, node, receiver, { deadWithinMs: 15_000 });
  assert.match(await webhooks('show', id), /^body +not kept/m);
});

test('a Redis that comes back empty makes no event, and who leaves afterwards is told gone', async () => {
  const receiver = await Receiver.start();
  const forgetful = await startRedis();
  const nodes = await startNodes(2, receiver.endpoint(), forgetful);
  const peers = await Promise.all(nodes.map((node) => Peer.connect(node)));
  await Promise.all(peers.map((peer, nth) => peer.askToSubscribe('presence-room', { channelData: JSON.stringify({ user_id: `u${nth}` }) })));
  await until(() => about(receiver, 'presence-room').length === 3, () => JSON.stringify(receiver.events), 15_000);
  await forgetful.kill();
  await forgetful.restart();
  // From the lost lease to the next dispatcher.
  await sleep(8_000);
  assert.equal(about(receiver, 'presence-room').length, 3);
  for (const peer of peers) peer.socket.vanish();
  await until(() => about(receiver, 'presence-room').length >= 6, () => JSON.stringify(receiver.events), 20_000);
  assert.deepEqual(about(receiver, 'presence-room').slice(3).sort(), ['channel_vacated', 'member_removed u0', 'member_removed u1']);
});
