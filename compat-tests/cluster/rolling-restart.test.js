// Three nodes behind nginx are restarted one after the other, under traffic, with unmodified clients of every kind. Those over WebSockets of
// pusher-js go to the other nodes, spread over the configured time. All others do not notice: no session is lost, no message is lost or comes
// twice, nobody is told that somebody went.
//
// RAPTOR_CONNECTIONS: how many clients, RAPTOR_OTHERS: how many of each kind but the first, RAPTOR_EVENTS_PER_SEC, RAPTOR_SPREAD_SECS.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { startNodes } from '../support/nodes.js';
import { Api } from '../rest/api.js';
import { APP as TEST_APP } from '../raw/peer.js';
import { BAYEUX, KINDS, MOVING, isIn, startClient } from './fleet.js';
import { startPublisher } from './publisher.js';

const CONNECTIONS = Number(process.env.RAPTOR_CONNECTIONS ?? 160);
const OTHERS = Number(process.env.RAPTOR_OTHERS ?? 20);
/** Browsers are heavy. */
const IN_PAGES_MAX = 40;
const EVENTS_PER_SEC = Number(process.env.RAPTOR_EVENTS_PER_SEC ?? 100);
const IN_A_ROOM = 5;
/** Long beside what the clients, all in this process, and their browsers take to notice on a busy machine. */
const SPREAD_SECS = Number(process.env.RAPTOR_SPREAD_SECS ?? 6);
/** A client that gets no answer within 10 s comes back after 15 s. */
const BACK_WITHIN_MS = 30_000 + CONNECTIONS * 10;

const APP = { ...TEST_APP, bayeux: BAYEUX };

/** The kinds of all clients, mixed, so that there are all in a room. */
function kinds() {
  const left = new Map(MOVING.map((kind) => [kind, kind.endsWith('EventSource') ? Math.min(OTHERS, IN_PAGES_MAX) : OTHERS]));
  const [first] = Object.keys(KINDS);
  left.set(first, CONNECTIONS - [...left.values()].reduce((sum, count) => sum + count));
  assert.ok(left.get(first) >= 0 && CONNECTIONS % IN_A_ROOM === 0);
  const mixed = [];
  while (mixed.length < CONNECTIONS) {
    for (const [kind, count] of left) if (count > 0) { mixed.push(kind); left.set(kind, count - 1); }
  }
  return mixed;
}

const isBack = (client) => isIn(client) && client.roster.size === IN_A_ROOM;

