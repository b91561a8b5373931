// A new configuration is taken by a running server, whole or not at all, and who did what is written down.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { REFUSED, TAKEN, startReloadable } from '../support/reloadable.js';
import { toToml } from '../support/toml.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed, auth } from '../raw/peer.js';
import { WebSocket } from '../raw/websocket.js';

const ROTATIONS = 20;
const CONNECTIONS = Number(process.env.RAPTOR_CONNECTIONS ?? 200);

const withKey = (key, app = APP) => Object.freeze({ ...app, key, secret: `${key}-secret` });

test('a key is rotated again and again under open connections and traffic, and nobody is disconnected', async () => {
  const app = (keys) => ({ ...APP, key: undefined, secret: undefined, keys: keys.map((key) => ({ key, secret: `${key}-secret` })) });
  const server = await startReloadable({ apps: [app(['k-0'])] });
  const peers = [];
  while (peers.length < CONNECTIONS) peers.push(...(await Promise.all(Array.from({ length: 50 }, () => Peer.connect(server, { app: withKey('k-0') })))));
  for (const peer of peers) await peer.subscribe('news');
  for (let n = 1; n <= ROTATIONS; n += 1) {
    const [before, now] = [withKey(`k-${n - 1}`), withKey(`k-${n}`)];
    server.write({ apps: [app([before.key, now.key])] });
    await server.reload(TAKEN);
    for (const key of [before, now]) {
      await new Api(server, key).trigger('news', `${n}`, key.key);
      await (await Peer.connect(server, { app: key })).close();
    }
    // The application signs with the new key for a connection that came with the first one.
    peers[n].askToSubscribe(`private-${n}`, { auth: auth(now, peers[n].socketId, `private-${n}`) });
    for (const peer of peers) for (const key of [before, now]) assert.deepEqual(await peer.frame(), { event: `${n}`, channel: 'news', data: key.key });
    assert.equal((await peers[n].frame()).event, 'pusher_internal:subscription_succeeded');
  }
  server.write({ apps: [app([`k-${ROTATIONS}`])] });
  await server.reload(TAKEN);
  await (await Peer.open(server, { app: withKey('k-0') })).isClosed(4001, 'Application does not exist');
  for (const peer of peers) await peer.isAlive();
});

test('apps come and go; limits and switches count for open connections too', async () => {
  const other = appNamed('other');
  const server = await startReloadable({ apps: [APP, other] });
  const [peer, leaving] = [await Peer.connect(server), await Peer.connect(server, { app: other })];
  await peer.subscribe('private-room');
  server.write({ apps: [{ ...APP, limits: { client_events_per_sec_max: 1 } }, other] });
  await server.reload(TAKEN);
  for (const data of ['1', '2']) peer.send({ event: 'client-x', channel: 'private-room', data });
  const refused = await peer.frame();
  assert.deepEqual([refused.event, refused.data.code], ['pusher:error', 4301], JSON.stringify(refused));
  server.write({ apps: [{ ...APP, client_events: false }, appNamed('new')] });
  await server.reload(TAKEN);
  peer.send({ event: 'client-x', channel: 'private-room', data: '1' });
  await peer.receivesError(/you must enable this feature/);
  await Peer.connect(server, { app: appNamed('new') });
  leaving.send({ event: 'pusher:ping', data: {} });
  await leaving.isClosed(4001, 'Application does not exist');
});

test('an invalid configuration is refused whole, and the old one stays', async () => {
  const server = await startReloadable({ apps: [APP] });
  const peer = await Peer.connect(server);
  for (const broken of ['apps = [', toToml({ listen: '127.0.0.1:0', apps: [appNamed('new'), { ...APP, key: undefined }] }), toToml({ listn: 'x', apps: [appNamed('new')] })]) {
    server.write(broken);
    await server.reload(REFUSED);
    assert.match(server.stderr(), /raptor\.toml:\d+: /);
    await (await Peer.open(server, { app: appNamed('new') })).isClosed(4001, 'Application does not exist');
    await new Api(server, APP).trigger('c', 'e', 'x');
    await peer.isAlive();
  }
});

