// Who is not let in gets the protocol's own word for it, is counted by cause, and is written down for those who must be able to show it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { APP, Peer, appNamed } from '../raw/peer.js';
import { sample, startObserved } from './metrics.js';

const directory = mkdtempSync(join(tmpdir(), 'raptor-refusals-'));
after(() => rmSync(directory, { recursive: true, force: true }));
const address = '203.0.113.9';
const headers = { 'X-Forwarded-For': address };
const REFUSALS_PER_SEC_MAX = 100;

let servers = 0;

/** A server with an audit log: `refused(count)` are so many lines of it, without their time. */
async function startAudited(config) {
  const audit = join(directory, `${++servers}.jsonl`);
  const raptor = await startObserved({ config: { log: { audit }, ...config } });
  const lines = () => readFileSync(audit, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line)).filter(({ action }) => action === 'refuse');
  const refused = async (count) => {
    await until(() => lines().length >= count, () => JSON.stringify(lines()));
    return lines().map(({ timestamp, action, ...line }) => line);
  };
  return { ...raptor, refused, cutOffs: (cause) => sample(raptor, `raptor_cut_offs_total{cause="${cause}"}`), refusals: (limit) => sample(raptor, `raptor_refusals_total{limit="${limit}"}`) };
}

test('a client that is not let in is counted by cause, and in the audit log with its key, its address and the reason', async () => {
  const apps = {
    off: appNamed('off', { enabled: false }),
    picky: appNamed('picky', { allowed_origins: ['https://a.example'], bayeux: { mounts: ['/picky'] } }),
    safe: appNamed('safe', { force_tls: true, bayeux: { mounts: ['/safe'] } }),
    full: appNamed('full', { limits: { connections_max: 1 } }),
  };
  const raptor = await startAudited({ apps: [APP, ...Object.values(apps)] });
  const nobody = appNamed('nobody');
  const Origin = 'https://b.example';
  await Peer.connect(raptor, { app: apps.full });
  const refusals = [
    [nobody, {}, 4001, 'Application does not exist', 'unknown_app'],
    [apps.off, {}, 4003, 'Application disabled', 'app_disabled'],
    [apps.picky, { Origin }, 4009, 'Origin not allowed', 'origin'],
    [apps.safe, {}, 4000, 'Application only accepts SSL connections, reconnect using wss://', 'not_over_tls'],
    [apps.full, {}, 4004, 'Application is over connection quota', 'app_connections'],
  ];
  for (const [app, more, code, why, cause] of refusals) {
    await (await Peer.open(raptor, { app, headers: { ...headers, ...more } })).isClosed(code, why);
    assert.equal(await raptor.cutOffs(cause), 1, cause);
  }
  const { body } = await fetch(`${raptor.url}/pusher/app/${nobody.key}/000/abcdefgh/xhr_streaming?protocol=7&client=js&version=8.4.0`, { method: 'POST', headers });
  assert.match(await new Response(body).text(), /4001/);
  assert.equal(await raptor.cutOffs('unknown_app'), 2);
  const bayeux = (mount, more) => fetch(`${raptor.url}${mount}`, { method: 'POST', headers: { ...headers, ...more, 'Content-Type': 'application/json' }, body: '[]' });
  assert.equal((await bayeux('/picky', { Origin })).status, 403);
  assert.equal((await bayeux('/safe')).status, 403);
  assert.deepEqual([await raptor.cutOffs('origin'), await raptor.cutOffs('not_over_tls')], [2, 2]);

  assert.deepEqual(await raptor.refused(8), [
    // A key of nobody may be a secret that was pasted in the wrong place.
    ...refusals.map(([app, , , why]) => (app === nobody ? { address, why } : { key: app.key, address, why })),
    { address, why: 'Application does not exist' },
    { app: apps.picky.id, address, why: 'Origin not allowed' },
    { app: apps.safe.id, address, why: 'not over TLS' },
  ]);
});

test('so is one that signs with a key of nobody, one that proves nothing in time, and one of an address that has too many', async () => {
  const guarded = appNamed('guarded', { authorized_connections: true, authorized_connections_timeout_secs: 1 });
  const raptor = await startAudited({ apps: [APP, guarded], connections_per_address_max: 1 });
  const peer = await Peer.connect(raptor);
  for (const [channel, auth, error] of [
    ['private-room', `nobody:${'0'.repeat(64)}`, /Invalid key/],
    ['private-room', `${APP.key}:${'0'.repeat(64)}`, /Invalid signature/],
    ['private-room', '', /Auth info required/],
    ['private-room', 7, /must be a string/],
    ['#server-to-user-ada', undefined, /Not signed in/],
  ]) {
    peer.askToSubscribe(channel, { auth });
    await peer.receivesError(error);
    assert.equal((await peer.frame()).channel, channel);
  }
  peer.send({ event: 'pusher:signin', data: { user_data: '{"id":"ada"}' } });
  await peer.receivesError(/Auth info required to sign in/, 4009);
  assert.deepEqual([await raptor.refusals('signature'), await raptor.refusals('permission')], [5, 1]);
  const unproven = await Peer.connect(raptor, { app: guarded, headers });
  await (await Peer.open(raptor, { headers })).isClosed(4100, 'Too many connections from this address');
  await unproven.isClosed(4009, 'Connection not authorized within timeout');
  const [app, socket_id, channels] = [APP.id, peer.socketId, 'private-room'];
  assert.deepEqual(await raptor.refused(8), [
    { app, socket_id, channels, why: 'unknown key' },
    { app, key: APP.key, socket_id, channels, why: 'signature' },
    { app, socket_id, channels, why: 'no signature' },
    { app, socket_id, channels, why: 'no signature' },
    { app, socket_id, channels: '#server-to-user-ada', why: 'not signed in as this user' },
    { app, socket_id, why: 'no signature' },
    { address, why: 'Too many connections from this address' },
    { app: guarded.id, socket_id: unproven.socketId, why: 'Connection not authorized within timeout' },
  ]);
});

