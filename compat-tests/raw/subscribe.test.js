// Subscribing and unsubscribing: names, signatures, order, and every refusal (`pusher.md` 1.5, 1.7, 2.1–2.5).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api, hmac } from '../rest/api.js';
import { APP, Peer, appNamed, auth, json } from './peer.js';

const rotating = appNamed('rotating', {
  key: undefined,
  secret: undefined,
  keys: [{ key: 'old', secret: 'old-secret' }, { key: 'new', secret: 'new-secret' }],
});
const narrow = appNamed('narrow', { limits: { subscriptions_per_connection_max: 2, channel_name_chars_max: 200 } });

const raptor = await startRaptor({ config: { apps: [APP, rotating, narrow] } });
const api = new Api(raptor, APP);

const succeeded = (channel, data = '{}') => ({ event: 'pusher_internal:subscription_succeeded', channel, data });
const subscribe = (data) => ({ event: 'pusher:subscribe', data });

test('a subscribe is acknowledged with data that is the string {}', async () => {
  const peer = await Peer.connect(raptor);
  peer.send(subscribe({ channel: 'my-channel' }));
  await peer.receives(succeeded('my-channel'));
});

test('data may be an object or a string that holds one, with and without an empty auth', async () => {
  const peer = await Peer.connect(raptor);
  const forms = [
    { channel: 'form-1' },
    { channel: 'form-2', auth: '' },
    { channel: 'form-3', auth: null },
    { channel: 'form-4', auth: null, channel_data: null },
    { channel: 'form-5', unknown: { deep: [1] } },
  ];
  for (const data of forms) {
    peer.send(subscribe(data));
    await peer.receives(succeeded(data.channel));
    peer.unsubscribe(data.channel);
    peer.send(subscribe(JSON.stringify(data)));
    await peer.receives(succeeded(data.channel));
    peer.send({ event: 'pusher:unsubscribe', data: JSON.stringify({ channel: data.channel }) });
  }
  await peer.receivesNothing();
});

test('several subscribes back to back are answered in their order', async () => {
  const peer = await Peer.connect(raptor);
  const channels = Array.from({ length: 50 }, (_, i) => `row-${i}`);
  for (const channel of channels) peer.askToSubscribe(channel);
  await peer.receives(...channels.map((channel) => succeeded(channel)));
});

test('every kind of channel is told from the others by its whole prefix', async () => {
  for (const open of ['private', 'privateer', 'presence', 'my-private-room', 'x-presence-y', 'Private-x', 'cacheable', 'x-cache-y', '-private-']) {
    const peer = await Peer.connect(raptor);
    peer.send(subscribe({ channel: open }));
    await peer.receives(succeeded(open));
    await peer.receivesNothing();
  }
  for (const closed of ['private-', 'private-x', 'private-presence-x', 'private-cache-x', 'private-encrypted', 'private-encrypted-x', 'private-encrypted-cache-x', 'presence-x', 'presence-cache-x', 'presence-encrypted-x']) {
    const peer = await Peer.connect(raptor);
    peer.send(subscribe({ channel: closed }));
    await peer.receivesSubscriptionError(closed, { message: `Auth info required to subscribe to ${closed}` });
  }
});

test('every legal character may stand in a name', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('ABCXYZabcxyz0189_-=@,.;');
  await peer.subscribe('private-ABCXYZabcxyz0189_-=@,.;');
});

test('names differ in case', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('case');
  await peer.subscribe('CASE');
  await api.trigger('CASE', 'e', 'upper');
  await peer.receives({ event: 'e', channel: 'CASE', data: 'upper' });
});

