// Publishing: POST /events, POST /batch_events and the deprecated form (`pusher.md` 5.5, 5.6, 5.8, 12).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer, appNamed } from '../raw/peer.js';
import { Api, TOO_MUCH_DATA, md5 } from './api.js';

const tight = appNamed('tight', { limits: { event_data_bytes_max: 5, event_name_chars_max: 5, channels_per_event_max: 2, events_per_batch_max: 2, channel_name_chars_max: 200 } });
const raptor = await startRaptor({ config: { apps: [APP, tight] } });
const api = new Api(raptor, APP);

const EVENT = { name: 'e', channels: ['c'], data: 'x' };
const INVALID_INFO = /info should be a comma separated list of attributes/;

async function is(answer, status, body) {
  const { status: got, text, headers } = await answer;
  if (body instanceof RegExp) assert.match(text, body);
  else assert.equal(text, body);
  assert.equal(got, status);
  assert.equal(headers['content-type'], status === 200 ? 'application/json' : 'text/plain; charset=utf-8');
}

/** A peer subscribed to these channels. */
async function listener(...channels) {
  const peer = await Peer.connect(raptor);
  for (const channel of channels) {
    if (channel.startsWith('presence-')) await peer.join(channel, 'listener');
    else await peer.subscribe(channel);
  }
  return peer;
}

// POST /events

test('an event reaches each of its channels once, with exactly event, channel and data', async () => {
  const peer = await listener('room-1', 'private-room-2', 'presence-room-3');
  await is(api.post('/events', { name: 'foo', channels: ['room-1', 'private-room-2', 'presence-room-3'], data: '{"a":1}' }), 200, '{}');
  await peer.receives(
    { event: 'foo', channel: 'room-1', data: '{"a":1}' },
    { event: 'foo', channel: 'private-room-2', data: '{"a":1}' },
    { event: 'foo', channel: 'presence-room-3', data: '{"a":1}' },
  );
  await peer.receivesNothing();
});

test('data reaches the subscriber character for character', async () => {
  const peer = await listener('verbatim');
  for (const data of ['', ' ', 'plain', '123', 'null', '"quoted"', '{"url":"http:\\/\\/x","n":"\\u00eb"}', '{ "b" : 1.0,\n\t"a":[ ] }', 'ë 🦖 \u2028 \u0001 \\ "', '\ufeff', 'x'.repeat(10240)]) {
    await is(api.post('/events', { ...EVENT, channels: ['verbatim'], data }), 200, '{}');
    await peer.receives({ event: 'e', channel: 'verbatim', data });
  }
});

test('data that is no string is delivered as compact JSON', async () => {
  const peer = await listener('no-string');
  for (const [data, delivered] of [['{ "b" : 1 , "a" : [ true , null ] }', '{"b":1,"a":[true,null]}'], ['1', '1'], ['9007199254740993', '9007199254740993'], ['true', 'true'], ['[]', '[]'], ['{}', '{}']]) {
    await is(api.post('/events', `{"name":"e","channels":["no-string"],"data":${data}}`), 200, '{}');
    await peer.receives({ event: 'e', channel: 'no-string', data: delivered });
  }
});

test('channels may be one name, a plain string or a list', async () => {
  const peer = await listener('forms');
  for (const channels of [{ channels: ['forms'] }, { channels: 'forms' }, { channel: 'forms' }]) {
    await is(api.post('/events', { name: 'e', data: 'x', ...channels }), 200, '{}');
    await peer.receives({ event: 'e', channel: 'forms', data: 'x' });
  }
});

test('publishing to nobody is no error', () => is(api.post('/events', { ...EVENT, channels: ['nobody-here'] }), 200, '{}'));

test('unknown fields are ignored and not delivered', async () => {
  const peer = await listener('unknown');
  await is(api.post('/events', { ...EVENT, channels: ['unknown'], tags: {}, idempotency_key: 'x', user_id: 'forged', event: 'other' }), 200, '{}');
  await peer.receives({ event: 'e', channel: 'unknown', data: 'x' });
});

test('the connection of socket_id is left out, others of the same user are not', async () => {
  const [one, two, other] = [await listener('presence-except'), await listener('presence-except'), await Peer.connect(raptor)];
  await is(api.post('/events', { ...EVENT, channels: ['presence-except'], socket_id: one.socketId }), 200, '{}');
  await one.receivesNothing();
  await two.receives({ event: 'e', channel: 'presence-except', data: 'x' });
  for (const unknown of ['1.1', '99999999999999999999.1', other.socketId]) {
    await is(api.post('/events', { ...EVENT, channels: ['presence-except'], socket_id: unknown }), 200, '{}');
    for (const peer of [one, two]) await peer.receives({ event: 'e', channel: 'presence-except', data: 'x' });
  }
});

