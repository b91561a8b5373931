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
const raptor = await startObserved({ config: { apps: [app], refusals_per_address_per_sec_max: PER_SEC } });
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
  return statuses(await converse(raptor, requests.join('') + last, { ms: 20_000 }));
}

const statuses = (text) => text.match(/HTTP\/1\.1 \d+/g).map((line) => Number(line.slice(-3)));

const from = (address) => `X-Forwarded-For: ${address}\r\n`;
const get = (target, more = '') => `GET ${target} HTTP/1.1\r\nHost: x\r\n${more}\r\n`;
const posted = (messages, more = '') => {
  const body = JSON.stringify(messages);
  return `POST /faye HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n${more}Content-Length: ${body.length}\r\n\r\n${body}`;
};
const CHANNELS = `/apps/${app.id}/channels`;
const accepted = () => signedTarget({ app, method: 'GET', path: CHANNELS });
const refusedMessages = Array(5).fill({ channel: '/private/room', data: 'x' });

const MESSAGES = 'control_messages_per_sec_max';
const REFUSALS = 'refusals_per_address_per_sec_max';
/** Those that are held up have an address each, so that none has to wait for what another test did. */
const REQUESTS = [
  ['that are refused are held up', REFUSALS, 401, Array(TIMES).fill(get(CHANNELS, from('203.0.113.1')))],
  ['for what nobody serves are held up', REFUSALS, 404, Array(TIMES).fill(get('/nowhere', from('203.0.113.2')))],
  ['that a proxy passes on for many addresses are not', null, 401, Array.from({ length: TIMES }, (_, n) => get(CHANNELS, from(`198.51.${n >> 8}.${n & 255}`)))],
  ['that are accepted are not', null, 200, Array(TIMES).fill(get(accepted(), from('203.0.113.1')))],
  ['with messages of Bayeux that publish nothing are held up', MESSAGES, 200, Array(TIMES / 5).fill(posted(refusedMessages))],
  ['with such messages that a proxy passes on are not: others come by its connection too', null, 200, Array(TIMES / 5).fill(posted(refusedMessages, from('203.0.113.3')))],
  ['with messages that are published are not', null, 200, Array(TIMES / 5).fill(posted(Array(5).fill({ channel: '/news', data: 'x' })))],
];

for (const [which, limit, status, requests] of REQUESTS) {
  test(`requests over one connection ${which}`, { timeout: 30_000 }, async () => {
    const waits = async () => (await heldUp(MESSAGES)) + (await heldUp(REFUSALS));
    const [ofLimit, ofAny] = [await heldUp(limit ?? MESSAGES), await waits()];
    const ms = await took(async () => assert.deepEqual(await pipelined(requests), [...requests.map(() => status), 200]));
    if (limit !== null) {
      assert.ok(ms >= HELD_UP_MS, `${ms} ms`);
      assert.ok((await heldUp(limit)) > ofLimit);
    } else {
      assert.ok(ms < AT_ONCE_MS, `${ms} ms`);
      assert.equal(await waits(), ofAny);
    }
  });
}

/** As often as it takes, four at a time. */
async function overAndOver(work) {
  let left = TIMES;
  const lane = async () => {
    while (left > 0) {
      left -= 1;
      await work();
    }
  };
  await Promise.all([lane(), lane(), lane(), lane()]);
}

const closing = { 'a message that is none': [`/app/${app.key}?protocol=7`, 1002], 'an app that there is not': ['/app/nobody?protocol=7', 4001] };
const OVER_NEW_CONNECTIONS = {
  'a request that is refused': async (headers) => {
    const text = `${Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join('')}Connection: close\r\n`;
    assert.deepEqual(statuses(await converse(raptor, get(CHANNELS, text))), [401]);
  },
};
for (const [what, [path, code]] of Object.entries(closing)) {
  OVER_NEW_CONNECTIONS[what] = async (headers) => {
    const socket = await WebSocket.open({ port: raptor.port, path, headers });
    if (code === 1002) socket.sendFrame({ opcode: 1, payload: 'x', rsv: 4 });
    for (;;) {
      const arrived = await socket.next();
      if (arrived.type === 'close') {
        assert.equal(arrived.code, code);
        return;
      }
    }
  };
}

Object.entries(OVER_NEW_CONNECTIONS).forEach(([what, work], nth) => {
  test(`${what}, over a new connection each: its address waits for more of it, and for nothing else`, { timeout: 30_000 }, async () => {
    const before = await heldUp(REFUSALS);
    const address = `192.0.2.${nth}`;
    const headers = { 'X-Forwarded-For': address };
    let isOver = false;
    const others = (async () => {
      for (let slowest = 0; ; ) {
        const ms = await took(async () => {
          assert.deepEqual(await pipelined([get(accepted(), from(address))]), [200, 200]);
          assert.deepEqual(await pipelined([get(CHANNELS, from('192.0.2.100'))]), [401, 200]);
        });
        slowest = Math.max(slowest, ms);
        if (isOver) return slowest;
        await sleep(100);
      }
    })();
    const ms = await took(() => overAndOver(() => work(headers)));
    isOver = true;
    assert.ok(ms >= HELD_UP_MS, `${ms} ms`);
    assert.ok((await heldUp(REFUSALS)) > before);
    assert.ok((await others) < 250, `${await others} ms`);
  });
});
