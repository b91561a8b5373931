// Who vanishes and returns within three seconds was never away (`pusher.md` 6.4).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { APP, Peer } from '../raw/peer.js';
import { sleep, until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Receiver } from './receiver.js';

const HOLD_MS = 3_000;
/** From the end of the hold to the request. */
const SLACK_MS = 1_500;

const receiver = await Receiver.start();
const raptor = await startRaptor({ config: { apps: [{ ...APP, webhooks: [receiver.endpoint()], limits: { presence_members_max: 2_000 } }] } });
const connect = () => Peer.connect(raptor);
const about = (channel) => receiver.events.filter((event) => event.channel === channel).map(({ name, user_id: user }) => [name, user].filter(Boolean).join(' '));

/** The connection is cut, as by closing a page. */
const leave = (peer) => peer.socket.vanish();

test('a page that reloads makes no event, though it does so again and again', async () => {
  let peer = await connect();
  await peer.join('presence-reload', 'u', {});
  for (let n = 0; n < 5; n++) {
    leave(peer);
    await sleep(n * 300);
    peer = await connect();
    await peer.join('presence-reload', 'u', {});
  }
  await sleep(HOLD_MS + SLACK_MS);
  assert.deepEqual(about('presence-reload'), ['channel_occupied', 'member_added u']);
});

test('a real leave makes exactly one event of each kind, three seconds later', async () => {
  const peer = await connect();
  await peer.join('presence-leave', 'u', {});
  await until(() => about('presence-leave').length === 2);
  const left = Date.now();
  leave(peer);
  await until(() => about('presence-leave').length === 4, 'two more events', HOLD_MS + SLACK_MS);
  const took = receiver.deliveries.at(-1).at - left;
  assert.ok(took >= HOLD_MS - 50 && took <= HOLD_MS + SLACK_MS, `${took} ms`);
  await sleep(SLACK_MS);
  assert.deepEqual(about('presence-leave'), ['channel_occupied', 'member_added u', 'member_removed u', 'channel_vacated']);
});

test('an unsubscribe is held like a disconnect', async () => {
  const peer = await connect();
  await peer.subscribe('unsubscribed');
  peer.unsubscribe('unsubscribed');
  await peer.subscribe('unsubscribed');
  peer.unsubscribe('unsubscribed');
  await until(() => about('unsubscribed').length === 2, 'the end', HOLD_MS + SLACK_MS);
  assert.deepEqual(about('unsubscribed'), ['channel_occupied', 'channel_vacated']);
});

test('a second connection of a user makes no event, nor does its end', async () => {
  const peers = [await connect(), await connect()];
  for (const peer of peers) peer.askToSubscribe('presence-twice', { channelData: '{"user_id":"u"}' });
  await until(() => about('presence-twice').length === 2);
  leave(peers[0]);
  await sleep(HOLD_MS + 500);
  assert.deepEqual(about('presence-twice'), ['channel_occupied', 'member_added u']);
});

test('1,000 users come, reload and leave: each is added once and removed once', async () => {
  const USERS = 1_000;
  const CHANNELS = 10;
  const names = new Map();
  const connectAs = async (n) => {
    const peer = await connect();
    const channel = `presence-crowd-${n % CHANNELS}`;
    peer.askToSubscribe(channel, { channelData: JSON.stringify({ user_id: `u${n}` }) });
    await until(async () => (await peer.frame()).event === 'pusher_internal:subscription_succeeded');
    names.set(n, channel);
    return peer;
  };
  const together = async (numbers, work) => {
    for (let from = 0; from < numbers.length; from += 100) await Promise.all(numbers.slice(from, from + 100).map(work));
  };
  const all = Array.from({ length: USERS }, (_, n) => n);
  const peers = [];
  await together(all, async (n) => (peers[n] = await connectAs(n)));
  // Some reload, some more than once, some leave.
  await together(all.filter((n) => n % 3 === 0), async (n) => {
    for (let times = 0; times <= n % 2; times++) {
      leave(peers[n]);
      peers[n] = await connectAs(n);
    }
  });
  const leavers = all.filter((n) => n % 3 === 1);
  for (const n of leavers) leave(peers[n]);
  const ofCrowd = () => receiver.events.filter(({ channel }) => channel.startsWith('presence-crowd-'));
  await until(() => ofCrowd().length >= CHANNELS + USERS + leavers.length, () => `all events, got ${ofCrowd().length}`, 30_000);
  await sleep(SLACK_MS);
  const expected = [
    ...Array.from({ length: CHANNELS }, (_, n) => `channel_occupied presence-crowd-${n}`),
    ...all.map((n) => `member_added ${names.get(n)} u${n}`),
    ...leavers.map((n) => `member_removed ${names.get(n)} u${n}`),
  ];
  const got = ofCrowd().map(({ name, channel, user_id: user }) => [name, channel, user].filter(Boolean).join(' '));
  assert.deepEqual(got.sort(), expected.sort());
  receiver.isExact();
});
