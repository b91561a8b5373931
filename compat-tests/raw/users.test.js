// Sign-in, watchlists, messages to a user, terminated users, and connections that must authorize (`pusher.md` 1.8, 2.9, 4).

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { SOON_MS, sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api, hmac } from '../rest/api.js';
import { APP, Peer, appNamed, auth, json } from './peer.js';

const unwatched = appNamed('unwatched', { watchlist_events: false });
const guarded = appNamed('guarded', { authorized_connections: true, authorized_connections_timeout_secs: 1 });
const raptor = await startRaptor({ config: { apps: [APP, unwatched, guarded] } });
const api = new Api(raptor, APP);

const connected = (count, options) => Promise.all(Array.from({ length: count }, () => Peer.connect(raptor, options)));
const watch = (...events) => ({ event: 'pusher_internal:watchlist_events', data: json({ events: events.map(([name, user_ids]) => ({ name, user_ids })) }) });

/** Sends the fields as they are; `undefined` leaves one out. */
const signin = (peer, data) => peer.send({ event: 'pusher:signin', data });

// Sign-in

test('success repeats the very text of user_data', async () => {
  for (const text of ['{"id":"12345"}', '{ "id" : "12345", "x": "\\u00eb\\/" }', '{"id":"1","user_info":{"name":"Zoë"},"more":[1]}']) {
    const [peer] = await connected(1);
    peer.askToSignIn(text);
    const frame = await peer.frame();
    assert.deepEqual(frame, { event: 'pusher:signin_success', data: frame.data });
    assert.deepEqual(JSON.parse(frame.data), { user_data: text });
    await peer.receivesNothing();
  }
});

test('data may be a string that holds the object', async () => {
  const [peer] = await connected(1);
  const text = '{"id":"1"}';
  signin(peer, JSON.stringify({ auth: auth(APP, `${peer.socketId}::user::${text}`), user_data: text }));
  await peer.receives({ event: 'pusher:signin_success', data: json({ user_data: text }) });
});

test('a wrong signature fails with 4009, the connection lives, and the right digest is not told', async () => {
  const [peer] = await connected(1);
  const text = '{"id":"12345"}';
  const toSign = `${peer.socketId}::user::${text}`;
  const right = hmac(APP.secret, toSign);
  for (const wrong of ['0'.repeat(64), 'bad', '', hmac(APP.secret, `${peer.socketId}:user:${text}`), hmac(APP.secret, `1.1::user::${text}`), hmac(unwatched.secret, toSign)]) {
    signin(peer, { auth: `${APP.key}:${wrong}`, user_data: text });
    await peer.receivesError(`Invalid signature: Expected HMAC SHA256 hex digest of ${toSign}, but got ${wrong}`, 4009);
    assert.notEqual(wrong, right);
  }
  await peer.isAlive();
  await peer.signIn(text);
});

test('a wrong key fails, and so does the form with ::user:: that the documentation prints', async () => {
  const [peer] = await connected(1);
  const text = '{"id":"12345"}';
  const signature = hmac(APP.secret, `${peer.socketId}::user::${text}`);
  signin(peer, { auth: `nobody:${signature}`, user_data: text });
  await peer.receivesError("Invalid key in subscription auth data: 'nobody'", 4009);
  signin(peer, { auth: `${APP.key}::user::${signature}`, user_data: text });
  await peer.receivesError(/^Invalid signature: /, 4009);
  await peer.isAlive();
});

for (const [words, data] of [
  ['data is absent', undefined], ['data is null', null], ['data is a number', 1], ['data is a list', []], ['data is no JSON', 'x'], ['auth is absent', { user_data: '{"id":"1"}' }],
  ['auth is null', { auth: null, user_data: '{"id":"1"}' }],
]) {
  test(`sign-in fails where ${words}`, async () => {
    const [peer] = await connected(1);
    signin(peer, data);
    await peer.receivesError('Auth info required to sign in', 4009);
    await peer.isAlive();
  });
}

test('sign-in fails where auth or user_data is no string', async () => {
  const [peer] = await connected(1);
  for (const wrong of [1, [], {}, true]) {
    signin(peer, { auth: wrong, user_data: '{"id":"1"}' });
    await peer.receivesError(/./, 4009);
    signin(peer, { auth: `${APP.key}:x`, user_data: wrong });
    await peer.receivesError(/./, 4009);
  }
  signin(peer, { auth: `${APP.key}:x` });
  await peer.receivesError(/./, 4009);
  await peer.isAlive();
});

