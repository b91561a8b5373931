// What applications are told, byte for byte (`pusher.md` 6.1 to 6.3).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Peer, appNamed } from '../raw/peer.js';
import { hmac } from '../rest/api.js';
import { Api } from '../rest/api.js';
import { handshake } from '../bayeux/support/http.js';
import { until } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { Receiver } from './receiver.js';

const all = await Receiver.start();
const one = await Receiver.start();
const few = await Receiver.start();
const keys = await Receiver.start();
const sessions = await Receiver.start();
const rotated = appNamed('rotated', {
  keys: [{ key: 'newer', secret: 'newer-secret' }],
  webhooks: [keys.endpoint()],
});
const raptor = await startRaptor({
  config: {
    apps: [
      {
        ...TEST_APP,
        bayeux: { mounts: ['/faye'], client_publish: 'open' },
        webhooks: [
          all.endpoint(),
          one.endpoint({ batching: false, headers: { 'X-Mine': 'yes' }, url: `${one.url}?q=1` }),
          sessions.endpoint({ events: ['bayeux_sessions'] }),
          few.endpoint({ events: ['presence', 'cache_miss'], channel_prefixes: ['presence-x', 'cache-x'] }),
        ],
      },
      rotated,
    ],
  },
});
const connect = () => Peer.connect(raptor, { app: TEST_APP });
const about = (receiver, channel) => receiver.events.filter((event) => event.channel === channel);
const untilAbout = (receiver, channel, count) =>
  until(() => about(receiver, channel).length >= count, () => `${count} about ${channel}, got ${JSON.stringify(receiver.events)}`, 8_000)
    .then(() => about(receiver, channel));

test('a request has exactly the headers of the rule, its own id, and what the endpoint adds', async () => {
  const peer = await connect();
  peer.askToSubscribe('headers');
  await untilAbout(one, 'headers', 1);
  const { method, url, headers, body, time_ms: time, httpVersion } = one.requests[0];
  assert.equal(method, 'POST');
  assert.equal(url, '/hook?q=1');
  assert.equal(httpVersion, '1.1');
  assert.equal(headers['content-type'], 'application/json');
  assert.equal(headers['x-pusher-key'], TEST_APP.key);
  assert.equal(headers['x-pusher-signature'], hmac(TEST_APP.secret, body));
  assert.match(headers['x-raptor-webhook-id'], /^[0-9a-f]{32}$/);
  assert.equal(headers['x-mine'], 'yes');
  assert.equal(typeof time, 'number');
  assert.ok(Math.abs(Date.now() - time) < 10_000);
  assert.deepEqual(Object.keys(headers).sort(), [
    'content-length', 'content-type', 'host', 'user-agent', 'x-mine', 'x-pusher-key', 'x-pusher-signature', 'x-raptor-webhook-id',
  ]);
});

test('each event has exactly its members, and data is the text that subscribers got', async () => {
  const [a, b] = [await connect(), await connect()];
  await a.join('presence-all', 'u1', {});
  await b.join('presence-all', 7, {});
  for (const [event, data] of [['client-text', '{"a": "ë"}'], ['client-object', { b: [1, null] }]]) a.send({ event, channel: 'presence-all', data });
  const got = await untilAbout(all, 'presence-all', 5);
  assert.deepEqual(got, [
    { name: 'channel_occupied', channel: 'presence-all' },
    { name: 'member_added', channel: 'presence-all', user_id: 'u1' },
    { name: 'member_added', channel: 'presence-all', user_id: '7' },
    { name: 'client_event', channel: 'presence-all', event: 'client-text', data: '{"a": "ë"}', socket_id: a.socketId, user_id: 'u1' },
    { name: 'client_event', channel: 'presence-all', event: 'client-object', data: '{"b":[1,null]}', socket_id: a.socketId, user_id: 'u1' },
  ]);

  b.askToSubscribe('private-x');
  b.send({ event: 'client-y', channel: 'private-x', data: 'plain' });
  const [, , whisper] = await untilAbout(all, 'private-x', 3);
  assert.deepEqual(whisper, { name: 'client_event', channel: 'private-x', event: 'client-y', data: 'plain', socket_id: b.socketId });
});

test('a cached channel without an event is one cache_miss, however many ask', async () => {
  const peers = [await connect(), await connect(), await connect()];
  for (const peer of peers) peer.askToSubscribe('cache-miss');
  await untilAbout(all, 'cache-miss', 5);
  const misses = about(all, 'cache-miss').filter(({ name }) => name === 'cache_miss');
  assert.deepEqual(misses, [{ name: 'cache_miss', channel: 'cache-miss' }]);
});

test('subscription_count is told on every change, as a number', async () => {
  const [a, b] = [await connect(), await connect()];
  await a.subscribe('counted');
  await b.subscribe('counted');
  b.unsubscribe('counted');
  const got = await untilAbout(all, 'counted', 4);
  const counts = got.filter(({ name }) => name === 'subscription_count');
  assert.deepEqual(counts, [1, 2, 1].map((count) => ({ name: 'subscription_count', channel: 'counted', subscription_count: count })));
});

test('what the application publishes is not told', async () => {
  const peer = await connect();
  await peer.subscribe('published');
  await new Api(raptor).trigger('published', 'e', 'x');
  peer.askToSubscribe('published-later');
  await untilAbout(all, 'published-later', 1);
  assert.deepEqual(about(all, 'published').map(({ name }) => name), ['channel_occupied', 'subscription_count']);
});

