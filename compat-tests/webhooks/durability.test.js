// What survives: kill -9 in the middle of everything, a restart, a receiver that is away (with `dir` in [webhooks]).

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { APP, Peer } from '../raw/peer.js';
import { atEnd } from '../support/at-end.js';
import { sleep, until } from '../support/events.js';
import { runRaptor, startRaptor } from '../support/raptor.js';
import { archive, billing, replayDeadLetter } from './dead-letters.js';
import { Heard, half } from './lives.js';
import { ANSWER, Receiver } from './receiver.js';

/** `RAPTOR_LIVES=60` makes it a matter of two minutes. */
const LIVES = Number(process.env.RAPTOR_LIVES ?? 4);

const app = (webhooks) => ({ ...APP, limits: { client_events_per_sec_max: 10_000 }, webhooks });

function directory() {
  const dir = mkdtempSync(join(tmpdir(), 'raptor-webhooks-'));
  atEnd(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

test('kill -9 in the middle of delivery loses nothing that anybody saw, repeats with the same id, and keeps the order', async () => {
  const receiver = await Receiver.start({ answer: half() });
  const dir = directory();
  let raptor = await startRaptor({ config: { webhooks: { dir }, apps: [app([receiver.endpoint()])] } });
  const heard = new Heard();
  for (let life = 0; life < LIVES; life++) {
    const { end, silent } = await heard.talk(raptor);
    await sleep(400 + Math.random() * 600);
    await raptor.stop('SIGKILL');
    await end();
    await silent();
    raptor = await raptor.restart('SIGKILL');
  }
  receiver.answer = ANSWER.well;
  await heard.isReceived(receiver, LIVES, 60_000);
  // Nobody has come back after the last start: each channel is vacated, once.
  await until(() => receiver.named('channel_vacated').length >= heard.channels.size, 'every channel is vacated', 20_000);
  const existence = receiver.named('channel_occupied', 'channel_vacated').filter(({ channel }) => channel === 'private-0').map(({ name }) => name);
  assert.deepEqual(existence, ['channel_occupied', 'channel_vacated']);
  await raptor.stop();
});

test('a restart makes no event for clients that come back', async () => {
  const receiver = await Receiver.start();
  let raptor = await startRaptor({ config: { webhooks: { dir: directory() }, apps: [app([receiver.endpoint({ events: ['channel_existence', 'presence'] })])] } });
  const join = async (user) => {
    const peer = await Peer.connect(raptor);
    peer.askToSubscribe('presence-room', { channelData: JSON.stringify({ user_id: user }) });
  };
  await join('stays');
  await join('goes');
  await receiver.until(3);
  raptor = await raptor.restart();
  await join('stays');
  await receiver.until(4, 15_000);
  assert.deepEqual(receiver.events.at(-1), { name: 'member_removed', channel: 'presence-room', user_id: 'goes' });
  await sleep(1_000);
  assert.equal(receiver.events.length, 4);
});

test('dead letters are listed, shown, and replayed, with every attempt', async () => {
  const receiver = await Receiver.start({ answer: ANSWER.status(503) });
  const dir = directory();
  const config = { webhooks: { dir }, apps: [app([billing(receiver)])] };
  const raptor = await startRaptor({ config });
  const webhooks = archive(['--dir', dir]);
  const id = await replayDeadLetter(webhooks, raptor, receiver, { deadWithinMs: 10_000 });

  // A store is read after its server, too.
  await raptor.stop();
  assert.match(await webhooks('show', id), /^body +not kept/m);
  assert.match((await runRaptor(['webhooks', 'list'], { config })).stdout, new RegExp(`^${id}`));
});

test('what waits for a receiver that is away is delivered when both are back', async () => {
  const receiver = await Receiver.start({ answer: ANSWER.reset });
  const config = { webhooks: { dir: directory() }, apps: [app([receiver.endpoint({ batching: false, events: ['channel_occupied'] })])] };
  const raptor = await startRaptor({ config });
  const peer = await Peer.connect(raptor);
  for (let n = 0; n < 300; n++) peer.askToSubscribe(`waiting-${n}`);
  await until(() => receiver.requests.length > 100);
  const ids = new Map(receiver.requests.map(({ body, id }) => [body, id]));
  await raptor.stop('SIGKILL');
  receiver.answer = ANSWER.well;
  await raptor.restart();
  await receiver.until(300, 20_000);
  assert.equal(new Set(receiver.events.map(({ channel }) => channel)).size, 300);
  for (const { body, id } of receiver.deliveries) assert.equal(ids.get(body) ?? id, id);
  receiver.isExact();
});

test('a second server is kept from the directory of another', async () => {
  const receiver = await Receiver.start();
  const config = { listen: '127.0.0.1:0', webhooks: { dir: directory() }, apps: [app([receiver.endpoint()])] };
  await startRaptor({ config });
  const { code, stderr } = await runRaptor([], { config });
  assert.equal(code, 1);
  assert.match(stderr, /^webhooks cannot be kept: another server uses /m);
});

test('start-up says where webhooks are kept', async () => {
  const receiver = await Receiver.start();
  const dir = directory();
  const said = async (webhooks) => {
    const raptor = await startRaptor({ config: { webhooks, apps: [app([receiver.endpoint()])] } });
    await until(() => raptor.stdout().includes('trigger'));
    return /^Webhooks are kept (.*)$/m.exec(raptor.stdout())[1];
  };
  assert.equal(await said({ dir }), `in ${dir}, up to 1024 MiB, synced to disk now and then`);
  assert.equal(await said({ dir: directory(), fsync: true }).then((line) => line.split(', ').at(-1)), 'synced to disk at each write');
  assert.equal(await said({}), 'in memory only, up to 64 MiB: they do not survive this process (set `dir` in [webhooks])');
});

test('in memory, a server that stops tells of everybody who leaves, before it ends', async () => {
  const receiver = await Receiver.start();
  const raptor = await startRaptor({ config: { apps: [app([receiver.endpoint({ events: ['channel_existence', 'presence'] })])] } });
  const peer = await Peer.connect(raptor);
  await peer.join('presence-room', 'u', {});
  await receiver.until(2);
  assert.equal((await raptor.stop()).code, 0);
  assert.deepEqual(receiver.events.slice(2).map(({ name }) => name), ['member_removed', 'channel_vacated']);
});
