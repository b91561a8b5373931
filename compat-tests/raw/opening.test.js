// From the first byte to `pusher:connection_established`, or to the refusal (`pusher.md` 1.1, 1.2, 1.7).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { until } from '../support/events.js';
import { APP, Peer, appNamed } from './peer.js';
import { TEXT, frame } from './websocket.js';

const dashed = appNamed('dashed', { key: 'a-b_c-D_9' });
const disabled = appNamed('disabled', { enabled: false });
const tlsOnly = appNamed('tls-only', { force_tls: true });
const full = appNamed('full', { limits: { connections_max: 1 } });
const five = appNamed('five', { limits: { connections_max: 5 } });
const picky = appNamed('picky', { allowed_origins: ['https://a.example', 'https://*.b.example'] });
const patient = appNamed('patient', { authorized_connections: true, limits: { connections_max: 1 } });

const apps = [APP, dashed, disabled, tlsOnly, full, five, picky, patient];
const raptor = await startRaptor({ config: { apps } });
const prefixed = await startRaptor({ config: { apps, path_prefix: '/realtime', assume_protocol: 7, activity_timeout_secs: 33 } });

const NOT_FOUND = /^(Application does not exist|App key .* not in this cluster\. Did you forget to specify the cluster\?|Could not find app by key .*)$/;

async function isEstablished(options, server = raptor) {
  const peer = await Peer.connect(server, options);
  await peer.isAlive();
  return peer;
}

/** The upgrade is completed; then come the error frame and the close frame, with the same code and text. */
async function isRefused(options, code, message, server = raptor) {
  const peer = await Peer.open(server, options);
  const frame = await peer.frame();
  assert.deepEqual(Object.keys(frame).sort(), ['data', 'event'], JSON.stringify(frame));
  assert.equal(frame.event, 'pusher:error');
  assert.deepEqual(Object.keys(frame.data).sort(), ['code', 'message']);
  assert.equal(frame.data.code, code, frame.data.message);
  if (message instanceof RegExp) assert.match(frame.data.message, message);
  else assert.equal(frame.data.message, message);
  await peer.isClosedSilently(code, frame.data.message);
}

test('the first frame names the socket and the activity timeout, and nothing else', async () => {
  const peer = await Peer.open(raptor);
  const frame = await peer.frame();
  const { socket_id: socketId } = JSON.parse(frame.data);
  assert.match(socketId, /^\d{1,10}\.\d{1,10}$/);
  assert.deepEqual(frame, { event: 'pusher:connection_established', data: frame.data });
  assert.deepEqual(JSON.parse(frame.data), { socket_id: socketId, activity_timeout: 120 });
});

test('the configured activity timeout is the one that is told', async () => {
  const peer = await Peer.open(prefixed);
  const frame = await peer.frame();
  assert.equal(JSON.parse(frame.data).activity_timeout, 33);
});

test('every connection has a socket id of its own', async () => {
  const peers = await Promise.all(Array.from({ length: 50 }, () => Peer.connect(raptor)));
  assert.equal(new Set(peers.map((peer) => peer.socketId)).size, 50);
});

test('the upgrade names neither a sub-protocol nor a cookie', async () => {
  const peer = await Peer.open(raptor, { headers: { 'Sec-WebSocket-Protocol': 'chat, superchat' } });
  assert.equal(peer.socket.answer.headers['sec-websocket-protocol'], undefined);
  assert.equal(peer.socket.answer.headers['set-cookie'], undefined);
});

for (const protocol of [4, 5, 6, 7]) {
  test(`protocol ${protocol} is spoken`, () => isEstablished({ query: `protocol=${protocol}` }));
}

for (const protocol of ['1', '2', '3', '8', '0', '-7', '7.5', 'seven', '99999999999999999999']) {
  test(`protocol ${protocol} is refused with 4007`, () => isRefused({ query: `protocol=${protocol}` }, 4007, 'Unsupported protocol version'));
}

test('no protocol is refused with 4008', async () => {
  await isRefused({ query: 'client=js&version=8.6.0' }, 4008, 'No protocol version supplied');
  await isRefused({ path: `/app/${APP.key}` }, 4008, 'No protocol version supplied');
});

test('no protocol is the configured one where a setting says so', async () => {
  await isEstablished({ path: `/app/${APP.key}` }, prefixed);
  await isRefused({ query: 'protocol=3' }, 4007, 'Unsupported protocol version', prefixed);
});

for (const query of [
  'protocol=7&client=js&version=8.6.0&flash=false',
  'client=java-client&protocol=5&version=2.2.0%20rc1',
  'protocol=5&client=pusher-dotnet-client&version=',
  'version=0.0.0-dev&client=%F0%9F%A6%96&protocol=7',
  'protocol=7&x=%zz&=&&y',
  'flash&protocol=7',
]) {
  test(`the query ${query} is accepted`, () => isEstablished({ query }));
}

test('an app key may hold dashes and underscores', () => isEstablished({ app: dashed }));

test('one trailing slash after the key is ignored', () => isEstablished({ path: `/app/${APP.key}/?protocol=7` }));

test('a path prefix is accepted and not required', async () => {
  await isEstablished({ path: `/realtime/app/${APP.key}?protocol=7` }, prefixed);
  await isEstablished({ path: `/realtime/app/${APP.key}/?protocol=7` }, prefixed);
  await isEstablished({ path: `/app/${APP.key}?protocol=7` }, prefixed);
  await isRefused({ path: `/realtime/realtime/app/${APP.key}?protocol=7` }, 4005, 'Path not found', prefixed);
  await isRefused({ path: `/realtime/app/${APP.key}?protocol=7` }, 4005, 'Path not found');
});

