// The CometD client in Node, with those of its extensions that need a server.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { AckExtension, CometD, ReloadExtension, TimeSyncExtension } from 'cometd';
import { adapt } from 'cometd-nodejs-client';

import { atEnd } from '../support/at-end.js';
import { QUIET_MS, sleep, until } from '../support/events.js';
import { post } from './support/http.js';
import { startNetwork } from './support/network.js';
import { HOLD_SECS, IS_FAYE, startServer } from './support/server.js';

const RECONNECT_MS = 15_000;

adapt(); // makes the `window` that CometD expects

const kept = new Map();
globalThis.window.sessionStorage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem: (key) => kept.delete(key) };

/** A client of `url` with one transport, not yet connected. `client.connects` gathers the replies to its connects. */
function createClient(url, transport, extensions = {}) {
  const client = new CometD();
  client.configure({ url, logLevel: 'error', backoffIncrement: 100 });
  for (const other of client.getTransportTypes()) if (other !== transport) client.unregisterTransport(other);
  for (const [name, extension] of Object.entries(extensions)) client.registerExtension(name, extension);
  client.connects = [];
  client.addListener('/meta/connect', (reply) => client.connects.push(reply));
  atEnd(() => client.disconnect());
  return client;
}

/** Such a client after its handshake, which is `client.shaken`. */
async function connect(...setting) {
  const client = createClient(...setting);
  client.shaken = await reply((done) => client.handshake(done));
  assert.equal(client.shaken.successful, true, client.shaken.error);
  return client;
}

/** Resolves with the growing list of data delivered; rejects with the refusal. */
async function subscribe(client, channel) {
  const got = [];
  const answer = await reply((done) => client.subscribe(channel, ({ data }) => got.push(data), done));
  if (!answer.successful) throw new Error(answer.error);
  return got;
}

function reply(ask) {
  return new Promise((resolve) => { ask(resolve); });
}

const arrived = (got, count) => until(() => got.length >= count, () => `${count} messages, got ${JSON.stringify(got)}`, RECONNECT_MS);

