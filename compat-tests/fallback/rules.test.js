// What holds for connections holds for those over HTTP: reasons to close and what they make pusher-js do, limits, counts, webhooks. What the
// scenario has (client events, members, sign-in, cache channels, counts, exclusion, termination) is not repeated here.

import assert from 'node:assert/strict';
import { once as nodeOnce } from 'node:events';
import { createServer } from 'node:net';
import { describe, test } from 'node:test';

import { atEnd } from '../support/at-end.js';
import { collect, once, sleep, until } from '../support/events.js';
import { worldInNode } from '../support/in-node.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { startRelay } from '../support/relay.js';
import { errorCode, errorMessage } from '../support/world.js';
import { sample, startObserved } from '../operate/metrics.js';
import { Receiver } from '../webhooks/receiver.js';
import { clientOf, events, sockJsOf } from './peer.js';

const SECOND_MS = 1_000; // after this a client comes back if the code lets it

const serverWith = (app, config) => startRaptor({ config: { ...config, apps: [{ ...TEST_APP, ...app }] } });

for (const transport of ['xhr_streaming', 'xhr_polling']) {
  const over = (server) => worldInNode('8.6', server, { connection: { enabledTransports: [transport] } });

  describe(`over ${transport}`, { concurrency: 1, timeout: 60_000 }, () => {
    test('stays away from a disabled app (4003)', async () => {
      const world = await over(await serverWith({ enabled: false }));
      await staysAway(world.client(), 4003, 'Application disabled');
    });

    test('stays away when the app has its connections (4004), and gets in by connect() when one is free', async () => {
      const server = await serverWith({ limits: { connections_max: 1 } });
      const world = await over(server);
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
      const pusher = world.client({ httpsPort: tls.address().port });
      assert.equal(errorCode(await once(pusher.connection, 'error')), 4000);
      assert.equal((await hello)[0], 0x16, 'the first byte of a TLS handshake');
    });

    test('stays away when it did nothing that needs a signature in time (4009); a private subscription suffices', async () => {
      const world = await over(await serverWith({ authorized_connections: true, authorized_connections_timeout_secs: 1 }));
      const [idle, busy] = [await world.connect(), await world.connect()];
      await world.subscribe(busy, world.name('private-'));
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
      const resubscribed = once(channel, 'pusher:subscription_succeeded', 900); // less than the second that other codes cost
      await sleep(200); // a poll is with the old one again
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
      const [slow, fast] = [await over(relay), await worldInNode('8.6', server)];
      const [slowClient, fastClient] = [await slow.connect(), await fast.connect()];
      const name = fast.name();
      const slowChannel = await slow.subscribe(slowClient, name);
      const news = collect(await fast.subscribe(fastClient, name), 'news');
      const error = once(slowClient.connection, 'error', 15_000);
      relay.hold();
      let count = 0;
      const subscribers = async () => (await fast.get(`/channels/${name}`, { info: 'subscription_count' })).subscription_count;
      do {
        assert.ok(count < 10_000, 'the slow client is never cut off');
        await fast.triggerBatch(Array.from({ length: 10 }, () => ({ channel: name, name: 'news', data: `${count++}:${'x'.repeat(10_000)}` })));
      } while (await subscribers() === 2);
      await news.until(count, 15_000);
      const resubscribed = once(slowChannel, 'pusher:subscription_succeeded', 15_000);
      relay.release();
      assert.equal(errorCode(await error), 4100);
      await resubscribed;
    });

    test('is told of in webhooks as every connection is, and of its end when it vanished', async () => {
      const receiver = await Receiver.start();
      const server = await serverWith({ webhooks: [receiver.endpoint()] });
      const world = await over(server);
      const [one, two] = [await world.connect({ member: { user_id: 'ann' } }), await world.connect({ member: { user_id: 'bob' } })];
      const [presence, secret] = [world.name('presence-'), world.name('private-')];
      await world.subscribe(one, presence);
      const channel = await world.subscribe(one, secret);
      await world.subscribe(two, presence);
      await world.subscribe(two, secret);
      const heard = once(two.channel(secret), 'client-hello');
      channel.trigger('client-hello', { n: 1 });
      await heard;
      two.disconnect();
      one.disconnect();
      const told = (name, of) => receiver.named(name).filter(({ channel: about }) => about === of).length;
      await until(() => told('channel_vacated', presence) && told('channel_vacated', secret) && receiver.named('client_event').length, () => JSON.stringify(receiver.events), 12_000);
      receiver.isExact();
      for (const [name, of, count] of [['channel_occupied', presence, 1], ['channel_occupied', secret, 1], ['member_added', presence, 2], ['member_removed', presence, 2], ['channel_vacated', presence, 1], ['channel_vacated', secret, 1]]) {
        assert.equal(told(name, of), count, name);
      }
      const [said] = receiver.named('client_event');
      assert.deepEqual([said.event, said.channel, said.data], ['client-hello', secret, '{"n":1}']);
      assert.match(said.socket_id, /^\d+\.\d+$/);
    });
  });
}