test('a socket_id of another form is refused', async () => {
  for (const socketId of ['', '1', 'a.b', '1.', '.1', '1.2.3', '-1.2', '1.2\n', ' 1.2', '١.٢', 12.34, true, {}, []]) {
    await is(api.post('/events', { ...EVENT, socket_id: socketId }), 400, 'Invalid socket_id\n');
  }
});

test('name, data and channels are required', async () => {
  for (const [missing, body] of [['name', { channels: ['c'], data: 'x' }], ['data', { channels: ['c'], name: 'e' }], ['name', { ...EVENT, name: null }], ['data', { ...EVENT, data: null }]]) {
    await is(api.post('/events', body), 400, `Missing required parameter: ${missing}\n`);
  }
  for (const channels of [undefined, null, []]) await is(api.post('/events', { ...EVENT, channels }), 400, /^Missing required parameter: channels?\n$/);
});

test('a body that is no JSON object is refused', async () => {
  for (const body of ['x', '{', '{"name":"e",}', '[]', '"x"', '1', 'null', `{"name":"e"}{}`, '['.repeat(100_000), '\ufeff{}']) await is(api.post('/events', body), 400, 'Invalid JSON\n');
});

test('a body that is no UTF-8 is refused', () => is(api.post('/events', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])), 400, 'Invalid JSON\n'));

test('no body and no parameters', () => is(api.post('/events', undefined), 400, /^(Missing required parameter: (name|channels?|data)|Invalid JSON)\n$/));

test('fields of a wrong type are refused', async () => {
  for (const fields of [{ name: 1 }, { name: {} }, { name: [] }, { channels: {} }, { channels: 1 }, { channels: [1] }, { channels: [null] }, { channels: [['c']] }, { channels: true }, { info: 1 }, { info: ['user_count'] }]) {
    const answer = await api.post('/events', { ...EVENT, ...fields });
    assert.equal(answer.status, 400, JSON.stringify(fields));
    assert.match(answer.text, /^.+\n$/);
  }
});

test('an invalid channel name is refused and quoted, and nothing is published', async () => {
  const peer = await listener('valid');
  for (const channel of ['', 'a b', 'a/b', 'ä', 'a#b', '#x', '#server-to-user-', '#signed-in-1', '#watchers-1', 'a*', 'a\n', 'x'.repeat(165)]) {
    await is(api.post('/events', { ...EVENT, channels: ['valid', channel] }), 400, new RegExp(`^Invalid channel name ${channel.slice(0, 100).replace(/[*#/]/g, '\\$&')}`));
    await is(api.post('/events', { ...EVENT, channels: [channel] }), 400, /^Invalid channel name [^]*\n$/);
  }
  await peer.receivesNothing();
});

test('a message may go to a user', () => is(api.post('/events', { ...EVENT, channels: ['#server-to-user-12345'] }), 200, '{}'));

test('a channel name may have 164 characters', () => is(api.post('/events', { ...EVENT, channels: ['x'.repeat(164)] }), 200, '{}'));

test('100 channels, and no more', async () => {
  const channels = Array.from({ length: 101 }, (_, i) => `many-${i}`);
  const peer = await listener('many-0', 'many-99', 'many-100');
  await is(api.post('/events', { ...EVENT, channels }), 400, 'Too many channels (101 > 100)\n');
  await is(api.post('/events', { ...EVENT, channels: channels.slice(0, 100) }), 200, '{}');
  await peer.receives({ event: 'e', channel: 'many-0', data: 'x' }, { event: 'e', channel: 'many-99', data: 'x' });
  await peer.receivesNothing();
});

test('an event name has 200 characters, and no more', async () => {
  const peer = await listener('names');
  for (const name of ['x'.repeat(200), 'é'.repeat(200), 'App\\Events\\Thing', '.thing', 'with space', '🦖', '"', 'client-x', 'pusher', 'pusher_internal']) {
    await is(api.post('/events', { ...EVENT, name, channels: ['names'] }), 200, '{}');
    await peer.receives({ event: name, channel: 'names', data: 'x' });
  }
  await is(api.post('/events', { ...EVENT, name: 'x'.repeat(201) }), 400, 'Event name too long (201 > 200)\n');
});

test('reserved event names are refused', async () => {
  for (const name of ['pusher:x', 'pusher:', 'pusher_internal:member_added', 'pusher_internal:']) {
    await is(api.post('/events', { ...EVENT, name }), 400, 'Event names must not start with pusher: or pusher_internal:\n');
    await is(api.post('/batch_events', { batch: [{ name, channel: 'c', data: 'x' }] }), 400, 'Event names must not start with pusher: or pusher_internal:\n');
  }
});