test('three nodes are restarted one after the other, no session is lost, and every client is in its channels', { timeout: 290_000 + CONNECTIONS * 100 }, async (context) => {
  const proxy = await startNodes({ config: { apps: [APP], shutdown_spread_secs: SPREAD_SECS }, connectionsMax: CONNECTIONS * 4 + 1_000 });
  const clients = [];
  const missing = () => clients.filter((client) => !isBack(client));
  const allAreBack = (when, ms) => until(() => missing().length === 0, () => `${when}: ${missing().length} clients are missing: ${missing().slice(0, 10).map(({ kind, user, channels, over, roster, transitions, errors }) => `${user}: ${kind}, ${over}, in ${[...channels]} with ${[...roster]} after ${transitions}, ${errors}`).join('; ')}`, ms);
  for (const [nth, kind] of kinds().entries()) {
    clients.push(await startClient(proxy, APP, { kind, user: `${nth}`, room: `room-${Math.floor(nth / IN_A_ROOM)}` }));
    if (nth % 50 === 49) await allAreBack('some', 20_000);
  }
  await allAreBack('at first', BACK_WITHIN_MS);
  const moving = clients.filter(({ kind }) => MOVING.includes(kind));
  const told = clients.filter(({ kind }) => !MOVING.includes(kind));
  clients.forEach(({ transitions }) => transitions.splice(0));

  const rooms = CONNECTIONS / IN_A_ROOM;
  const publisher = startPublisher(proxy, APP, { rooms, eventsPerSec: EVENTS_PER_SEC });

  for (const [n, node] of proxy.nodes.entries()) {
    clients.forEach((client) => { client.left = null; });
    const begin = Date.now();
    const stopped = node.stop('SIGTERM', SPREAD_SECS * 1000 + 20_000);
    await sleep(SPREAD_SECS * 1000 + 500);
    const took = told.filter(({ left }) => left !== null).map(({ left }) => left - begin).sort((a, b) => a - b);
    assert.deepEqual(await stopped, { code: 0, signal: null });
    assert.ok(took.length > 0.4 * (told.length / 3), `${took.length} clients were on node ${n}`);
    const [early, middle, late] = [0.1, 0.5, 0.9].map((share) => took[Math.floor(took.length * share)] / (SPREAD_SECS * 1000));
    const shares = `a tenth had left after ${early.toFixed(2)} of the time, half after ${middle.toFixed(2)}, nine tenths after ${late.toFixed(2)}`;
    assert.ok(early > 0.02 && early < 0.35 && middle > 0.3 && middle < 0.75 && late > 0.65 && late < 1.2, shares);
    context.diagnostic(/moved=\d+ stayed=\d+/.exec(node.stderr())?.[0]);
    await proxy.restartNode(n);
    await allAreBack(`after node ${n}`, BACK_WITHIN_MS);
    context.diagnostic(`node ${n}: ${took.length} clients left it, ${shares}; all were back ${Date.now() - begin} ms after its SIGTERM`);
    await sleep(2_200); // the load balancer finds out that it is there again
  }
  const { sent, refused, secs, accepted } = await publisher.stop();
  const rate = sent / secs;
  assert.ok(rate > 0.9 * EVENTS_PER_SEC, `${rate.toFixed(0)} events a second were sent`);
  const api = new Api(proxy, APP);
  for (let room = 0; room < rooms; room += 1) await api.trigger(`room-${room}`, 'said', `last of ${room}`);
  assert.ok(refused <= sent * 0.01, `${refused} of ${sent} publishes failed`);
  const roomOf = ({ room }) => Number(room.slice('room-'.length));
  const silent = () => clients.filter((client) => !client.heard.includes(`last of ${roomOf(client)}`));
  await until(() => silent().length === 0, () => `${silent().map(({ kind, user }) => `${user}: ${kind}`)} do not hear their rooms`, BACK_WITHIN_MS);

  const faults = [];
  for (const client of moving) {
    const { kind, user, sessions, errors, heard, transitions } = client;
    const say = (fault) => faults.push(`${kind} ${user}: ${fault}`);
    if (sessions.length !== 1) say(`had ${sessions.length} sessions`);
    if (errors.length > 0) say(`errors ${errors.slice(0, 3)}`);
    const lost = accepted[roomOf(client)].filter((data) => !heard.includes(data));
    if (lost.length > 0) say(`did not hear ${lost.length}: ${lost.slice(0, 5)}`);
    const first = moving.find(({ room }) => room === client.room);
    if (first.heard.join() !== heard.join()) say(`heard other things, or in another order, than ${first.kind}: ${difference(first.heard, heard)}`);
  }
  for (const { kind, user, heard, errors, transitions } of clients) {
    const say = (fault) => faults.push(`${kind} ${user}: ${fault}`);
    const twice = heard.filter((data, index) => heard.indexOf(data) !== index);
    if (twice.length > 0) say(`heard twice ${twice.slice(0, 5)}`);
    const wrong = transitions.filter((transition) => moving.some((other) => other.user === transition.slice(1)));
    if (wrong.length > 0) say(`was told ${wrong.slice(0, 5)}`);
    if (!MOVING.includes(kind) && errors.some((code) => code !== 4200)) say(`errors ${[...new Set(errors)]}`);
  }
  assert.deepEqual(faults.slice(0, 20), [], `${faults.length} faults`);
  context.diagnostic(`${sent} events, ${rate.toFixed(0)} a second, ${refused} refused; ${moving.length} sessions moved or stayed, ${told.length} clients reconnected`);
});

/** Where two lists part. */
function difference(expected, actual) {
  const at = expected.findIndex((data, index) => data !== actual[index]);
  return `${expected.slice(at, at + 5)} … became ${actual.slice(at, at + 5)} …`;
}