for (const channel of [
  '', ' ', 'a b', 'a/b', 'a#b', 'a:b', 'a*', 'a\n', 'a\0', 'a"b', 'a\\b', 'ä', '房间', 'private-ä', 'presence- ', 'a%20', '#x', '#server-to-user-', '#signed-in-1', '#watchers-1',
  '#server-to-user-a#b', 'x'.repeat(165), `private-${'x'.repeat(157)}`, 'x'.repeat(10_000),
]) {
  test(`the name ${JSON.stringify(channel.slice(0, 30))} (${channel.length} characters) is refused and the connection lives`, async () => {
    const peer = await Peer.connect(raptor);
    peer.send(subscribe({ channel, auth: auth(APP, peer.socketId, channel) }));
    const first = await peer.frame();
    assert.ok(first.data.message.startsWith(`Invalid channel name ${channel.slice(0, 200)}`), first.data.message);
    assert.ok(first.data.message.length < 400);
    assert.deepEqual(first, { event: 'pusher:error', data: { code: null, message: first.data.message } });
    const second = await peer.frame();
    assert.equal(second.event, 'pusher:subscription_error');
    assert.deepEqual(JSON.parse(second.data), { type: 'InvalidChannel', error: first.data.message, status: 400 });
    await peer.isAlive();
  });
}

test('a name may have 164 characters, or as many as the app allows', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('x'.repeat(164));
  await peer.subscribe(`private-${'x'.repeat(156)}`);
  const wide = await Peer.connect(raptor, { app: narrow });
  await wide.subscribe('x'.repeat(200));
  wide.askToSubscribe('x'.repeat(201));
  await wide.receivesError(/^Invalid channel name x{200}/);
});

for (const [words, data] of [
  ['absent', undefined], ['null', null], ['a number', 1], ['a list', []], ['true', true], ['an object without channel', {}], ['an empty string', ''],
  ['a string without JSON', 'room'], ['a string of a string', '"room"'], ['a channel that is null', { channel: null }], ['a channel that is a number', { channel: 1 }],
  ['a channel that is a list', { channel: ['room'] }], ['a channel that is an object', { channel: { name: 'room' } }], ['a channel that is true', { channel: true }],
]) {
  test(`subscribe and unsubscribe with data that is ${words} are refused, and the connection lives`, async () => {
    const peer = await Peer.connect(raptor);
    for (const event of ['pusher:subscribe', 'pusher:unsubscribe']) {
      peer.send({ event, data });
      await peer.receivesError('Missing required parameter: channel');
    }
    await peer.isAlive();
  });
}

test('a channel beside data instead of within it does not count', async () => {
  const peer = await Peer.connect(raptor);
  peer.send({ event: 'pusher:subscribe', channel: 'room', data: {} });
  await peer.receivesError('Missing required parameter: channel');
});

test('a second subscribe is an error and changes nothing', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('twice');
  peer.askToSubscribe('twice');
  await peer.receivesError('Existing subscription to channel twice');
  assert.equal((await api.get('/channels/twice', { info: 'subscription_count' })).json().subscription_count, 1);
  await api.trigger('twice', 'once', '1');
  await peer.receives({ event: 'once', channel: 'twice', data: '1' });
  peer.unsubscribe('twice');
  await peer.receivesNothing();
  assert.deepEqual((await api.get('/channels/twice')).json(), { occupied: false });
});

test('a second subscribe to a private channel is the same error, even with a wrong signature', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('private-twice');
  peer.askToSubscribe('private-twice', { auth: `${APP.key}:bad` });
  await peer.receivesError('Existing subscription to channel private-twice');
  await peer.isAlive();
});

test('an unsubscribe is not acknowledged, and nothing arrives after it', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('left');
  peer.unsubscribe('left');
  await peer.receivesNothing();
  await api.trigger('left', 'e', 'x');
  await peer.receivesNothing();
});

test('an unsubscribe without a subscription is an error', async () => {
  const peer = await Peer.connect(raptor);
  peer.unsubscribe('never');
  await peer.receivesError('No current subscription to channel never, or subscription in progress');
  await peer.subscribe('never');
  peer.unsubscribe('never');
  peer.unsubscribe('never');
  await peer.receivesError('No current subscription to channel never, or subscription in progress');
  await peer.isAlive();
});

