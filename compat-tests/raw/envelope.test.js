// Which keys a frame has and of which type its data is, for every event the server sends (`pusher.md` 1.3, 1.6). Here three peers live
// through everything; each frame that reaches one of them is held against the table.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { TEST_APP, startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { Peer } from './peer.js';

const raptor = await startRaptor();
const api = new Api(raptor);
const app = TEST_APP;

const isCount = (value) => Number.isInteger(value) && value > 0;
const isText = (value) => typeof value === 'string';
const isEmpty = (value) => Object.keys(value).length === 0;

/** Keys beside `event`, and what the decoded data must be. */
const TABLE = {
  'pusher:connection_established': [['data'], (d) => hasKeys(d, 'socket_id', 'activity_timeout') && isText(d.socket_id) && isCount(d.activity_timeout)],
  'pusher:error': [['data'], (d) => hasKeys(d, 'code', 'message') && (d.code === null || isCount(d.code)) && isText(d.message)],
  'pusher:pong': [['data'], isEmpty],
  'pusher_internal:subscription_succeeded': [['channel', 'data'], (d, frame) => (frame.channel.startsWith('presence-') ? isRoster(d.presence) : isEmpty(d))],
  'pusher_internal:member_added': [['channel', 'data'], (d) => isText(d.user_id) && (hasKeys(d, 'user_id') || (hasKeys(d, 'user_id', 'user_info') && typeof d.user_info === 'object'))],
  'pusher_internal:member_removed': [['channel', 'data'], (d) => hasKeys(d, 'user_id') && isText(d.user_id)],
  'pusher_internal:subscription_count': [['channel', 'data'], (d) => hasKeys(d, 'subscription_count') && isCount(d.subscription_count)],
  'pusher:cache_miss': [['channel', 'data'], isEmpty],
  'pusher:subscription_error': [['channel', 'data'], (d) => hasKeys(d, 'type', 'error', 'status') && isText(d.type) && isText(d.error) && isCount(d.status)],
  'pusher:signin_success': [['data'], (d) => hasKeys(d, 'user_data') && isText(d.user_data)],
  'pusher_internal:watchlist_events': [['data'], (d) => hasKeys(d, 'events') && d.events.every((e) => ['online', 'offline'].includes(e.name) && e.user_ids.length > 0 && e.user_ids.every(isText))],
  'app-event': [['channel', 'data'], () => true],
  'client-private': [['channel', 'data'], () => true],
  'client-presence': [['channel', 'data', 'user_id'], (d, frame) => isText(frame.user_id)],
};

function hasKeys(value, ...keys) {
  return JSON.stringify(Object.keys(value).sort()) === JSON.stringify(keys.sort());
}

function isRoster(presence) {
  return hasKeys(presence, 'count', 'ids', 'hash') && Array.isArray(presence.ids) && presence.ids.every(isText) && hasKeys(presence.hash, ...presence.ids) && presence.count === presence.ids.length;
}

test('every frame has exactly the keys of the table, and data of its type', async () => {
  const seen = [];
  const peers = [];
  /** Lets every peer take what is on its way. */
  const settle = async () => {
    for (const peer of peers) seen.push(...(await peer.arrivingNow()), { event: 'pusher:pong', data: '{}' });
  };
  for (let i = 0; i < 3; i += 1) {
    const peer = await Peer.open(raptor, { app });
    const frame = await peer.frame();
    peer.socketId = JSON.parse(frame.data).socket_id;
    seen.push(frame);
    peers.push(peer);
  }
  const [a, b, c] = peers;

  a.askToSignIn({ id: 'a', watchlist: ['b', 'c'], user_info: { name: 'A' } });
  b.askToSignIn({ id: 'b', watchlist: Array.from({ length: 101 }, (_, i) => `w${i}`) });
  c.askToSignIn({ id: '' });
  await settle();
  for (const peer of peers) {
    for (const channel of ['public', 'private-x', 'private-encrypted-x', 'cache-x', 'private-cache-x']) peer.askToSubscribe(channel);
    peer.askToSubscribe('presence-x', { channelData: JSON.stringify({ user_id: peers.indexOf(peer), user_info: peer === a ? { name: 'A' } : undefined }) });
    peer.askToSubscribe('presence-cache-x', { channelData: JSON.stringify({ user_id: peer.socketId }) });
    peer.askToSubscribe('private-refused', { auth: 'x:y' });
    peer.askToSubscribe('not valid');
    peer.askToSubscribe('public');
    peer.send({ event: 'unknown' });
    await settle();
  }
  a.askToSubscribe('#server-to-user-a', { auth: '' });
  await settle();
  for (const channel of ['public', 'private-x', 'private-encrypted-x', 'cache-x', 'presence-x', 'presence-cache-x', '#server-to-user-a']) {
    await api.trigger(channel, 'app-event', '', { socket_id: c.socketId });
  }
  a.send({ event: 'client-private', channel: 'private-x' });
  a.send({ event: 'client-presence', channel: 'presence-x', data: 'x' });
  a.send({ event: 'client-presence', channel: 'public', data: 'x' });
  await settle();
  c.unsubscribe('presence-x');
  c.unsubscribe('public');
  await settle();
  peers.pop();
  await c.close();
  b.askToSubscribe('cache-late');
  await settle();

  for (const frame of seen) {
    const shown = JSON.stringify(frame);
    const row = TABLE[frame.event];
    assert.ok(row, `not in the table: ${shown}`);
    const [keys, isRight] = row;
    assert.deepEqual(Object.keys(frame).sort(), ['event', ...keys].sort(), shown);
    for (const key of keys.filter((k) => k !== 'data')) assert.equal(typeof frame[key], 'string', shown);
    assert.equal(typeof frame.data, frame.event === 'pusher:error' ? 'object' : 'string', shown);
    const isOurs = frame.event.startsWith('pusher');
    assert.ok(isRight(isOurs && isText(frame.data) ? JSON.parse(frame.data) : frame.data, frame), shown);
  }
  assert.deepEqual([...new Set(seen.map((frame) => frame.event))].sort(), Object.keys(TABLE).sort(), 'every event of the table was seen');
});

test('what is a string on the wire is a string: data of a subscribe, and none of it an object', async () => {
  const peer = await Peer.open(raptor, { app });
  const { text } = await peer.socket.next();
  assert.match(text, /"data":"\{\\"/);
  peer.socket.sendText('{"event":"pusher:subscribe","data":{"channel":"raw"}}');
  const item = await peer.socket.next();
  assert.match(item.text, /"data":"\{\}"/);
  assert.doesNotMatch(item.text, /null|socket_id|user_id/);
});
