// What a hostile peer tries costs it its connection, has a counter, and does not make others wait.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { deflateRawSync, gzipSync } from 'node:zlib';
import { describe, test } from 'node:test';

import { SOON_MS, sleep, until } from '../support/events.js';
import { atEnd } from '../support/at-end.js';
import { Api } from '../rest/api.js';
import { sample, startObserved } from '../operate/metrics.js';
import { APP, Peer, appNamed, stillServes } from './peer.js';

const HALF_OPEN = 1_000;
const SUBSCRIPTIONS = 100_000;
/** What a publisher and its subscriber wait for at most while a flood goes on that keeps this very process busy too; a stalled server takes longer. */
const LATENCY_MS_MAX = 2_000;

/** All that it asks for is refused at once; how others are held up, `operate/held-up` shows. */
const greedy = appNamed('greedy', { limits: { subscriptions_per_connection_max: 1_000, control_messages_per_sec_max: 1_000_000 } });
const raptor = await startObserved({ config: { apps: [APP, greedy], handshake_timeout_secs: 2 } });
const api = new Api(raptor, APP);
const cutOffs = (cause) => sample(raptor, `raptor_cut_offs_total{cause="${cause}"}`);
const refusals = (limit) => sample(raptor, `raptor_refusals_total{limit="${limit}"}`);

function rawSocket() {
  const socket = connect(raptor.port, '127.0.0.1');
  socket.on('error', () => {});
  atEnd(() => socket.destroy());
  return { socket, closed: new Promise((resolve) => socket.on('close', resolve)) };
}

/** Publishes and receives on another app's connection for as long as `flood` goes on: nobody else's flood may slow it. */
async function othersDoNotWait(flood) {
  const peer = await Peer.connect(raptor);
  await peer.subscribe('bystander');
  let over = false;
  const flooding = flood().finally(() => (over = true));
  const took = [];
  do {
    const begin = Date.now();
    await api.trigger('bystander', 'e', 'x');
    assert.equal((await peer.frame()).event, 'e');
    took.push(Date.now() - begin);
    await sleep(5);
  } while (!over);
  await flooding;
  took.sort((a, b) => a - b);
  assert.ok(took[Math.floor(took.length * 0.99)] < LATENCY_MS_MAX, `the others waited ${took.slice(-5)} ms`);
  await peer.close();
}

