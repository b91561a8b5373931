// One channel, many clients of both protocols, three kinds of publishers at once: everybody sees the same, in the same order.
//
// ORDER_CLIENTS: how many clients of each protocol, ORDER_PUBLISHES: how many messages for each transport.

import assert from 'node:assert/strict';
import { Agent, request } from 'node:http';
import { describe, test } from 'node:test';

import { pusherLibrary } from '../support/application.js';
import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { startBridge } from './support/bridge.js';
import { handshake } from './support/http.js';

const CLIENTS = Number(process.env.ORDER_CLIENTS ?? 100);
const PUBLISHES = Number(process.env.ORDER_PUBLISHES ?? 2_000);
/** How far the slowest client may be behind the publishers: far less than a session's queue holds. */
const LAG_MAX = 300;
/** Messages that a publisher sends at once: a batch of the HTTP API holds no more. */
const BURST = 10;
const RUN_MS = 600_000;

const { server, application, pusher, bayeux, signing } = await startBridge({ app: { limits: { client_events_per_sec_max: 1_000_000 } } });
const library = pusherLibrary(server);

/** Ways for a session to receive on `/private/NAME`. Each resolves, once it is subscribed, with the growing list of data. */
const RECEIVERS = {
  websocket: (name) => receiveByFaye(name),
  'long-polling': (name) => receiveByFaye(name, 'websocket'),
  eventsource: receiveByStream,
  'cross-origin-long-polling': (name) => receiveByPolling(name, async (message) => JSON.parse(await exchange(server.url, { method: 'POST', headers: { Origin: 'http://app.example', Pragma: 'no-cache' } }, form({ message })))),
  'callback-polling': (name) => receiveByPolling(name, async (message) => JSON.parse((await exchange(`${server.url}?${form({ message, jsonp: 'f' })}`)).slice('/**/f('.length, -');'.length))),
};

async function receiveByFaye(name, disabled) {
  const client = signing();
  if (disabled) client.disable(disabled);
  return bayeux.subscribe(client, `/private/${name}`);
}

async function subscribedSession(name) {
  const session = await handshake(server.url);
  const proof = library.authorizeChannel(session.reply.ext.socket_id, `private-${name}`);
  assert.equal((await session.subscribe(`/private/${name}`, { ext: proof })).successful, true);
  return session;
}

async function receiveByPolling(name, send) {
  const { clientId } = await subscribedSession(name);
  const got = [];
  let isOver = false;
  atEnd(() => { isOver = true; });
  const connect = JSON.stringify({ channel: '/meta/connect', clientId, connectionType: 'long-polling' });
  (async () => {
    while (!isOver) got.push(...(await send(connect)).filter(({ data }) => data !== undefined).map(({ data }) => data));
  })().catch((error) => isOver || got.push(error));
  return got;
}

async function receiveByStream(name) {
  const session = await subscribedSession(name);
  const got = [];
  const abort = new AbortController();
  atEnd(() => abort.abort());
  const stream = await fetch(`${server.url}/${session.clientId}`, { headers: { Accept: 'text/event-stream' }, signal: abort.signal });
  await session.connect(undefined, { connectionType: 'eventsource' });
  (async () => {
    let text = '';
    for await (const chunk of stream.body.pipeThrough(new TextDecoderStream())) {
      const events = (text + chunk).split('\r\n\r\n');
      text = events.pop();
      for (const event of events) if (event.startsWith('data: ')) got.push(...JSON.parse(event.slice('data: '.length)).map(({ data }) => data));
    }
  })().catch((error) => abort.signal.aborted || got.push(error));
  return got;
}

async function receiveByPusher(name) {
  const got = [];
  const channel = await pusher.subscribe(await pusher.connect(), `private-${name}`);
  channel.bind_global((event, data) => { if (!event.startsWith('pusher')) got.push(data); });
  return got;
}

const agent = new Agent({ keepAlive: true });

/** Resolves with the body of the answer. `fetch` is too slow for what is asked here. */
function exchange(url, options = {}, body = undefined) {
  return new Promise((resolve, reject) => {
    request(url, { agent, ...options }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (chunk) => { text += chunk; }).on('end', () => resolve(text)).on('error', reject);
    }).on('error', reject).end(body);
  });
}

function form(fields) {
  return new URLSearchParams(fields).toString();
}

describe(`${CLIENTS} Faye and ${CLIENTS} pusher-js clients, ${PUBLISHES} messages from three kinds of publishers`, { timeout: RUN_MS }, () => {
  for (const [transport, receive] of Object.entries(RECEIVERS)) {
    test(`one order, no gap, no repeat over ${transport}`, async () => {
      const name = `order-${transport}`;
      const lists = [];
      for (let n = 0; n < CLIENTS; n++) lists.push(...(await Promise.all([receive(name), receiveByPusher(name)])));

      const fayePublisher = signing();
      await bayeux.subscribe(fayePublisher, `/private/${name}`);
      const pusherPublisher = await pusher.subscribe(await pusher.connect(), `private-${name}`);
      let published = 0;
      const slowest = () => lists.reduce((least, { length }) => Math.min(least, length), Infinity);
      const publish = async (source, share, send) => {
        for (let n = 0; n < share; n += BURST) {
          await until(() => published - slowest() < LAG_MAX, () => `the slowest has ${slowest()} of ${published}`, RUN_MS);
          const burst = Array.from({ length: Math.min(BURST, share - n) }, (_, index) => `${source}${n + index}`);
          published += burst.length;
          await send(burst);
        }
      };
      const share = Math.floor(PUBLISHES / 3);
      await Promise.all([
        publish('f', share, (burst) => Promise.all(burst.map((data) => bayeux.publish(fayePublisher, `/private/${name}`, data)))),
        publish('p', share, async (burst) => { for (const data of burst) pusherPublisher.trigger('client-event', data); }),
        publish('h', PUBLISHES - 2 * share, (burst) => application.calls.triggerBatch(burst.map((data) => ({ channel: `private-${name}`, name: 'event', data })))),
      ]);
      await until(() => slowest() >= published, () => `the slowest has ${slowest()} of ${published}`, 60_000);

      const [first] = lists;
      assert.equal(new Set(first).size, published);
      for (const list of lists) assert.equal(list.join(), first.join());
      for (const source of ['f', 'p', 'h']) {
        const numbers = first.filter((data) => data.startsWith(source)).map((data) => Number(data.slice(source.length)));
        assert.deepEqual(numbers, numbers.map((_, n) => n), `the order of ${source}`);
      }
      pusher.close();
      bayeux.close();
    });
  }
});