test('without batching each request has one event', async () => {
  const peer = await connect();
  for (let n = 0; n < 20; n++) peer.askToSubscribe(`single-${n}`);
  await untilAbout(one, 'single-19', 2);
  assert.ok(one.requests.every(({ events }) => events.length === 1));
});

// A request may go out before the connection of the last one is known to be free again, on a
// connection of its own; most do not.
test('connections are used again', async () => {
  const peer = await connect();
  for (let n = 0; n < 20; n++) {
    peer.askToSubscribe(`again-${n}`);
    await untilAbout(one, `again-${n}`, 2);
  }
  const requests = one.requests.filter(({ events }) => events[0].channel.startsWith('again-'));
  assert.equal(requests.length, 40);
  const used = new Set(requests.map(({ connection }) => connection));
  assert.ok(used.size <= 10, `${used.size} connections for 40 requests`);
});

test('an endpoint gets the events and the channels that it asked for, signed over what it gets', async () => {
  const peer = await connect();
  await peer.join('presence-x1', 'u', {});
  await peer.join('presence-y1', 'u', {});
  peer.askToSubscribe('cache-x1');
  peer.askToSubscribe('cache-y1');
  await few.until(2);
  await untilAbout(all, 'cache-y1', 2);
  assert.deepEqual(few.events, [
    { name: 'member_added', channel: 'presence-x1', user_id: 'u' },
    { name: 'cache_miss', channel: 'cache-x1' },
  ]);
});

test('of several keys the oldest signs', async () => {
  const peer = await Peer.connect(raptor, { app: rotated });
  peer.askToSubscribe('rotated');
  await until(() => keys.requests.length > 0);
  const { headers, body } = keys.requests[0];
  assert.equal(headers['x-pusher-key'], rotated.key);
  assert.equal(headers['x-pusher-signature'], hmac(rotated.secret, body));
});

test('Bayeux sessions are told of with Pusher names', async () => {
  const session = await handshake(`${raptor.url}/faye`);
  await session.subscribe('/from/faye');
  await session.publish('/from/faye', { text: 'hello' });
  const got = await untilAbout(all, 'from.faye', 3);
  assert.deepEqual(got.map(({ name }) => name), ['channel_occupied', 'subscription_count', 'client_event']);
  const { socket_id: socketId, ...rest } = got[2];
  assert.deepEqual(rest, { name: 'client_event', channel: 'from.faye', event: 'client-message', data: '{"text":"hello"}' });
  assert.match(socketId, /^\d+\.\d+$/);
});

test('who asks for it by name is told of Bayeux sessions what Faye told, and nobody else is', async () => {
  const session = await handshake(`${raptor.url}/faye`);
  const { socket_id: socketId } = session.reply.ext ?? {};
  await session.subscribe('/watched/*');
  await session.publish('/watched/1', { text: 'hello' });
  await session.disconnect();
  const mine = () => sessions.events.filter((event) => event.socket_id === (socketId ?? sessions.named('publish').find(({ channel }) => channel === '/watched/1')?.socket_id));
  await until(() => mine().length >= 5, () => JSON.stringify(sessions.events)); // what is no channel's comes in any order
  const { socket_id: id } = mine()[0];
  const expected = [
    { name: 'disconnect', socket_id: id },
    { name: 'handshake', socket_id: id },
    { name: 'publish', channel: '/watched/1', data: '{"text":"hello"}', socket_id: id },
    { name: 'subscribe', channel: '/watched/*', socket_id: id },
    { name: 'unsubscribe', channel: '/watched/*', socket_id: id },
  ];
  assert.deepEqual(mine().sort((a, b) => a.name.localeCompare(b.name)), expected);
  assert.deepEqual(all.named('handshake', 'subscribe', 'unsubscribe', 'publish', 'disconnect'), []);
  sessions.isExact();
});

test('users and channels without a name outside are not told of', async () => {
  const peer = await connect();
  await peer.signIn({ id: 'signed-in', watchlist: ['somebody'] });
  peer.askToSubscribe('after-sign-in');
  await untilAbout(all, 'after-sign-in', 1);
  assert.deepEqual(all.events.filter(({ channel }) => channel.startsWith('#')), []);
});

test('every request passes the checker of the Node library', () => {
  assert.ok(all.requests.length > 0 && one.requests.length > 20 && few.requests.length > 0);
  for (const receiver of [all, one, few]) receiver.isExact();
});

test('every request passes the rules of the Ruby, PHP and Go libraries', () => {
  for (const { headers, rawHeaders, body } of [...all.requests, ...one.requests]) {
    // Ruby on plain Rack: the whole media type, the key, the signature.
    assert.equal(headers['content-type'], 'application/json');
    assert.equal(headers['x-pusher-key'], TEST_APP.key);
    assert.equal(headers['x-pusher-signature'], hmac(TEST_APP.secret, body));
    // PHP reads `channel` of every event, and finds headers by their very names.
    const parsed = JSON.parse(body);
    assert.ok(parsed.events.every(({ channel }) => typeof channel === 'string'));
    const names = rawHeaders.filter((_, n) => n % 2 === 0).map((name) => name.toLowerCase());
    assert.equal(new Set(names).size, names.length);
    // Go: an integer, and strings but for subscription_count.
    assert.ok(Number.isInteger(parsed.time_ms));
    for (const { subscription_count: count, ...strings } of parsed.events) {
      assert.ok(Object.values(strings).every((value) => typeof value === 'string'));
      assert.ok(count === undefined || Number.isInteger(count));
    }
  }
});
