// Webhooks of several nodes with one Redis: told once for the cluster, whatever becomes of a node.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { APP, Peer } from '../raw/peer.js';
import { sleep, until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';
import { Heard, half } from './lives.js';
import { ANSWER, Receiver } from './receiver.js';

/** `RAPTOR_LIVES=40` makes it a matter of two minutes. */
const LIVES = Number(process.env.RAPTOR_LIVES ?? 4);

const { url } = await startRedis();
const app = (webhooks) => ({ ...APP, limits: { client_events_per_sec_max: 10_000, presence_members_max: 1_000 }, webhooks });

let clusters = 0;

/** Nodes of a cluster of their own. */
async function startNodes(count, receiver) {
  const config = { redis: { url, key_prefix: `webhooks-${++clusters}` }, apps: [app([receiver.endpoint()])] };
  return Promise.all(Array.from({ length: count }, () => startRaptor({ config })));
}

const about = (receiver, channel) => receiver.events.filter((event) => event.channel === channel && event.name !== 'client_event')
  .map(({ name, user_id: user }) => [name, user].filter(Boolean).join(' '));

test('a channel on three nodes is occupied once and vacated once, and a user who changes node was never away', async () => {
  const receiver = await Receiver.start();
  const nodes = await startNodes(3, receiver);
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
  const nodes = await startNodes(3, receiver);
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
