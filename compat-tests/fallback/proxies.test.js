// Proxies that have no patience, that hold back what they get, and that ask twice.

import assert from 'node:assert/strict';
import { once as nodeOnce } from 'node:events';
import { createServer, request as startRequest } from 'node:http';
import { describe, test } from 'node:test';

import { atEnd } from '../support/at-end.js';
import { collect, once, sleep, until } from '../support/events.js';
import { serveWorld } from '../support/in-page.js';
import { worldInNode } from '../support/in-node.js';
import { startRaptor } from '../support/raptor.js';
import { startBlockingProxy } from '../support/nginx.js';
import { sockJsOf } from './peer.js';

const QUIET_MS = 65_000; // longer than a minute, with which many proxies lose their patience

describe('a proxy', { concurrency: 4, timeout: 120_000 }, () => {
  for (const seconds of [30, 60]) {
    test(`that cuts what is silent for ${seconds} s cuts nobody who is quiet for longer, over whichever transport`, async () => {
      const server = await startRaptor();
      const proxy = await startBlockingProxy(server, `proxy_read_timeout ${seconds}s; proxy_send_timeout ${seconds}s; send_timeout ${seconds}s; keepalive_timeout ${seconds}s;`);
      const world = await worldInNode('8.6', server);
      const room = world.name();
      const quiet = [];
      for (const transport of ['xhr_streaming', 'xhr_polling']) {
        const over = await worldInNode('8.6', proxy, { connection: { enabledTransports: [transport] } });
        const client = await over.connect();
        const channel = await over.subscribe(client, room);
        quiet.push({ changes: collect(client.connection, 'state_change'), news: once(channel, 'news', QUIET_MS + 5_000) });
      }
      const sockJs = sockJsOf(proxy);
      const stream = sockJs.get('eventsource');
      await until(() => stream.text.includes('data: o'));
      await sockJs.open();
      await sockJs.subscribe(room);
      await sleep(QUIET_MS);
      await world.trigger(room, 'news', 'after a minute');
      for (const { changes, news } of quiet) {
        assert.equal(await news, 'after a minute');
        assert.deepEqual(changes, []);
      }
      await until(() => stream.text.includes('after a minute'));
      stream.abort();
    });
  }

  test('that holds back whatever it gets is found out: pusher-js goes on to polling', async () => {
    const server = await startRaptor();
    const proxy = await startBlockingProxy(server, 'proxy_ignore_headers X-Accel-Buffering; proxy_buffers 8 64k; proxy_buffer_size 64k;');
    const { open, address } = await serveWorld('8.6', proxy, { transports: ['xhr_streaming', 'xhr_polling'] });
    const page = await open(address);
    const [transport, ms, got] = await page.evaluate(async () => {
      const began = Date.now();
      const pusher = await new Promise((resolve, reject) => {
        const client = world.client();
        client.connection.bind('connected', () => resolve(client));
        setTimeout(() => reject(new Error(client.connection.state)), 15_000);
      });
      const took = Date.now() - began;
      const channel = await world.subscribe(pusher, world.name());
      const all = [];
      channel.bind('tick', (n) => all.push(n));
      for (let n = 0; n < 20; n += 1) await world.trigger(channel.name, 'tick', n);
      while (all.length < 20) await new Promise((resolve) => { setTimeout(resolve, 10); });
      return [pusher.connection.connection.transport.name, took, all];
    });
    assert.equal(transport, 'xhr_polling');
    // pusher-js tries it four seconds after streaming.
    assert.ok(ms < 4_000 + 2_000, `${ms} ms`);
    assert.deepEqual(got, Array.from({ length: 20 }, (_, n) => n));
  });

  for (const transport of ['xhr_streaming', 'xhr_polling']) {
    test(`that loses the answer and asks again makes nothing happen twice, over ${transport}`, async () => {
      const server = await startRaptor();
      const proxy = await startForgetful(server);
      const world = await worldInNode('8.6', server);
      const over = await worldInNode('8.6', proxy, { connection: { enabledTransports: [transport] } });
      const client = await over.connect();
      const errors = collect(client.connection, 'error');
      const name = over.name('private-');
      const [mine, listener] = [await over.subscribe(client, name), await world.subscribe(await world.connect(), name)];
      const [ticks, said] = [collect(mine, 'tick'), collect(listener, 'client-tick')];
      for (let n = 0; n < 8; n += 1) {
        await world.trigger(name, 'tick', n);
        mine.trigger('client-tick', n);
        await said.until(n + 1);
        await ticks.until(n + 1);
      }
      await ticks.quiet();
      assert.deepEqual([[...ticks], [...said], [...errors]], [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7], []]);
      assert.ok(proxy.repeated() > 8, `${proxy.repeated()} requests came twice`);
    });
  }
});

/** Sends each request, drops the connection before an answer can come, and sends it once more, as proxies do whose server seems to have died. */
async function startForgetful(server) {
  let repeated = 0;
  const proxy = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    const { method, url: path, headers } = request;
    const onward = () => startRequest({ port: server.port, host: '127.0.0.1', method, path, headers, agent: false }).on('error', () => {});
    const lost = onward();
    lost.end(body);
    await nodeOnce(lost, 'finish');
    await sleep(20);
    lost.destroy();
    repeated += 1;
    const again = onward().on('response', (answer) => { response.writeHead(answer.statusCode, answer.headers); answer.pipe(response); answer.on('error', () => response.destroy()); });
    response.on('close', () => again.destroy());
    again.end(body);
  });
  proxy.listen(0, '127.0.0.1');
  await nodeOnce(proxy, 'listening');
  atEnd(() => { proxy.close(); proxy.closeAllConnections(); });
  return { port: proxy.address().port, repeated: () => repeated };
}