for (const protocol of [5, 6, 7]) {
  test(`an unknown key is refused with 4001 over protocol ${protocol}`, () => isRefused({ path: `/app/nobody?protocol=${protocol}` }, 4001, NOT_FOUND));
}

test('a key is compared whole and with its case', async () => {
  for (const key of [APP.key.slice(1), `${APP.key}x`, dashed.key.toUpperCase(), dashed.id]) {
    await isRefused({ path: `/app/${key}?protocol=7` }, 4001, NOT_FOUND);
  }
});

test('a refusal that quotes a long key still fits a close frame', async () => {
  const peer = await Peer.open(raptor, { path: `/app/${'ä'.repeat(1000).replaceAll('ä', '%C3%A4')}?protocol=7` });
  const frame = await peer.frame();
  assert.equal(frame.data.code, 4001);
  const close = await peer.socket.next();
  assert.equal(close.code, 4001);
  assert.ok(Buffer.byteLength(close.reason) <= 123);
  assert.ok(frame.data.message.startsWith(close.reason.slice(0, 20)));
});

test('the handshake may be written as browsers and proxies write it', async () => {
  await isEstablished({ headers: { Connection: 'keep-alive, Upgrade', Upgrade: 'WebSocket' } });
  await isEstablished({ headers: { Connection: 'upgrade', Upgrade: 'WEBSOCKET', Cookie: 'a=b', Origin: 'null' } });
});

test('a client that does not wait for the upgrade is answered in order', async () => {
  const messages = ['{"event":"pusher:subscribe","data":{"channel":"early"}}', '{"event":"pusher:ping"}'];
  const peer = await Peer.open(raptor, { early: Buffer.concat(messages.map((payload) => frame({ opcode: TEXT, payload }))) });
  assert.equal((await peer.frame()).event, 'pusher:connection_established');
  await peer.receives({ event: 'pusher_internal:subscription_succeeded', channel: 'early', data: '{}' }, { event: 'pusher:pong', data: '{}' });
});

test('a disabled app is refused with 4003', () => isRefused({ app: disabled }, 4003, 'Application disabled'));

test('a TLS-only app is refused with 4000 on a plain socket', () =>
  isRefused({ app: tlsOnly }, 4000, 'Application only accepts SSL connections, reconnect using wss://'));

for (const path of ['/', '/nope', '/app', '/app/', '/app//', `/app/${APP.key}/more`, `/apps/${APP.key}`, `//app/${APP.key}`, `/App/${APP.key}`, `/apps/${APP.id}/channels`, `/apps/${APP.id}/events`]) {
  test(`the path ${path} is refused with 4005`, () => isRefused({ path: `${path}?protocol=7` }, 4005, 'Path not found'));
}

test('a full app is refused with 4004 until somebody leaves', async () => {
  const first = await isEstablished({ app: full });
  await isRefused({ app: full }, 4004, 'Application is over connection quota');
  await isEstablished({ app: APP });
  await first.close();
  await until(async () => (await (await Peer.open(raptor, { app: full })).frame()).event === 'pusher:connection_established');
});

test('of many that come at once exactly as many get in as the quota allows', async () => {
  const frames = await Promise.all(Array.from({ length: 30 }, async () => (await Peer.open(raptor, { app: five })).frame()));
  assert.equal(frames.filter(({ event }) => event === 'pusher:connection_established').length, 5);
  assert.equal(frames.filter(({ data }) => data.code === 4004).length, 25);
});

test('connections that are not yet authorized do not count against the quota', async () => {
  const first = await isEstablished({ app: patient });
  const second = await isEstablished({ app: patient });
  await second.subscribe('private-room');
  await first.isAlive();
});

test('a listed origin, and any subdomain of a listed one, is let in', async () => {
  for (const Origin of ['https://a.example', 'https://x.b.example', 'https://x.y.b.example']) {
    await isEstablished({ app: picky, headers: { Origin } });
  }
});

test('any other origin is refused, after the upgrade', async () => {
  for (const Origin of ['https://c.example', 'http://a.example', 'https://a.example.evil.example', 'https://evilb.example', 'https://b.example', 'null']) {
    const peer = await Peer.open(raptor, { app: picky, headers: { Origin } });
    const frame = await peer.frame();
    assert.equal(frame.event, 'pusher:error', Origin);
    assert.ok(frame.data.code >= 4000 && frame.data.code < 4100, `${frame.data.code} would be retried`);
    await peer.isClosedSilently(frame.data.code, frame.data.message);
  }
});

test('an app without a list takes every origin', () => isEstablished({ headers: { Origin: 'https://anywhere.example' } }));

test('an HTTP request without an upgrade gets an HTTP answer', async () => {
  const answer = await fetch(`${raptor.url}/app/${APP.key}?protocol=7`);
  assert.ok(answer.status >= 400 && answer.status < 500, String(answer.status));
});

test('SIGTERM closes every connection with 4100, because the server itself comes back, and the server ends with 0', async () => {
  const server = await startRaptor({ config: { apps: [APP] } });
  const peers = await Promise.all([5, 6, 7].map((protocol) => Peer.connect(server, { query: `protocol=${protocol}` })));
  const ended = server.stop('SIGTERM');
  for (const peer of peers) await peer.isClosed(4100, 'Server is restarting');
  assert.deepEqual(await ended, { code: 0, signal: null });
});