test('unsubscribe and subscribe are taken in their order, a hundred times', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('private-flip');
  for (let i = 0; i < 100; i += 1) {
    peer.unsubscribe('private-flip');
    peer.askToSubscribe('private-flip');
  }
  for (let i = 0; i < 100; i += 1) await peer.receives(succeeded('private-flip'));
  await peer.receivesNothing();
  await api.trigger('private-flip', 'e', 'x');
  await peer.receives({ event: 'e', channel: 'private-flip', data: 'x' });
});

test('what is published meanwhile arrives after the acknowledgement or not at all, in order and once', async () => {
  const peer = await Peer.connect(raptor);
  let publishing = true;
  const publisher = (async () => {
    for (let n = 0; publishing; n += 1) await api.trigger('torrent', 'n', String(n));
  })();
  for (let round = 0; round < 30; round += 1) {
    peer.askToSubscribe('torrent');
    await peer.receives(succeeded('torrent'));
    let last = null;
    for (let i = 0; i < 3; i += 1) {
      const frame = await peer.frame();
      assert.equal(frame.event, 'n');
      if (last !== null) assert.equal(Number(frame.data), last + 1);
      last = Number(frame.data);
    }
    peer.unsubscribe('torrent');
    for (const frame of await peer.arrivingNow()) assert.equal(Number(frame.data), (last += 1));
  }
  publishing = false;
  await publisher;
});

test('a disconnect is an unsubscribe from everything', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('gone-1');
  await peer.subscribe('private-gone-2');
  await peer.close();
  for (const channel of ['gone-1', 'private-gone-2']) await until(async () => !(await api.get(`/channels/${channel}`)).json().occupied);
});

test('the number of subscriptions of a connection has a limit', async () => {
  const peer = await Peer.connect(raptor, { app: narrow });
  await peer.subscribe('one');
  await peer.subscribe('two');
  peer.askToSubscribe('three');
  await peer.receivesSubscriptionError('three', { message: 'Connection is over its limit of 2 subscriptions', type: 'LimitReached', status: 429 });
  peer.unsubscribe('one');
  await peer.subscribe('three');
});

// Signatures

for (const channel of ['private-room', 'private-cache-room', 'private-encrypted-room', 'private-encrypted-cache-room', 'presence-room', 'presence-cache-room']) {
  const options = channel.startsWith('presence-') ? { channelData: '{"user_id":"1"}' } : {};

  test(`${channel} wants auth`, async () => {
    const peer = await Peer.connect(raptor);
    for (const missing of [undefined, null, '']) {
      peer.askToSubscribe(channel, { ...options, auth: missing });
      await peer.receivesSubscriptionError(channel, { message: `Auth info required to subscribe to ${channel}` });
    }
    await peer.isAlive();
  });

  test(`${channel} wants the app's key`, async () => {
    const peer = await Peer.connect(raptor);
    for (const key of ['nobody', '', narrow.key, APP.key.toUpperCase() + 'X']) {
      peer.askToSubscribe(channel, { ...options, auth: `${key}:${'0'.repeat(64)}` });
      await peer.receivesSubscriptionError(channel, { message: `Invalid key in subscription auth data: '${key}'` });
    }
    await peer.isAlive();
  });

  test(`${channel} wants the right signature, and the refusal does not tell it`, async () => {
    const peer = await Peer.connect(raptor);
    const toSign = [peer.socketId, channel, ...(options.channelData ? [options.channelData] : [])].join(':');
    const right = hmac(APP.secret, toSign);
    const wrong = [
      right.slice(0, -1) + (right.endsWith('0') ? '1' : '0'), '0'.repeat(64), right.slice(1), `${right}0`, '', 'x', 'ü'.repeat(32),
      hmac(APP.secret, `1.1:${channel}`), hmac(narrow.secret, toSign),
    ];
    for (const signature of wrong) {
      peer.askToSubscribe(channel, { ...options, auth: `${APP.key}:${signature}` });
      const first = await peer.frame();
      assert.equal(first.data.message, `Invalid signature: Expected HMAC SHA256 hex digest of ${toSign}, but got ${signature}`);
      assert.equal(first.data.code, null);
      if (!signature.includes(right)) assert.ok(!first.data.message.includes(right));
      assert.equal((await peer.frame()).event, 'pusher:subscription_error');
    }
    peer.askToSubscribe(channel, options);
    assert.equal((await peer.frame()).event, 'pusher_internal:subscription_succeeded');
  });
}

