// Events from client to client: who may send which, and what the others get (`pusher.md` 3).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api, TOO_MUCH_DATA } from '../rest/api.js';
import { APP, Peer, appNamed } from './peer.js';

const forbidden = appNamed('forbidden', { client_events: false });
const fast = appNamed('fast', { limits: { client_events_per_sec_max: 1000, event_data_bytes_max: 20, event_name_chars_max: 12 } });
const raptor = await startRaptor({ config: { apps: [APP, forbidden, fast] } });
const api = new Api(raptor, APP);

/** `count` peers, each subscribed to `channel`. */
async function subscribed(channel, count = 2, options) {
  const peers = [];
  for (let i = 0; i < count; i += 1) {
    const peer = await Peer.connect(raptor, options);
    await peer.subscribe(channel);
    peers.push(peer);
  }
  return peers;
}

const event = (channel, data, name = 'client-e') => ({ event: name, channel, data });

for (const channel of ['private-x', 'private-cache-x', 'private-encrypted-x', 'private-encrypted-cache-x']) {
  test(`on ${channel} everyone else gets it, without user_id, and the sender nothing`, async () => {
    const [sender, ...others] = await subscribed(channel, 3);
    for (const peer of [sender, ...others]) await peer.arrivingNow();
    sender.send(event(channel, { on: true }));
    await sender.receivesNothing();
    for (const peer of others) await peer.receives(event(channel, '{"on":true}'));
  });
}

for (const channel of ['presence-x', 'presence-cache-x']) {
  test(`on ${channel} it carries the sender's user_id as a string`, async () => {
    const [sender, other] = [await Peer.connect(raptor), await Peer.connect(raptor)];
    await sender.subscribe(channel, { channelData: '{"user_id":10}' });
    await other.join(channel, 'other');
    for (const peer of [sender, other]) await peer.arrivingNow();
    sender.send(event(channel, { on: true }));
    await other.receives({ ...event(channel, '{"on":true}'), user_id: '10' });
    await sender.receivesNothing();
  });
}

test('the user_id is that of the subscription, though another user is signed in', async () => {
  const [sender, other] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  await other.join('presence-whose', 'other');
  await sender.signIn({ id: 'signed-in' });
  await sender.join('presence-whose', 'subscribed');
  await other.arrivingNow();
  sender.send(event('presence-whose', '1'));
  await other.receives({ ...event('presence-whose', '1'), user_id: 'subscribed' });
});

test('the user_id of a member by sign-in is the signed-in one', async () => {
  const [sender, other] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  await other.join('presence-by-signin', 'other');
  await sender.signIn({ id: 'signed-in' });
  await sender.subscribe('presence-by-signin');
  await other.arrivingNow();
  sender.send(event('presence-by-signin', '1'));
  await other.receives({ ...event('presence-by-signin', '1'), user_id: 'signed-in' });
});

test('on a private channel there is no user_id, even from a signed-in sender', async () => {
  const [sender, other] = await subscribed('private-no-id');
  await sender.signIn({ id: 'signed-in' });
  sender.send(event('private-no-id', '1'));
  await other.receives(event('private-no-id', '1'));
});

test('a forged user_id and every other additional key is left behind', async () => {
  const [sender, other] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  await sender.join('presence-forged', 'me');
  await other.join('presence-forged', 'other');
  await sender.arrivingNow();
  sender.send({ ...event('presence-forged', '1'), user_id: 'root', socket_id: '1.1', name: 'x', more: { deep: 1 } });
  await other.receives({ ...event('presence-forged', '1'), user_id: 'me' });
  const [one, two] = await subscribed('private-forged');
  one.send({ ...event('private-forged', '1'), user_id: 'root' });
  await two.receives(event('private-forged', '1'));
});

test('another connection of the same user gets it', async () => {
  const [one, two] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  await one.join('presence-self', 'me');
  await two.join('presence-self', 'me');
  one.send(event('presence-self', '1'));
  await two.receives({ ...event('presence-self', '1'), user_id: 'me' });
});

