// The unmodified `pusher` library for Node: every call, and what it makes of errors.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import Pusher from 'pusher';

import { TEST_APP, startRaptor } from '../support/raptor.js';
import { APP, Peer } from '../raw/peer.js';
import { TOO_MUCH_DATA } from './api.js';

const raptor = await startRaptor({ config: { apps: [APP] } });
const options = { appId: APP.id, key: APP.key, secret: APP.secret, host: '127.0.0.1', port: String(raptor.port), useTLS: false };
const pusher = new Pusher({ ...options, encryptionMasterKeyBase64: 'MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=' });

const { webhooks } = JSON.parse(readFileSync(new URL('../../fixtures/pusher/webhooks.json', import.meta.url)));

async function listener(...channels) {
  const peer = await Peer.connect(raptor);
  for (const channel of channels) await peer.subscribe(channel);
  return peer;
}

async function fails(promise, status, body) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof Pusher.RequestError);
    assert.equal(error.status, status);
    if (body instanceof RegExp) assert.match(error.body, body);
    else assert.equal(error.body, body);
    return true;
  });
}

test('trigger reaches one channel and many, and leaves out a socket', async () => {
  const peer = await listener('one', 'two;a=b@c,d.e');
  const answer = await pusher.trigger('one', 'greeting', { hello: 'wörld', url: 'http://x/y' });
  assert.equal(answer.status, 200);
  assert.deepEqual(await answer.json(), {});
  await peer.receives({ event: 'greeting', channel: 'one', data: '{"hello":"wörld","url":"http://x/y"}' });
  await pusher.trigger(['one', 'two;a=b@c,d.e'], 'again', 'text');
  await peer.receives({ event: 'again', channel: 'one', data: 'text' }, { event: 'again', channel: 'two;a=b@c,d.e', data: 'text' });
  await pusher.trigger('one', 'not-for-you', 'x', { socket_id: peer.socketId });
  await peer.receivesNothing();
});

test('trigger with info answers with the attributes', async () => {
  await listener('counted');
  const answer = await pusher.trigger(['counted', 'presence-empty'], 'e', 'x', { info: 'subscription_count,user_count' });
  const { channels } = await answer.json();
  assert.equal(channels.counted.subscription_count, 1);
  assert.equal(channels['presence-empty'].user_count, 0);
});

test('triggerBatch reaches each channel in order', async () => {
  const peer = await listener('b1', 'b2');
  const answer = await pusher.triggerBatch([{ channel: 'b1', name: 'first', data: { n: 1 } }, { channel: 'b2', name: 'second', data: 'x', info: 'subscription_count' }]);
  assert.deepEqual(await answer.json(), { batch: [{}, { subscription_count: 1 }] });
  await peer.receives({ event: 'first', channel: 'b1', data: '{"n":1}' }, { event: 'second', channel: 'b2', data: 'x' });
});

test('an encrypted event passes as it is', async () => {
  const peer = await listener('private-encrypted-secret');
  await pusher.trigger('private-encrypted-secret', 'whisper', { quiet: true });
  const frame = await peer.frame();
  assert.deepEqual(Object.keys(JSON.parse(frame.data)), ['nonce', 'ciphertext']);
});

test('sendToUser and terminateUserConnections', async () => {
  const peer = await Peer.connect(raptor);
  const { auth, user_data: userData } = pusher.authenticateUser(peer.socketId, { id: 'u1', watchlist: [] });
  peer.send({ event: 'pusher:signin', data: { auth, user_data: userData } });
  assert.equal((await peer.frame()).event, 'pusher:signin_success');
  await peer.subscribe('#server-to-user-u1');
  await pusher.sendToUser('u1', 'hello', { a: 1 });
  await peer.receives({ event: 'hello', channel: '#server-to-user-u1', data: '{"a":1}' });
  assert.deepEqual(await (await pusher.terminateUserConnections('u1')).json(), {});
  await peer.isClosed(4009, 'You got disconnected by the app.');
});

