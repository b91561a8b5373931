// No input, over any entrance, ends the process or disturbs another connection. The tests share one server; after each the same
// witness, subscribed since the start, must still get what is published, and the process must still take new connections.

import assert from 'node:assert/strict';
import { isUtf8 } from 'node:buffer';
import { connect } from 'node:net';
import { afterEach, describe, test } from 'node:test';

import { converse } from '../support/converse.js';
import { SOON_MS, sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { APP, Peer, stillServes } from './peer.js';
import { BINARY, CLOSE, CONTINUATION, PING, PONG, Refused, TEXT, WebSocket, closePayload, frame, handshake } from './websocket.js';

const raptor = await startRaptor({ config: { apps: [APP], handshake_timeout_secs: 1 } });
const roomy = await startRaptor({ config: { apps: [APP], inbound_message_bytes_max: 4_000_000 } });
const api = new Api(raptor, APP);

const witness = await Peer.connect(raptor);
await witness.subscribe('witness');

afterEach(async () => {
  await api.trigger('witness', 'still', 'here');
  await witness.receives({ event: 'still', channel: 'witness', data: 'here' });
  await stillServes(raptor, api);
});

const MEGABYTE = 1_048_576;

/** What is sent on an open connection, and how it ends: with this close code. */
const FATAL = {
  'a binary frame': [1003, (socket) => socket.sendFrame({ opcode: BINARY, payload: '{"event":"pusher:ping"}' })],
  'an empty binary frame': [1003, (socket) => socket.sendFrame({ opcode: BINARY })],
  'invalid UTF-8': [1007, (socket) => socket.sendFrame({ opcode: TEXT, payload: Buffer.from([0x7b, 0xff, 0xfe, 0x7d]) })],
  'an encoded surrogate': [1007, (socket) => socket.sendFrame({ opcode: TEXT, payload: Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22]) })],
  'a cut UTF-8 sequence': [1007, (socket) => socket.sendFrame({ opcode: TEXT, payload: Buffer.from([0x22, 0xf0, 0x9f, 0xa6]) })],
  'invalid UTF-8 across fragments': [1007, (socket) => {
    socket.sendFrame({ opcode: TEXT, payload: Buffer.from([0x22, 0xc3]), fin: false });
    socket.sendFrame({ opcode: CONTINUATION, payload: Buffer.from([0x22]) });
  }],
  'a message of more than 65536 bytes': [1009, (socket) => socket.sendText('x'.repeat(65_537))],
  'a channel name of 1 MB': [1009, (socket) => socket.sendText(`{"event":"pusher:subscribe","data":{"channel":"${'x'.repeat(MEGABYTE)}"}}`)],
  'a hundred thousand brackets': [1009, (socket) => socket.sendText('['.repeat(100_000))],
  'fragments that are too large together': [1009, (socket) => {
    socket.sendFrame({ opcode: TEXT, payload: 'x'.repeat(40_000), fin: false });
    socket.sendFrame({ opcode: CONTINUATION, payload: 'x'.repeat(40_000) });
  }],
  'a frame that announces 4 GB': [1009, (socket) => socket.sendFrame({ opcode: TEXT, payload: 'x', length: 2n ** 32n })],
  'a frame that announces 2^62 bytes': [1009, (socket) => socket.sendFrame({ opcode: TEXT, payload: 'x', length: 2n ** 62n })],
  'an unmasked frame': [1002, (socket) => socket.sendFrame({ opcode: TEXT, payload: '{"event":"pusher:ping"}', masked: false })],
  'reserved bit 1 (compression nobody agreed on)': [1002, (socket) => socket.sendFrame({ opcode: TEXT, payload: 'x', rsv: 4 })],
  'reserved bits 2 and 3': [1002, (socket) => socket.sendFrame({ opcode: TEXT, payload: 'x', rsv: 3 })],
  'the reserved data opcode 3': [1002, (socket) => socket.sendFrame({ opcode: 0x3, payload: 'x' })],
  'the reserved control opcode 15': [1002, (socket) => socket.sendFrame({ opcode: 0xf, payload: 'x' })],
  'a continuation of nothing': [1002, (socket) => socket.sendFrame({ opcode: CONTINUATION, payload: 'x' })],
  'a new message within a fragmented one': [1002, (socket) => {
    socket.sendFrame({ opcode: TEXT, payload: '{', fin: false });
    socket.sendFrame({ opcode: TEXT, payload: '}' });
  }],
  'a fragmented ping': [1002, (socket) => socket.sendFrame({ opcode: PING, payload: 'x', fin: false })],
  'a ping of 126 bytes': [1002, (socket) => socket.sendFrame({ opcode: PING, payload: 'x'.repeat(126) })],
  'a pong of 200 bytes': [1002, (socket) => socket.sendFrame({ opcode: PONG, payload: 'x'.repeat(200) })],
  'a close frame of one byte': [1002, (socket) => socket.sendFrame({ opcode: CLOSE, payload: 'x' })],
  'a close frame with code 999': [1002, (socket) => socket.sendFrame({ opcode: CLOSE, payload: closePayload(999) })],
  'a close frame with code 1005': [1002, (socket) => socket.sendFrame({ opcode: CLOSE, payload: closePayload(1005) })],
};