describe('sessions', { concurrency: 4, timeout: 60_000 }, () => {
  test('each is one connection, over whichever transport', async () => {
    const server = await startObserved();
    const connections = () => sample(server, `raptor_connections{app="${TEST_APP.id}"}`);
    const polling = clientOf(server);
    await polling.poll();
    const streaming = clientOf(server);
    const stream = await streaming.stream();
    const frames = sockJsOf(server);
    const stream2 = frames.get('eventsource');
    await until(() => stream2.text.includes('data: o'));
    await frames.open();
    await until(async () => (await connections()) === 3, 'three connections');
    assert.equal(await sample(server, 'raptor_http_sessions'), 3);
    stream.abort();
    stream2.abort();
    await until(async () => (await connections()) === 0 && (await sample(server, 'raptor_http_sessions')) === 0, 'none', 5_000);
  });

  test('there are only so many; one more is told so and comes back (4100)', async () => {
    const server = await startRaptor({ config: { http_sessions_max: 2 } });
    const streams = [await clientOf(server).stream(), await clientOf(server).stream()];
    const refused = await clientOf(server).poll();
    assert.deepEqual(refused.lines().at(-1), 'c[4100,"Too many sessions over HTTP"]');
    assert.equal(events(refused.lines())[0].data.code, 4100);
    assert.match((await sockJsOf(server).get('jsonp?c=a').ended).text, /c\[4100/);
    streams[0].abort();
    const world = await worldInNode('8.6', server, { connection: { enabledTransports: ['xhr_polling'] } });
    await world.connect();
  });

  test('reports of pusher-js are counted by how they came and its major version', async () => {
    const server = await startObserved();
    const report = (path, version) => fetch(`${server.url}/timeline/v2/${path}?version=${encodeURIComponent(btoa(version))}`);
    for (const [path, version] of [['jsonp/1', '8.6.0'], ['jsonp/2', '8.4.0'], ['xhr/2', '4.4.0'], ['xhr/2', '"x'], ['jsonp/x', '8.6.0']]) await report(path, version);
    const counted = (transport, version) => sample(server, `raptor_pusher_js_reports_total{transport="${transport}",version="${version}"}`);
    assert.deepEqual([await counted('jsonp', 8), await counted('xhr', 4), await counted('xhr', 'other')], [2, 1, 1]);
  });
});

async function staysAway(pusher, code, message) {
  const error = await once(pusher.connection, 'error');
  assert.deepEqual([errorCode(error), errorMessage(error)], [code, message]);
  await until(() => pusher.connection.state === 'disconnected', 'disconnected');
  const attempts = collect(pusher.connection, 'connecting');
  await sleep(SECOND_MS + 300);
  assert.deepEqual(attempts, [], 'attempts to reconnect');
}
