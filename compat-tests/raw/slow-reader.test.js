// A peer that stops reading costs the others nothing and is cut off at its byte limit (`pusher.md` 1.7: 4100).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { SOON_MS, sleep, until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed, stillServes } from './peer.js';

const EVENTS = 200;
/** All events together exceed what the kernel keeps for a connection on both sides, plus the outbox. */
const DATA = 'x'.repeat(200_000);
/** Publishing, delivering and reading one such event takes a few milliseconds; a stalled delivery takes seconds. */
const LATENCY_MS_MAX = 1_000;

const app = appNamed('large', { limits: { event_data_bytes_max: 300_000 } });
const config = { apps: [app, APP], outbox_bytes_max: 1_000_000 };
const raptor = await startRaptor({ config });
const api = new Api(raptor, app);

/** Publishes numbered events while `healthy` reads them, and returns the longest time from the call to the frame. */
async function publishPast(healthy, channel) {
  let slowest = 0;
  for (let n = 0; n < EVENTS; n += 1) {
    const begin = Date.now();
    const answered = api.trigger(channel, `n-${n}`, DATA);
    const frame = await healthy.frame();
    slowest = Math.max(slowest, Date.now() - begin);
    assert.equal(frame.event, `n-${n}`);
    assert.equal(frame.data.length, DATA.length);
    await answered;
  }
  return slowest;
}

test('a peer that stops reading finds 4100 when it resumes; the other lost nothing and waited for nothing', async () => {
  const [healthy, slow, bystander] = [await Peer.connect(raptor, { app }), await Peer.connect(raptor, { app }), await Peer.connect(raptor, { app: APP })];
  await healthy.subscribe('flood');
  await slow.subscribe('flood');
  await bystander.subscribe('flood');
  slow.socket.stopReading();

  const slowest = await publishPast(healthy, 'flood');
  assert.ok(slowest < LATENCY_MS_MAX, `a frame took ${slowest} ms`);
  await healthy.receivesNothing();
  await bystander.receivesNothing();
  await until(async () => (await api.get('/channels/flood', { info: 'subscription_count' })).json().subscription_count === 1, 'the slow peer is no longer counted');

  slow.socket.goOnReading();
  for (let n = 0; ; n += 1) {
    const item = await slow.socket.next();
    if (item.type === 'text') {
      const frame = JSON.parse(item.text);
      if (frame.event === 'pusher:error') {
        assert.deepEqual(frame, { event: 'pusher:error', data: { code: 4100, message: 'Over capacity' } });
        continue;
      }
      assert.equal(frame.event, `n-${n}`, 'what it got before is in order and without gaps');
      assert.ok(n < EVENTS - 1, 'it was never cut off');
      continue;
    }
    assert.deepEqual([item.type, item.code, item.reason], ['close', 4100, 'Over capacity']);
    break;
  }
  assert.deepEqual(await slow.socket.next(), { type: 'end' });
});

test('a peer that never resumes is cut off when its write time is over', async () => {
  const server = await startRaptor({ config: { ...config, write_timeout_secs: 1 } });
  const publisher = new Api(server, app);
  const [stuck, healthy] = [await Peer.connect(server, { app }), await Peer.connect(server, { app })];
  await stuck.subscribe('presence-stuck', { channelData: '{"user_id":"stuck"}' });
  await healthy.subscribe('presence-stuck', { channelData: '{"user_id":"healthy"}' });
  stuck.socket.stopReading();
  for (let n = 0; n < EVENTS; n += 1) await publisher.trigger('presence-stuck', 'e', DATA);
  let removed = false;
  for (let n = 0; n < EVENTS || !removed; ) {
    const frame = await healthy.frame();
    if (frame.event === 'e') n += 1;
    else {
      assert.deepEqual(frame, { event: 'pusher_internal:member_removed', channel: 'presence-stuck', data: '{"user_id":"stuck"}' });
      removed = true;
    }
  }
  await sleep(2_000);
  stuck.socket.goOnReading();
  const end = Date.now() + SOON_MS;
  while ((await stuck.socket.next()).type !== 'end') assert.ok(Date.now() < end);
  await stillServes(server, publisher);
});

test('a slow peer that takes its time but keeps reading loses nothing', async () => {
  const peer = await Peer.connect(raptor, { app });
  await peer.subscribe('paced');
  for (let n = 0; n < 30; n += 1) {
    peer.socket.stopReading();
    await api.trigger('paced', `n-${n}`, DATA);
    await sleep(10);
    peer.socket.goOnReading();
    assert.equal((await peer.frame()).event, `n-${n}`);
  }
});

test('one that asks for answers and reads none is cut off too', async () => {
  // Held up, it would take minutes to fill the kernel's buffers.
  const app = { ...APP, limits: { ...APP.limits, control_messages_per_sec_max: 1_000_000 } };
  const server = await startRaptor({ config: { apps: [app], outbox_bytes_max: 65_536, write_timeout_secs: 1 } });
  const greedy = await Peer.connect(server);
  greedy.socket.stopReading();
  const ping = Buffer.from('{"event":"pusher:unknown"}');
  let sent = 0;
  const ended = until(async () => greedy.socket.ended, 'the end of the connection', 20_000);
  ended.catch(() => {});
  while (!greedy.socket.ended && sent < 400_000) {
    for (let i = 0; i < 1000; i += 1) greedy.socket.sendFrame({ opcode: 1, payload: ping });
    sent += 1000;
    await sleep(1);
  }
  greedy.socket.goOnReading();
  await ended;
  await stillServes(server, new Api(server, APP));
});
