// Who is in a presence channel, and who learns of it (`pusher.md` 2.4, 2.6).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed, auth, json } from './peer.js';

const small = appNamed('small', { limits: { presence_members_max: 2, user_info_bytes_max: 50, user_id_chars_max: 5 } });
const raptor = await startRaptor({ config: { apps: [APP, small] } });
const api = new Api(raptor, APP);

const added = (channel, data) => ({ event: 'pusher_internal:member_added', channel, data: json(data) });
const removed = (channel, userId) => ({ event: 'pusher_internal:member_removed', channel, data: json({ user_id: userId }) });
const roster = (hash) => ({ presence: { count: Object.keys(hash).length, ids: Object.keys(hash), hash } });

/** `ids` in the order of arrival is not promised; everything else is compared as it is. */
function assertRoster(data, hash) {
  const { presence } = data;
  assert.deepEqual({ presence: { ...presence, ids: [...presence.ids].sort() } }, { presence: { ...roster(hash).presence, ids: Object.keys(hash).sort() } });
}

async function connected(count, options) {
  return Promise.all(Array.from({ length: count }, () => Peer.connect(raptor, options)));
}

test('the first member finds itself in the roster', async () => {
  const [peer] = await connected(1);
  assertRoster(await peer.join('presence-first', '10', { name: 'A' }), { 10: { name: 'A' } });
  await peer.receivesNothing();
});

test('a further member finds all, and the others learn of it alone', async () => {
  const [a, b] = await connected(2);
  await a.join('presence-two', '10', { name: 'A' });
  assertRoster(await b.join('presence-two', '11', { name: 'B', deep: { list: [1, null, 'ë'] } }), { 10: { name: 'A' }, 11: { name: 'B', deep: { list: [1, null, 'ë'] } } });
  await a.receives(added('presence-two', { user_id: '11', user_info: { name: 'B', deep: { list: [1, null, 'ë'] } } }));
  await b.receivesNothing();
  b.unsubscribe('presence-two');
  await a.receives(removed('presence-two', '11'));
  await b.receivesNothing();
});

test('a member that leaves by unsubscribe, close frame, FIN or reset is removed each time, once', async () => {
  const [witness] = await connected(1);
  await witness.join('presence-exits', 'witness');
  const exits = {
    unsubscribe: (peer) => peer.unsubscribe('presence-exits'),
    close: (peer) => peer.socket.close(),
    goingAway: (peer) => peer.socket.close(1001),
    fin: (peer) => peer.socket.shutdown(),
    reset: (peer) => peer.socket.vanish(),
  };
  for (const [id, leave] of Object.entries(exits)) {
    const [peer] = await connected(1);
    await peer.join('presence-exits', id);
    await witness.receives(added('presence-exits', { user_id: id }));
    leave(peer);
    await witness.receives(removed('presence-exits', id));
  }
  await witness.receivesNothing();
});

test('a member without user_info has null in the hash and no user_info in member_added', async () => {
  const [a, b, c] = await connected(3);
  await a.join('presence-bare', 'a');
  assertRoster(await b.subscribe('presence-bare', { channelData: '{"user_id":"b","user_info":null}' }), { a: null, b: null });
  await a.receives(added('presence-bare', { user_id: 'b' }));
  assertRoster(await c.join('presence-bare', 'c', {}), { a: null, b: null, c: {} });
  await a.receives(added('presence-bare', { user_id: 'c', user_info: {} }));
});

test('a numeric user_id becomes the string of its digits, however long', async () => {
  const [witness] = await connected(1);
  await witness.join('presence-numbers', 'witness');
  for (const [written, id] of [['10', '10'], ['0', '0'], ['-3', '-3'], ['9007199254740993', '9007199254740993'], ['123456789012345678901234567890', '123456789012345678901234567890']]) {
    const [peer] = await connected(1);
    const data = await peer.subscribe('presence-numbers', { channelData: `{"user_id":${written},"user_info":{"n":1}}` });
    assertRoster(data, { witness: null, [id]: { n: 1 } });
    await witness.receives(added('presence-numbers', { user_id: id, user_info: { n: 1 } }));
    await peer.close();
    await witness.receives(removed('presence-numbers', id));
  }
});

test('the number 10 and the string 10 are one user', async () => {
  const [a, b] = await connected(2);
  await a.subscribe('presence-ten', { channelData: '{"user_id":10}' });
  assertRoster(await b.subscribe('presence-ten', { channelData: '{"user_id":"10"}' }), { 10: null });
  await a.receivesNothing();
});

test('numbers within user_info keep their digits', async () => {
  const [a, b] = await connected(2);
  await a.join('presence-digits', 'a');
  b.askToSubscribe('presence-digits', { channelData: '{"user_id":"b","user_info":{"big":9007199254740993,"one":1.0}}' });
  const roster = await b.frame();
  assert.ok(roster.data.includes('9007199254740993'), roster.data);
  const frame = await a.frame();
  assert.ok(frame.data.includes('9007199254740993'), frame.data);
});

