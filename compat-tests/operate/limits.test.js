// What one address or one application may take, and who is believed to stand for whom.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { Api, send, signedTarget } from '../rest/api.js';
import { APP, Peer, appNamed, stillServes } from '../raw/peer.js';
import { sample, startObserved } from './metrics.js';

/** The server has noticed silence, pinged and given up by then, with time to spare. */
const GIVEN_UP_MS = 7_000;
const crowded = [4100, 'Too many connections from this address'];
const from = (address) => ({ headers: { 'X-Forwarded-For': address } });

test('an address has so many connections; one more is told so and comes back', async () => {
  const raptor = await startObserved({ config: { apps: [APP], connections_per_address_max: 3 } });
  const peers = [];
  for (let n = 0; n < 3; n += 1) peers.push(await Peer.connect(raptor, from('203.0.113.7')));
  await (await Peer.open(raptor, from('203.0.113.7'))).isClosed(...crowded);
  const refused = await send(raptor, { method: 'GET', target: '/livez', ...from('203.0.113.7') });
  assert.deepEqual([refused.status, refused.headers['retry-after'], refused.text], [429, '1', 'Too many connections from this address\n']);
  assert.equal(await sample(raptor, 'raptor_cut_offs_total{cause="address_connections"}'), 2);

  for (const other of ['203.0.113.8', '2001:db8::1', '2001:db8:0:1::1']) await Peer.connect(raptor, from(other));
  await peers.pop().close();
  await until(async () => (await Peer.open(raptor, from('203.0.113.7'))).frame().then(({ event }) => event === 'pusher:connection_established'), 'room for another');
});

test('the limit counts for the real address where no proxy is trusted', async () => {
  const raptor = await startObserved({ config: { apps: [APP], connections_per_address_max: 2, trusted_proxies: [] } });
  const peers = [await Peer.connect(raptor, from('203.0.113.1')), await Peer.connect(raptor, from('203.0.113.2'))];
  await (await Peer.open(raptor, from('203.0.113.3'))).isClosed(...crowded);
  for (const peer of peers) await peer.isAlive();
});

test('an untrusted proxy is not believed about TLS', async () => {
  const tlsOnly = appNamed('tls-only', { force_tls: true });
  const refusal = [4000, 'Application only accepts SSL connections, reconnect using wss://'];
  const headers = { 'X-Forwarded-Proto': 'https' };
  for (const trusted of [[], ['10.0.0.0/8', '::1']]) {
    const raptor = await startObserved({ config: { apps: [tlsOnly], trusted_proxies: trusted } });
    await (await Peer.open(raptor, { app: tlsOnly, headers })).isClosed(...refusal);
  }
  const raptor = await startObserved({ config: { apps: [tlsOnly], trusted_proxies: ['127.0.0.1'] } });
  await Peer.connect(raptor, { app: tlsOnly, headers });
});

test('an application publishes so many events a second; the next is a 429 that says when to come again', async () => {
  const slow = appNamed('slow', { limits: { backend_events_per_sec_max: 10 } });
  const raptor = await startObserved({ config: { apps: [slow, APP] } });
  const api = new Api(raptor, slow);
  const body = (channels) => JSON.stringify({ name: 'e', data: 'x', channels });
  const publish = (channels) => api.post('/events', body(channels));
  assert.equal((await publish(['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'])).status, 200);
  assert.equal((await publish(['a', 'b'])).status, 200);
  const refused = await publish(['a']);
  assert.equal(refused.status, 429);
  assert.equal(refused.text, 'Too many events (10 a second are allowed)\n');
  assert.equal(refused.headers['retry-after'], '1');
  assert.deepEqual([refused.headers['x-ratelimit-limit'], refused.headers['x-ratelimit-remaining']], ['10', '0']);
  assert.ok((await sample(raptor, 'raptor_refusals_total{limit="backend_events_per_sec_max"}')) >= 1);
  const batch = await api.post('/batch_events', JSON.stringify({ batch: Array.from({ length: 10 }, () => ({ name: 'e', data: 'x', channel: 'a' })) }));
  assert.equal(batch.status, 429, 'a batch counts for what it holds');
  await new Api(raptor, APP).trigger('a', 'e', 'another app is not held back');
  assert.equal((await api.get('/channels')).status, 200, 'asking is not publishing');
  await sleep(1000);
  assert.equal((await publish(['a'])).status, 200);
});

