// The server's reasons to close, and what pusher-js makes of them: where it stays away, and where and when it comes back (`pusher.md` 1.7). The
// same tests for every version and transport.

import assert from 'node:assert/strict';
import { once as nodeOnce } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';

import { atEnd } from './at-end.js';
import { SOON_MS, collect, once, sleep, until } from './events.js';
import { worldInNode } from './in-node.js';
import { TEST_APP, startRaptor } from './raptor.js';
import { startRelay } from './relay.js';
import { errorCode, errorMessage } from './world.js';

const SECOND_MS = 1_000; // after this a client comes back if the code lets it

const serverWith = (app, config) => startRaptor({ config: { ...config, apps: [{ ...TEST_APP, ...app }] } });

/**
 * Registers the tests.
 *
 * @param {(server: object) => Promise<object>} over a world (`worldInNode`) of clients on the transport under test
 * @param {object} options `version`: of pusher-js; `backMs`: a client that goes to the next server at once is subscribed there by then, which is less
 *   than the second that other codes cost; `newsMs`: so long others may take to hear what a slow client does not
 */
export function closingTests(over, { version, backMs, newsMs = SOON_MS }) {
  test('stays away from a disabled app (4003)', async () => {
    const world = await over(await serverWith({ enabled: false }));
    await staysAway(world.client(), 4003, 'Application disabled');
  });

  test('stays away when the app has its connections (4004), and gets in by connect() when one is free', async () => {
    const world = await over(await serverWith({ limits: { connections_max: 1 } }));
    const [first, name] = [await world.connect({ enabledTransports: ['ws'] }), world.name()];
    await world.subscribe(first, name);
    const second = world.client();
    await staysAway(second, 4004, 'Application is over connection quota');
    first.disconnect();
    await until(async () => !(await world.get(`/channels/${name}`)).occupied, 'the first client is gone');
    second.connect();
    await once(second.connection, 'connected');
    await staysAway(world.client({ enabledTransports: ['ws'] }), 4004, 'Application is over connection quota');
  });

  test('turns to TLS for an app that wants it (4000)', async () => {
    const tls = createServer();
    tls.listen(0, '127.0.0.1');
    await nodeOnce(tls, 'listening');
    atEnd(() => tls.close());
    const hello = nodeOnce(tls, 'connection').then(([socket]) => nodeOnce(socket.on('error', () => {}), 'data').then(([bytes]) => { socket.destroy(); return bytes; }));
    const world = await over(await serverWith({ force_tls: true }));
    const { port } = tls.address();
    const pusher = world.client({ wssPort: port, httpsPort: port });
    assert.equal(errorCode(await once(pusher.connection, 'error')), 4000);
    assert.equal((await hello)[0], 0x16, 'the first byte of a TLS handshake');
    assert.ok(pusher.connection.usingTLS);
  });

  test('stays away when it did nothing that needs a signature in time (4009); a private subscription suffices', async () => {
    const world = await over(await serverWith({ authorized_connections: true, authorized_connections_timeout_secs: 1 }));
    const [idle, busy] = [await world.connect(), await world.connect()];
    await world.subscribe(busy, world.name('private-'));
    await world.subscribe(idle, world.name());
    await staysAway(idle, 4009, 'Connection not authorized within timeout');
    assert.equal(busy.connection.state, 'connected');
  });

  test('goes at once to the server that takes over from one that stops (4200)', async () => {
    const config = { shutdown_spread_secs: 1 };
    const [old, next] = [await startRaptor({ config }), await startRaptor({ config })];
    const relay = await startRelay(old);
    const world = await over(relay);
    const pusher = await world.connect();
    const channel = await world.subscribe(pusher, world.name());
    const errors = collect(pusher.connection, 'error');

    await sleep(200); // a poll is with the old one again
    const resubscribed = once(channel, 'pusher:subscription_succeeded', backMs);
    relay.forward(next);
    const [end] = await Promise.all([old.stop(), resubscribed]);
    assert.deepEqual(end, { code: 0, signal: null });
    assert.equal(errorCode(errors[0]), 4200);
    const got = once(channel, 'news');
    await world.trigger(channel.name, 'news', 'from the next server');
    assert.equal(await got, 'from the next server');
  });

  test('that reads too slowly is told so (4100) without delay for others, and comes back after a second', async () => {
    const server = await serverWith({}, { outbox_bytes_max: 262_144 });
    const relay = await startRelay(server);
    const [slow, fast] = [await over(relay), await worldInNode(version, server)];
    const [slowClient, fastClient] = [await slow.connect(), await fast.connect()];
    const name = fast.name();
    const slowChannel = await slow.subscribe(slowClient, name);
    const news = collect(await fast.subscribe(fastClient, name), 'news');
    const error = once(slowClient.connection, 'error', 15_000);

    relay.hold();
    // 10 kB each, until the buffers of the system and of the server are full.
    let events = 0;
    const subscribers = async () => (await fast.get(`/channels/${name}`, { info: 'subscription_count' })).subscription_count;
    do {
      assert.ok(events < 10_000, 'the slow client is never cut off');
      await fast.triggerBatch(Array.from({ length: 10 }, () => ({ channel: name, name: 'news', data: `${events++}:${'x'.repeat(10_000)}` })));
    } while (await subscribers() === 2);
    await news.until(events, newsMs);
    assert.deepEqual(news.map((data) => Number(data.split(':')[0])), Array.from({ length: events }, (_, n) => n));

    const resubscribed = once(slowChannel, 'pusher:subscription_succeeded', 15_000);
    relay.release();
    assert.equal(errorCode(await error), 4100);
    await resubscribed;
    assert.equal(fastClient.connection.state, 'connected');
  });
}

async function staysAway(pusher, code, message) {
  const error = await once(pusher.connection, 'error');
  assert.deepEqual([errorCode(error), errorMessage(error)], [code, message]);
  await until(() => pusher.connection.state === 'disconnected', 'disconnected');
  const attempts = collect(pusher.connection, 'connecting');
  await sleep(SECOND_MS + 300);
  assert.deepEqual(attempts, [], 'attempts to reconnect');
}