test('data has 10240 bytes, and no more', async () => {
  for (const data of ['x'.repeat(10240), 'é'.repeat(5120), '"'.repeat(10240)]) await is(api.post('/events', { ...EVENT, data }), 200, '{}');
  for (const data of ['x'.repeat(10241), 'é'.repeat(5121)]) await is(api.post('/events', { ...EVENT, data }), 413, `${TOO_MUCH_DATA}\n`);
});

test("the limits are the app's, and so are the figures in the texts", async () => {
  const small = new Api(raptor, tight);
  const event = { name: 'e', channels: ['c'], data: 'x' };
  await is(small.post('/events', { ...event, data: '123456' }), 413, `${TOO_MUCH_DATA.replace('10240', '5')}\n`);
  await is(small.post('/events', { ...event, name: '123456' }), 400, 'Event name too long (6 > 5)\n');
  await is(small.post('/events', { ...event, channels: ['a', 'b', 'c'] }), 400, 'Too many channels (3 > 2)\n');
  await is(small.post('/batch_events', { batch: Array(3).fill({ name: 'e', channel: 'c', data: 'x' }) }), 400, 'Batch too large (3 > 2)\n');
  await is(small.post('/events', { ...event, channels: ['x'.repeat(200)] }), 200, '{}');
});

test('info adds what it asks for, one entry per channel, only where it applies', async () => {
  await listener('info-public', 'presence-info');
  await listener('info-public', 'presence-info');
  const channels = ['info-public', 'presence-info', 'info-empty', 'presence-info-empty', 'info-public'];
  assert.deepEqual((await api.post('/events', { ...EVENT, channels, info: 'user_count' })).json(), {
    channels: { 'info-public': {}, 'presence-info': { user_count: 1 }, 'info-empty': {}, 'presence-info-empty': { user_count: 0 } },
  });
  const both = (await api.post('/events', { ...EVENT, channels: channels.slice(0, 3), info: 'user_count,subscription_count' })).json().channels;
  assert.deepEqual(both['info-public'], { subscription_count: 2 });
  assert.deepEqual(both['info-empty'], { subscription_count: 0 });
  assert.equal(both['presence-info'].user_count, 1);
  await is(api.post('/events', { ...EVENT, info: '' }), 200, '{}');
  await is(api.post('/events', { ...EVENT, info: 'nonsense' }), 400, INVALID_INFO);
  await is(api.post('/events', { ...EVENT, info: 'user_count,' + 'x'.repeat(1000) }), 400, INVALID_INFO);
});

test('parameters of a POST may stand in the query', async () => {
  const peer = await listener('query-a', 'query-b');
  await is(api.call('POST', '/events', { params: { name: 'q', channels: ['query-a', 'query-b'], data: 'ë &=+' } }), 200, '{}');
  await peer.receives({ event: 'q', channel: 'query-a', data: 'ë &=+' }, { event: 'q', channel: 'query-b', data: 'ë &=+' });
  await is(api.call('POST', '/events', { params: { name: 'q', channel: 'query-a', data: 'x', socket_id: peer.socketId } }), 200, '{}');
  await peer.receivesNothing();
});

test('in both places the body wins', async () => {
  const peer = await listener('both');
  await is(api.post('/events', { name: 'from-body', channels: ['both'], data: 'x' }, { params: { name: 'from-query', data: 'y' } }), 200, '{}');
  await peer.receives({ event: 'from-body', channel: 'both', data: 'x' });
  await is(api.post('/events', { name: 'mixed', channels: ['both'] }, { params: { data: 'from-query' } }), 200, '{}');
  await peer.receives({ event: 'mixed', channel: 'both', data: 'from-query' });
});

test('no content type is required, and a wrong one does not matter', async () => {
  for (const type of [undefined, 'application/json; charset=utf-8', 'text/plain', 'application/x-www-form-urlencoded', 'nonsense']) {
    await is(api.post('/events', EVENT, { headers: type ? { 'Content-Type': type } : {} }), 200, '{}');
  }
});

// POST /batch_events

test('the events of a batch are delivered in order', async () => {
  const peer = await listener('batch-a', 'batch-b');
  const batch = Array.from({ length: 10 }, (_, i) => ({ channel: i % 2 ? 'batch-b' : 'batch-a', name: `e${i}`, data: String(i) }));
  await is(api.post('/batch_events', { batch }), 200, '{}');
  await peer.receives(...batch.map(({ channel, name, data }) => ({ event: name, channel, data })));
  await peer.receivesNothing();
});