for (const text of ['', 'x', '[]', '"1"', 'null', '{}', '{"id":null}', '{"id":""}', '{"id":1}', '{"id":true}', '{"id":{}}', '{"user_id":"1"}']) {
  test(`user_data ${text} is refused, rightly signed as it is`, async () => {
    const [peer] = await connected(1);
    peer.askToSignIn(text);
    await peer.receivesError('Invalid user_data: it must be a JSON object with a non-empty string id', 4009);
    await peer.isAlive();
  });
}

test('a second sign-in as another user fails, as the same user it is a refresh', async () => {
  const [peer, fan] = await connected(2);
  await fan.signIn({ id: 'fan', watchlist: ['first', 'second'] });
  await fan.receives(watch(['offline', ['first', 'second']]));
  await peer.signIn({ id: 'first' });
  await fan.receives(watch(['online', ['first']]));
  peer.askToSignIn({ id: 'second' });
  await peer.receivesError('Connection is already signed in as another user', 4009);
  await peer.signIn({ id: 'first', user_info: { refreshed: true } });
  await fan.receivesNothing();
  await peer.subscribe('#server-to-user-first');
});

test('a sign-in ends with its connection', async () => {
  const [one] = await connected(1);
  await one.signIn({ id: 'brief' });
  await one.close();
  const [two] = await connected(1);
  two.askToSubscribe('#server-to-user-brief', { auth: '' });
  await two.receivesSubscriptionError('#server-to-user-brief', { message: 'Not signed in as the user of channel #server-to-user-brief' });
});

// Watchlist

test('a watchlist is answered with who is online and who is not, then with each change', async () => {
  const [fan, a, a2, b] = await connected(4);
  await a.signIn({ id: 'wa' });
  await fan.signIn({ id: 'fan-1', watchlist: ['wa', 'wb', 'wc'] });
  await fan.receives(watch(['online', ['wa']], ['offline', ['wb', 'wc']]));
  await b.signIn({ id: 'wb' });
  await fan.receives(watch(['online', ['wb']]));
  await a2.signIn({ id: 'wa' });
  await fan.receivesNothing();
  await a.close();
  await fan.receivesNothing();
  await a2.close();
  await fan.receives(watch(['offline', ['wa']]));
  await b.close();
  await fan.receives(watch(['offline', ['wb']]));
});

test('an empty list of names is left out, and without a watchlist nothing is sent', async () => {
  const [a, online, offline, none, empty] = await connected(5);
  await a.signIn({ id: 'present' });
  await online.signIn({ id: 'l1', watchlist: ['present'] });
  await online.receives(watch(['online', ['present']]));
  await offline.signIn({ id: 'l2', watchlist: ['absent'] });
  await offline.receives(watch(['offline', ['absent']]));
  await none.signIn({ id: 'l3' });
  await none.receivesNothing();
  await empty.signIn({ id: 'l4', watchlist: [] });
  await empty.receivesNothing();
});

test('of a watchlist of 101 the first 100 count, and the error 4302 says so', async () => {
  const [fan, last] = await connected(2);
  const ids = Array.from({ length: 101 }, (_, i) => `long-${i}`);
  fan.askToSignIn({ id: 'long-fan', watchlist: ids });
  const frames = await fan.arrivingNow();
  const order = frames.map((frame) => frame.event);
  assert.equal(order[0], 'pusher:signin_success');
  assert.deepEqual([...order].sort(), ['pusher:error', 'pusher:signin_success', 'pusher_internal:watchlist_events']);
  assert.deepEqual(frames.find((frame) => frame.event === 'pusher:error'), {
    event: 'pusher:error',
    data: { code: 4302, message: 'Watchlist limit exceeded. Only the first 100 user IDs are accepted.' },
  });
  const told = JSON.parse(frames.find((frame) => frame.event === 'pusher_internal:watchlist_events').data);
  assert.deepEqual(told.events.map((event) => [event.name, [...event.user_ids].sort()]), [['offline', ids.slice(0, 100).sort()]]);
  await last.signIn({ id: 'long-100' });
  await fan.receivesNothing();
  await (await Peer.connect(raptor)).signIn({ id: 'long-99' });
  await fan.receives(watch(['online', ['long-99']]));
});