test('what authorizeChannel signs opens channels', async () => {
  const peer = await Peer.connect(raptor);
  for (const [channel, member] of [['private-room'], ['private-encrypted-room'], ['presence-room', { user_id: 'me', user_info: { name: 'Zoë' } }], ['private-room-with-data', { user_id: 'me' }]]) {
    const { auth, channel_data: channelData } = pusher.authorizeChannel(peer.socketId, channel, member);
    peer.askToSubscribe(channel, { auth, channel_data: channelData });
    assert.equal((await peer.frame()).event, 'pusher_internal:subscription_succeeded', channel);
  }
});

test('get reads channels, a channel and its users', async () => {
  const peer = await Peer.connect(raptor);
  await peer.join('presence-read', 'reader');
  const read = async (path, params) => (await pusher.get({ path, params })).json();
  assert.deepEqual(await read('/channels', { filter_by_prefix: 'presence-read', info: 'user_count' }), { channels: { 'presence-read': { user_count: 1 } } });
  assert.deepEqual(await read('/channels/presence-read', { info: 'user_count,subscription_count' }), { occupied: true, user_count: 1, subscription_count: 1 });
  assert.deepEqual(await read('/channels/presence-read/users'), { users: [{ id: 'reader' }] });
});

test('a signed query made by hand is accepted', async () => {
  const query = pusher.createSignedQueryString({ method: 'GET', path: `/apps/${APP.id}/channels`, params: {} });
  assert.equal((await fetch(`${raptor.url}/apps/${APP.id}/channels?${query}`)).status, 200);
});

test('forURL reaches the server', async () => {
  const byUrl = Pusher.forURL(`http://${APP.key}:${APP.secret}@127.0.0.1:${raptor.port}/apps/${APP.id}`);
  assert.equal((await byUrl.trigger('c', 'e', 'x')).status, 200);
});

test('errors arrive with their status and text', async () => {
  await fails(new Pusher({ ...options, secret: 'wrong' }).trigger('c', 'e', 'x'), 401, /^Invalid signature: .*\n$/);
  await fails(new Pusher({ ...options, key: 'wrong' }).trigger('c', 'e', 'x'), 401, 'Unknown auth_key\n');
  await fails(new Pusher({ ...options, appId: '999' }).trigger('c', 'e', 'x'), 404, 'Unknown app\n');
  await fails(pusher.trigger('c', 'e', 'x'.repeat(10241)), 413, `${TOO_MUCH_DATA}\n`);
  await fails(pusher.triggerBatch(Array.from({ length: 11 }, () => ({ channel: 'c', name: 'e', data: 'x' }))), 400, 'Batch too large (11 > 10)\n');
  await fails(pusher.get({ path: '/channels', params: { info: 'user_count' } }), 400, /^user_count may only be requested for presence channels/);
  await fails(pusher.get({ path: '/channels/room/users' }), 400, 'Users can only be retrieved for presence channels\n');
  await fails(pusher.get({ path: '/nope' }), 404, 'NOT FOUND\n');
});

test('the signatures of the specification are those of the library', () => {
  assert.equal(TEST_APP.key, '278d425bdf160c739803');
  assert.equal(pusher.authorizeChannel('1234.1234', 'private-foobar').auth, `${APP.key}:58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4`);
  assert.equal(pusher.authenticateUser('1234.1234', { id: '12345' }).auth, `${APP.key}:4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba`);
});

test('the webhooks of the specification are valid for the library', () => {
  for (const { body, signature } of webhooks) {
    const hook = (sent) => pusher.webhook({ headers: { 'x-pusher-key': APP.key, 'x-pusher-signature': signature, 'content-type': 'application/json' }, rawBody: sent });
    assert.ok(hook(body).isValid());
    assert.ok(!hook(`${body} `).isValid());
    assert.equal(hook(body).getEvents().length, 1);
    assert.equal(hook(body).getTime().getTime(), 1327078148132);
  }
});