test('the level of the log changes, and what needs a restart is named', async () => {
  const server = await startReloadable({ apps: [APP], log: { level: 'info' } });
  const peer = await Peer.connect(server);
  await peer.subscribe('private-room');
  const say = () => peer.send({ event: 'client-x', channel: 'private-room', data: 'x' });
  say();
  await peer.isAlive();
  assert.doesNotMatch(server.stderr(), /connected|client_event/);
  const restart = { listen: '127.0.0.2:0', webhooks: { fsync: true }, redis: { url: 'redis://127.0.0.1:1' } };
  server.write({ apps: [APP], log: { level: 'debug', format: 'json' }, ...restart });
  await server.reload(TAKEN);
  for (const what of ['where and how the server listens', 'the format of the log or where the audit log goes', '[webhooks]', '[redis]']) {
    assert.ok(server.stderr().includes(`${what} changed too: that takes a restart`), `${what} in ${server.stderr()}`);
  }
  await Peer.connect(server);
  await until(() => /DEBUG.*connected/.test(server.stderr()), 'debug lines');
  say();
  await until(() => /DEBUG raptor::facts: client_event/.test(server.stderr()), () => `facts in ${server.stderr()}`);
});

test('limits of the whole server count from the next message, request or connection on', async () => {
  const server = await startReloadable({ apps: [APP] });
  const api = new Api(server, APP);
  const [peer, sender] = [await Peer.connect(server), await Peer.connect(server)];
  await peer.subscribe('room');
  await api.trigger('room', 'e', 'x'.repeat(2_000));
  await peer.frame();
  server.write({ apps: [APP], request_body_bytes_max: 1_500, inbound_message_bytes_max: 2_000, activity_timeout_secs: 77, connections_per_address_max: 2, path_prefix: '/moved' });
  await server.reload(TAKEN);
  assert.doesNotMatch(server.stderr(), /takes a restart/);
  const refused = await api.post('/events', { name: 'e', channels: ['room'], data: 'x'.repeat(2_000) });
  assert.deepEqual([refused.status, refused.reusedSocket], [413, true], 'on a connection that is kept alive');
  sender.send({ event: 'pusher:subscribe', data: { channel: 'room', padding: 'x'.repeat(10_000) } });
  assert.equal((await sender.frame()).event, 'pusher_internal:subscription_succeeded', 'a socket keeps its sizes');
  const from = { headers: { 'X-Forwarded-For': '203.0.113.1' } };
  const late = await Peer.open(server, { path: `/moved/app/${APP.key}?protocol=7`, ...from });
  assert.equal(JSON.parse((await late.frame()).data).activity_timeout, 77);
  late.send({ event: 'pusher:ping', data: 'x'.repeat(3_000) });
  await late.isClosedSilently(1009);
  const two = [await Peer.connect(server, from), await Peer.connect(server, from)];
  await (await Peer.open(server, from)).isClosed(4100, 'Too many connections from this address');
  // Those who were there before there was a limit count too.
  await (await Peer.open(server)).isClosed(4100, 'Too many connections from this address');
  for (const left of [peer, ...two]) await left.isAlive();
});