test('a second connection of a user joins and leaves silently', async () => {
  const [witness, one, two, three] = await connected(4);
  await witness.join('presence-tabs', 'witness');
  await one.join('presence-tabs', 'user', { tab: 1 });
  await witness.receives(added('presence-tabs', { user_id: 'user', user_info: { tab: 1 } }));
  assertRoster(await two.join('presence-tabs', 'user', { tab: 1 }), { witness: null, user: { tab: 1 } });
  await three.join('presence-tabs', 'user', { tab: 1 });
  await one.close();
  three.unsubscribe('presence-tabs');
  await three.receivesNothing();
  await witness.receivesNothing();
  await two.close();
  await witness.receives(removed('presence-tabs', 'user'));
  await witness.receivesNothing();
});

test('a changed user_info makes no second member; the first is kept while it lives', async () => {
  const [witness, one, two, late] = await connected(4);
  await witness.join('presence-changed', 'witness');
  await one.join('presence-changed', 'user', { name: 'first' });
  await witness.receives(added('presence-changed', { user_id: 'user', user_info: { name: 'first' } }));
  assertRoster(await two.join('presence-changed', 'user', { name: 'second' }), { witness: null, user: { name: 'first' } });
  await one.close();
  await witness.receivesNothing();
  await late.join('presence-changed', 'late');
  await witness.receives(added('presence-changed', { user_id: 'late' }));
  await two.receives(added('presence-changed', { user_id: 'late' }));
  await two.close();
  await witness.receives(removed('presence-changed', 'user'));
  await late.receives(removed('presence-changed', 'user'));
  const [again] = await connected(1);
  await again.join('presence-changed', 'user', { name: 'third' });
  await witness.receives(added('presence-changed', { user_id: 'user', user_info: { name: 'third' } }));
});

test('a member that rejoins is added again', async () => {
  const [witness, peer] = await connected(2);
  await witness.join('presence-back', 'witness');
  for (let i = 0; i < 20; i += 1) {
    await peer.join('presence-back', 'peer');
    peer.unsubscribe('presence-back');
  }
  for (let i = 0; i < 20; i += 1) await witness.receives(added('presence-back', { user_id: 'peer' }), removed('presence-back', 'peer'));
  await witness.receivesNothing();
});

test('user ids that other formats would trip over are kept as they are', async () => {
  const ids = ['__proto__', 'constructor', 'a:b', 'ë', '🦖', 'with space', '"quoted"', 'a\\b', '0010', '1e3'];
  const [witness] = await connected(1);
  await witness.join('presence-odd', 'witness');
  for (const id of ids) {
    const [peer] = await connected(1);
    peer.askToSubscribe('presence-odd', { channelData: JSON.stringify({ user_id: id }) });
    const { data } = await peer.frame();
    const { presence } = JSON.parse(data);
    assert.deepEqual([...presence.ids].sort(), ['witness', id].sort());
    assert.deepEqual(Object.keys(presence.hash).sort(), ['witness', id].sort());
    await witness.receives(added('presence-odd', { user_id: id }));
    await peer.close();
    await witness.receives(removed('presence-odd', id));
  }
});

test('presence without channel_data is refused', async () => {
  const [peer] = await connected(1);
  for (const channelData of [undefined, null]) {
    peer.askToSubscribe('presence-room', { channel_data: channelData });
    await peer.receivesSubscriptionError('presence-room', { message: 'presence-room is a presence channel and subscription must include channel_data' });
  }
  await peer.isAlive();
});

for (const channelData of [
  '', ' ', 'nonsense', '{', '[]', '"10"', '10', 'null', '{}', '{"user_info":{}}', '{"user_id":null}', '{"user_id":""}', '{"user_id":true}', '{"user_id":{}}', '{"user_id":["10"]}',
  '{"user_id":"1"} trailing', `{"user_id":"1","x":${'['.repeat(5000)}${']'.repeat(5000)}`,
]) {
  test(`channel_data ${channelData.slice(0, 40)} (${channelData.length} characters) is refused, rightly signed as it is`, async () => {
    const [peer] = await connected(1);
    peer.askToSubscribe('presence-room', { channelData });
    await peer.receivesSubscriptionError('presence-room', { message: 'Invalid channel_data for channel presence-room: it must be a JSON object with a user_id' });
    await peer.isAlive();
  });
}

for (const userInfo of ['"name"', '1', 'true', '[]', '[{}]']) {
  test(`user_info ${userInfo} is refused`, async () => {
    const [peer] = await connected(1);
    peer.askToSubscribe('presence-room', { channelData: `{"user_id":"1","user_info":${userInfo}}` });
    await peer.receivesSubscriptionError('presence-room', {
      message: 'user_info supplied to presence subscription is invalid - if supplied it must be a type of hash',
    });
    await peer.isAlive();
  });
}

