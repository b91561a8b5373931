// Where clients come in besides a plain port: a Unix socket, behind a proxy that speaks the PROXY protocol, and with certificates of their own.

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';

import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { runRaptor } from '../support/raptor.js';
import { Api, send } from '../rest/api.js';
import { APP, Peer, appNamed } from '../raw/peer.js';
import { makeCertificate, signCertificate } from './certificates.js';
import { sample, startObserved } from './metrics.js';

const directory = mkdtempSync(join(tmpdir(), 'raptor-listeners-'));
atEnd(() => rmSync(directory, { recursive: true, force: true }));
const secure = appNamed('secure', { force_tls: true });
const TLS_REFUSAL = [4000, 'Application only accepts SSL connections, reconnect using wss://'];

/** A port whose connections are carried elsewhere, each over one of its own that `begins` with some bytes. */
async function tunnel(open, begin = Buffer.alloc(0)) {
  const server = createServer((near) => {
    const far = open();
    far.write(begin);
    near.pipe(far).pipe(near);
    for (const socket of [near, far]) socket.on('error', () => { near.destroy(); far.destroy(); });
    far.on('close', () => near.destroy());
    near.on('close', () => far.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  atEnd(() => server.close());
  return { port: server.address().port };
}

/** The header for a client of this IPv4 address, by the protocol's specification 2.2. */
function proxyHeader(address, { command = 1, tls = false } = {}) {
  const fields = tls ? [0x20, 0, 5, 1, 0, 0, 0, 0] : [];
  const rest = [...address.split('.').map(Number), 127, 0, 0, 1, 0x12, 0x34, 0, 80, ...fields];
  return Buffer.from([...Buffer.from('\r\n\r\n\0\r\nQUIT\n'), 0x20 | command, 0x11, 0, rest.length, ...rest]);
}

/** What comes back for some bytes, until the other side closes. */
function converse(open, bytes) {
  return new Promise((resolve) => {
    let text = '';
    const socket = open();
    socket.on('error', () => {});
    socket.on('data', (data) => (text += data));
    socket.on('close', () => resolve(text));
    socket.write(bytes);
  });
}

async function tlsPort(raptor) {
  const line = /TLS is on https:\/\/[\d.]+:(\d+)/;
  await until(() => line.test(raptor.stdout()), 'the address for TLS');
  return Number(line.exec(raptor.stdout())[1]);
}

test('a Unix socket serves everything that a port does, to whom its file allows', async () => {
  const path = join(directory, 'raptor.sock');
  const config = { apps: [APP], unix: { listen: path, mode: '640' }, connections_per_address_max: 1 };
  const raptor = await startObserved({ config });
  assert.equal((statSync(path).mode & 0o777).toString(8), '640');
  const through = await tunnel(() => connect(path));
  const [over, plain] = [await Peer.connect(through, { headers: { 'X-Forwarded-For': '203.0.113.1' } }), await Peer.connect(raptor)];
  for (const peer of [over, plain]) await peer.subscribe('room');
  await assert.rejects(new Api(through, APP).trigger('room', 'e', 'x'), /429/, 'without a proxy who comes by the socket is 127.0.0.1, as the other is');
  await (await Peer.open(through, { headers: { 'X-Forwarded-For': '203.0.113.1' } })).isClosed(4100, 'Too many connections from this address');
  const { code, stderr } = await runRaptor([], { config: { listen: '127.0.0.1:0', ...config } });
  assert.equal(code, 1, 'two servers cannot have one socket');
  assert.match(stderr, /cannot listen on .*raptor\.sock/);
  await raptor.stop();
  assert.ok(!existsSync(path), 'it is removed at the end');

  const killed = await startObserved({ config });
  await killed.stop('SIGKILL');
  assert.ok(existsSync(path));
  const next = await startObserved({ config: { ...config, connections_per_address_max: 0 } });
  const peer = await Peer.connect(through);
  await peer.subscribe('room');
  await new Api(next, APP).trigger('room', 'e', 'x'.repeat(10_000));
  await peer.receives({ event: 'e', channel: 'room', data: 'x'.repeat(10_000) });
});

test('a proxy says for whom it connects, and whether that was over TLS', async () => {
  const raptor = await startObserved({ config: { apps: [APP, secure], proxy_protocol: true, connections_per_address_max: 1, handshake_timeout_secs: 2 } });
  const open = () => connect(raptor.port, '127.0.0.1');
  const of = (address, options) => tunnel(open, proxyHeader(address, options));
  const [one, other] = [await of('203.0.113.1'), await of('203.0.113.2')];
  const peers = [await Peer.connect(one), await Peer.connect(other)];
  await (await Peer.open(one)).isClosed(4100, 'Too many connections from this address');
  for (const peer of peers) await peer.close();
  await Peer.connect(await of('203.0.113.3', { tls: true }), { app: secure });
  await (await Peer.open(await of('203.0.113.4'), { app: secure })).isClosed(...TLS_REFUSAL);
  // The client is no proxy, whatever it says.
  await (await Peer.open(await of('203.0.113.5'), { app: secure, headers: { 'X-Forwarded-Proto': 'https' } })).isClosed(...TLS_REFUSAL);
  const check = await converse(open, Buffer.concat([proxyHeader('0.0.0.0', { command: 0 }), Buffer.from('GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')]));
  assert.match(check, /^HTTP\/1\.1 200 OK/, 'the proxy may ask for itself');
});

test('who does not begin as a trusted proxy is not served', async () => {
  const raptor = await startObserved({ config: { apps: [APP], proxy_protocol: true, handshake_timeout_secs: 1 } });
  const open = () => connect(raptor.port, '127.0.0.1');
  const cutOffs = (cause) => sample(raptor, `raptor_cut_offs_total{cause="${cause}"}`);
  const long = proxyHeader('203.0.113.1');
  long.writeUInt16BE(60_000, 14);
  for (const bytes of ['GET /livez HTTP/1.1\r\nHost: x\r\n\r\n', 'PROXY TCP4 203.0.113.1 127.0.0.1 1 2\r\nGET /livez HTTP/1.1\r\n\r\n', long]) assert.equal(await converse(open, bytes), '');
  assert.equal(await cutOffs('proxy_header'), 3);
  assert.equal(await converse(open, proxyHeader('203.0.113.1').subarray(0, 20)), '', 'half a header is waited for no longer than a head');
  assert.equal(await cutOffs('head_timeout'), 1);

  const others = await startObserved({ config: { apps: [APP], proxy_protocol: true, trusted_proxies: ['10.0.0.0/8'] } });
  assert.equal(await converse(() => connect(others.port, '127.0.0.1'), Buffer.concat([proxyHeader('10.0.0.1'), Buffer.from('GET /livez HTTP/1.1\r\nHost: x\r\n\r\n')])), '');
  assert.equal(await sample(others, 'raptor_cut_offs_total{cause="proxy_header"}'), 1);
});

test('the header comes in front of TLS too', async () => {
  const ca = makeCertificate(directory, 'proxied');
  const tls = { listen: '127.0.0.1:0', certificate: join(directory, 'proxied.pem'), key: join(directory, 'proxied.key'), proxy_protocol: true };
  const raptor = await startObserved({ config: { apps: [APP], tls, connections_per_address_max: 1 } });
  const port = await tlsPort(raptor);
  async function greeting(address) {
    const socket = connect(port, '127.0.0.1');
    socket.write(proxyHeader(address));
    const encrypted = connectTls({ socket, servername: 'localhost', ca });
    return new Promise((resolve, reject) => {
      encrypted.on('error', reject);
      encrypted.on('data', (data) => resolve(`${data}`.split('\r\n')[0]));
      encrypted.write(`GET /app/${APP.key}?protocol=7 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`);
    });
  }
  assert.equal(await greeting('203.0.113.1'), 'HTTP/1.1 101 Switching Protocols');
  assert.equal(await greeting('203.0.113.2'), 'HTTP/1.1 101 Switching Protocols');
});

test('with an authority for its clients the HTTP API is open to their certificates alone, and sockets to everybody', async () => {
  const ca = makeCertificate(directory, 'server');
  makeCertificate(directory, 'authority');
  makeCertificate(directory, 'stranger');
  const shown = signCertificate(directory, 'application', 'authority');
  const strange = signCertificate(directory, 'impostor', 'stranger');
  const tls = { listen: '127.0.0.1:0', certificate: join(directory, 'server.pem'), key: join(directory, 'server.key'), api_client_ca: join(directory, 'authority.pem') };
  const raptor = await startObserved({ config: { apps: [APP], tls } });
  const port = await tlsPort(raptor);
  const through = (options) => tunnel(() => connectTls({ port, host: '127.0.0.1', servername: 'localhost', ca, ...options }));
  const [application, client] = [await through(shown), await through({})];

  const peers = [await Peer.connect(client), await Peer.connect(raptor), await Peer.connect(application)];
  for (const peer of peers) await peer.subscribe('room');
  await new Api(application, APP).trigger('room', 'e', 'x');
  for (const peer of peers) await peer.receives({ event: 'e', channel: 'room', data: 'x' });
  for (const other of [client, raptor]) {
    const refused = await new Api(other, APP).post('/events', { name: 'e', channels: ['room'], data: 'y' });
    assert.deepEqual([refused.status, refused.text], [403, 'Client certificate required\n']);
    assert.equal((await send(other, { method: 'GET', target: '/livez' })).status, 200);
  }
  assert.equal(await sample(raptor, 'raptor_refusals_total{limit="client_certificate"}'), 2);
  assert.equal((await new Api(application, APP).get('/channels', {}, { signature: '0'.repeat(64) })).status, 401, 'the signature counts as well');
  await assert.rejects(send(await through(strange), { method: 'GET', target: '/livez' }), 'a certificate of somebody else is none');
  await until(async () => (await sample(raptor, 'raptor_cut_offs_total{cause="tls_handshake"}')) === 1, 'it is counted');
  for (const peer of peers) await peer.isAlive();
});

test('files that cannot be used are named before the server starts, each with what mends it', async () => {
  makeCertificate(directory, 'good');
  makeCertificate(directory, 'other');
  const path = (name) => join(directory, name);
  writeFileSync(path('empty.pem'), 'nothing here\n');
  const good = { listen: '127.0.0.1:0', certificate: path('good.pem'), key: path('good.key') };
  for (const [changed, message] of [
    [{ tls: { ...good, certificate: path('missing.pem') } }, /missing\.pem cannot be read: .*\n {4}write the path of a PEM file/],
    [{ tls: { ...good, certificate: path('empty.pem') } }, /empty\.pem holds no certificate\n {4}write the server's own certificate/],
    [{ tls: { ...good, key: path('good.pem') } }, /good\.pem holds no private key\n {4}a key begins with/],
    [{ tls: { ...good, key: path('other.key') } }, /other\.key is not the key of the certificate\n {4}`openssl pkey/],
    [{ tls: { ...good, api_client_ca: path('empty.pem') } }, /empty\.pem holds no certificate\n {4}write the certificate of the authority/],
    [{ unix: { listen: path('no/such/directory.sock') } }, /directory\.sock is in no directory\n {4}make the directory/],
  ]) {
    const { code, stderr } = await runRaptor(['check'], { config: { listen: '127.0.0.1:0', apps: [APP], ...changed } });
    assert.equal(code, 1);
    assert.match(stderr, message);
    assert.match(stderr, /raptor\.toml:\d+: /);
    assert.equal((await runRaptor([], { config: { listen: '127.0.0.1:0', apps: [APP], ...changed } })).code, 1);
  }
  const both = await runRaptor(['check'], { config: { tls: { ...good, certificate: path('empty.pem'), key: path('empty.pem') }, apps: [APP] } });
  assert.match(both.stderr, /holds no certificate[\s\S]*holds no private key/);
  const valid = await runRaptor(['check'], { config: { tls: good, unix: { listen: path('fine.sock') }, apps: [APP] } });
  assert.equal(valid.code, 0, valid.stderr);
});