describe('one that sends', { timeout: 120_000 }, () => {
  test('a head byte by byte is cut off in time, a thousand of them at once too', async () => {
    const accepted = () => sample(raptor, 'raptor_accepted_connections_total');
    const before = (await accepted()) - (await cutOffs('head_timeout'));
    const sockets = Array.from({ length: HALF_OPEN }, rawSocket);
    await othersDoNotWait(async () => {
      const begin = Date.now();
      const drip = setInterval(() => sockets.forEach(({ socket }) => socket.writable && socket.write('x')), 200);
      sockets.forEach(({ socket }) => { socket.resume(); socket.write(`GET /app/${APP.key} HTTP/1.1\r\nHost: `); });
      await Promise.all(sockets.map(({ closed }) => closed));
      clearInterval(drip);
      assert.ok(Date.now() - begin < 2_000 + 2 * SOON_MS, 'a peer kept its connection by sending a byte now and then');
    });
    const others = (await accepted()) - (await cutOffs('head_timeout')) - before;
    assert.ok(others <= 3, `${others} connections that were accepted were not cut off for their head`);
    assert.ok((await cutOffs('head_timeout')) > HALF_OPEN / 2);
  });

  test('nothing at all is cut off in time', async () => {
    const before = await cutOffs('head_timeout');
    const { socket, closed } = rawSocket();
    socket.resume();
    await closed;
    assert.equal((await cutOffs('head_timeout')) - before, 1);
  });

  test('100,000 subscriptions has as many as its app allows, and an error for each other one', async () => {
    const peer = await Peer.connect(raptor, { app: greedy });
    await othersDoNotWait(async () => {
      let sent = 0;
      let [succeeded, refused] = [0, 0];
      while (succeeded + refused < SUBSCRIPTIONS) {
        for (; sent < SUBSCRIPTIONS && sent < succeeded + refused + 100; sent += 1) peer.askToSubscribe(`c-${sent}`);
        const frame = await peer.frame(20_000);
        if (frame.event === 'pusher_internal:subscription_succeeded') succeeded += 1;
        if (frame.event === 'pusher:subscription_error') refused += 1;
      }
      assert.deepEqual([succeeded, refused], [1_000, SUBSCRIPTIONS - 1_000]);
    });
    assert.equal(await refusals('subscriptions_per_connection_max'), SUBSCRIPTIONS - 1_000);
    assert.equal(await sample(raptor, 'raptor_subscriptions{app="greedy"}'), 1_000);
    await peer.close();
    await until(async () => (await sample(raptor, 'raptor_subscriptions{app="greedy"}')) === 0, 'they have gone with it');
  });

  test('client events without end is told 4301 for those beyond its rate, and the others do not wait', async () => {
    const [flooder, listener] = [await Peer.connect(raptor, { app: greedy }), await Peer.connect(raptor, { app: greedy })];
    for (const peer of [flooder, listener]) await peer.subscribe('private-room');
    const before = await refusals('client_events_per_sec_max');
    let refused = 0;
    await othersDoNotWait(async () => {
      const end = Date.now() + 2_000;
      while (Date.now() < end) {
        for (let n = 0; n < 100; n += 1) flooder.send({ event: 'client-flood', channel: 'private-room', data: 'x' });
        for (const frame of await flooder.arrivingNow()) {
          assert.equal(frame.data.code, 4301);
          refused += 1;
        }
      }
    });
    assert.ok(refused > 1_000, `${refused} were refused`);
    assert.equal((await refusals('client_events_per_sec_max')) - before, refused);
    const got = (await listener.arrivingNow()).length;
    assert.ok(got >= 10 && got < 60, `${got} got through`);
  });

  test('a message that is too large, or no message at all, is closed and counted', async () => {
    for (const [cause, code, frame] of [
      ['message_too_large', 1009, { opcode: 1, payload: Buffer.alloc(70_000, 'x') }],
      ['message_too_large', 1009, { opcode: 1, payload: 'x', length: 2n ** 40n }],
      ['protocol_error', 1002, { opcode: 1, payload: 'x', rsv: 4 }],
    ]) {
      const before = await cutOffs(cause);
      const peer = await Peer.connect(raptor);
      peer.socket.sendFrame(frame);
      await peer.isClosedSilently(code);
      assert.equal((await cutOffs(cause)) - before, 1, cause);
    }
  });

  test('a body that is too large is a 413 and counted', async () => {
    const before = await cutOffs('body_too_large');
    const answer = await api.post('/events', 'x'.repeat(2_000_000));
    assert.equal(answer.status, 413);
    assert.equal((await cutOffs('body_too_large')) - before, 1);
  });

  test('something compressed is not unpacked: it was agreed upon by nobody, and no body is', async () => {
    const offering = await Peer.connect(raptor, { headers: { 'Sec-WebSocket-Extensions': 'permessage-deflate; client_max_window_bits' } });
    assert.equal(offering.socket.answer.headers['sec-websocket-extensions'], undefined);
    const before = await cutOffs('protocol_error');
    offering.socket.sendFrame({ opcode: 1, payload: deflateRawSync(Buffer.alloc(50_000_000)), rsv: 4 });
    await offering.isClosedSilently(1002);
    assert.equal((await cutOffs('protocol_error')) - before, 1);
    const bomb = gzipSync(JSON.stringify({ name: 'e', channels: ['c'], data: 'x'.repeat(50_000_000) }));
    const memory = await sample(raptor, 'process_resident_memory_bytes');
    for (let n = 0; n < 20; n += 1) assert.equal((await api.post('/events', bomb, { headers: { 'Content-Encoding': 'gzip', 'Content-Type': 'application/json' } })).status, 400);
    assert.ok((await sample(raptor, 'process_resident_memory_bytes')) - memory < 20_000_000, 'nothing was unpacked');
  });

  test('pings without end and reads nothing is cut off', async () => {
    const server = await startObserved({ config: { apps: [greedy], write_timeout_secs: 1 } });
    const peer = await Peer.connect(server, { app: greedy });
    peer.socket.stopReading();
    const count = async () => (await sample(server, 'raptor_cut_offs_total{cause="write_timeout"}')) + (await sample(server, 'raptor_cut_offs_total{cause="slow_consumer"}'));
    for (let n = 0; (await count()) === 0; n += 1) {
      assert.ok(n < 2_000, 'it was never cut off');
      for (let i = 0; i < 1_000; i += 1) peer.socket.sendFrame({ opcode: 9, payload: Buffer.alloc(125, 'x') });
      await sleep(1);
    }
  });
});

test('after all this the server is as before', async () => {
  await stillServes(raptor, api);
  const open = () => sample(raptor, 'raptor_open_connections');
  await until(async () => (await open()) < 20, 'the connections have gone');
});
