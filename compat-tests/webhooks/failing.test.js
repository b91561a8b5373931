// Receivers that fail, hang, answer 500, or close in the middle (`pusher.md` 6.4).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { APP, Peer, appNamed } from '../raw/peer.js';
import { SOON_MS, sleep, until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { ANSWER, Receiver } from './receiver.js';

const healthy = await Receiver.start();
const failing = await Receiver.start();
const cases = await Receiver.start();
const halfOne = await Receiver.start();
const halfMany = await Receiver.start();
const apps = {
  main: { ...APP, webhooks: [healthy.endpoint(), failing.endpoint(), { ...healthy.endpoint({ name: 'refused' }), allow_private_networks: false }] },
  cases: appNamed('cases', { webhooks: [cases.endpoint({ events: ['channel_occupied'], timeout_secs: 1 })] }),
  half: appNamed('half', {
    limits: { client_events_per_sec_max: 1_000 },
    webhooks: [halfMany.endpoint(), halfOne.endpoint({ batching: false, events: ['client_events'] })],
  }),
};
for (const receiver of [cases, halfMany, halfOne]) {
  const app = receiver === cases ? apps.cases : apps.half;
  const { library } = await Receiver.start({ app });
  receiver.library = library;
}
const raptor = await startRaptor({ config: { apps: Object.values(apps) } });

for (const [what, answer] of Object.entries({
  'status 500': ANSWER.status(500),
  'status 404': ANSWER.status(404),
  'status 304': ANSWER.status(304),
  'a redirect, which is not followed': ANSWER.status(307, { Location: `http://127.0.0.1:${healthy.port}/elsewhere` }),
  'a reset': ANSWER.reset,
  'half of an answer': ANSWER.breakOff,
  silence: ANSWER.silence,
})) {
  test(`after ${what} the same bytes come again, with the same id`, async () => {
    const first = cases.requests.length;
    cases.answer = (...args) => (cases.requests.length > first + 2 ? ANSWER.well : answer)(...args);
    const peer = await Peer.connect(raptor, { app: apps.cases });
    const channel = `case-${first}`;
    await peer.subscribe(channel);
    await until(() => cases.events.some((event) => event.channel === channel), 'the third attempt', 12_000);
    const attempts = cases.requests.slice(first);
    assert.equal(attempts.length, 3);
    for (const key of ['id', 'body']) assert.equal(new Set(attempts.map((attempt) => attempt[key])).size, 1);
    assert.equal(new Set(attempts.map(({ headers }) => headers['x-pusher-signature'])).size, 1);
    const hang = answer === ANSWER.silence ? 1_000 : 0;
    const [one, two] = [attempts[1].at - attempts[0].at - hang, attempts[2].at - attempts[1].at - hang];
    assert.ok(one >= 700 && one <= 1_800 && two >= 1_400 && two <= 3_200, `waits of ${one} and ${two} ms`);
  });
}

test('any 2xx is success, whatever the answer holds and however long it is', async () => {
  for (const status of [200, 201, 204, 299]) {
    cases.answer = (_, response) => response.writeHead(status).end(status === 204 ? undefined : 'x'.repeat(1_000_000));
    const peer = await Peer.connect(raptor, { app: apps.cases });
    const first = cases.requests.length;
    await peer.subscribe(`status-${status}`);
    await until(() => cases.requests.length === first + 1);
  }
  const requests = cases.requests.length;
  await sleep(1_500);
  assert.equal(cases.requests.length, requests, 'no repeat');
  cases.isExact();
});

test('an endpoint that never answers delays neither another endpoint nor a client', async () => {
  failing.answer = ANSWER.silence;
  const peer = await Peer.connect(raptor);
  const other = await Peer.connect(raptor);
  await other.subscribe('private-busy');
  await peer.subscribe('private-busy');
  const started = Date.now();
  for (let n = 0; n < 10; n++) {
    const channel = `beside-${n}`;
    const sent = Date.now();
    await peer.subscribe(channel);
    await until(() => healthy.events.some((event) => event.channel === channel));
    assert.ok(Date.now() - sent < 1_000);
  }
  peer.send({ event: 'client-x', channel: 'private-busy', data: '1' });
  await other.receives({ event: 'client-x', channel: 'private-busy', data: '1' });
  assert.ok(Date.now() - started < SOON_MS);
  assert.equal(failing.deliveries.length, 0);
  assert.ok(failing.requests.length > 0);
});

test('an address of a private network is refused unless it is allowed, and what an endpoint is called holds no query', async () => {
  await until(() => raptor.stderr().includes('private network'));
  assert.match(raptor.stderr(), /webhooks do not arrive and are sent again: the address is on this machine or in a private network app=3 endpoint="?refused/);
});

test('a receiver that fails half of its requests gets every event, in the order of its channel', async () => {
  let n = 0;
  const half = (...args) => (n++ % 2 === 0 ? [ANSWER.status(500), ANSWER.reset, ANSWER.breakOff][n % 3] : ANSWER.well)(...args);
  halfMany.answer = half;
  halfOne.answer = half;
  const CHANNELS = 20;
  const EVENTS = 100;
  const peer = await Peer.connect(raptor, { app: apps.half });
  for (let c = 0; c < CHANNELS; c++) peer.askToSubscribe(`private-${c}`);
  for (let e = 0; e < EVENTS; e++) {
    peer.send({ event: `client-${e}`, channel: `private-${e % CHANNELS}`, data: '' });
    if (e % 20 === 19) await sleep(50);
  }
  const whispers = (receiver) => receiver.named('client_event');
  await until(() => whispers(halfMany).length >= EVENTS && whispers(halfOne).length >= EVENTS, () => `all, got ${whispers(halfMany).length} and ${whispers(halfOne).length}`, 90_000);
  for (const receiver of [halfMany, halfOne]) {
    receiver.isExact();
    const got = whispers(receiver);
    assert.equal(got.length, EVENTS);
    for (let c = 0; c < CHANNELS; c++) {
      const ofChannel = got.filter(({ channel }) => channel === `private-${c}`).map(({ event }) => Number(event.slice('client-'.length)));
      assert.deepEqual(ofChannel, Array.from({ length: EVENTS / CHANNELS }, (_, k) => c + k * CHANNELS));
    }
  }
});