test('so is one with a protocol that is not served, and one for which there is no session left', async () => {
  const small = appNamed('small', { bayeux: { mounts: ['/small'], sessions_max: 1, client_publish: 'none' } });
  const raptor = await startAudited({ apps: [APP, small], http_sessions_max: 1 });
  const versions = [['protocol=3', 4007, 'Unsupported protocol version'], ['client=js', 4008, 'No protocol version supplied']];
  for (const [query, code, why] of versions) await (await Peer.open(raptor, { query, headers })).isClosed(code, why);
  assert.equal(await raptor.cutOffs('protocol_version'), versions.length);

  const poll = (session) => fetch(`${raptor.url}/pusher/app/${APP.key}/000/${session}/xhr?protocol=7&client=js&version=8.4.0`, { method: 'POST', headers });
  await poll('aaaaaaaa');
  assert.match(await (await poll('bbbbbbbb')).text(), /4100/);
  const handshake = { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] };
  const ask = async (message) => {
    const response = await fetch(`${raptor.url}/small`, { method: 'POST', headers: { ...headers, 'Content-Type': 'application/json' }, body: JSON.stringify([message]) });
    return (await response.json())[0];
  };
  const { clientId } = await ask(handshake);
  assert.equal((await ask(handshake)).error, '429::Too many requests');
  assert.equal(await raptor.cutOffs('http_sessions'), 2);
  assert.equal((await ask({ channel: '/news', clientId, data: 1 })).successful, false);
  assert.equal((await ask({ channel: '/meta/subscribe', clientId, subscription: '/private/x', ext: { auth: `${small.key}:00` } })).successful, false);
  assert.deepEqual([await raptor.refusals('signature'), await raptor.refusals('permission')], [1, 1]);

  const [app, key] = [small.id, APP.key];
  const lines = await raptor.refused(6);
  assert.deepEqual(lines.map(({ socket_id, ...line }) => line), [
    ...versions.map(([, , why]) => ({ key, address, why })),
    { address, why: 'Too many sessions over HTTP' },
    { app, address, channels: '/meta/handshake', why: 'Too many requests' },
    { app, address, channels: '/news', why: 'Forbidden channel' },
    { app, address, channels: '/private/x', why: 'Invalid signature' },
  ]);
});

test('a flood of refusals does not fill the disk: of each second so many are listed, and how many were not', async () => {
  const raptor = await startAudited({ apps: [{ ...APP, bayeux: { mounts: ['/faye'] } }], refusals_per_address_per_sec_max: 1_000_000 });
  const [strangers, app] = [1_000, appNamed('nobody')];
  for (let n = 0; n < strangers; n += 50) {
    await Promise.all(Array.from({ length: 50 }, async () => (await Peer.open(raptor, { app, headers })).isClosed(4001, 'Application does not exist')));
  }
  assert.equal(await raptor.cutOffs('unknown_app'), strangers);
  await sleep(1_000);
  const body = JSON.stringify({ channel: `/meta/${'x'.repeat(100_000)}`, data: 1 });
  await fetch(`${raptor.url}/faye`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
  await raptor.stop();
  const lines = await raptor.refused(2);
  const left = lines.filter(({ times }) => times !== undefined);
  const listed = lines.length - left.length;
  assert.equal(listed + left.reduce((sum, { times }) => sum + times, 0), strangers + 1);
  assert.ok(left.length > 0 && listed <= (left.length + 2) * REFUSALS_PER_SEC_MAX, `${listed} were listed, then ${JSON.stringify(left)}`);
  for (const { key } of lines) assert.equal(key, undefined);
  assert.equal(lines.at(-1).channels.length, 1_000);
});

test('a body that does not come is given up and counted', async () => {
  const raptor = await startAudited({ apps: [APP] });
  const socket = connect(raptor.port, '127.0.0.1');
  socket.write(`POST /apps/${APP.id}/events HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf`);
  const [answer] = await once(socket, 'data');
  assert.match(`${answer}`, /^HTTP\/1.1 408 Request Timeout\r\n/);
  assert.equal(await raptor.cutOffs('body_timeout'), 1);
  socket.destroy();
});

test('who is sent away by a server that stops is counted', async () => {
  const raptor = await startAudited({ apps: [APP], shutdown_spread_secs: 3 });
  const peers = await Promise.all(Array.from({ length: 10 }, () => Peer.connect(raptor)));
  const stopped = raptor.stop();
  await until(async () => (await raptor.cutOffs('draining')) > 2, 'some were sent away', 5_000);
  assert.equal((await stopped).code, 0);
  for (const peer of peers) await peer.isClosed(4200, 'Generic reconnect immediately');
});
