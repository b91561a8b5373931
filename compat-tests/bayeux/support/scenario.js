// What every Faye client must be able to do over each of its transports (`bayeux.md` 11.2). Runs in Node and in pages.

import { QUIET_MS, sleep, until } from '../../support/events.js';
import { equal, ok } from '../../support/expect.js';
import { connects, deliveries, replies } from './world.js';

const steps = [];

/**
 * The steps, each independent of the others.
 *
 * @returns {{title: string, run: (world: object) => Promise<void>, fayeFails: (transport: string) => boolean}[]} `fayeFails`: a real Faye does not pass
 */
export function scenario() {
  return steps;
}

function step(title, run, { fayeFails = () => false } = {}) {
  steps.push({ title, run, fayeFails });
}

const RECONNECT_MS = 15_000; // shutdown advice spreads clients over 5 s, then they try again until the server is back

step('connects over its transport, and disconnects', async (world) => {
  const client = world.client();
  await world.connected(client);
  const [{ clientId }] = replies(client, '/meta/handshake');
  client.disconnect();
  const connect = { channel: '/meta/connect', clientId, connectionType: 'long-polling', advice: { timeout: 0 } };
  await until(async () => (await world.call('post', connect))[0].error === `401:${clientId}:Unknown client`, 'the session is gone');
});

step('a name, * and ** deliver what they match, each message once to a client', async (world) => {
  const [publisher, subscriber, greedy] = [world.client(), world.client(), world.client()];
  const room = world.name();
  const patterns = [room, `${room}/*`, `${room}/**`];
  const got = await Promise.all(patterns.map((pattern) => world.subscribe(subscriber, pattern)));
  for (const pattern of patterns) await world.subscribe(greedy, pattern);

  for (const channel of [room, `${room}/a`, `${room}/a/b`, `${room}x`]) await world.publish(publisher, channel, { to: channel });
  await until(() => got[2].length === 2 && deliveries(greedy).length >= 3, 'all arrived');
  await sleep(QUIET_MS);
  const paths = (list) => list.map(({ to }) => to.slice(room.length));
  equal(got.map(paths), [[''], ['/a'], ['/a', '/a/b']]);
  equal(deliveries(greedy).map(({ channel, data }) => [channel, data.to]), [room, `${room}/a`, `${room}/a/b`].map((channel) => [channel, channel]));
});

step('a refused subscription fails with code, parameters and text; others go on', async (world) => {
  const client = world.client();
  const refused = [
    ['/meta/x', 403, 'Forbidden channel'],
    ['/meta/subscribe/x', 403, 'Forbidden channel'],
    ['/service/x', 403, 'Forbidden channel'],
    ['/a b', 405, 'Invalid channel'],
    ['no-slash', 405, 'Invalid channel'],
    ['/foo/*/bar', 405, 'Invalid channel'],
    ['/foo/', 405, 'Invalid channel'],
    ['/a.b', 405, 'Invalid channel'],
  ];
  for (const [subscription, code, message] of refused) {
    const error = await world.subscribe(client, subscription).then(() => null, (reason) => reason);
    equal({ code: error?.code, params: error?.params, message: error?.message }, { code, params: [subscription], message }, subscription);
  }
  const room = world.name();
  const got = await world.subscribe(client, room);
  await world.publish(client, room, 'still here');
  await got.until(1);
});

step('a publisher that is subscribed hears itself, and a refused message fails', async (world) => {
  const client = world.client();
  const room = world.name();
  const got = await world.subscribe(client, room);
  await world.publish(client, room, { hello: 'wörld' });
  equal(await got.until(1), [{ hello: 'wörld' }]);
  const failed = await world.publish(client, '/a/*', 1).then(() => false, () => true);
  ok(failed, 'publishing to a pattern succeeded');
});

step('data of every JSON type arrives as it was sent', async (world) => {
  const [publisher, subscriber] = [world.client(), world.client()];
  const room = world.name();
  await world.subscribe(subscriber, room);
  const values = [{ a: { b: [] } }, [1, 'x', null], 'text', '123', '"quoted"', '{"a":1}', 'null', 7, 1.5e-7, 0, true, false, '', {}, [], '\u2028 </script> \\ 🦖'];
  for (const value of values) await world.publish(publisher, room, value);
  await until(() => deliveries(subscriber).length >= values.length, 'all arrived');
  equal(deliveries(subscriber).map(({ data }) => data), values);
});

