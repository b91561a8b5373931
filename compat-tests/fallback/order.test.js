// Messages stay in the order in which pusher-js sent them, though each is a request of its own and the network delays requests as it likes.

import assert from 'node:assert/strict';
import { once as nodeOnce } from 'node:events';
import { createServer, request as startRequest } from 'node:http';
import { describe, test } from 'node:test';

import { atEnd } from '../support/at-end.js';
import { collect, sleep } from '../support/events.js';
import { serveWorld } from '../support/in-page.js';
import { worldInNode } from '../support/in-node.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';

const COUNT = 60;
const LATE_MS = 400;

/** Passes requests on, those that send after a time of their own; `lose(n)`: of the n-th of them nothing arrives. */
async function startNetwork(server, { lose = () => false, lateMs = LATE_MS } = {}) {
  let nth = 0;
  const network = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method, url: path, headers } = request;
    if (method === 'POST' && path.includes('/xhr_send')) {
      nth += 1;
      if (lose(nth)) return response.destroy();
      await sleep((nth * 7919) % lateMs); // in no order, and the same each time
    }
    const onward = startRequest({ port: server.port, host: '127.0.0.1', method, path, headers, agent: false }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
      answer.on('error', () => response.destroy());
    });
    onward.on('error', () => response.destroy());
    response.on('close', () => onward.destroy());
    onward.end(Buffer.concat(chunks));
  });
  network.listen(0, '127.0.0.1');
  await nodeOnce(network, 'listening');
  atEnd(() => { network.close(); network.closeAllConnections(); });
  return network.address();
}

const serverOf = () => startRaptor({ config: { apps: [{ ...TEST_APP, limits: { client_events_per_sec_max: 10_000 } }] } });
const numbers = Array.from({ length: COUNT }, (_, n) => n);

describe('messages that are delayed on their way', { concurrency: 1, timeout: 60_000 }, () => {
  for (const version of ['4.4', '5.1', '7.6', '8.6']) {
    test(`stay in order, of pusher-js ${version} with two clients in one process`, async () => {
      const server = await serverOf();
      const network = await startNetwork(server);
      const listeners = await worldInNode('8.6', server);
      const senders = await worldInNode(version, network, { connection: { enabledTransports: ['xhr_streaming'] } });
      const said = [];
      const speak = [];
      for (const client of [await senders.connect(), await senders.connect()]) {
        const name = senders.name('private-');
        said.push(collect(await listeners.subscribe(await listeners.connect(), name), 'client-tick'));
        speak.push(await senders.subscribe(client, name));
      }
      for (const n of numbers) {
        speak.forEach((channel) => channel.trigger('client-tick', n));
        if (n % 7 === 0) await sleep(20);
      }
      for (const heard of said) assert.deepEqual([...await heard.until(COUNT, 20_000)], numbers);
    });
  }

  test('stay in order, of two clients in a page of the same origin, which needs no preflights', async () => {
    const server = await serverOf();
    const network = await startNetwork(server);
    const page = await (await serveWorld('8.6', network, { transports: ['xhr_polling'], sameOrigin: true })).open();
    const listeners = await worldInNode('8.6', server);
    const names = [listeners.name('private-'), listeners.name('private-')];
    const said = [];
    for (const name of names) said.push(collect(await listeners.subscribe(await listeners.connect(), name), 'client-tick'));
    await page.evaluate(async ([channels, count]) => {
      const speak = [];
      for (const name of channels) speak.push(await world.subscribe(await world.connect(), name));
      for (let n = 0; n < count; n += 1) {
        speak.forEach((channel) => channel.trigger('client-tick', n));
        if (n % 7 === 0) await new Promise((resolve) => { setTimeout(resolve, 20); });
      }
    }, [names, COUNT]);
    for (const heard of said) assert.deepEqual([...await heard.until(COUNT, 40_000)], numbers);
  });

  test('that never come hold up the others once, and not for long', async () => {
    const server = await serverOf();
    // One of ten is lost. Then a number that is missing is waited for 200 ms only.
    const network = await startNetwork(server, { lose: (nth) => nth % 10 === 0, lateMs: 100 });
    const listeners = await worldInNode('8.6', server);
    const senders = await worldInNode('8.6', network, { connection: { enabledTransports: ['xhr_streaming'] } });
    const name = senders.name('private-');
    const heard = collect(await listeners.subscribe(await listeners.connect(), name), 'client-tick');
    const channel = await senders.subscribe(await senders.connect(), name);
    const began = Date.now();
    for (const n of numbers) {
      channel.trigger('client-tick', n);
      await sleep(5);
    }
    const lost = COUNT / 10;
    const came = [...await heard.until(COUNT - lost, 20_000)];
    assert.deepEqual(came, [...came].sort((a, b) => a - b));
    assert.ok(Date.now() - began < 2_000 + lost * 200 + COUNT * 10 + 3_000, `${Date.now() - began} ms`);
  });
});