test('auth is split at its first colon', async () => {
  const peer = await Peer.connect(raptor);
  const [, signature] = auth(APP, peer.socketId, 'private-colon').split(':');
  peer.askToSubscribe('private-colon', { auth: `${APP.key}:${signature}:more` });
  await peer.receivesSubscriptionError('private-colon', {
    message: `Invalid signature: Expected HMAC SHA256 hex digest of ${peer.socketId}:private-colon, but got ${signature}:more`,
  });
  peer.askToSubscribe('private-colon', { auth: signature });
  await peer.receivesSubscriptionError('private-colon', { message: /^Invalid key in subscription auth data: / });
});

test('a signature made for another socket or channel does not open this one', async () => {
  const [one, other] = [await Peer.connect(raptor), await Peer.connect(raptor)];
  one.askToSubscribe('private-mine', { auth: auth(APP, other.socketId, 'private-mine') });
  await one.receivesSubscriptionError('private-mine', { message: /^Invalid signature: / });
  one.askToSubscribe('private-mine', { auth: auth(APP, one.socketId, 'private-yours') });
  await one.receivesSubscriptionError('private-mine', { message: /^Invalid signature: / });
});

test('a refused subscriber receives nothing of the channel', async () => {
  const peer = await Peer.connect(raptor);
  peer.askToSubscribe('private-secret', { auth: `${APP.key}:bad` });
  await peer.receivesSubscriptionError('private-secret', { message: /^Invalid signature: / });
  await api.trigger('private-secret', 'e', 'secret');
  await peer.receivesNothing();
  assert.deepEqual((await api.get('/channels/private-secret')).json(), { occupied: false });
});

test('channel_data belongs to the signature of a private channel too, even when it is empty', async () => {
  for (const [channel, channelData] of [['private-data', '{"user_id":"7"}'], ['private-data', ''], ['private-encrypted-data', 'not json at all'], ['private-cache-data', '{}']]) {
    const peer = await Peer.connect(raptor);
    peer.askToSubscribe(channel, { channelData, auth: auth(APP, peer.socketId, channel) });
    await peer.receivesSubscriptionError(channel, { message: new RegExp(`^Invalid signature: Expected HMAC SHA256 hex digest of ${peer.socketId}:${channel}:.*, but got `) });
    peer.askToSubscribe(channel, { channelData });
    await peer.receives(succeeded(channel));
  }
});

test('channel_data that is null is absent', async () => {
  const peer = await Peer.connect(raptor);
  peer.askToSubscribe('private-null', { channel_data: null });
  await peer.receives(succeeded('private-null'));
});

test('channel_data is signed as it was received: escaped and plain text differ, and both are good', async () => {
  const plain = '{"user_id":"7","user_info":{"name":"Zoë"}}';
  const escaped = '{"user_id":"7","user_info":{"name":"Zo\\u00eb"}}';
  const spaced = '{"user_info": {"name": "Zoë"},  "user_id": "7", "more": "a\\/b"}';
  for (const channelData of [plain, escaped, spaced]) {
    const peer = await Peer.connect(raptor);
    peer.askToSubscribe('presence-zoe', { channelData });
    await peer.receives({ ...succeeded('presence-zoe'), data: json({ presence: { count: 1, ids: ['7'], hash: { 7: { name: 'Zoë' } } } }) });
    await peer.close();
  }
  const peer = await Peer.connect(raptor);
  peer.askToSubscribe('presence-zoe', { channelData: escaped, auth: auth(APP, peer.socketId, 'presence-zoe', plain) });
  await peer.receivesSubscriptionError('presence-zoe', { message: /^Invalid signature: / });
});