test('each event of a batch may leave out its own connection', async () => {
  const peer = await listener('batch-except');
  const batch = [{ channel: 'batch-except', name: 'a', data: '', socket_id: peer.socketId }, { channel: 'batch-except', name: 'b', data: '' }];
  await is(api.post('/batch_events', { batch }), 200, '{}');
  await peer.receives({ event: 'b', channel: 'batch-except', data: '' });
});

test('info gives a list as long as the batch, in its order', async () => {
  await listener('batch-info', 'presence-batch-info');
  const batch = [{ channel: 'presence-batch-info', name: 'e', data: 'x', info: 'user_count' }, { channel: 'batch-info', name: 'e', data: 'x' }, { channel: 'batch-info', name: 'e', data: 'x', info: 'subscription_count' }];
  await is(api.post('/batch_events', { batch }), 200, '{"batch":[{"user_count":1},{},{"subscription_count":1}]}');
  await is(api.post('/batch_events', { batch: [{ ...batch[1], info: 'user_count' }] }), 200, '{"batch":[{}]}');
});

test('more than ten events are refused', () =>
  is(api.post('/batch_events', { batch: Array(11).fill({ channel: 'c', name: 'e', data: 'x' }) }), 400, 'Batch too large (11 > 10)\n'));

test('batch is required and a list of events', async () => {
  for (const body of [{}, { batch: null }]) await is(api.post('/batch_events', body), 400, 'Missing required parameter: batch\n');
  for (const batch of [{}, 'x', 1, [1], [null], [[]], ['x']]) {
    const answer = await api.post('/batch_events', { batch });
    assert.equal(answer.status, 400, JSON.stringify(batch));
  }
  await is(api.post('/batch_events', 'x'), 400, 'Invalid JSON\n');
});

test('one bad event refuses the whole batch', async () => {
  const peer = await listener('all-or-nothing');
  const good = { channel: 'all-or-nothing', name: 'e', data: 'x' };
  for (const [bad, status, text] of [
    [{ channels: ['all-or-nothing'], name: 'e', data: 'x' }, 400, 'Missing required parameter: channel\n'],
    [{ channel: 'c', data: 'x' }, 400, 'Missing required parameter: name\n'],
    [{ channel: 'c', name: 'e' }, 400, 'Missing required parameter: data\n'],
    [{ ...good, channel: 'a b' }, 400, /^Invalid channel name a b/],
    [{ ...good, channel: ['c'] }, 400, /./],
    [{ ...good, socket_id: 'x' }, 400, 'Invalid socket_id\n'],
    [{ ...good, data: 'x'.repeat(10241) }, 413, `${TOO_MUCH_DATA}\n`],
    [{ ...good, name: 'x'.repeat(201) }, 400, 'Event name too long (201 > 200)\n'],
    [{ ...good, info: 'nonsense' }, 400, INVALID_INFO],
  ]) {
    await is(api.post('/batch_events', { batch: [good, bad, good] }), status, text);
  }
  await peer.receivesNothing();
});

// POST /channels/:channel/events, deprecated

test('the deprecated form takes its body as data, whatever it is, and answers 202 with nothing', async () => {
  const peer = await listener('legacy');
  for (const body of ['{"some":"data"}', 'plain', ' { "spaced" : 1 } ', 'ë', '[]']) {
    const answer = await api.call('POST', '/channels/legacy/events', { params: { name: 'foo' }, body });
    assert.deepEqual([answer.status, answer.text], [202, '']);
    await peer.receives({ event: 'foo', channel: 'legacy', data: body });
  }
  const answer = await api.call('POST', '/channels/legacy/events', { params: { name: 'foo', socket_id: peer.socketId }, body: 'x' });
  assert.equal(answer.status, 202);
  await peer.receivesNothing();
});

test('the deprecated form refuses what the other does', async () => {
  const legacy = (channel, params, body, rest = {}) => api.call('POST', `/channels/${channel}/events`, { params, body, ...rest });
  await is(legacy('legacy', {}, 'x'), 400, 'Missing required parameter: name\n');
  await is(legacy('legacy', { name: 'pusher:x' }, 'x'), 400, 'Event names must not start with pusher: or pusher_internal:\n');
  await is(legacy('legacy', { name: 'e', socket_id: 'x' }, 'x'), 400, 'Invalid socket_id\n');
  await is(legacy('legacy', { name: 'e' }, 'x'.repeat(10241)), 413, `${TOO_MUCH_DATA}\n`);
  await is(legacy('a%20b', { name: 'e' }, 'x'), 400, /^Invalid channel name a b/);
  await is(legacy('legacy', { name: 'e' }, 'x', { override: { body_md5: md5('y') } }), 401, 'Invalid body_md5\n');
  const answer = await legacy('legacy', { name: 'e' }, Buffer.from([0x22, 0xff, 0x22]));
  assert.equal(answer.status, 400);
});