step('a plain HTTP publish is heard, and carries nothing of its sender', async (world) => {
  const client = world.client();
  const room = world.name();
  const got = await world.subscribe(client, room);
  const forms = await world.call('plainForms');
  for (const form of forms) {
    equal(await world.call('publishPlainly', form, { channel: room, data: { form }, id: 'p1' }), [{ id: 'p1', channel: room, successful: true }], form);
  }
  await got.until(forms.length);
  equal(got.map(({ form }) => form), forms);
});

step('200 messages of one request arrive in order', async (world) => {
  const client = world.client();
  const room = world.name();
  const got = await world.subscribe(client, room);
  const numbers = Array.from({ length: 200 }, (_, n) => n);
  await world.call('post', numbers.map((data) => ({ channel: room, data })));
  equal(await got.until(numbers.length), numbers);
});

step('an unsubscribed channel falls silent, the others do not', async (world) => {
  const client = world.client();
  const [room, other] = [world.name(), world.name()];
  const [got, gotOther] = [await world.subscribe(client, room), await world.subscribe(client, other)];
  got.cancel();
  await until(() => replies(client, '/meta/unsubscribe').length > 0, 'the reply to the unsubscribe');
  equal(replies(client, '/meta/unsubscribe')[0].successful, true);
  for (const channel of [room, other]) await world.publish(client, channel, channel);
  await gotOther.until(1);
  await sleep(QUIET_MS);
  equal(deliveries(client).map(({ channel }) => channel), [other]);
});

step('three idle cycles: as many connects, no transport down, and a message at once afterwards', async (world) => {
  const client = world.client();
  await world.connected(client);
  const room = world.name();
  const got = await world.subscribe(client, room);
  const before = connects(client).length;
  await sleep(3.3 * world.holdMs);
  const cycles = connects(client).length - before;
  // Over EventSource a connect is answered at once; the subscription came between two and has begun a second cycle beside the first.
  ok(cycles >= 2 && cycles <= (world.transport === 'eventsource' ? 8 : 4), `${cycles} connects in three hold times`);
  equal(client.downs, 0);
  await world.call('post', { channel: room, data: 'awake' });
  equal(await got.until(1, world.holdMs / 2), ['awake']);
});

step('what was published while the network was away arrives once it is back, once and in order', async (world) => {
  const client = world.client();
  await world.connected(client);
  const room = world.name();
  const got = await world.subscribe(client, room);
  for (let round = 0; round < 3; round++) {
    await world.call('cutNetwork');
    for (let n = 0; n < 5; n++) await world.call('post', { channel: room, data: [round, n] });
    await world.call('mendNetwork');
    await got.until(5 * (round + 1), RECONNECT_MS);
  }
  await sleep(QUIET_MS);
  equal(got, [0, 1, 2].flatMap((round) => [0, 1, 2, 3, 4].map((n) => [round, n])));
}, { fayeFails: () => true }); // what it writes into an aborted poll is lost (transcript O)

step('a session that expired is renewed, with its subscriptions', async (world) => {
  const client = world.client();
  await world.connected(client);
  const room = world.name();
  const got = await world.subscribe(client, room);
  await world.call('cutNetwork');
  await sleep(2 * world.holdMs + 1_500);
  await world.call('mendNetwork');
  await renewed(world, client, 2);
  await world.call('post', { channel: room, data: 'again' });
  equal(await got.until(1), ['again']);
  const [first, second] = replies(client, '/meta/handshake').filter(({ successful }) => successful).map(({ clientId }) => clientId);
  ok(first !== second, 'the same session');
}, { fayeFails: (transport) => transport === 'callback-polling' }); // a held GET that is reset ends the process of Faye 1.4.3

step('a restarted server gets its clients back, with their subscriptions', async (world) => {
  const clients = [world.client(), world.client()];
  await world.connected(...clients);
  const room = world.name();
  const got = [];
  for (const client of clients) got.push(await world.subscribe(client, room));
  await world.call('restartServer');
  for (const client of clients) await renewed(world, client, 2);
  await world.publish(clients[0], room, 'again');
  for (const list of got) equal(await list.until(1), ['again']);
});

/** Waits until the client has had `sessions` sessions and its one channel is subscribed in the last. */
async function renewed(world, client, sessions) {
  await until(() => replies(client, '/meta/handshake').filter(({ successful }) => successful).length >= sessions, 'a new session', RECONNECT_MS + 3 * world.holdMs);
  await until(() => replies(client, '/meta/subscribe').filter(({ successful }) => successful).length >= sessions, 'the subscription again', RECONNECT_MS);
}