for (const [words, [code, act]] of Object.entries(FATAL)) {
  test(`${words} ends the connection with ${code}`, async () => {
    const peer = await Peer.connect(raptor);
    await peer.subscribe('victim');
    act(peer.socket);
    await peer.isClosedSilently(code);
  });
}

test('after what ends a connection nothing more of it is heard', async () => {
  const peer = await Peer.connect(raptor);
  peer.socket.sendBytes(Buffer.concat([
    frame({ opcode: BINARY, payload: 'x' }),
    frame({ opcode: TEXT, payload: '{"event":"pusher:subscribe","data":{"channel":"too-late"}}' }),
  ]));
  await peer.isClosedSilently(1003);
  assert.deepEqual((await api.get('/channels/too-late')).json(), { occupied: false });
});

// Right, though unusual

test('a message may come in fragments, with pings and pongs between them', async () => {
  const peer = await Peer.connect(raptor);
  const text = Buffer.from('{"event":"pusher:subscribe","data":{"channel":"fragments","note":"Zoë 🦖"}}');
  for (let i = 0; i < text.length; i += 1) {
    peer.socket.sendFrame({ opcode: i === 0 ? TEXT : CONTINUATION, payload: text.subarray(i, i + 1), fin: i === text.length - 1 });
    if (i % 10 === 5) {
      peer.socket.sendFrame({ opcode: PING, payload: String(i) });
      assert.deepEqual(await peer.socket.next(), { type: 'pong', payload: Buffer.from(String(i)) });
      peer.socket.sendFrame({ opcode: PONG });
    }
  }
  await peer.receives({ event: 'pusher_internal:subscription_succeeded', channel: 'fragments', data: '{}' });
});

test('empty fragments are fragments', async () => {
  const peer = await Peer.connect(raptor);
  peer.socket.sendFrame({ opcode: TEXT, fin: false });
  peer.socket.sendFrame({ opcode: CONTINUATION, payload: '{"event":"pusher:ping"}', fin: false });
  peer.socket.sendFrame({ opcode: CONTINUATION });
  await peer.receives({ event: 'pusher:pong', data: '{}' });
});

test('a message may have 65536 bytes', async () => {
  const peer = await Peer.connect(raptor);
  const rest = '{"event":"pusher:ping","data":""}';
  peer.socket.sendText(rest.replace('""', `"${'x'.repeat(65_536 - rest.length)}"`));
  await peer.receives({ event: 'pusher:pong', data: '{}' });
});

test('bytes may come one by one', async () => {
  const peer = await Peer.connect(raptor);
  for (const byte of frame({ opcode: TEXT, payload: '{"event":"pusher:ping"}' })) {
    peer.socket.sendBytes(Buffer.from([byte]));
    await sleep(1);
  }
  await peer.receives({ event: 'pusher:pong', data: '{}' });
});

