// What holds for connections holds for those over HTTP: reasons to close and what they make pusher-js do, limits, counts, webhooks. What the
// scenario has (client events, members, sign-in, cache channels, counts, exclusion, termination) is not repeated here.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { closingTests } from '../support/closing.js';
import { once, until } from '../support/events.js';
import { worldInNode } from '../support/in-node.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { sample, startObserved } from '../operate/metrics.js';
import { Receiver } from '../webhooks/receiver.js';
import { clientOf, events, sockJsOf } from './peer.js';

const VERSION = '8.6';

for (const transport of ['xhr_streaming', 'xhr_polling']) {
  const over = (server) => worldInNode(VERSION, server, { connection: { enabledTransports: [transport] } });

  describe(`over ${transport}`, { concurrency: 1, timeout: 60_000 }, () => {
    closingTests(over, { version: VERSION, backMs: 900, newsMs: 15_000 });

    test('is told of in webhooks as every connection is, and of its end when it vanished', async () => {
      const receiver = await Receiver.start();
      const server = await startRaptor({ config: { apps: [{ ...TEST_APP, webhooks: [receiver.endpoint()] }] } });
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
    const world = await worldInNode(VERSION, server, { connection: { enabledTransports: ['xhr_polling'] } });
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