test('what an app says about Bayeux is taken over, and its sessions stay', async () => {
  const bayeux = (settings) => ({ ...APP, bayeux: { mounts: ['/faye'], client_publish: 'token', publish_tokens: [{ key: 'token', token: 'old' }], ...settings } });
  const server = await startReloadable({ apps: [bayeux()] });
  const socket = await WebSocket.open({ port: server.port, path: '/faye' });
  async function ask(message) {
    socket.sendText(JSON.stringify(message));
    for (;;) {
      const messages = JSON.parse((await socket.next()).text);
      const answer = messages.find(({ channel, successful }) => channel === message.channel && successful !== undefined);
      if (answer) return answer;
    }
  }
  const { clientId } = await ask({ channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['websocket'] });
  const publish = async (token) => (await ask({ channel: '/room', clientId, data: 'x', ext: { token } })).successful;
  assert.equal((await ask({ channel: '/meta/subscribe', clientId, subscription: '/other' })).successful, true);
  assert.deepEqual([await publish('old'), await publish('new')], [true, false]);
  server.write({ apps: [bayeux({ mounts: ['/moved'], publish_tokens: [{ key: 'token', token: 'new' }] }), appNamed('added', { bayeux: { mounts: ['/added'] } })] });
  await server.reload(TAKEN);
  assert.doesNotMatch(server.stderr(), /takes a restart/);
  assert.deepEqual([await publish('old'), await publish('new')], [false, true], 'on a socket that is open');
  const post = (path, message) => fetch(`${server.url}${path}`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify([message]) });
  const shaken = { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] };
  assert.equal((await post('/faye', shaken)).status, 404);
  for (const path of ['/moved', '/added']) assert.equal((await (await post(path, shaken)).json())[0].successful, true, path);
  assert.equal((await (await post('/moved', { channel: '/meta/subscribe', clientId, subscription: '/room' })).json())[0].successful, true, 'the session is there');
  server.write({ apps: [appNamed('added', { bayeux: { mounts: ['/added'] } })] });
  await server.reload(TAKEN);
  assert.equal((await post('/moved', shaken)).status, 404);
  assert.deepEqual([await publish('old'), await publish('new')], [false, false], 'an app that has gone serves nobody');
});

