// A new configuration is taken by a running server, whole or not at all, and who did what is written down.

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { toToml } from '../support/toml.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed, auth } from '../raw/peer.js';

const ROTATIONS = 20;
const CONNECTIONS = 200;

const withKey = (key, app = APP) => Object.freeze({ ...app, key, secret: `${key}-secret` });

/** A server whose file can be rewritten: `write(config)`, `reload(line)` sends SIGHUP and waits for a log line. */
async function startReloadable(config) {
  const directory = mkdtempSync(join(tmpdir(), 'raptor-reload-'));
  atEnd(() => rmSync(directory, { recursive: true, force: true }));
  const file = join(directory, 'raptor.toml');
  const write = (keys) => writeFileSync(file, typeof keys === 'string' ? keys : toToml({ listen: '127.0.0.1:0', ...keys }));
  write(typeof config === 'function' ? config(directory) : config);
  const raptor = await startRaptor({ config: null, args: ['--config', file] });
  async function reload(line) {
    const seen = raptor.stderr().length;
    process.kill(raptor.pid, 'SIGHUP');
    await until(() => line.test(raptor.stderr().slice(seen)), () => `${line} in ${raptor.stderr().slice(seen)}`);
  }
  return { ...raptor, directory, write, reload };
}

const TAKEN = /the configuration is reloaded/;
const REFUSED = /the new configuration is refused, the old one stays/;

test('a key is rotated again and again under open connections and traffic, and nobody is disconnected', async () => {
  const app = (keys) => ({ ...APP, key: undefined, secret: undefined, keys: keys.map((key) => ({ key, secret: `${key}-secret` })) });
  const server = await startReloadable({ apps: [app(['k-0'])] });
  const peers = await Promise.all(Array.from({ length: CONNECTIONS }, () => Peer.connect(server, { app: withKey('k-0') })));
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
  await Peer.connect(server);
  assert.doesNotMatch(server.stderr(), /connected/);
  server.write({ apps: [APP], log: { level: 'debug' }, outbox_bytes_max: 2_000_000 });
  await server.reload(TAKEN);
  assert.match(server.stderr(), /the settings of the whole server changed too: that takes a restart/);
  await Peer.connect(server);
  await until(() => /DEBUG.*connected/.test(server.stderr()), 'debug lines');
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
  await server.stop();

  const lines = [moved, file].flatMap((name) => readFileSync(name, 'utf8').trimEnd().split('\n')).map((line) => JSON.parse(line));
  for (const line of lines) assert.match(line.timestamp, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  const { id: app, key } = APP;
  assert.deepEqual(lines.map(({ timestamp, ...line }) => line), [
    { action: 'start' },
    { action: 'connect', app, socket_id: peer.socketId, address: '127.0.0.1' },
    { action: 'publish', app, key, address: '127.0.0.1', event: 'greeting', channels: 'a b' },
    { action: 'sign_in', app, socket_id: peer.socketId, user: 'ada' },
    { action: 'refuse', app, socket_id: peer.socketId, key, why: 'signature' },
    { action: 'refuse', app, key, address: '127.0.0.1', why: 'signature' },
    { action: 'terminate', app, key, address: '127.0.0.1', user: 'ada' },
    { action: 'reload' },
    { action: 'stop' },
  ]);
  assert.doesNotMatch(readFileSync(moved, 'utf8'), /payload/);
});
