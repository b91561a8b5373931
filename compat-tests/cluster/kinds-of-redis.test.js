// Two nodes and every kind of Redis that a URL can name, and what becomes of clients when a Redis of several is lost.

import assert from 'node:assert/strict';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { makeCertificate, signCertificate } from '../operate/certificates.js';
import { sample, startObserved } from '../operate/metrics.js';
import { Peer } from '../raw/peer.js';
import { Api } from '../rest/api.js';
import { sleep, until } from '../support/events.js';
import { freePort } from '../support/free-port.js';
import { TEST_APP, runRaptor } from '../support/raptor.js';
import { startCluster, startRedis, startSentinels } from '../support/redis.js';

const APP = { ...TEST_APP, subscription_count_events: false };
const EVENTS = 40;

const isUp = async (node) => (await sample(node, 'raptor_redis_up')) === 1;
const notShared = (node) => sample(node, 'raptor_redis_events_not_shared_total');

async function startNodes(redis, count = 2) {
  const nodes = await Promise.all(Array.from({ length: count }, () => startObserved({ config: { apps: [APP], redis } })));
  await until(async () => (await Promise.all(nodes.map(isUp))).every(Boolean), 'every node shares', 10_000);
  return nodes;
}

/** The data of the events that a peer hears, as they come. */
function heard(peer) {
  const got = [];
  (async () => {
    for (;;) {
      const frame = await peer.frame().catch(() => null);
      if (frame?.event === 'said') got.push(frame.data);
    }
  })();
  return got;
}

/** Clients of all nodes are in one room: one order, one roster, one count. */
async function checkOneRoom(nodes) {
  const apis = nodes.map((node) => new Api(node, APP));
  const peers = await Promise.all(nodes.map((node) => Peer.connect(node, { app: APP })));
  for (const [nth, peer] of peers.entries()) await peer.join('presence-room', `user-${nth}`, {});
  await until(async () => {
    const users = await Promise.all(apis.map(async (api) => (await api.get('/channels/presence-room/users')).json().users));
    return users.every((list) => list.length === nodes.length);
  }, 'one roster');
  const got = peers.map(heard);
  await Promise.all(apis.map(async (api, nth) => {
    for (let n = 0; n < EVENTS; n += 1) await api.trigger('presence-room', 'said', `${nth}-${n}`);
  }));
  await until(() => got.every((list) => list.length === EVENTS * nodes.length), () => `all events: ${got.map(({ length }) => length)}`);
  for (const list of got) assert.deepEqual(list, got[0], 'one order');
  assert.equal(new Set(got[0]).size, EVENTS * nodes.length);
  for (const node of nodes) assert.equal(await notShared(node), 0);
  return { apis, peers, got };
}

