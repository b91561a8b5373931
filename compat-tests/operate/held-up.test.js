// Who asks again and again for what comes to nothing is read more slowly: it is answered, only later, and misses nothing meanwhile.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { converse } from '../support/converse.js';
import { sleep } from '../support/events.js';
import { Api, signedTarget } from '../rest/api.js';
import { Peer, appNamed } from '../raw/peer.js';
import { WebSocket } from '../raw/websocket.js';
import { sample, startObserved } from './metrics.js';

const PER_SEC = 200;
/** 200 at once, and as many in each of the two seconds after that; those that HTTP answers in one turn count after it. */
const TIMES = 3 * PER_SEC;
const HELD_UP_MS = 1_500;
/** Nobody is held up who has that within so much time. */
const AT_ONCE_MS = 1_000;

const app = appNamed('patient', {
  limits: { control_messages_per_sec_max: PER_SEC, client_events_per_sec_max: 1_000 },
  bayeux: { mounts: ['/faye'], client_publish: 'open', messages_per_request_max: 1_000 },
});
const raptor = await startObserved({ config: { apps: [app], refused_requests_per_sec_max: PER_SEC } });
const api = new Api(raptor, app);
const heldUp = (limit) => sample(raptor, `raptor_refusals_total{limit="${limit}"}`);

const subscribed = async () => {
  const peer = await Peer.connect(raptor, { app });
  await peer.subscribe('private-room');
  return peer;
};
const trigger = (peer, event = 'client-e') => peer.send({ event, channel: 'private-room', data: 'x' });

async function took(work) {
  const begin = Date.now();
  await work();
  return Date.now() - begin;
}

const OVER_AND_OVER = {
  'pusher:ping': [(peer) => peer.send({ event: 'pusher:ping' }), { event: 'pusher:pong' }],
  'no JSON': [(peer) => peer.socket.sendText('{'), { event: 'pusher:error' }],
  'a subscription that it has': [(peer) => peer.askToSubscribe('private-room'), { event: 'pusher:error' }],
  'to leave where it is not': [(peer) => peer.unsubscribe('nowhere'), { event: 'pusher:error' }],
  'an event that it may not send': [(peer) => trigger(peer, 'no-client-event'), { event: 'pusher:error' }],
};

for (const [what, [send, expected]] of Object.entries(OVER_AND_OVER)) {
  test(`${what}, over and over: each is answered, no faster than the app allows, and events come meanwhile`, { timeout: 30_000 }, async () => {
    const before = await heldUp('control_messages_per_sec_max');
    const peer = await subscribed();
    let events = 0;
    const ms = await took(async () => {
      for (let n = 0; n < TIMES; n += 1) send(peer);
      const publishing = (async () => {
        for (let n = 0; n < 5; n += 1) {
          await sleep(200);
          await api.trigger('private-room', 'e', Date.now());
        }
      })();
      for (let answers = 0; answers < TIMES; ) {
        const { event, data } = await peer.frame();
        if (event === 'e') {
          events += 1;
          assert.ok(Date.now() - Number(data) < AT_ONCE_MS, 'an event waited');
        } else {
          assert.equal(event, expected.event);
          answers += 1;
        }
      }
      await publishing;
    });
    assert.equal(events, 5);
    assert.ok(ms >= HELD_UP_MS, `${ms} ms`);
    assert.ok((await heldUp('control_messages_per_sec_max')) > before);
    await peer.close();
  });
}

test('pings of the WebSocket, over and over', { timeout: 30_000 }, async () => {
  const peer = await subscribed();
  const ms = await took(async () => {
    for (let n = 0; n < TIMES; n += 1) peer.socket.sendFrame({ opcode: 9, payload: 'x' });
    for (let n = 0; n < TIMES; n += 1) assert.equal((await peer.socket.next()).type, 'pong');
  });
  assert.ok(ms >= HELD_UP_MS, `${ms} ms`);
  await peer.close();
});

test('what has a limit of its own is not held up: subscriptions and client events', async () => {
  const before = await heldUp('control_messages_per_sec_max');
  const [peer, listener] = [await subscribed(), await subscribed()];
  const ms = await took(async () => {
    for (let n = 0; n < TIMES; n += 1) peer.askToSubscribe(`c-${n}`);
    for (let n = 0; n < TIMES; n += 1) trigger(peer);
    assert.equal((await peer.arrivingNow()).length, TIMES);
  });
  assert.equal((await listener.arrivingNow()).length, TIMES);
  assert.ok(ms < AT_ONCE_MS, `${ms} ms`);
  assert.equal(await heldUp('control_messages_per_sec_max'), before);
});

test('over Bayeux it is whatever publishes nothing', { timeout: 30_000 }, async () => {
  for (const [channel, isHeldUp] of [['/news', false], ['/private/room', true]]) {
    const socket = await WebSocket.open({ port: raptor.port, path: '/faye' });
    const ms = await took(async () => {
      for (let n = 0; n < TIMES; n += 1) socket.sendText(JSON.stringify([{ channel, data: n, id: String(n) }]));
      for (let n = 0; n < TIMES; n += 1) {
        const [{ id, successful }] = JSON.parse((await socket.next()).text);
        assert.deepEqual([id, successful], [String(n), !isHeldUp]);
      }
    });
    assert.equal(ms >= HELD_UP_MS, isHeldUp, `${channel}: ${ms} ms`);
    assert.ok(isHeldUp || ms < AT_ONCE_MS, `${ms} ms`);
  }
});

/** Sends all requests over one connection at once, and resolves with the statuses of the answers. */
async function pipelined(requests) {
  const last = 'GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n';
  const text = await converse(raptor, requests.join('') + last, { ms: 20_000 });
  return text.match(/HTTP\/1\.1 \d+/g).map((line) => Number(line.slice(-3)));
}

const get = (target, more = '') => `GET ${target} HTTP/1.1\r\nHost: x\r\n${more}\r\n`;
const posted = (messages) => {
  const body = JSON.stringify(messages);
  return `POST /faye HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
};

const REQUESTS = [
  ['that are refused are held up', true, 401, Array(TIMES).fill(get(`/apps/${app.id}/channels`))],
  ['for what nobody serves are held up', true, 404, Array(TIMES).fill(get('/nowhere'))],
  ['with messages of Bayeux that publish nothing are held up', true, 200, Array(TIMES / 5).fill(posted(Array(5).fill({ channel: '/private/room', data: 'x' })))],
  ['that a proxy passes on are not: others come by its connection too', false, 401, Array(TIMES).fill(get(`/apps/${app.id}/channels`, 'X-Forwarded-For: 203.0.113.1\r\n'))],
  ['that are accepted are not', false, 200, Array(TIMES).fill(get(signedTarget({ app, method: 'GET', path: `/apps/${app.id}/channels` })))],
  ['with messages that are published are not', false, 200, Array(TIMES / 5).fill(posted(Array(5).fill({ channel: '/news', data: 'x' })))],
];

for (const [which, isHeldUp, status, requests] of REQUESTS) {
  test(`requests over one connection ${which}`, { timeout: 30_000 }, async () => {
    const before = await heldUp('refused_requests_per_sec_max');
    const ms = await took(async () => assert.deepEqual(await pipelined(requests), [...requests.map(() => status), 200]));
    if (isHeldUp) assert.ok(ms >= HELD_UP_MS, `${ms} ms`);
    else assert.ok(ms < AT_ONCE_MS, `${ms} ms`);
    assert.equal((await heldUp('refused_requests_per_sec_max')) > before, isHeldUp);
  });
}