test('a refresh may change the watchlist', async () => {
  const [fan, old, young] = await connected(3);
  await fan.signIn({ id: 'fickle', watchlist: ['old'] });
  await fan.receives(watch(['offline', ['old']]));
  await fan.signIn({ id: 'fickle', watchlist: ['young'] });
  await fan.receives(watch(['offline', ['young']]));
  await old.signIn({ id: 'old' });
  await fan.receivesNothing();
  await young.signIn({ id: 'young' });
  await fan.receives(watch(['online', ['young']]));
});

test('being in a presence channel does not make a user online', async () => {
  const [fan, member] = await connected(2);
  await fan.signIn({ id: 'presence-fan', watchlist: ['member'] });
  await fan.receives(watch(['offline', ['member']]));
  await member.join('presence-not-online', 'member');
  await fan.receivesNothing();
});

test('a user may watch itself and be watched by many', async () => {
  const [self, fan] = await connected(2);
  await fan.signIn({ id: 'self-fan', watchlist: ['self'] });
  await fan.receives(watch(['offline', ['self']]));
  self.askToSignIn({ id: 'self', watchlist: ['self'] });
  const frames = await self.arrivingNow();
  assert.deepEqual(frames.map((frame) => frame.event), ['pusher:signin_success', 'pusher_internal:watchlist_events']);
  assert.deepEqual(JSON.parse(frames[1].data), { events: [{ name: 'online', user_ids: ['self'] }] });
  await fan.receives(watch(['online', ['self']]));
});

test('a watchlist that is no list of strings does not break the sign-in', async () => {
  for (const watchlist of ['x', 1, {}, null, [1, null, {}], [[]]]) {
    const [peer] = await connected(1);
    peer.askToSignIn({ id: 'odd', watchlist });
    const [first] = await peer.arrivingNow();
    assert.ok(first, `no answer to ${JSON.stringify(watchlist)}`);
    await peer.isAlive();
  }
});

test('an app without the setting sends no watchlist events', async () => {
  const [fan, other] = await connected(2, { app: unwatched });
  await fan.signIn({ id: 'fan', watchlist: ['other'] });
  await other.signIn({ id: 'other' });
  await fan.receivesNothing();
});

test('when many sign in and vanish at once, a watcher is told each change once and the last state is right', async () => {
  const ids = Array.from({ length: 10 }, (_, i) => `rush-${i}`);
  const [fan] = await connected(1);
  await fan.signIn({ id: 'rush-fan', watchlist: ids });
  await fan.frame();
  const online = new Set();
  const note = ({ event, data }) => {
    assert.equal(event, 'pusher_internal:watchlist_events');
    for (const { name, user_ids: users } of JSON.parse(data).events) {
      for (const user of users) {
        if (name === 'online') assert.ok(!online.has(user) && online.add(user), `${user} came online twice`);
        else assert.ok(online.delete(user), `${user} went offline twice`);
      }
    }
  };
  let stayed = [];
  for (let round = 0; round < 5; round += 1) {
    const peers = await connected(40);
    peers.forEach((peer, i) => peer.askToSignIn({ id: ids[i % ids.length] }));
    await Promise.all(peers.map(async (peer) => assert.equal((await peer.frame()).event, 'pusher:signin_success')));
    for (const peer of stayed) peer.socket.vanish();
    stayed = peers.slice(0, 5);
    for (const peer of peers.slice(5)) peer.socket.vanish();
  }
  const end = Date.now() + SOON_MS;
  do {
    for (const frame of await fan.arrivingNow()) note(frame);
    assert.ok(Date.now() < end, `still online: ${[...online]}`);
    await sleep(20);
  } while (online.size !== 5);
  assert.deepEqual([...online].sort(), ids.slice(0, 5));
  await sleep(200);
  await fan.receivesNothing();
});

// Messages to a user

