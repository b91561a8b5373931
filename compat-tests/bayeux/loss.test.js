// A long-polling client whose polls are dropped at random: every message arrives, once and in order.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { QUIET_MS, sleep, until } from '../support/events.js';
import { faye } from './support/in-node.js';
import { post } from './support/http.js';
import { startNetwork } from './support/network.js';
import { startBayeux } from './support/server.js';
import { createWorld } from './support/world.js';

const MESSAGES = 500;
const DROP_CHANCE = 0.2;
const WAIT_MS = 20_000;

/** Numbers between 0 and 1 that are the same in every run. */
function chances(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

async function start() {
  const server = await startBayeux({ bayeux: { hold_secs: 10 } });
  const network = await startNetwork(server);
  const world = createWorld({ Faye: faye('1.4'), url: network.url, transport: 'long-polling', holdMs: 10_000 });
  return { network, world, publish: (data) => post(server.url, { channel: '/loss', data }) };
}

const heldPoll = (network) => until(() => network.polls()[0], 'a poll', WAIT_MS);

describe(`${MESSAGES} messages`, { concurrency: 2, timeout: 110_000 }, () => {
  const numbers = Array.from({ length: MESSAGES }, (_, n) => n);

  test('polls vanish while they wait', async () => {
    const { network, world, publish } = await start();
    const client = world.client({ retry: 0.02 });
    const got = await world.subscribe(client, '/loss');
    const chance = chances(1);
    let drops = 0;
    for (const n of numbers) {
      if (chance() < DROP_CHANCE) {
        await got.until(n, WAIT_MS); // else the message before might be under way in the connection that we reset: nobody could know
        (await heldPoll(network)).reset();
        drops += 1;
      }
      await publish(n);
    }
    await got.until(MESSAGES, WAIT_MS);
    await sleep(QUIET_MS);
    assert.deepEqual([...got], numbers);
    assert.ok(drops > 50, `${drops} polls dropped`);
    world.close();
  });

  test('with acknowledgements replies may get lost on their way too', async () => {
    const { network, world, publish } = await start();
    const client = world.client({ retry: 0.02 });
    let batch = 0;
    client.addExtension({
      outgoing(message, next) {
        if (message.channel === '/meta/handshake') message.ext = { ...message.ext, ack: true };
        if (message.channel === '/meta/connect') message.ext = { ...message.ext, ack: batch };
        next(message);
      },
      incoming(message, next) {
        if (message.channel === '/meta/connect') batch = message.ext?.ack ?? batch; // the farewell has none
        next(message);
      },
    });
    const got = await world.subscribe(client, '/loss');
    const chance = chances(2);
    let lost = 0;
    let drops = 0;
    for (const n of numbers) {
      const fate = chance();
      let losing;
      if (fate < DROP_CHANCE) {
        const poll = await heldPoll(network);
        if (fate < DROP_CHANCE / 2) losing = poll.loseReply().then(() => { lost += 1; });
        else { poll.reset(); drops += 1; }
      }
      await publish(n);
      await losing;
    }
    await got.until(MESSAGES, WAIT_MS);
    await sleep(QUIET_MS);
    assert.deepEqual([...got], numbers);
    assert.ok(lost > 20 && drops > 20, `${lost} replies lost, ${drops} polls dropped`);
    world.close();
  });
});
