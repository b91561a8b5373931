// What `user_data` of a sign-in may hold: the id, the info and the watchlist (`pusher.md` 4.1, 4.2, 12).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer, json } from './peer.js';

const raptor = await startRaptor({ config: { apps: [APP] } });
const INVALID = 'Invalid user_data: it must be a JSON object with a non-empty string id';

/** Each is refused with 4009, on a connection that lives and can still sign in. */
async function areRefused(message, ...cases) {
  const peer = await Peer.connect(raptor);
  for (const userData of cases) {
    peer.askToSignIn(userData);
    await peer.receivesError(message, 4009);
  }
  await peer.signIn({ id: 'somebody-else' });
}

test('an id may have 128 characters and no more', async () => {
  await (await Peer.connect(raptor)).signIn({ id: 'x'.repeat(128) });
  await areRefused('user_id exceeds the allowed maximum (128 characters)', { id: 'x'.repeat(129) });
});

test('user_info may have 1024 bytes and no more', async () => {
  const user = (bytes) => ({ id: 'u', user_info: { x: 'x'.repeat(bytes - '{"x":""}'.length) } });
  await (await Peer.connect(raptor)).signIn(user(1024));
  await areRefused('user_info exceeds the allowed maximum (1024 bytes)', user(1025));
});

test('user_info that is no object is refused', () => areRefused(INVALID, ...['name', 1, true, []].map((user_info) => ({ id: 'u', user_info }))));

test('a watchlist that is no list of strings is refused', () => areRefused(INVALID, ...['x', 1, true, {}, [1], [null], [['a']]].map((watchlist) => ({ id: 'u', watchlist }))));

test('null stands for no user_info and no watchlist', async () => {
  const peer = await Peer.connect(raptor);
  await peer.signIn({ id: 'u', user_info: null, watchlist: null });
  await peer.receivesNothing();
});

test('an id with characters that channel names do not have signs in, but has no channel of its own', async () => {
  const peer = await Peer.connect(raptor);
  await peer.signIn({ id: 'zoë smith' });
  peer.askToSubscribe('#server-to-user-zoë smith', { auth: '' });
  await peer.receivesSubscriptionError('#server-to-user-zoë smith', { message: /^Invalid channel name #server-to-user-zoë smith: /, type: 'InvalidChannel', status: 400 });
});

test('a user that stands twice in a watchlist is told of once', async () => {
  const peer = await Peer.connect(raptor);
  await peer.signIn({ id: 'double', watchlist: ['a', 'b', 'a'] });
  const frame = await peer.frame();
  assert.equal(frame.event, 'pusher_internal:watchlist_events');
  const { events: [{ name, user_ids: ids }, ...more] } = JSON.parse(frame.data);
  assert.deepEqual([name, ids.sort(), more], ['offline', ['a', 'b'], []]);
  const watched = await Peer.connect(raptor);
  await watched.signIn({ id: 'a' });
  await peer.receives({ event: 'pusher_internal:watchlist_events', data: json({ events: [{ name: 'online', user_ids: ['a'] }] }) });
  await peer.receivesNothing();
});
