// Pages that cannot have a WebSocket, with the options of the README and the transports that pusher-js chooses itself.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { serveWorld } from '../support/in-page.js';
import { startRaptor } from '../support/raptor.js';
import { startBlockingProxy } from '../support/nginx.js';

const FALLBACK_AFTER_MS = 5_000; // in plain HTTP (7.1)
const WITHIN_MS = 2_000;

/** Opens a page, lets pusher-js connect with the options of the README, and returns when it did what, and which hosts the page asked. */
async function connect(version, server, { proxy = server, breakPage, options = {} }) {
  const { open, address } = await serveWorld(version, proxy, { transports: null });
  const page = await open(address, { before: breakPage });
  const hosts = new Set();
  page.on('request', (request) => hosts.add(new URL(request.url()).host));
  page.on('websocket', (socket) => hosts.add(new URL(socket.url()).host));
  const seen = await page.evaluate(async ([port, more]) => {
    const pusher = world.client({
      wsHost: '127.0.0.1', wsPort: port, wssPort: port, httpHost: '127.0.0.1', httpPort: port, httpsPort: port, statsHost: `127.0.0.1:${port}`,
      forceTLS: false, disabledTransports: ['sockjs'], enabledTransports: undefined, ...more,
    });
    const began = Date.now();
    const channel = pusher.subscribe(world.name());
    const subscribed = new Promise((resolve) => { channel.bind('pusher:subscription_succeeded', resolve); });
    await Promise.race([subscribed, new Promise((_, reject) => { setTimeout(() => reject(new Error(`still ${pusher.connection.state}`)), 15_000); })]);
    const got = new Promise((resolve) => { channel.bind('news', resolve); });
    await world.trigger(channel.name, 'news', { n: 1 });
    const news = await got;
    return { ms: Date.now() - began, news, transport: pusher.connection.connection.transport.name };
  }, [proxy.port, options]);
  hosts.delete(new URL(address).host);
  return { ...seen, hosts: [...hosts], page };
}

describe('a page without WebSockets', { concurrency: 1, timeout: 90_000 }, () => {
  for (const version of ['5.1', '8.6']) {
    test(`pusher-js ${version} reaches its own host behind nginx that refuses upgrades, within 2 s of its fallback`, async () => {
      const server = await startRaptor();
      const proxy = await startBlockingProxy(server);
      const { ms, news, transport, hosts } = await connect(version, server, { proxy });
      assert.deepEqual([news, transport], [{ n: 1 }, 'xhr_streaming']);
      assert.ok(ms < FALLBACK_AFTER_MS + WITHIN_MS, `${ms} ms`);
      assert.deepEqual(hosts, [`127.0.0.1:${proxy.port}`]);
    });
  }

  test('pusher-js 8.6 falls back at once where there is no WebSocket at all', async () => {
    const server = await startRaptor();
    const breakPage = () => { delete window.WebSocket; };
    const { ms, news, transport, hosts } = await connect('8.6', server, { breakPage });
    assert.deepEqual([news, transport], [{ n: 1 }, 'xhr_streaming']);
    assert.ok(ms < WITHIN_MS, `${ms} ms`);
    assert.deepEqual(hosts, [`127.0.0.1:${server.port}`]);
  });

  for (const version of ['4.4', '8.6']) {
    test(`the statistics of pusher-js ${version} go to its own host`, async () => {
      const server = await startRaptor();
      const options = { ...(version === '4.4' ? { disableStats: false } : { enableStats: true }) };
      const { page, hosts } = await connect(version, server, { options });
      const reported = await page.evaluate(() => new Promise((resolve) => {
        const look = () => { const found = performance.getEntriesByType('resource').find(({ name }) => name.includes('/timeline/v2/jsonp/')); if (found) resolve(found.name); else setTimeout(look, 50); };
        look();
      }));
      assert.equal(new URL(reported).host, `127.0.0.1:${server.port}`);
      assert.deepEqual(hosts, [`127.0.0.1:${server.port}`]);
    });
  }

  for (const transport of ['xhr_streaming', 'xhr_polling']) {
    test(`a thousand long events over ${transport} arrive once and in order across the limit of the client`, async () => {
      const server = await startRaptor({ config: { outbox_bytes_max: 16_000_000 } });
      const { page } = await connect('8.6', server, { proxy: await startBlockingProxy(server), options: { enabledTransports: [transport] } });
      const [numbers, requests] = await page.evaluate(async () => {
        const pusher = Pusher.instances.at(-1);
        const channel = pusher.subscribe(world.name());
        await new Promise((resolve) => { channel.bind('pusher:subscription_succeeded', resolve); });
        const errors = [];
        pusher.connection.bind('state_change', (change) => errors.push(change.current));
        const got = [];
        const all = new Promise((resolve) => { channel.bind('tick', ([n]) => { if (got.push(n) === 1_000) resolve(); }); });
        for (let n = 0; n < 1_000; n += 10) await world.triggerBatch(Array.from({ length: 10 }, (_, i) => ({ channel: channel.name, name: 'tick', data: [n + i, 'ü🦖"'.repeat(300)] })));
        await all;
        await new Promise((resolve) => { setTimeout(resolve, 300); });
        const asked = performance.getEntriesByType('resource').filter(({ name }) => name.includes('/xhr')).length;
        return [[...got, ...errors], asked];
      });
      assert.deepEqual(numbers, Array.from({ length: 1_000 }, (_, n) => n));
      assert.ok(requests > 5, `${requests} requests`);
    });
  }
});