function clientOver(transport) {
  let names = 0;
  const name = () => `/cometd-${transport}-${++names}`;

  test('subscribes, hears itself, unsubscribes and disconnects', async () => {
    const { url } = await startServer();
    const client = await connect(url, transport);
    assert.equal(client.getTransport().type, transport);
    const [room, other] = [name(), name()];
    const got = [];
    const subscription = client.subscribe(`${room}/*`, ({ channel, data }) => got.push([channel, data]));
    const others = await subscribe(client, other);
    assert.equal((await reply((done) => client.publish(`${room}/a`, { hello: 'wörld' }, done))).successful, true);
    await arrived(got, 1);
    await reply((done) => client.unsubscribe(subscription, done));
    for (const channel of [`${room}/a`, other]) await post(url, { channel, data: 2 });
    await arrived(others, 1);
    await sleep(QUIET_MS);
    assert.deepEqual(got, [[`${room}/a`, { hello: 'wörld' }]]);

    const clientId = client.getClientId();
    assert.equal((await reply((done) => client.disconnect(done))).successful, true);
    const [{ error }] = await post(url, { channel: '/meta/connect', clientId, connectionType: 'long-polling' });
    assert.equal(error, `401:${clientId}:Unknown client`);
  });

  test('is told why a subscription is refused', async () => {
    const client = await connect((await startServer()).url, transport);
    await assert.rejects(subscribe(client, '/meta/x'), { message: '403:/meta/x:Forbidden channel' });
    await assert.rejects(subscribe(client, '/a b'), { message: '405:/a b:Invalid channel' });
    assert.equal((await reply((done) => client.publish('/a/*', 1, done))).error, '405:/a/*:Invalid channel');
  });

  test('messages of a batch arrive in order, and a service channel is nobody\'s to hear', async () => {
    const client = await connect((await startServer()).url, transport);
    const room = name();
    const got = await subscribe(client, room);
    client.batch(() => { for (let n = 0; n < 50; n++) client.publish(room, n); });
    await arrived(got, 50);
    assert.deepEqual(got, Array.from({ length: 50 }, (_, n) => n));
    assert.equal((await reply((done) => client.publish('/service/echo', {}, done))).successful, true);
  });

  test('idle cycles follow one another at the pace of the hold, each successful', async () => {
    const { url } = await startServer();
    const client = await connect(url, transport);
    const got = await subscribe(client, '/idle');
    await until(() => client.connects.length > 0, 'connected');
    const before = client.connects.length;
    await sleep(3_300 * HOLD_SECS);
    const cycles = client.connects.slice(before);
    assert.ok(cycles.length >= 2 && cycles.length <= 4, `${cycles.length} connects in three hold times`);
    assert.ok(cycles.every(({ successful }) => successful));
    await post(url, { channel: '/idle', data: 'awake' });
    await arrived(got, 1);
  });

  test('a restarted server gets it back', async () => {
    const server = await startServer();
    const client = createClient(server.url, transport);
    const got = [];
    const sessions = new Set();
    client.addListener('/meta/handshake', ({ successful, clientId }) => {
      if (!successful) return;
      sessions.add(clientId);
      client.subscribe('/restart', ({ data }) => got.push(data), ({ successful: subscribed }) => subscribed && got.push('subscribed'));
    });
    client.handshake();
    await arrived(got, 1);
    await server.restart();
    await arrived(got, 2);
    await post(server.url, { channel: '/restart', data: 'again' });
    await arrived(got, 3);
    assert.deepEqual(got.slice(0, 3), ['subscribed', 'subscribed', 'again']);
    assert.equal(sessions.size, 2);
  });

  test('a reloaded page goes on with its session and misses nothing', async () => {
    const { url } = await startServer();
    const before = await connect(url, transport, { reload: new ReloadExtension({ name: transport }) });
    await subscribe(before, '/reload');
    await until(() => before.connects.length > 0, 'connected');
    before.reload();
    await sleep(QUIET_MS); // the page is gone: its poll has been aborted

    await post(url, { channel: '/reload', data: 'meanwhile' });
    const after = createClient(url, transport, { reload: new ReloadExtension({ name: transport }) });
    const got = [];
    after.handshake(({ ext }) => {
      assert.equal(ext.reload, true);
      after.subscribe('/reload', ({ data }) => got.push(data));
    });
    await until(() => after.connects.some(({ successful }) => successful), 'connected again');
    assert.equal(after.getClientId(), before.shaken.clientId);
    await post(url, { channel: '/reload', data: 'afterwards' });
    await until(() => got.includes('afterwards'), 'afterwards');
    if (!IS_FAYE) assert.deepEqual(got, ['meanwhile', 'afterwards']); // Faye writes the first into the aborted poll
  });

  if (IS_FAYE) return; // what follows it ignores

  test('acknowledged messages arrive once and in order, however many replies are lost', async () => {
    const server = await startServer();
    const network = await startNetwork(server);
    const client = await connect(network.url, transport, { ack: new AckExtension() });
    assert.equal(client.shaken.ext.ack, true);
    const got = await subscribe(client, '/ack');

    const numbers = Array.from({ length: 200 }, (_, n) => n);
    let lost = 0;
    for (const n of numbers) {
      let losing;
      if (n % 10 === 5) {
        const [poll] = await until(() => network.polls().length > 0 && network.polls(), 'a waiting connect', RECONNECT_MS);
        losing = poll.loseReply().then(() => { lost += 1; });
      }
      await post(server.url, { channel: '/ack', data: n });
      await losing;
    }
    await arrived(got, numbers.length);
    await sleep(QUIET_MS);
    assert.deepEqual(got, numbers);
    assert.ok(lost >= 15, `only ${lost} replies were lost`);
  });

  test('with acknowledgements messages come behind connects only', async () => {
    const server = await startServer();
    const client = await connect(server.url, transport, { ack: new AckExtension() });
    const got = await subscribe(client, '/ack');
    await until(() => client.connects.length > 0, 'connected');
    for (let n = 1; n <= 3; n++) {
      const before = client.connects.length;
      await post(server.url, { channel: '/ack', data: n });
      await arrived(got, n);
      await until(() => client.connects.length > before, 'the reply that brought it');
    }
    const batches = client.connects.map(({ ext }) => ext.ack);
    assert.deepEqual(batches, batches.map((_, n) => batches[0] + n));
  });

  test('the clocks are compared', async () => {
    const timesync = new TimeSyncExtension();
    const client = await connect((await startServer()).url, transport, { timesync });
    await until(() => client.connects.length > 0, 'connected');
    const { tc, ts, p } = client.shaken.ext.timesync;
    assert.ok(Math.abs(Date.now() - tc) < 10_000 && Math.abs(ts - tc) < 1_000 && p >= 0 && p < 1_000, JSON.stringify(client.shaken.ext));
    assert.ok(Math.abs(timesync.getTimeOffset()) < 1_000 && Math.abs(timesync.getNetworkLag()) < 1_000);
  });
}

describe('CometD', { concurrency: 2, timeout: 120_000 }, () => {
  for (const transport of ['websocket', 'long-polling']) describe(`over ${transport}`, () => clientOver(transport));
});