test('when all queues together are too large the fullest go, and nobody else', async () => {
  const large = appNamed('large', { limits: { event_data_bytes_max: 200_000 } });
  const raptor = await startObserved({ config: { apps: [large], outbox_bytes_max: 100_000_000, outbox_bytes_total_max: 20_000_000 } });
  const api = new Api(raptor, large);
  const [healthy, stuck] = [await Peer.connect(raptor, { app: large }), await Peer.connect(raptor, { app: large })];
  for (const peer of [healthy, stuck]) await peer.subscribe('flood');
  stuck.socket.stopReading();
  const cutOff = () => sample(raptor, 'raptor_cut_offs_total{cause="outbox_memory"}');
  for (let n = 0; (await cutOff()) === 0; n += 1) {
    assert.ok(n < 1000, 'the queue grew and grew');
    await api.trigger('flood', 'e', 'x'.repeat(200_000));
    assert.equal((await healthy.frame()).event, 'e');
  }
  assert.equal(await cutOff(), 1);
  await healthy.isAlive();
  stuck.socket.goOnReading();
  for (let item; (item = await stuck.socket.next()).type !== 'end'; ) if (item.type === 'close') assert.equal(item.code, 4100);
  await until(async () => (await sample(raptor, 'raptor_outbox_bytes')) === 0, 'nothing waits');
});

test('an answer that nobody takes is given up', async () => {
  const raptor = await startObserved({ config: { apps: [APP], write_timeout_secs: 1 } });
  const api = new Api(raptor, APP);
  const peer = await Peer.connect(raptor);
  // A list of channels that does not fit into the kernel's buffers, asked for again and again without reading.
  const names = Array.from({ length: 3000 }, (_, n) => `${'x'.repeat(150)}-${n}`);
  for (const name of names) peer.askToSubscribe(name);
  await until(async () => (await sample(raptor, `raptor_subscriptions{app="${APP.id}"}`)) === names.length, 'all subscriptions');
  const socket = connect(raptor.port, '127.0.0.1');
  socket.on('error', () => {});
  socket.pause();
  const request = `GET ${signedTarget({ app: APP, method: 'GET', path: `/apps/${APP.id}/channels` })} HTTP/1.1\r\nHost: x\r\n\r\n`;
  for (let n = 0; n < 40; n += 1) socket.write(request);
  await until(async () => (await sample(raptor, 'raptor_cut_offs_total{cause="write_timeout"}')) === 1, 'the peer is cut off', 15_000);
  socket.destroy();
  await stillServes(raptor, api);
});

test('a full app, a proof that does not come and a ping without an answer each have their counter', async () => {
  const full = appNamed('full', { limits: { connections_max: 1 } });
  const guarded = appNamed('guarded', { authorized_connections: true, authorized_connections_timeout_secs: 1 });
  const raptor = await startObserved({ config: { apps: [APP, full, guarded], activity_timeout_secs: 1, pong_timeout_secs: 1 } });
  const cutOffs = (cause) => sample(raptor, `raptor_cut_offs_total{cause="${cause}"}`);
  await Peer.connect(raptor, { app: full });
  await (await Peer.open(raptor, { app: full })).isClosed(4004, 'Application is over connection quota');
  await (await Peer.connect(raptor, { app: guarded })).isClosed(4009, 'Connection not authorized within timeout');
  const silent = await Peer.connect(raptor, { answerPings: false });
  assert.equal((await silent.socket.next(GIVEN_UP_MS)).type, 'ping');
  await silent.isClosed(4201, 'Pong reply not received');
  for (const cause of ['app_connections', 'not_authorized', 'no_pong']) assert.equal(await cutOffs(cause), 1, cause);
});
