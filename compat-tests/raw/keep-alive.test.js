// Who is alive, and who finds out (`pusher.md` 1.4). These tests wait; they run side by side.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { APP, Peer, json, stillServes } from './peer.js';
import { PING, PONG } from './websocket.js';

const PONG_FRAME = { event: 'pusher:pong', data: '{}' };

const raptor = await startRaptor({ config: { apps: [APP] } });
const impatient = await startRaptor({ config: { apps: [APP], activity_timeout_secs: 1, pong_timeout_secs: 2 } });
/** The server has noticed silence, pinged and given up by then, with time to spare. */
const GIVEN_UP_MS = 7_000;

for (const [words, message] of [
  ['an object', '{"event":"pusher:ping","data":{}}'],
  ['no data', '{"event": "pusher:ping"}'],
  ['null', '{"event":"pusher:ping","data":null}'],
  ['an empty string', '{"event":"pusher:ping","data":""}'],
  ['a string of JSON', '{"data":"{}","event":"pusher:ping"}'],
]) {
  test(`pusher:ping with ${words} is answered with pusher:pong`, async () => {
    const peer = await Peer.connect(raptor);
    peer.socket.sendText(message);
    await peer.receives(PONG_FRAME);
  });
}

test('pusher:pong is ignored', async () => {
  const peer = await Peer.connect(raptor);
  for (const data of ['{}', '{}', 'null', '"{}"']) peer.socket.sendText(`{"event":"pusher:pong","data":${data}}`);
  peer.socket.sendText('{"event":"pusher:pong"}');
  await peer.receivesNothing();
});

test('a WebSocket ping is answered with its own payload', async () => {
  const peer = await Peer.connect(raptor);
  for (const payload of ['', 'x', 'p'.repeat(125)]) {
    peer.socket.sendFrame({ opcode: PING, payload });
    assert.deepEqual(await peer.socket.next(), { type: 'pong', payload: Buffer.from(payload) });
  }
});

test('the server does not ping within the default two minutes of silence that it granted', async () => {
  const peer = await Peer.connect(raptor, { answerPings: false });
  await sleep(1_500);
  await peer.receivesNothing();
});

describe('with an activity timeout of a second', { concurrency: true }, () => {
  test('a silent peer is pinged, and closed with 4201 if nothing comes back', async () => {
    const peer = await Peer.connect(impatient, { answerPings: false });
    assert.equal((await peer.socket.next(GIVEN_UP_MS)).type, 'ping');
    await peer.isClosed(4201, 'Pong reply not received');
  });

  test('a peer whose network is gone leaves its presence channel', async () => {
    const [witness, ghost] = [await Peer.connect(impatient), await Peer.connect(impatient, { answerPings: false })];
    await witness.join('presence-ghosts', 'witness');
    await ghost.join('presence-ghosts', 'ghost');
    await witness.receives({ event: 'pusher_internal:member_added', channel: 'presence-ghosts', data: json({ user_id: 'ghost' }) });
    assert.deepEqual(await witness.frame(GIVEN_UP_MS), {
      event: 'pusher_internal:member_removed',
      channel: 'presence-ghosts',
      data: '{"user_id":"ghost"}',
    });
  });

  /** Never answers a ping; `speak` is called five times a second. */
  async function stays(speak) {
    const peer = await Peer.connect(impatient, { answerPings: false });
    const end = Date.now() + GIVEN_UP_MS;
    while (Date.now() < end) {
      speak(peer);
      await sleep(200);
    }
    assert.ok(!peer.socket.ended);
    return peer;
  }

  test('a peer that answers pings and never says anything stays', async () => {
    const peer = await Peer.connect(impatient);
    await sleep(GIVEN_UP_MS);
    await peer.isAlive();
  });

  test('a peer that sends messages stays, though it answers no ping', () => stays((peer) => peer.send({ event: 'pusher:ping' })));
  test('a peer that sends messages the server refuses stays', () => stays((peer) => peer.socket.sendText('nonsense')));
  test('a peer that sends WebSocket pings stays', () => stays((peer) => peer.socket.sendFrame({ opcode: PING })));
  test('a peer that sends unasked pongs stays', () => stays((peer) => peer.socket.sendFrame({ opcode: PONG })));

  test('a peer that only listens to a busy channel is not taken for dead while it answers pings', async () => {
    const peer = await Peer.connect(impatient);
    await peer.subscribe('busy');
    const api = new Api(impatient, APP);
    const end = Date.now() + GIVEN_UP_MS;
    for (let n = 0; Date.now() < end; n += 1) {
      await api.trigger('busy', 'tick', String(n));
      await peer.receives({ event: 'tick', channel: 'busy', data: String(n) });
      await sleep(100);
    }
  });

  test('a peer that closes politely gets its close frame back', async () => {
    const peer = await Peer.connect(impatient);
    peer.socket.close(1000, 'bye');
    const close = await peer.socket.next();
    assert.deepEqual([close.type, close.code], ['close', 1000]);
    assert.deepEqual(await peer.socket.next(), { type: 'end' });
  });
});

test('after all that the server still serves', async () => {
  await stillServes(impatient, new Api(impatient, APP));
});
