// Asking for the state of channels (`pusher.md` 5.7, 5.8), and ending the connections of a user (4.3).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer, appNamed } from '../raw/peer.js';
import { Api, send, signedTarget } from './api.js';

const empty = appNamed('empty');
const raptor = await startRaptor({ config: { apps: [APP, empty] } });
const api = new Api(raptor, APP);

const INVALID_INFO = /info should be a comma separated list of attributes[^]*\n$/;
const USER_COUNT_OF_A_LIST = 'user_count may only be requested for presence channels - please supply filter_by_prefix begining with presence-\n';
const USER_COUNT_OF_A_CHANNEL = 'Cannot retrieve the user count unless the channel is a presence channel\n';

async function is(answer, status, body) {
  const { status: got, text, headers } = await answer;
  if (body instanceof RegExp) assert.match(text, body);
  else if (typeof body === 'object') assert.deepEqual(JSON.parse(text), body);
  else assert.equal(text, body);
  assert.equal(got, status);
  assert.equal(headers['content-type'], status === 200 ? 'application/json' : 'text/plain; charset=utf-8');
}

// Two users over three connections in presence-room, one of them also in two other channels.
const peers = [];
for (const id of ['10', '11', '11']) {
  const peer = await Peer.connect(raptor);
  await peer.join('presence-room', id);
  peers.push(peer);
}
await peers[2].subscribe('room');
await peers[2].subscribe('private-cache-a;b=c@d,e.f_g-H');
await peers[0].arrivingNow();

// GET /channels

test('the list holds every occupied channel, with nothing said of it', () =>
  is(api.get('/channels'), 200, { channels: { 'presence-room': {}, room: {}, 'private-cache-a;b=c@d,e.f_g-H': {} } }));

test('an app without channels has an empty object', () => is(new Api(raptor, empty).get('/channels'), 200, '{"channels":{}}'));

test('filter_by_prefix keeps what starts so, and nothing means all', async () => {
  await is(api.get('/channels', { filter_by_prefix: 'presence-' }), 200, { channels: { 'presence-room': {} } });
  await is(api.get('/channels', { filter_by_prefix: 'r' }), 200, { channels: { room: {} } });
  await is(api.get('/channels', { filter_by_prefix: 'room' }), 200, { channels: { room: {} } });
  await is(api.get('/channels', { filter_by_prefix: 'oom' }), 200, '{"channels":{}}');
  await is(api.get('/channels', { filter_by_prefix: 'ROOM' }), 200, '{"channels":{}}');
  assert.equal(Object.keys((await api.get('/channels', { filter_by_prefix: '' })).json().channels).length, 3);
});

test('user_count needs the prefix presence-', async () => {
  await is(api.get('/channels', { filter_by_prefix: 'presence-', info: 'user_count' }), 200, { channels: { 'presence-room': { user_count: 2 } } });
  await is(api.get('/channels', { filter_by_prefix: 'presence-room', info: 'user_count' }), 200, { channels: { 'presence-room': { user_count: 2 } } });
  for (const prefix of [undefined, '', 'presence', 'room', 'private-']) await is(api.get('/channels', { filter_by_prefix: prefix, info: 'user_count' }), 400, USER_COUNT_OF_A_LIST);
});

test('subscription_count counts connections', async () => {
  await is(api.get('/channels', { filter_by_prefix: 'r', info: 'subscription_count' }), 200, { channels: { room: { subscription_count: 1 } } });
  await is(api.get('/channels', { filter_by_prefix: 'presence-', info: 'user_count,subscription_count' }), 200, { channels: { 'presence-room': { user_count: 2, subscription_count: 3 } } });
});

test('an unknown attribute is refused, an empty list is none', async () => {
  for (const info of ['nonsense', 'user_count,', 'user_count nonsense', 'cache', 'USER_COUNT', ',']) {
    const { status, text } = await api.get('/channels', { filter_by_prefix: 'presence-', info });
    if (info === 'user_count,') continue; // a trailing comma may be forgiven
    assert.equal(status, 400, info);
    assert.match(text, INVALID_INFO);
  }
  await is(api.get('/channels', { filter_by_prefix: 'presence-', info: '' }), 200, { channels: { 'presence-room': {} } });
});

// GET /channels/:channel

test('a channel is occupied or not, and other attributes come when asked for', async () => {
  await is(api.get('/channels/room'), 200, '{"occupied":true}');
  await is(api.get('/channels/nobody'), 200, '{"occupied":false}');
  await is(api.get('/channels/presence-room', { info: 'user_count' }), 200, { occupied: true, user_count: 2 });
  await is(api.get('/channels/presence-room', { info: 'user_count,subscription_count' }), 200, { occupied: true, user_count: 2, subscription_count: 3 });
  await is(api.get('/channels/presence-room', { info: 'subscription_count,user_count' }), 200, { occupied: true, user_count: 2, subscription_count: 3 });
  await is(api.get('/channels/room', { info: 'subscription_count' }), 200, { occupied: true, subscription_count: 1 });
  await is(api.get('/channels/presence-nobody', { info: 'user_count,subscription_count' }), 200, { occupied: false, user_count: 0, subscription_count: 0 });
  await is(api.get('/channels/room', { info: '' }), 200, '{"occupied":true}');
});

test('user_count is for presence channels', async () => {
  for (const channel of ['room', 'private-x', 'presence', 'nobody']) await is(api.get(`/channels/${channel}`, { info: 'user_count' }), 400, USER_COUNT_OF_A_CHANNEL);
});

