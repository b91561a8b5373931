// Dozens of Faye clients over three transports, whose every request goes to the next of three nodes, and numbered messages that are published at all of
// them: everybody hears each once, and all in one order.
//
// ORDER_CLIENTS: how many clients of each transport, ORDER_PUBLISHES: how many messages.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Api } from '../rest/api.js';
import { QUIET_MS, sleep, until } from '../support/events.js';
import { startNodes } from '../support/nodes.js';
import { TEST_APP } from '../support/raptor.js';
import { BAYEUX, isIn, startClient } from './fleet.js';

const CLIENTS = Number(process.env.ORDER_CLIENTS ?? 12);
const PUBLISHES = Number(process.env.ORDER_PUBLISHES ?? 1_200);
/** How far the slowest client may be behind the publishers: far less than a session's queue holds. */
const LAG_MAX = 300;
const RUN_MS = 600_000;

/** Faye takes a connection for dead when a connect is not answered within 1.2 times this, and loses what is on its way: on a busy machine a short one is too short. */
const HOLD_SECS = 15;
const APP = { ...TEST_APP, subscription_count_events: false, bayeux: { ...BAYEUX, hold_secs: HOLD_SECS } };

for (const balancer of ['nginx', 'by connection']) {
  test(`one order, no gap and no repeat through a load balancer: ${balancer}`, { timeout: 120_000 }, async (context) => {
    const proxy = await startNodes({ balancer, config: { apps: [APP] } });
    const clients = [];
    for (let n = 0; n < CLIENTS; n += 1) {
      for (const kind of ['Faye long-polling', 'Faye WebSocket', 'Faye EventSource']) {
        clients.push(await startClient(proxy, APP, { kind, user: `${kind}-${n}`, room: 'order', hasHall: false }));
      }
    }
    await until(() => clients.every(isIn), () => `${clients.filter((client) => !isIn(client)).map(({ kind }) => kind)} are missing`, 20_000 + HOLD_SECS * 1000);

    const slowest = () => clients.reduce((least, { heard }) => Math.min(least, heard.length), Infinity);
    const begin = Date.now();
    let published = 0;
    await Promise.all(proxy.nodes.map(async (node, nth) => {
      const api = new Api(node, APP);
      for (let n = nth; n < PUBLISHES; n += proxy.nodes.length) {
        await until(() => published - slowest() < LAG_MAX, () => `the slowest has ${slowest()} of ${published}`, RUN_MS);
        published += 1;
        await api.trigger('order', 'said', n);
      }
    }));
    await until(() => slowest() >= PUBLISHES, () => `the slowest has ${slowest()} of ${PUBLISHES}: ${clients.map(({ kind, heard }) => `${kind} ${heard.length}`)}`, 30_000);
    await sleep(QUIET_MS);
    const [{ heard: first }] = clients;
    assert.equal(new Set(first).size, PUBLISHES);
    for (const { kind, heard, sessions, errors } of clients) {
      assert.equal(heard.join(), first.join(), kind);
      assert.deepEqual([sessions.length, errors], [1, []], kind);
    }
    for (const nth of proxy.nodes.keys()) {
      const ofOne = first.filter((n) => n % proxy.nodes.length === nth);
      assert.deepEqual(ofOne, ofOne.toSorted((a, b) => a - b), `the order in which node ${nth} took them`);
    }
    context.diagnostic(`${PUBLISHES} messages to ${clients.length} clients in ${Date.now() - begin} ms`);
    clients.forEach(({ close }) => close());
  });
}