test('what is sent to a user reaches each of its connections and nobody else', async () => {
  const [one, two, other] = await connected(3);
  for (const [peer, id] of [[one, '12345'], [two, '12345'], [other, '1234']]) {
    await peer.signIn({ id });
    peer.askToSubscribe(`#server-to-user-${id}`, { auth: '' });
    await peer.receives({ event: 'pusher_internal:subscription_succeeded', channel: `#server-to-user-${id}`, data: '{}' });
  }
  await api.trigger('#server-to-user-12345', 'hello', '{"to":"you"}');
  for (const peer of [one, two]) await peer.receives({ event: 'hello', channel: '#server-to-user-12345', data: '{"to":"you"}' });
  await other.receivesNothing();
});

test("another user's channel is refused, signed in or not, with a signature or not", async () => {
  const [peer] = await connected(1);
  const channel = '#server-to-user-victim';
  const refusal = { message: `Not signed in as the user of channel ${channel}` };
  peer.askToSubscribe(channel);
  await peer.receivesSubscriptionError(channel, refusal);
  peer.askToSubscribe(channel, { auth: auth(APP, peer.socketId, channel) });
  await peer.receivesSubscriptionError(channel, refusal);
  await peer.signIn({ id: 'thief' });
  peer.askToSubscribe(channel, { auth: '' });
  await peer.receivesSubscriptionError(channel, refusal);
  await api.trigger(channel, 'secret', 'x');
  await peer.receivesNothing();
});

test('the channel of a user is not listed', async () => {
  const [peer] = await connected(1);
  await peer.signIn({ id: 'unlisted', watchlist: ['also-unlisted'] });
  await peer.arrivingNow();
  await peer.subscribe('#server-to-user-unlisted');
  const { channels } = (await api.get('/channels')).json();
  assert.deepEqual(Object.keys(channels).filter((name) => name.startsWith('#')), []);
});

// Termination

test("terminating a user closes its signed-in connections with 4009, and only those", async () => {
  const [one, two, member, other, fan] = await connected(5);
  await fan.signIn({ id: 'term-fan', watchlist: ['doomed'] });
  await fan.receives(watch(['offline', ['doomed']]));
  await one.signIn({ id: 'doomed' });
  await fan.receives(watch(['online', ['doomed']]));
  await two.signIn({ id: 'doomed' });
  await member.join('presence-doomed', 'doomed');
  await other.signIn({ id: 'spared' });
  const answer = await api.post('/users/doomed/terminate_connections', '{}');
  assert.deepEqual([answer.status, answer.text], [200, '{}']);
  await one.isClosed(4009, 'You got disconnected by the app.');
  await two.isClosed(4009, 'You got disconnected by the app.');
  await member.isAlive();
  await other.isAlive();
  await fan.receives(watch(['offline', ['doomed']]));
});

test('a terminated user may come back', async () => {
  const [peer] = await connected(1);
  await peer.signIn({ id: 'phoenix' });
  await api.post('/users/phoenix/terminate_connections', '{}');
  await peer.isClosed(4009, 'You got disconnected by the app.');
  const [again] = await connected(1);
  await again.signIn({ id: 'phoenix' });
  await again.isAlive();
});

// Authorized connections

describe('an app with authorized connections', { concurrency: true }, () => {
  const TIMED_OUT = [4009, 'Connection not authorized within timeout'];

  test('closes a connection that does nothing', async () => {
    const [peer] = await connected(1, { app: guarded });
    await peer.isClosed(...TIMED_OUT);
  });

  test('closes a connection that has only public channels, or was refused', async () => {
    const [peer] = await connected(1, { app: guarded });
    await peer.subscribe('public');
    peer.askToSubscribe('private-x', { auth: `${guarded.key}:bad` });
    await peer.receivesSubscriptionError('private-x', { message: /^Invalid signature/ });
    await peer.isClosed(...TIMED_OUT);
  });

  for (const [words, authorize] of [
    ['a private channel', (peer) => peer.subscribe('private-x')],
    ['a presence channel', (peer) => peer.join('presence-x', '1')],
    ['a sign-in', (peer) => peer.signIn({ id: '1' })],
  ]) {
    test(`keeps a connection that has ${words}`, async () => {
      const [peer] = await connected(1, { app: guarded });
      await authorize(peer);
      await sleep(2_500);
      await peer.isAlive();
    });
  }

  test('keeps a connection that has left the private channel that authorized it', async () => {
    const [peer] = await connected(1, { app: guarded });
    await peer.subscribe('private-left');
    peer.unsubscribe('private-left');
    await sleep(2_500);
    await peer.isAlive();
  });
});