test('cache is for cache channels: the data and its seconds, or null', async () => {
  await is(api.get('/channels/cache-none', { info: 'cache' }), 200, { occupied: false, cache: null });
  await api.trigger('cache-some', 'e', '{"n": 1}');
  const { cache, ...rest } = (await api.get('/channels/cache-some', { info: 'cache,subscription_count' })).json();
  assert.deepEqual(rest, { occupied: false, subscription_count: 0 });
  assert.equal(cache.data, '{"n": 1}');
  assert.ok(cache.ttl > 1790 && cache.ttl <= 1800);
  const { status, text } = await api.get('/channels/room', { info: 'cache' });
  assert.equal(status, 400);
  assert.match(text, /^.+\n$/);
});

test('an unknown attribute of one channel is refused', async () => {
  for (const info of ['nonsense', 'occupied,nonsense', 'user_count;subscription_count', '🦖']) await is(api.get('/channels/presence-room', { info }), 400, INVALID_INFO);
});

test('an invalid name is refused', async () => {
  for (const name of ['a%20b', 'a%2Fb', '%C3%A4', 'x'.repeat(165), '%23x', '%23signed-in-1', 'a%00b', '%ff']) {
    const { status, text } = await api.get(`/channels/${name}`);
    assert.equal(status, 400, name);
    assert.match(text, /^Invalid channel name [^]*\n$/);
  }
});

test('a name in the path may be percent-encoded, signed in either form', async () => {
  const plain = '/channels/private-cache-a;b=c@d,e.f_g-H';
  const escaped = `/channels/${encodeURIComponent('private-cache-a;b=c@d,e.f_g-H')}`;
  const occupied = '{"occupied":true}';
  await is(api.get(plain), 200, occupied);
  await is(api.get(escaped), 200, occupied);
  await is(api.get(escaped, {}, { signedPath: `/apps/${APP.id}${plain}` }), 200, occupied);
  await is(api.get('/channels/r%6fom'), 200, occupied);
});

test('one trailing slash is ignored for routing and signed as sent', async () => {
  await is(api.get('/channels/'), 200, /^\{"channels":/);
  await is(api.get('/channels/room/'), 200, '{"occupied":true}');
  await is(api.get('/channels/presence-room/users/'), 200, /^\{"users":/);
  await is(api.post('/events/', { name: 'e', channels: ['c'], data: 'x' }), 200, '{}');
  await is(api.get('/channels/room/', {}, { signedPath: `/apps/${APP.id}/channels/room` }), 401, /^Invalid signature: /);
});

// GET /channels/:channel/users

test('the users of a presence channel, each once, ids as strings', async () => {
  const { users } = (await api.get('/channels/presence-room/users')).json();
  assert.deepEqual(users.sort((a, b) => a.id.localeCompare(b.id)), [{ id: '10' }, { id: '11' }]);
  await is(api.get('/channels/presence-nobody/users'), 200, '{"users":[]}');
});

test('the numeric ids that clients sign are strings here too', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('presence-numeric', { channelData: '{"user_id":9007199254740993}' });
  await is(api.get('/channels/presence-numeric/users'), 200, '{"users":[{"id":"9007199254740993"}]}');
  await peer.close();
});

test('other channels have no users', async () => {
  for (const channel of ['room', 'private-x', 'nobody']) await is(api.get(`/channels/${channel}/users`), 400, 'Users can only be retrieved for presence channels\n');
});

// GET /channels/:channel/stats, deprecated

test('the deprecated statistics', async () => {
  const stats = async (channel) => (await api.get(`/channels/${channel}/stats`)).json();
  const room = await stats('room');
  assert.equal(room.occupied, true);
  assert.equal(room.user_count, undefined);
  const presence = await stats('presence-room');
  assert.deepEqual([presence.occupied, presence.user_count], [true, 2]);
  const nobody = await stats('nobody');
  assert.equal(nobody.occupied, false);
});

// POST /users/:user_id/terminate_connections

test('terminating closes the connections signed in as the user; the path may be escaped, the body missing', async () => {
  for (const [id, path, body] of [['12345', '12345', '{}'], ['a@b.c', 'a%40b.c', '{}'], ['a@b.c', 'a@b.c', undefined], ['no-body', 'no-body', '']]) {
    const peer = await Peer.connect(raptor);
    await peer.signIn({ id });
    await is(api.call('POST', `/users/${path}/terminate_connections`, { body }), 200, '{}');
    await peer.isClosed(4009, 'You got disconnected by the app.');
  }
});

test('an unknown user, and one that is only a member, are no error', async () => {
  await is(api.post('/users/nobody/terminate_connections', '{}'), 200, '{}');
  await is(api.post('/users/10/terminate_connections', '{}'), 200, '{}');
  await peers[0].isAlive();
});

test('the path without the app, as Python sends it, finds the app by its key', async () => {
  const peer = await Peer.connect(raptor);
  await peer.signIn({ id: 'pythonist' });
  const path = '/users/pythonist/terminate_connections';
  const request = (app) => send(raptor, { method: 'POST', target: signedTarget({ app, method: 'POST', path, body: '{}' }), body: '{}' });
  await is(request(empty), 200, '{}');
  await peer.isAlive();
  await is(request({ ...APP, secret: 'wrong' }), 401, /^Invalid signature: /);
  await is(request({ ...APP, key: 'nobody' }), 401, 'Unknown auth_key\n');
  await is(request(APP), 200, '{}');
  await peer.isClosed(4009, 'You got disconnected by the app.');
});