describe('two nodes are one', { concurrency: 2 }, () => {
  test('through a Redis with a database, a prefix, a user and a password, and keep to them', { timeout: 60_000 }, async () => {
    const redis = await startRedis();
    redis.cli('ACL', 'SETUSER', 'raptor', 'on', '>p@ss:w/rd', '~mine*', '&mine*', '+@all');
    redis.cli('ACL', 'SETUSER', 'default', 'off');
    const url = `redis://raptor:${encodeURIComponent('p@ss:w/rd')}@127.0.0.1:${redis.port}/3`;
    const settings = { url, key_prefix: 'mine' };
    await checkOneRoom(await startNodes(settings));
    const listed = await runRaptor(['nodes', '--redis', url], { config: { apps: [APP], redis: { key_prefix: 'mine' } } });
    assert.equal(listed.code, 0, listed.stderr);
    assert.equal(listed.stdout.match(/127\.0\.0\.1:\d+/g).length, 2, listed.stdout);
    const wrong = await runRaptor(['nodes', '--redis', url.replace('p%40ss', 'other')], { config: { apps: [APP] } });
    assert.notEqual(wrong.code, 0);
    assert.ok(!`${wrong.stdout}${wrong.stderr}`.includes('other'), 'no password is shown');
  });

  test('through a Unix socket', { timeout: 60_000 }, async () => {
    const directory = mkdtempSync(join(tmpdir(), 'raptor-socket-'));
    const path = join(directory, 'redis.sock');
    await startRedis({ args: ['--unixsocket', path] });
    await checkOneRoom(await startNodes({ url: `unix://${path}?db=2` }));
  });

  test('over TLS, with certificates on both sides', { timeout: 60_000 }, async () => {
    const directory = mkdtempSync(join(tmpdir(), 'raptor-tls-'));
    for (const name of ['authority', 'stranger']) makeCertificate(directory, name);
    signCertificate(directory, 'redis', 'authority', 'subjectAltName=DNS:localhost');
    signCertificate(directory, 'node', 'authority');
    const at = (name) => join(directory, name);
    const tlsPort = await freePort();
    await startRedis({ args: ['--tls-port', String(tlsPort), '--tls-cert-file', at('redis.pem'), '--tls-key-file', at('redis.key'), '--tls-ca-cert-file', at('authority.pem')] });
    const url = `rediss://localhost:${tlsPort}`;
    const settings = { url, ca_certificate: at('authority.pem'), client_certificate: at('node.pem'), client_key: at('node.key') };
    await checkOneRoom(await startNodes(settings));
    for (const redis of [{ url, ca_certificate: settings.ca_certificate }, { ...settings, ca_certificate: at('stranger.pem') }]) {
      const outside = await startObserved({ config: { apps: [APP], redis } });
      await until(() => outside.stderr().includes('Redis is away') || outside.stdout().includes('Redis is away'), 'it says so');
      assert.equal(await isUp(outside), false);
    }
  });

  test('through a Redis Cluster, with sharded topics', { timeout: 60_000 }, async () => {
    const cluster = await startCluster();
    await checkOneRoom(await startNodes({ url: cluster.url }));
    const shared = cluster.nodes.map((node) => Number(/cmdstat_spublish:calls=(\d+)/.exec(node.cli('INFO', 'commandstats'))?.[1] ?? 0));
    assert.ok(shared.every((calls) => calls > 0), `topics of every primary are used: ${shared}`);
  });

  test('through Sentinel; when the primary is lost nothing is but what is counted, and all agree again', { timeout: 90_000 }, async (t) => {
    const sentinels = await startSentinels();
    const nodes = await startNodes({ url: sentinels.url, command_timeout_ms: 500 });
    const { apis, peers, got } = await checkOneRoom(nodes);
    got.forEach((list) => list.splice(0));

    const sent = nodes.map(() => []);
    let isOver = false;
    const publishing = apis.map(async (api, nth) => {
      for (let n = 0; !isOver; n += 1) {
        await api.trigger('presence-room', 'said', `${nth}:${n}`);
        sent[nth].push(`${nth}:${n}`);
        await sleep(20);
      }
    });
    await sleep(500);
    await sentinels.primary.kill();
    await until(() => sentinels.currentPort() === sentinels.replica.port, 'the Sentinels have chosen', 20_000);
    const chosen = Date.now();
    await until(async () => (await Promise.all(nodes.map(isUp))).every(Boolean), 'every node shares again', 5_000);
    const sharing = Date.now() - chosen;
    await sleep(500);
    isOver = true;
    await Promise.all(publishing);

    const counted = await Promise.all(nodes.map(notShared));
    const missed = (listener, publisher) => sent[publisher].filter((data) => !got[listener].includes(data)).length;
    await until(() => [0, 1].every((own) => missed(own, own) === 0 && missed(1 - own, own) <= counted[own]), () => `own missed ${[missed(0, 0), missed(1, 1)]}, of the other ${[missed(1, 0), missed(0, 1)]}, counted ${counted}`);
    for (const list of got) assert.equal(new Set(list).size, list.length, 'nothing twice');
    assert.ok(counted.some((count) => count > 0), 'while there was no primary events were not shared');
    t.diagnostic(`shared again ${sharing} ms after the Sentinels had chosen; counted ${counted} of ${sent.map(({ length }) => length)}`);

    const after = await Peer.connect(nodes[0], { app: APP });
    const roster = await after.join('presence-room', 'late', {});
    assert.deepEqual(roster.presence.ids.toSorted(), ['late', 'user-0', 'user-1']);
    for (const peer of [...peers, after]) peer.socket.destroy?.();
  });
});