test('the audit log tells who did what, and never what they said', async () => {
  const server = await startReloadable((directory) => ({ apps: [APP], log: { audit: join(directory, 'audit.jsonl') } }));
  const file = join(server.directory, 'audit.jsonl');
  const api = new Api(server, APP);
  const peer = await Peer.connect(server);
  await api.trigger(['a', 'b'], 'greeting', 'a very secret payload');
  await peer.signIn({ id: 'ada', secret_hint: 'payload too' });
  peer.askToSubscribe('private-x', { auth: `${APP.key}:${'0'.repeat(64)}` });
  await peer.frame();
  await peer.frame();
  assert.equal((await api.get('/channels', {}, { signature: '0'.repeat(64) })).status, 401);
  await api.post('/users/ada/terminate_connections', '{}');
  const moved = `${file}.1`;
  renameSync(file, moved);
  await server.reload(TAKEN);
  server.write('apps = [');
  await server.reload(REFUSED);
  await server.stop();

  const lines = [moved, file].flatMap((name) => readFileSync(name, 'utf8').trimEnd().split('\n')).map((line) => JSON.parse(line));
  for (const line of lines) assert.match(line.timestamp, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  const { id: app, key } = APP;
  assert.deepEqual(lines.map(({ timestamp, ...line }) => line), [
    { action: 'start' },
    { action: 'connect', app, socket_id: peer.socketId, address: '127.0.0.1' },
    { action: 'publish', app, key, address: '127.0.0.1', event: 'greeting', channels: 'a b' },
    { action: 'sign_in', app, socket_id: peer.socketId, user: 'ada' },
    { action: 'refuse', app, key, socket_id: peer.socketId, channels: 'private-x', why: 'signature' },
    { action: 'refuse', app, key, address: '127.0.0.1', why: 'signature' },
    { action: 'terminate', app, key, address: '127.0.0.1', user: 'ada' },
    { action: 'reload' },
    { action: 'reload_refused' },
    { action: 'stop' },
  ]);
  assert.doesNotMatch(readFileSync(moved, 'utf8'), /payload/);
});

test('an audit log on standard output is alone there', async () => {
  const server = await startRaptor({ config: { apps: [APP], log: { audit: 'stdout' } } });
  await (await Peer.connect(server)).close();
  await server.stop();
  const actions = server.stdout().trimEnd().split('\n').map((line) => JSON.parse(line).action);
  assert.deepEqual(actions, ['start', 'connect', 'stop']);
});

test('a reload that cannot open the audit log anew is refused whole', async () => {
  const server = await startReloadable((directory) => {
    mkdirSync(join(directory, 'audit'));
    return { apps: [APP], log: { audit: join(directory, 'audit', 'log.jsonl') } };
  });
  renameSync(join(server.directory, 'audit'), join(server.directory, 'moved'));
  server.write({ apps: [appNamed('other')], log: { audit: join(server.directory, 'audit', 'log.jsonl') } });
  await server.reload(REFUSED);
  assert.match(server.stderr(), /cannot write the audit log/);
  await (await Peer.connect(server)).close();
});

test('Bayeux clients and client events are in the audit log too', async () => {
  const bayeux = { mounts: ['/faye'], client_publish: 'token', publish_tokens: [{ key: 'token', token: 'hush' }], handshake_tokens: [{ key: 'door', token: 'open' }] };
  const server = await startReloadable((directory) => ({ apps: [{ ...APP, bayeux }], log: { audit: join(directory, 'audit.jsonl') } }));
  async function ask(message) {
    const response = await fetch(`${server.url}/faye`, { method: 'POST', headers: { 'Content-Type': 'application/json', 'X-Forwarded-For': '203.0.113.9' }, body: JSON.stringify([message]) });
    return (await response.json()).find(({ channel, successful }) => channel === message.channel && successful !== undefined);
  }
  const handshake = { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] };
  assert.equal((await ask(handshake)).successful, false);
  const { clientId, ext: { socket_id } } = await ask({ ...handshake, ext: { door: 'open' } });
  assert.equal((await ask({ channel: '/news', clientId, data: 'a very secret payload' })).successful, false);
  assert.equal((await ask({ channel: '/news', clientId, data: 'a very secret payload', ext: { token: 'hush', event: 'greeting' } })).successful, true);
  assert.equal((await ask({ channel: '/news', data: 'a very secret payload', ext: { token: 'hush' } })).successful, true);
  assert.equal((await ask({ channel: '/meta/subscribe', clientId, subscription: '/private/x', ext: { auth: `${APP.key}:00` } })).successful, false);
  const user_data = JSON.stringify({ id: 'ada', hint: 'payload too' });
  assert.equal((await ask({ channel: '/service/user', clientId, data: { auth: auth(APP, `${socket_id}::user::${user_data}`), user_data } })).successful, true);
  const peer = await Peer.connect(server);
  await peer.subscribe('private-room');
  peer.send({ event: 'client-typing', channel: 'private-room', data: 'payload' });
  await peer.isAlive();
  await server.stop();

  const text = readFileSync(join(server.directory, 'audit.jsonl'), 'utf8');
  assert.doesNotMatch(text, /payload|hush|open"/);
  const [app, address] = [APP.id, '203.0.113.9'];
  assert.deepEqual(text.trimEnd().split('\n').map((line) => JSON.parse(line)).map(({ timestamp, ...line }) => line), [
    { action: 'start' },
    { action: 'refuse', app, address, channels: '/meta/handshake', why: 'Handshake denied' },
    { action: 'connect', app, socket_id, address },
    { action: 'refuse', app, socket_id, address, channels: '/news', why: 'Password required' },
    { action: 'publish', app, socket_id, address, event: 'greeting', channels: 'news', by: 'application' },
    { action: 'publish', app, address, event: 'message', channels: 'news', by: 'application' },
    { action: 'refuse', app, socket_id, address, channels: '/private/x', why: 'Invalid signature' },
    { action: 'sign_in', app, socket_id, user: 'ada' },
    { action: 'connect', app, socket_id: peer.socketId, address: '127.0.0.1' },
    { action: 'publish', app, socket_id: peer.socketId, event: 'client-typing', channels: 'private-room', by: 'client' },
    { action: 'stop' },
  ]);
});