test('user_info may have 1024 bytes and no more', async () => {
  const info = (bytes) => ({ x: 'x'.repeat(bytes - '{"x":""}'.length) });
  const [a, b] = await connected(2);
  await a.join('presence-large', 'a', info(1024));
  b.askToSubscribe('presence-large', { channelData: JSON.stringify({ user_id: 'b', user_info: info(1025) }) });
  await b.receivesSubscriptionError('presence-large', { message: 'user_info exceeds the allowed maximum (1024 bytes)', type: 'LimitReached', status: 413 });
  await a.receivesNothing();
});

test('user_id may have 128 characters and no more', async () => {
  const [a, b] = await connected(2);
  await a.join('presence-long', 'x'.repeat(128));
  await b.join('presence-long', 'é'.repeat(128));
  b.unsubscribe('presence-long');
  b.askToSubscribe('presence-long', { channelData: JSON.stringify({ user_id: 'x'.repeat(129) }) });
  await b.receivesSubscriptionError('presence-long', { message: 'user_id exceeds the allowed maximum (128 characters)', type: 'LimitReached', status: 413 });
});

test("the limits of user_info and user_id are the app's", async () => {
  const [peer] = await connected(1, { app: small });
  peer.askToSubscribe('presence-x', { channelData: JSON.stringify({ user_id: '1', user_info: { x: 'x'.repeat(43) } }) });
  await peer.receivesSubscriptionError('presence-x', { message: 'user_info exceeds the allowed maximum (50 bytes)', type: 'LimitReached', status: 413 });
  peer.askToSubscribe('presence-x', { channelData: '{"user_id":"123456"}' });
  await peer.receivesSubscriptionError('presence-x', { message: 'user_id exceeds the allowed maximum (5 characters)', type: 'LimitReached', status: 413 });
  await peer.join('presence-x', '12345', { x: 'x'.repeat(42) });
});

test('the member limit counts users, not connections', async () => {
  const [a, b, c, again] = await connected(4, { app: small });
  await a.join('presence-full', 'a');
  await b.join('presence-full', 'b');
  c.askToSubscribe('presence-full', { channelData: '{"user_id":"c"}' });
  await c.receivesSubscriptionError('presence-full', { message: 'Presence channel presence-full is over its limit of 2 members', type: 'LimitReached', status: 429 });
  assertRoster(await again.join('presence-full', 'b'), { a: null, b: null });
  await b.close();
  await a.receives(added('presence-full', { user_id: 'b' }));
  await a.receivesNothing();
  c.askToSubscribe('presence-full', { channelData: '{"user_id":"c"}' });
  await c.receivesSubscriptionError('presence-full', { message: /over its limit/, type: 'LimitReached', status: 429 });
  await again.close();
  await a.receives(removed('presence-full', 'b'));
  await c.join('presence-full', 'c');
});

test('101 users do not fit into one presence channel', async () => {
  const peers = await connected(101);
  const outcomes = [];
  await Promise.all(peers.map(async (peer, i) => {
    peer.askToSubscribe('presence-hundred', { channelData: JSON.stringify({ user_id: `u${i}` }) });
    const frame = await peer.frame();
    outcomes.push(frame.event === 'pusher_internal:subscription_succeeded' ? 'in' : frame.data.message);
  }));
  assert.deepEqual(outcomes.filter((outcome) => outcome !== 'in'), ['Presence channel presence-hundred is over its limit of 100 members']);
  assert.equal((await api.get('/channels/presence-hundred', { info: 'user_count' })).json().user_count, 100);
  await Promise.all(peers.map((peer) => peer.socket.vanish()));
  await until(async () => !(await api.get('/channels/presence-hundred')).json().occupied);
});

test('a signed-in user joins without channel_data, as who it is', async () => {
  const [witness, peer] = await connected(2);
  await witness.join('presence-signed', 'witness');
  await peer.signIn({ id: 'user-1', user_info: { name: 'One' }, more: true });
  assertRoster(await peer.subscribe('presence-signed'), { witness: null, 'user-1': { name: 'One' } });
  await witness.receives(added('presence-signed', { user_id: 'user-1', user_info: { name: 'One' } }));
});

test('channel_data overrides who is signed in', async () => {
  const [witness, peer] = await connected(2);
  await witness.join('presence-override', 'witness');
  await peer.signIn({ id: 'user-1', user_info: { name: 'One' } });
  await peer.join('presence-override', 'user-2');
  await witness.receives(added('presence-override', { user_id: 'user-2' }));
});

test('a signed-in user still needs the signature for the channel', async () => {
  const [peer] = await connected(1);
  await peer.signIn({ id: 'user-1' });
  peer.askToSubscribe('presence-unsigned', { auth: undefined });
  await peer.receivesSubscriptionError('presence-unsigned', { message: 'Auth info required to subscribe to presence-unsigned' });
  peer.askToSubscribe('presence-unsigned', { auth: auth(APP, peer.socketId, 'presence-other') });
  await peer.receivesSubscriptionError('presence-unsigned', { message: /^Invalid signature: / });
});

test('one connection can be different users in different channels', async () => {
  const [peer] = await connected(1);
  assertRoster(await peer.join('presence-as-a', 'a'), { a: null });
  assertRoster(await peer.join('presence-as-b', 'b'), { b: null });
});
