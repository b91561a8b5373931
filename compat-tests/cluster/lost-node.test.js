// A node that is killed takes its sessions with it: their clients get new ones from the other nodes, and each is told gone at most once.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { startNodes } from '../support/nodes.js';
import { Api } from '../rest/api.js';
import { APP as TEST_APP } from '../raw/peer.js';
import { BAYEUX, KINDS, isIn, startClient } from './fleet.js';

const OF_EACH_KIND = 6;
const LOSS_MS = 10_000;
/** A node that is lost is found lost within this, and what it held is taken out. */
const GONE_MS = 10_000;

/** When clients of each kind had their last session, in ms since then. */
const times = (clients, then) => Object.keys(KINDS).map((kind) => `${kind}: ${clients.filter((client) => client.kind === kind).map(({ since }) => since - then)}`).join('; ');

const APP = { ...TEST_APP, bayeux: BAYEUX };

test('clients of a node that is killed have new sessions within 10 s; who does not come back is told gone once', { timeout: 120_000 }, async (context) => {
  const proxy = await startNodes({ config: { apps: [APP] } });
  const clients = [];
  for (let n = 0; n < OF_EACH_KIND; n += 1) {
    for (const kind of Object.keys(KINDS)) clients.push(await startClient(proxy, APP, { kind, user: `${kind} ${n}`, room: 'room' }));
  }
  const all = clients.length;
  const missing = (of = clients, count = all) => of.filter((client) => !isIn(client) || client.roster.size !== count);
  const names = (of) => of.filter((c) => !isIn(c)).map(({ user, channels, over, roster, errors }) => `${user}: ${over}, in ${[...channels]} with ${roster.size}, ${errors}`).join('; ');
  await until(() => missing().length === 0, () => `missing: ${names(missing())}`, 30_000);
  clients.forEach(({ transitions }) => transitions.splice(0));
  const before = new Map(clients.map((client) => [client, client.sessions.length]));

  const killed = Date.now();
  await proxy.nodes[0].stop('SIGKILL');
  // New sessions, or the old ones on the other nodes: everybody hears what is said now.
  const api = new Api(proxy.nodes[1], APP);
  let round = 0;
  await until(async () => {
    round += 1;
    await api.trigger('room', 'said', round);
    await sleep(100);
    return clients.every((client) => isIn(client) && client.heard.includes(round));
  }, () => `do not hear: ${names(clients.filter((client) => !client.heard.includes(round)))}`, LOSS_MS + 20_000);
  const recovered = Date.now() - killed;
  const lost = clients.filter((client) => client.sessions.length > before.get(client));
  assert.ok(lost.length > all / 6, `only ${lost.length} sessions were on the node that was killed`);
  for (const client of clients) assert.ok(client.sessions.length <= before.get(client) + 1, `${client.user} had ${client.sessions}`);

  // Until the registry has found out, and a while longer.
  await sleep(Math.max(0, killed + GONE_MS - Date.now()));
  const kept = clients.filter((client) => !lost.includes(client));
  await until(() => missing().length === 0, () => `missing: ${names(missing())}`, 5_000);
  for (const client of kept) {
    for (const other of clients) {
      const told = client.transitions.filter((transition) => transition.slice(1) === other.user).join();
      // Who came back before the node was found lost was never away.
      const expected = lost.includes(other) ? ['', `-${other.user},+${other.user}`] : [''];
      assert.ok(expected.includes(told), `${client.user} was told ${told}`);
    }
  }
  context.diagnostic(`${lost.length} of ${all} sessions were lost, all clients heard again ${recovered} ms after the kill; new sessions, in ms, ${times(lost, killed)}`);

  // Those of another node do not come back.
  await proxy.restartNode(0);
  await sleep(2_500); // the load balancer finds out that it is there again
  // pusher-js gives a transport up for good when its connections have ended suddenly twice, and these have no other.
  const spent = lost.filter(({ kind }) => kind === 'pusher-js xhr_streaming');
  spent.forEach(({ close }) => close());
  clients.splice(0, all, ...clients.filter((client) => !spent.includes(client)));
  await until(() => missing(clients, clients.length).length === 0, () => `missing: ${names(missing(clients, clients.length))}`, GONE_MS);
  clients.forEach(({ transitions }) => transitions.splice(0));
  const held = new Map(clients.map((client) => [client, client.sessions.length]));
  await proxy.nodes[1].stop('SIGKILL');
  const died = Date.now();
  const other = new Api(proxy.nodes[2], APP);
  const ids = async () => (await other.get('/channels/presence-room/users')).json().users.map(({ id }) => id);
  const leaving = clients.filter((_, nth) => nth % 3 === 0);
  leaving.forEach(({ close }) => close());
  const staying = clients.filter((client) => !leaving.includes(client));
  await until(() => missing(staying, staying.length).length === 0, () => `missing: ${names(missing(staying, staying.length))}`, GONE_MS + 20_000);
  const gone = Date.now() - died;
  await sleep(1_000);
  assert.deepEqual((await ids()).sort(), staying.map(({ user }) => user).sort());
  for (const client of staying.filter((one) => one.sessions.length === held.get(one))) {
    for (const { user } of leaving) assert.deepEqual(client.transitions.filter((transition) => transition.slice(1) === user), [`-${user}`], client.user);
  }
  context.diagnostic(`new sessions, in ms, ${times(staying.filter((client) => client.sessions.length > held.get(client)), died)}`);
  context.diagnostic(`who did not come back had gone ${gone} ms after the kill`);
});