test('data that is a string is passed on as it is, any other as compact JSON, none as {}', async () => {
  const [sender, other] = await subscribed('private-data');
  const cases = [
    ['"plain"', 'plain'], ['""', ''], ['"{ \\"a\\" :  1 }"', '{ "a" :  1 }'], ['"\\u00eb\\/"', 'ë/'], ['{ "a" : [ 1 , 2.50 ] }', /^\{"a":\[1,2\.50?\]\}$/],
    ['1', '1'], ['9007199254740993', '9007199254740993'], ['true', 'true'], ['[]', '[]'], ['{"b":1,"a":2}', '{"b":1,"a":2}'],
  ];
  for (const [sent, delivered] of cases) {
    sender.socket.sendText(`{"event":"client-e","channel":"private-data","data":${sent}}`);
    const frame = await other.frame();
    if (delivered instanceof RegExp) assert.match(frame.data, delivered);
    else assert.deepEqual(frame, event('private-data', delivered));
    await sleep(110); // stays within ten a second
  }
  sender.send({ event: 'client-e', channel: 'private-data' });
  await other.receives(event('private-data', '{}'));
});

test('any name that starts with client- will do', async () => {
  const [sender, other] = await subscribed('private-names');
  for (const name of ['client-', 'client-Größe', 'client-pusher:x', 'client-"q"\\', `client-${'x'.repeat(193)}`]) {
    sender.send(event('private-names', '1', name));
    await other.receives(event('private-names', '1', name));
  }
});

test('a name of more than 200 characters is refused', async () => {
  const [sender, other] = await subscribed('private-long-name');
  sender.send(event('private-long-name', '1', `client-${'x'.repeat(194)}`));
  await sender.receivesError('The name of this event exceeds the allowed maximum (200 characters)');
  await other.receivesNothing();
});

test('names that do not start with client- are no client events', async () => {
  const [sender, other] = await subscribed('private-other');
  for (const name of ['typing', 'Client-typing', ' client-x', 'pusher:client-x', 'pusher_internal:member_removed', 'pusher:error']) {
    sender.send(event('private-other', '{}', name));
    await sender.receivesError(`Unsupported event received on socket: ${name}`);
  }
  await other.receivesNothing();
});

test('data may have 10240 bytes and no more', async () => {
  const [sender, other] = await subscribed('private-large');
  for (const data of ['x'.repeat(10240), 'é'.repeat(5120)]) {
    sender.send(event('private-large', data));
    await other.receives(event('private-large', data));
  }
  for (const data of ['x'.repeat(10241), 'é'.repeat(5121), { x: 'x'.repeat(10240) }]) {
    sender.send(event('private-large', data));
    await sender.receivesError(TOO_MUCH_DATA);
  }
  await other.receivesNothing();
});

test("the limits are the app's, and so are the figures in the texts", async () => {
  const [sender] = await subscribed('private-small', 1, { app: fast });
  sender.send(event('private-small', 'x'.repeat(21)));
  await sender.receivesError(TOO_MUCH_DATA.replace('10240', '20'));
  sender.send(event('private-small', 'x', 'client-123456'));
  await sender.receivesError('The name of this event exceeds the allowed maximum (12 characters)');
});

test('on a public channel they are refused', async () => {
  const [sender, other] = await subscribed('public-room');
  sender.send(event('public-room', '1'));
  await sender.receivesError('Client event rejected - only supported on private and presence channels');
  await other.receivesNothing();
});

test('on a channel that the connection is not in they are refused', async () => {
  const [other] = await subscribed('private-theirs', 1);
  const sender = await Peer.connect(raptor);
  for (const channel of ['private-theirs', 'presence-theirs', 'private-empty']) {
    sender.send(event(channel, '1'));
    await sender.receivesError(`Cannot broadcast client event (connection not subscribed to channel ${channel})`);
  }
  await other.receivesNothing();
});

test('before the acknowledgement and after an unsubscribe they are refused', async () => {
  const sender = await Peer.connect(raptor);
  sender.send(event('private-early', '1'));
  sender.askToSubscribe('private-early');
  await sender.receivesError('Cannot broadcast client event (connection not subscribed to channel private-early)');
  assert.equal((await sender.frame()).event, 'pusher_internal:subscription_succeeded');
  sender.unsubscribe('private-early');
  sender.send(event('private-early', '1'));
  await sender.receivesError('Cannot broadcast client event (connection not subscribed to channel private-early)');
});