test('each active key of an app signs for its channels', async () => {
  for (const { key, secret } of rotating.keys) {
    for (const connectedWith of rotating.keys) {
      const peer = await Peer.connect(raptor, { app: { ...rotating, ...connectedWith } });
      peer.app = { ...rotating, key, secret };
      await peer.subscribe('private-rotated');
    }
  }
  const peer = await Peer.connect(raptor, { app: { ...rotating, ...rotating.keys[0] } });
  peer.askToSubscribe('private-rotated', { auth: `old:${hmac('new-secret', `${peer.socketId}:private-rotated`)}` });
  await peer.receivesSubscriptionError('private-rotated', { message: /^Invalid signature: / });
});

test('auth that is no string is refused', async () => {
  const peer = await Peer.connect(raptor);
  for (const wrong of [1, true, [], {}, ['x']]) {
    peer.askToSubscribe('private-typed', { auth: wrong });
    await peer.receivesSubscriptionError('private-typed', { message: 'Invalid auth for channel private-typed: must be a string' });
  }
  await peer.isAlive();
});

test('channel_data that is no string is refused', async () => {
  const peer = await Peer.connect(raptor);
  for (const wrong of [1, true, [], { user_id: '1' }]) {
    peer.askToSubscribe('presence-typed', { channel_data: wrong });
    await peer.receivesSubscriptionError('presence-typed', { message: 'Invalid channel_data for channel presence-typed: must be a string' });
  }
  await peer.isAlive();
});

test('apps with the same channel names do not hear each other', async () => {
  const [here, there] = [await Peer.connect(raptor), await Peer.connect(raptor, { app: narrow })];
  await here.subscribe('shared');
  await there.subscribe('shared');
  await api.trigger('shared', 'e', 'x');
  await here.receives({ event: 'e', channel: 'shared', data: 'x' });
  await there.receivesNothing();
});

test('messages that are no event are refused, and the connection lives', async () => {
  const peer = await Peer.connect(raptor);
  for (const text of [
    '', ' ', '{', '}', 'nonsense', '{"event":"pusher:ping"', '[]', '[{"event":"pusher:ping"}]', '1', '"pusher:ping"', 'null', 'true', '{}', '{"event":null}', '{"event":1}',
    '{"event":["pusher:ping"]}', '{"data":{}}', "{'event':'pusher:ping'}", '{"event":"pusher:ping"}{"event":"pusher:ping"}', '{"event":"pusher:ping",}', '\u0000', '{"event":"\\ud800"}',
  ]) {
    peer.socket.sendText(text);
    await peer.receivesError('Received invalid JSON');
  }
  await peer.isAlive();
});

test('unknown events are named in the refusal, and the connection lives', async () => {
  const peer = await Peer.connect(raptor);
  for (const event of ['hello', 'pusher:nothing', 'pusher:connection_established', 'pusher_internal:member_added', 'Pusher:ping', '', 'a "quoted" \\ one', '🦖']) {
    peer.send({ event, data: {} });
    await peer.receivesError(`Unsupported event received on socket: ${event}`);
  }
  await peer.isAlive();
});

test('a message may be spaced and its keys in any order, known or not', async () => {
  const peer = await Peer.connect(raptor);
  peer.socket.sendText(' \n{ "x" : [ {} ] , "data" : { "y" : 1 , "channel" : "sp\\u0061ced" } ,\t"event" : "pusher\\u003asubscribe" } \r\n');
  await peer.receives(succeeded('spaced'));
});
