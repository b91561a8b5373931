// Laravel Echo in pages without WebSockets, with the options of the README: over HTTP, on its own host alone, in a page of that host and of another.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createServer, request as startRequest } from 'node:http';
import { once } from 'node:events';
import { describe, test } from 'node:test';

import { startApplication } from '../support/application.js';
import { atEnd } from '../support/at-end.js';
import { openPage } from '../support/in-page.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';

const FILES = {
  '/pusher.js': '../node_modules/pusher-js-8.6/dist/web/pusher.min.js',
  '/echo.js': '../node_modules/laravel-echo/dist/echo.iife.js',
};

/** A host with the page and the two scripts, and, `with` a server, that server behind it. Upgrades are refused. */
async function startHost({ behind } = {}) {
  const host = createServer(async (request, response) => {
    if (FILES[request.url]) return response.setHeader('Content-Type', 'text/javascript').end(await readFile(new URL(FILES[request.url], import.meta.url)));
    if (request.url === '/') return response.setHeader('Content-Type', 'text/html').end('<!doctype html><script src="/pusher.js"></script><script src="/echo.js"></script>');
    if (!behind) return response.writeHead(404).end();
    const { method, url: path, headers } = request;
    const onward = startRequest({ port: behind.port, host: '127.0.0.1', method, path, headers }, (answer) => answer.pipe(response.writeHead(answer.statusCode, answer.headers)));
    onward.on('error', () => response.destroy());
    response.on('close', () => onward.destroy());
    request.pipe(onward);
  });
  host.on('upgrade', (_, socket) => socket.end('HTTP/1.1 403 Forbidden\r\n\r\n'));
  host.listen(0, '127.0.0.1');
  await once(host, 'listening');
  atEnd(() => { host.close(); host.closeAllConnections(); });
  return host.address();
}

describe('Laravel Echo without WebSockets', { concurrency: 1, timeout: 60_000 }, () => {
  for (const sameOrigin of [true, false]) {
    test(`hears everything in a page of ${sameOrigin ? 'the same' : 'another'} origin, and asks no other host`, async () => {
      const server = await startRaptor();
      const application = await startApplication(server);
      const pageHost = await startHost(sameOrigin ? { behind: server } : {});
      const { port } = sameOrigin ? pageHost : await startHost({ behind: server });
      const page = await openPage();
      await page.exposeFunction('trigger', (...args) => application.calls.trigger(...args));
      const hosts = new Set();
      page.on('request', (request) => hosts.add(new URL(request.url()).host));
      page.on('websocket', (socket) => hosts.add(new URL(socket.url()).host));
      await page.goto(`http://127.0.0.1:${pageHost.port}/`);
      const heard = await page.evaluate(async ([key, at, auth]) => {
        const params = (member) => ({ member: JSON.stringify(member) });
        const echoOf = (member) => new Echo.default({
          broadcaster: 'pusher', key, cluster: 'any',
          wsHost: '127.0.0.1', wsPort: at, wssPort: at,
          httpHost: '127.0.0.1', httpPort: at, httpsPort: at,
          statsHost: `127.0.0.1:${at}`, enableStats: true,
          forceTLS: false,
          disabledTransports: ['sockjs'],
          channelAuthorization: { transport: 'ajax', endpoint: auth, params: params(member) },
        });
        const got = [];
        const say = (what) => (...args) => got.push([what, ...args]);
        const [ann, bob] = [echoOf({ user_id: 'ann' }), echoOf({ user_id: 'bob' })];
        const subscribed = (channel) => new Promise((resolve, reject) => { channel.subscribed(resolve).error(reject); });
        const orders = ann.channel('orders').listen('OrderShipped', say('shipped'));
        const secret = ann.private('secret').listenForWhisper('typing', say('whisper'));
        await Promise.all([subscribed(orders), subscribed(secret)]);
        const room = ann.join('room').here(say('here')).joining(say('joining')).leaving(say('leaving'));
        await subscribed(room);
        const [bobsSecret, bobsRoom] = [bob.private('secret'), bob.join('room')];
        await Promise.all([subscribed(bobsSecret), subscribed(bobsRoom)]);
        bobsSecret.whisper('typing', { n: 1 });
        await window.trigger('orders', 'App\\Events\\OrderShipped', { order: 7 });
        await window.trigger('orders', 'App\\Events\\OrderShipped', { order: 8 }, { socket_id: ann.socketId() });
        bob.leave('room');
        await new Promise((resolve, reject) => {
          const end = setTimeout(() => reject(new Error(JSON.stringify(got))), 10_000);
          const look = () => (got.some(([what]) => what === 'leaving') && got.some(([what]) => what === 'whisper') && got.some(([what]) => what === 'shipped') ? (clearTimeout(end), resolve()) : setTimeout(look, 20));
          look();
        });
        return { got, transport: ann.connector.pusher.connection.connection.transport.name };
      }, [TEST_APP.key, port, `${application.url}/pusher/auth`]);
      assert.match(heard.transport, /^xhr_(streaming|polling)$/);
      const of = (what) => heard.got.filter(([name]) => name === what).map(([, value]) => value);
      assert.deepEqual(of('shipped'), [{ order: 7 }]);
      assert.deepEqual(of('whisper'), [{ n: 1 }]);
      assert.deepEqual([of('here').length, of('joining').length, of('leaving').length], [1, 1, 1]);
      for (const mine of [new URL(application.url).host, `127.0.0.1:${pageHost.port}`]) if (mine !== `127.0.0.1:${port}`) hosts.delete(mine);
      assert.deepEqual([...hosts], [`127.0.0.1:${port}`]);
    });
  }
});
