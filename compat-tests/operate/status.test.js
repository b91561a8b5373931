// Health and metrics, on a listener of their own.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { until } from '../support/events.js';
import { runRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { ANSWER, Receiver } from '../webhooks/receiver.js';
import { APP, Peer } from '../raw/peer.js';
import { sample, samples, startObserved } from './metrics.js';

const raptor = await startObserved({ config: { apps: [APP] } });
const api = new Api(raptor, APP);

test('what an operator watches is counted', async () => {
  const peers = [await Peer.connect(raptor), await Peer.connect(raptor)];
  for (const peer of peers) await peer.subscribe('watched');
  await peers[0].subscribe('other');
  for (let n = 0; n < 10; n += 1) {
    await api.trigger('watched', 'e', 'x');
    for (const peer of peers) assert.equal((await peer.frame()).event, 'e');
  }
  const found = await samples(raptor);
  for (const [name, value] of [
    [`raptor_connections{app="${APP.id}"}`, 2],
    [`raptor_subscriptions{app="${APP.id}"}`, 3],
    [`raptor_channels{app="${APP.id}"}`, 2],
    [`raptor_events_total{app="${APP.id}"}`, 10],
    [`raptor_deliveries_total{app="${APP.id}"}`, 20],
    ['raptor_http_responses_total{status="200"}', 10],
    ['raptor_http_responses_total{status="101"}', 2],
    ['raptor_ready', 1],
    ['raptor_outbox_bytes', 0],
    ['raptor_cut_offs_total{cause="slow_consumer"}', 0],
  ]) {
    assert.equal(found.get(name), value, name);
  }
  assert.ok(found.get('raptor_delivery_seconds_count') >= 5, 'deliveries are timed');
  assert.ok(found.get('raptor_delivery_seconds_sum') / found.get('raptor_delivery_seconds_count') < 1);
  assert.equal(found.get('raptor_delivery_seconds_bucket{le="+Inf"}'), found.get('raptor_delivery_seconds_count'));
  assert.ok(found.get('process_resident_memory_bytes') > 1_000_000);
  assert.ok(found.get('process_open_fds') > 3);
  for (const peer of peers) await peer.close();
  await until(async () => (await sample(raptor, `raptor_subscriptions{app="${APP.id}"}`)) === 0, 'no subscription is left');
});

test('life and readiness are asked for on both listeners', async () => {
  for (const base of [raptor.url, raptor.status]) {
    for (const [path, body] of [['/livez', 'alive\n'], ['/readyz', 'ready\n']]) {
      const response = await fetch(base + path);
      assert.deepEqual([response.status, await response.text()], [200, body], base + path);
    }
  }
  assert.equal((await fetch(`${raptor.url}/metrics`)).status, 404, 'metrics are not for clients');
  assert.equal((await fetch(`${raptor.status}/apps/${APP.id}/channels`)).status, 404);
  assert.equal((await fetch(`${raptor.status}/metrics`, { method: 'POST' })).status, 405);
});

test('metrics on the address of the clients are refused', async () => {
  const { code, stderr } = await runRaptor(['check'], { config: { listen: '127.0.0.1:6001', metrics_listen: '127.0.0.1:6001', apps: [APP] } });
  assert.equal(code, 1);
  assert.match(stderr, /raptor\.toml:\d+: metrics need an address of their own\n/);
});

test('what webhooks wait for an endpoint that fails is counted, and for how long', async () => {
  const receiver = await Receiver.start();
  receiver.answer = ANSWER.status(500);
  const server = await startObserved({ config: { apps: [{ ...APP, webhooks: [receiver.endpoint({ events: ['channel_occupied'] })] }] } });
  const peer = await Peer.connect(server);
  await peer.subscribe('a');
  await peer.subscribe('b');
  const waiting = () => sample(server, 'raptor_webhook_queue_events');
  await until(async () => (await waiting()) === 2 && (await sample(server, 'raptor_webhook_queue_age_seconds')) > 1, 'both wait', 15_000);
  receiver.answer = ANSWER.well;
  await until(async () => (await waiting()) === 0, 'none waits', 15_000);
  assert.equal(await sample(server, 'raptor_webhook_queue_age_seconds'), 0);
});
