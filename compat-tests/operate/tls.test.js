// TLS beside plain connections, and a certificate that is changed while they are open.

import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, connect as connectPlain } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect } from 'node:tls';

import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { runRaptor, startRaptor } from '../support/raptor.js';
import { toToml } from '../support/toml.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed } from '../raw/peer.js';
import { makeCertificate } from './certificates.js';
import { sample, startObserved } from './metrics.js';

const directory = mkdtempSync(join(tmpdir(), 'raptor-tls-'));
atEnd(() => rmSync(directory, { recursive: true, force: true }));
const file = (name) => join(directory, name);
const SWAPS = 20;
const HALF_OPEN = 1_000;
const CLIENT_HELLO_BEGINS = Buffer.from([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
const CONNECTIONS = Number(process.env.RAPTOR_CONNECTIONS ?? 50);

function use(name) {
  copyFileSync(file(`${name}.pem`), file('chain.pem'));
  copyFileSync(file(`${name}.key`), file('key.pem'));
}

const certificates = ['a', 'b'].map((name) => makeCertificate(directory, name));
use('a');
const large = appNamed('large', { limits: { event_data_bytes_max: 300_000 } });
const secure = appNamed('secure', { force_tls: true });
const tls = { listen: '127.0.0.1:0', certificate: file('chain.pem'), key: file('key.pem') };
const configFile = file('raptor.toml');
writeFileSync(configFile, toToml({ listen: '127.0.0.1:0', apps: [APP, large, secure], tls, log: { audit: file('audit.jsonl') } }));
const raptor = await startRaptor({ config: null, args: ['--config', configFile] });
await until(() => /TLS is on https:\/\/[\d.]+:(\d+)/.test(raptor.stdout()), 'the address for TLS');
const tlsPort = Number(/TLS is on https:\/\/[\d.]+:(\d+)/.exec(raptor.stdout())[1]);

/** The certificate that a new connection is greeted with: its common name. */
function greeting(options = {}) {
  return new Promise((resolve, reject) => {
    const socket = connect({ port: tlsPort, host: '127.0.0.1', servername: 'localhost', ca: certificates, ...options }, () => {
      resolve({ name: socket.getPeerCertificate().subject.CN, protocol: socket.getProtocol() });
      socket.end();
    });
    socket.on('error', reject);
  });
}

/** Where plain clients are carried to the TLS listener, each connection over one of its own. */
async function tunnel() {
  const server = createServer((plain) => {
    const encrypted = connect({ port: tlsPort, host: '127.0.0.1', servername: 'localhost', ca: certificates });
    plain.pipe(encrypted).pipe(plain);
    for (const socket of [plain, encrypted]) socket.on('error', () => { plain.destroy(); encrypted.destroy(); });
    encrypted.on('close', () => plain.end());
    plain.on('close', () => encrypted.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  atEnd(() => server.close());
  return { port: server.address().port };
}

const encrypted = await tunnel();

async function reload() {
  const lines = () => raptor.stderr().split('the configuration is reloaded').length;
  const before = lines();
  process.kill(raptor.pid, 'SIGHUP');
  await until(() => lines() > before, 'the reload');
}

test('clients and applications are served over TLS 1.2 and 1.3, beside plain ones', async () => {
  assert.deepEqual(await greeting(), { name: 'a', protocol: 'TLSv1.3' });
  assert.deepEqual(await greeting({ maxVersion: 'TLSv1.2' }), { name: 'a', protocol: 'TLSv1.2' });
  await assert.rejects(greeting({ minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }));
  const [over, plain] = [await Peer.connect(encrypted), await Peer.connect(raptor)];
  for (const peer of [over, plain]) await peer.subscribe('room');
  await new Api(encrypted, APP).trigger('room', 'e', 'x');
  for (const peer of [over, plain]) await peer.receives({ event: 'e', channel: 'room', data: 'x' });
});

test('what comes over TLS is secure', async () => {
  await Peer.connect(encrypted, { app: secure });
  await (await Peer.open(raptor, { app: secure })).isClosed(4000, 'Application only accepts SSL connections, reconnect using wss://');
});

test('large events, more than the peer takes at once, arrive whole and in order', async () => {
  const peer = await Peer.connect(encrypted, { app: large });
  await peer.subscribe('flood');
  const api = new Api(raptor, large);
  for (let n = 0; n < 60; n += 3) {
    peer.socket.stopReading();
    for (let i = 0; i < 3; i += 1) await api.trigger('flood', `n-${n + i}`, `${n + i}`.padEnd(250_000, 'x'));
    peer.socket.goOnReading();
    for (let i = 0; i < 3; i += 1) {
      const frame = await peer.frame();
      assert.equal(frame.event, `n-${n + i}`);
      assert.equal(frame.data, `${n + i}`.padEnd(250_000, 'x'));
    }
  }
});

test('a certificate is swapped again and again under open connections and traffic: new ones see the new one, nobody is disconnected', async () => {
  const peers = [];
  while (peers.length < CONNECTIONS) peers.push(...(await Promise.all(Array.from({ length: 50 }, () => Peer.connect(encrypted)))));
  for (const peer of peers) await peer.subscribe('news');
  for (let n = 1; n <= SWAPS; n += 1) {
    const name = 'ab'[n % 2];
    use(name);
    await reload();
    assert.equal((await greeting()).name, name);
    await new Api(encrypted, APP).trigger('news', `${n}`, 'x');
    for (const peer of peers) assert.equal((await peer.frame()).event, `${n}`);
  }
  for (const peer of peers) await peer.isAlive();
});

test('a certificate whose files are changed is there within a second, without a signal', async () => {
  const peer = await Peer.connect(encrypted);
  for (let n = 0; n < 3; n += 1) {
    const name = (await greeting()).name === 'a' ? 'b' : 'a';
    const begin = Date.now();
    use(name);
    await until(async () => (await greeting()).name === name, 'the new certificate');
    const took = Date.now() - begin;
    assert.ok(took < 1_500, `it took ${took} ms`);
  }
  await peer.isAlive();
});

test('a certificate that cannot be used changes nothing', async () => {
  const { name } = await greeting();
  writeFileSync(file('key.pem'), 'no key');
  process.kill(raptor.pid, 'SIGHUP');
  await until(() => /the new configuration is refused, the old one stays: .*key\.pem holds no private key/.test(raptor.stderr()), 'the refusal');
  await until(() => /the new certificate is refused, the old one stays: .*key\.pem holds no private key/.test(raptor.stderr()), 'that the change was noticed');
  assert.equal((await greeting()).name, name);
  const { code, stderr } = await runRaptor([], { config: { listen: '127.0.0.1:0', apps: [APP], tls } });
  assert.equal(code, 1);
  assert.match(stderr, /raptor\.toml:\d+: .*key\.pem holds no private key\n {4}a key begins with/);
});

test('the audit log tells of new certificates, and of those that were refused', async () => {
  const actions = () => readFileSync(file('audit.jsonl'), 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line).action);
  for (const action of ['certificate', 'certificate_refused']) assert.ok(actions().includes(action), `${action} in ${new Set(actions()).size} kinds`);
});

test('a handshake that begins and does not go on is cut off in time and counted, a thousand of them at once too', async () => {
  const server = await startObserved({ config: { apps: [APP], handshake_timeout_secs: 2, tls: { ...tls, certificate: file('b.pem'), key: file('b.key') } } });
  const [, port] = await until(async () => /TLS is on https:\/\/[\d.]+:(\d+)/.exec(server.stdout()), 'the address for TLS');
  const begin = Date.now();
  const closed = Array.from({ length: HALF_OPEN }, () => new Promise((resolve) => {
    const socket = connectPlain(port, '127.0.0.1');
    atEnd(() => socket.destroy());
    socket.on('error', () => {}).on('close', resolve).resume();
    socket.write(CLIENT_HELLO_BEGINS);
  }));
  const peer = await Peer.connect(server);
  await Promise.all(closed);
  assert.ok(Date.now() - begin >= 1_900, 'each had its time');
  assert.equal(await sample(server, 'raptor_cut_offs_total{cause="head_timeout"}'), HALF_OPEN);
  await peer.isAlive();
});

test('bytes that are no TLS end their connection and nothing else', async () => {
  const socket = connectPlain(tlsPort, '127.0.0.1');
  const closed = new Promise((resolve) => socket.on('close', resolve));
  socket.on('error', () => {});
  socket.resume();
  socket.write('GET / HTTP/1.1\r\n\r\n');
  await closed;
  await greeting();
});