test('a close frame without a code is answered', async () => {
  const peer = await Peer.connect(raptor);
  peer.socket.sendFrame({ opcode: CLOSE });
  assert.equal((await peer.socket.next()).type, 'close');
  assert.deepEqual(await peer.socket.next(), { type: 'end' });
});

test('a deep tree is refused or taken, and the connection lives', async () => {
  const nested = (depth, inside = '') => `${'['.repeat(depth)}${inside}${']'.repeat(depth)}`;
  const objects = (depth) => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`;
  for (const text of [
    nested(30_000),
    '['.repeat(60_000),
    '{"a":'.repeat(10_000),
    `{"event":"pusher:subscribe","data":${nested(30_000)}}`,
    `{"event":"pusher:subscribe","data":{"channel":${nested(30_000)}}}`,
    `{"event":"pusher:subscribe","data":{"channel":"deep","more":${nested(30_000)}}}`,
    `{"event":"client-e","channel":"private-deep","data":${nested(4_000)}}`,
    `{"event":"client-e","channel":"private-deep","data":${objects(1_000)}}`,
    `{"event":"pusher:ping","data":${nested(30_000)}}`,
  ]) {
    const peer = await Peer.connect(raptor);
    await peer.subscribe('private-deep');
    peer.socket.sendText(text);
    for (const { event } of await peer.arrivingNow()) assert.match(event, /^pusher(:error|_internal:subscription_succeeded|:subscription_error)$/);
  }
});

describe('where messages may have 4 MB', () => {
  test('a channel name of 1 MB is refused, quoted in part, and the connection lives', async () => {
    const peer = await Peer.connect(roomy);
    const channel = 'x'.repeat(MEGABYTE);
    peer.send({ event: 'pusher:subscribe', data: { channel } });
    const { data } = await peer.frame();
    assert.ok(data.message.startsWith(`Invalid channel name ${'x'.repeat(200)}`));
    assert.ok(data.message.length < 400);
    assert.ok(JSON.stringify(await peer.frame()).length < 2_000, 'the whole name came back');
    await peer.isAlive();
  });

  test('a hundred thousand brackets are refused, and the connection lives', async () => {
    const peer = await Peer.connect(roomy);
    for (const text of ['['.repeat(100_000), `${'['.repeat(100_000)}${']'.repeat(100_000)}`, '{"event":'.repeat(100_000)]) {
      peer.socket.sendText(text);
      await peer.receivesError('Received invalid JSON');
    }
    await peer.isAlive();
  });

  test('other names of 1 MB are refused, not echoed, and the connection lives', async () => {
    const peer = await Peer.connect(roomy);
    const long = 'x'.repeat(MEGABYTE);
    for (const message of [
      { event: long },
      { event: `client-${long}`, channel: 'private-x', data: {} },
      { event: 'client-e', channel: `private-${long}`, data: {} },
      { event: 'pusher:unsubscribe', data: { channel: long } },
      { event: 'pusher:subscribe', data: { channel: 'private-x', auth: long } },
      { event: 'pusher:subscribe', data: { channel: 'private-x', auth: `${APP.key}:${long}` } },
      { event: 'pusher:signin', data: { auth: `${APP.key}:${long}`, user_data: '{"id":"1"}' } },
    ]) {
      peer.send(message);
      const frames = await peer.arrivingNow();
      assert.equal(frames[0].event, 'pusher:error');
      assert.ok(JSON.stringify(frames).length < 10_000, `${JSON.stringify(message).slice(0, 60)} was echoed`);
    }
  });
});

// Chance, with a seed

/** Numbers below `n`, the same in every run. */
function chance(seed) {
  let state = seed;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

/** `bytes` with a few of them changed, doubled, cut out or cut off. */
function mutilate(bytes, below) {
  let result = Buffer.from(bytes);
  for (let times = 1 + below(4); times > 0 && result.length > 0; times -= 1) {
    const at = below(result.length);
    const until = at + below(Math.min(20, result.length - at + 1));
    switch (below(5)) {
      case 0: result[at] = below(256); break;
      case 1: result = Buffer.concat([result.subarray(0, until), result.subarray(at)]); break;
      case 2: result = Buffer.concat([result.subarray(0, at), result.subarray(until)]); break;
      case 3: result = result.subarray(0, at); break;
      default: result[at] = Buffer.from('"{}[]:,\\0-e.')[below(13)];
    }
  }
  return result;
}

const MESSAGES = [
  '{"event":"pusher:subscribe","data":{"channel":"private-x","auth":"a:b","channel_data":"{\\"user_id\\":\\"1\\"}"}}',
  '{"event":"pusher:subscribe","data":"{\\"channel\\":\\"cache-x\\"}"}',
  '{"event":"pusher:unsubscribe","data":{"channel":"cache-x"}}',
  '{"event":"pusher:signin","data":{"auth":"a:b","user_data":"{\\"id\\":\\"1\\",\\"watchlist\\":[\\"2\\"]}"}}',
  '{"event":"client-e","channel":"private-x","data":{"n":[1,2.5e3,null,true,"\\u00eb"]}}',
  '{"event":"pusher:ping","data":{}}',
];

test('three thousand mutilated messages', async () => {
  const below = chance(1);
  let peer = await Peer.connect(raptor);
  for (let i = 0; i < 3_000; i += 1) {
    const payload = mutilate(MESSAGES[below(MESSAGES.length)], below);
    const isText = isUtf8(payload);
    peer.socket.sendFrame({ opcode: TEXT, payload });
    if (isText) {
      if (i % 50 === 0) await peer.arrivingNow();
      continue;
    }
    await peer.arrivingNow().catch(() => {});
    peer.socket.vanish();
    peer = await Peer.connect(raptor);
  }
  await peer.arrivingNow();
});

test('five hundred mutilated frames', async () => {
  const below = chance(2);
  for (let i = 0; i < 500; i += 1) {
    const peer = await Peer.connect(raptor);
    peer.socket.sendBytes(mutilate(Buffer.concat([frame({ opcode: TEXT, payload: MESSAGES[0] }), frame({ opcode: PING, payload: 'x' }), frame({ opcode: TEXT, payload: MESSAGES[5] })]), below));
    peer.socket.shutdown();
    while ((await peer.socket.next()).type !== 'end');
  }
});

test('five hundred mutilated requests', async () => {
  const below = chance(3);
  const body = '{"name":"e","channels":["c"],"data":"x"}';
  const requests = [HANDSHAKE, `POST /apps/${APP.id}/events?auth_key=${APP.key}&auth_version=1.0&auth_timestamp=1&body_md5=x&auth_signature=y HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`];
  await Promise.all(Array.from({ length: 10 }, async () => {
    for (let i = 0; i < 50; i += 1) {
      await new Promise((resolve) => {
        const socket = connect(raptor.port, '127.0.0.1', () => socket.end(mutilate(requests[i % 2], below)));
        socket.on('error', () => {}).on('close', resolve).resume();
      });
    }
  }));
});

// Sockets

test('a peer that vanishes in the middle of a frame is gone', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('halved');
  peer.socket.sendBytes(frame({ opcode: TEXT, payload: '{"event":"pusher:ping"}' }).subarray(0, 10));
  await sleep(20);
  peer.socket.vanish();
  await isVacant('halved');
});

test('a peer that shuts its sending side is gone', async () => {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('shut');
  peer.socket.shutdown();
  await isVacant('shut');
});

test('a thousand connections that vanish at once leave nothing behind', async () => {
  const peers = [];
  for (let i = 0; i < 10; i += 1) peers.push(...(await Promise.all(Array.from({ length: 100 }, () => Peer.connect(raptor)))));
  await Promise.all(peers.map((peer) => peer.subscribe('thousand')));
  for (const peer of peers) peer.socket.vanish();
  await isVacant('thousand');
});

test('connections that vanish right after their handshake, or within it, leave nothing behind', async () => {
  for (let i = 0; i < 50; i += 1) {
    const bytes = handshake({ port: raptor.port, path: `/app/${APP.key}?protocol=7` });
    const socket = connect(raptor.port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write(bytes.slice(0, 1 + ((i * 7) % bytes.length)));
    await sleep(2);
    socket.resetAndDestroy();
  }
});

const HANDSHAKE = handshake({ port: raptor.port, path: `/app/${APP.key}?protocol=7` });

/** The server answers with an HTTP error or simply closes, within its handshake timeout. */
for (const [words, bytes] of Object.entries({
  'random bytes': Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 7919) % 256)),
  'zeros': Buffer.alloc(1000),
  'a TLS greeting': Buffer.from('16030100c8010000c40303', 'hex'),
  'text that is no request': 'hello\r\n\r\n',
  'a request of another protocol': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  'a header without a colon': HANDSHAKE.replace('Upgrade: websocket', 'Upgrade websocket'),
  'a header of 1 MB': HANDSHAKE.replace('Host:', `X: ${'x'.repeat(MEGABYTE)}\r\nHost:`),
  'ten thousand headers': HANDSHAKE.replace('Host:', `${'X: y\r\n'.repeat(10_000)}Host:`),
  'a path of 1 MB': HANDSHAKE.replace('/app/', `/app/${'x'.repeat(MEGABYTE)}`),
  'a truncated request': HANDSHAKE.slice(0, 60),
  'a request without its last line end': HANDSHAKE.slice(0, -2),
  'nothing at all': '',
})) {
  test(`${words} instead of a handshake ends that connection only`, async () => {
    const answer = await converse(raptor, bytes, { encoding: 'latin1' });
    assert.match(answer, /^(HTTP\/1\.[01] [45]\d\d |$)/);
  });
}

test('a handshake that trickles in too slowly is cut off', async () => {
  const socket = connect(raptor.port, '127.0.0.1');
  socket.on('error', () => {});
  const closed = new Promise((resolve) => socket.on('close', resolve));
  socket.resume();
  const begin = Date.now();
  for (const byte of HANDSHAKE) {
    if (socket.destroyed) break;
    socket.write(byte);
    await sleep(50);
  }
  await closed;
  assert.ok(Date.now() - begin < SOON_MS, 'the peer kept its connection by sending a byte now and then');
});

for (const [words, headers] of [
  ['no Sec-WebSocket-Key', { 'Sec-WebSocket-Key': undefined }],
  ['WebSocket version 8', { 'Sec-WebSocket-Version': '8' }],
  ['no WebSocket version', { 'Sec-WebSocket-Version': undefined }],
  ['no Connection: Upgrade', { Connection: 'keep-alive' }],
]) {
  test(`a handshake with ${words} gets an HTTP error`, async () => {
    await assert.rejects(WebSocket.open({ port: raptor.port, path: `/app/${APP.key}?protocol=7`, headers }), (error) => error instanceof Refused && error.status >= 400 && error.status < 500);
  });
}

for (const path of ['/app/%', '/app/%00', '/app/%ff%fe', '/app/%2e%2e%2f', `/app/${APP.key}%00`, '/app/../../etc/passwd', `/app/${'%F0%9F%A6%96'.repeat(100)}`]) {
  test(`the path ${path.slice(0, 40)} is refused in words`, async () => {
    try {
      const peer = await Peer.open(raptor, { path: `${path}?protocol=7` });
      const { data } = await peer.frame();
      await peer.isClosedSilently(data.code);
    } catch (error) {
      assert.ok(error instanceof Refused && error.status === 400, String(error));
    }
  });
}

async function isVacant(channel) {
  const end = Date.now() + SOON_MS;
  while ((await api.get(`/channels/${channel}`)).json().occupied) {
    assert.ok(Date.now() < end, `${channel} is still occupied`);
    await sleep(10);
  }
}