test('without a channel, or with one that is no string, they are refused', async () => {
  const [sender, other] = await subscribed('private-channelless');
  for (const channel of [undefined, null, 1, [], {}, '', 'a b']) {
    sender.send({ event: 'client-e', channel, data: {} });
    await sender.receivesError(/./);
  }
  sender.send({ event: 'client-e', data: { channel: 'private-channelless' } });
  await sender.receivesError(/./);
  await sender.isAlive();
  await other.receivesNothing();
});

test('on #server-to-user- they are refused', async () => {
  const [one, two] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  for (const peer of [one, two]) {
    await peer.signIn({ id: 'talker' });
    await peer.subscribe('#server-to-user-talker');
  }
  one.send(event('#server-to-user-talker', '1'));
  await one.receivesError('Client event rejected - only supported on private and presence channels');
  await two.receivesNothing();
});

test('an app without the setting refuses them all', async () => {
  const [sender, other] = await subscribed('private-off', 2, { app: forbidden });
  sender.send(event('private-off', '1'));
  await sender.receivesError('To send client events, you must enable this feature in the Settings page of your dashboard.');
  await other.receivesNothing();
});

test('more than ten a second are refused with 4301, the connection stays, and a second later it may speak again', async () => {
  const [sender, other] = await subscribed('private-rate');
  const begin = Date.now();
  for (let n = 0; n < 30; n += 1) sender.send(event('private-rate', String(n)));
  const refused = await sender.arrivingNow();
  const delivered = await other.arrivingNow();
  for (const frame of refused) {
    assert.deepEqual(frame, { event: 'pusher:error', data: { code: 4301, message: 'Client event rejected due to rate limit' } });
  }
  assert.equal(refused.length + delivered.length, 30);
  const grown = Math.ceil((Date.now() - begin) / 100);
  assert.ok(delivered.length >= 10 && delivered.length <= 10 + grown, `${delivered.length} got through`);
  assert.ok(refused.length > 0);
  assert.deepEqual(delivered.map((frame) => frame.data), delivered.map((_, n) => String(n)));
  await sleep(1_100);
  sender.send(event('private-rate', 'again'));
  await other.receives(event('private-rate', 'again'));
});

test('the rate is counted by connection', async () => {
  const peers = await subscribed('private-rates', 3);
  for (const peer of peers) for (let n = 0; n < 10; n += 1) peer.send(event('private-rates', '1'));
  for (const peer of peers) {
    const frames = await collect(peer, 20);
    assert.ok(frames.every((frame) => frame.event === 'client-e'), JSON.stringify(frames.find((frame) => frame.event !== 'client-e')));
  }
});

test("the rate is the app's", async () => {
  const [sender, other] = await subscribed('private-fast', 2, { app: fast });
  for (let n = 0; n < 200; n += 1) sender.send(event('private-fast', String(n)));
  const frames = await collect(other, 200);
  assert.deepEqual(frames.map((frame) => frame.data), Array.from({ length: 200 }, (_, n) => String(n)));
  await sender.receivesNothing();
});

test('client events and published ones keep one order for all', async () => {
  const [sender, b, c] = await subscribed('private-order', 3, { app: fast });
  const quick = new Api(raptor, fast);
  const publishing = (async () => {
    for (let n = 0; n < 50; n += 1) await quick.trigger('private-order', 'api', String(n));
  })();
  for (let n = 0; n < 50; n += 1) {
    sender.send(event('private-order', String(n)));
    await sleep(1);
  }
  await publishing;
  assert.deepEqual(await collect(b, 100), await collect(c, 100));
});

test('a name from the API may start with client-, and carries no user_id', async () => {
  const peer = await Peer.connect(raptor);
  await peer.join('presence-api', 'me');
  await api.trigger('presence-api', 'client-from-api', 'x');
  await peer.receives(event('presence-api', 'x', 'client-from-api'));
});

async function collect(peer, count) {
  const frames = [];
  while (frames.length < count) frames.push(await peer.frame());
  return frames;
}
