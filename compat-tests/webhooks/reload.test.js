// Endpoints come, go and move while the server runs, and nothing is lost on the way.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';

import { handshake } from '../bayeux/support/http.js';
import { APP, Peer, appNamed } from '../raw/peer.js';
import { sleep, until } from '../support/events.js';
import { runRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';
import { TAKEN, startReloadable } from '../support/reloadable.js';
import { Heard } from './lives.js';
import { ANSWER, Receiver } from './receiver.js';

const RELOADS = 20;
const EXISTENCE = ['channel_existence'];

const app = (...webhooks) => ({ ...APP, limits: { client_events_per_sec_max: 10_000 }, webhooks });

const namesAbout = (receiver, channel) => receiver.events.filter((event) => event.channel === channel).map(({ name }) => name);

test('a server without webhooks gets one, which hears of what happens from then on', async () => {
  const receiver = await Receiver.start();
  const bayeux = { mounts: ['/faye'], client_publish: 'open' };
  const server = await startReloadable({ apps: [{ ...APP, bayeux }] });
  const peer = await Peer.connect(server);
  await peer.subscribe('before');
  await handshake(`${server.url}/faye`);
  server.write({ apps: [{ ...APP, bayeux, webhooks: [receiver.endpoint({ events: [...EXISTENCE, 'bayeux_sessions'] })] }] });
  await server.reload(TAKEN);
  assert.doesNotMatch(server.stderr(), /restart/);
  await peer.subscribe('after');
  await handshake(`${server.url}/faye`);
  await receiver.until(2);
  assert.deepEqual(receiver.events.map(({ name, channel }) => [name, channel]).sort(), [['channel_occupied', 'after'], ['handshake', undefined]]);
  // It was never told that anybody is there.
  peer.unsubscribe('before');
  peer.unsubscribe('after');
  await receiver.until(3, 10_000);
  await sleep(1_000);
  assert.deepEqual(receiver.events.slice(2), [{ name: 'channel_vacated', channel: 'after' }]);
  receiver.isExact();
});

test('what waits for an endpoint goes to its new URL, in order', async () => {
  const [old, now] = [await Receiver.start({ answer: ANSWER.status(503) }), await Receiver.start()];
  const endpoint = (receiver) => receiver.endpoint({ name: 'hook', events: EXISTENCE, batch_events_max: 1 });
  const server = await startReloadable({ apps: [app(endpoint(old))] });
  const peer = await Peer.connect(server);
  for (let n = 0; n < 10; n++) await peer.subscribe(`waits-${n}`);
  await until(() => old.requests.length >= 10, () => `${old.requests.length} requests`);
  server.write({ apps: [app(endpoint(now))] });
  await server.reload(TAKEN);
  await now.until(10, 20_000);
  assert.deepEqual(now.events.map(({ channel }) => channel).sort(), Array.from({ length: 10 }, (_, n) => `waits-${n}`));
  const id = ({ id }) => id;
  assert.deepEqual(now.deliveries.map(id).sort(), [...new Set(old.requests.map(id))].sort());
  now.isExact();
});

test('an endpoint that is asked and never answers holds a new one up for a moment only', async () => {
  const [silent, now] = [await Receiver.start({ answer: ANSWER.silence }), await Receiver.start()];
  const endpoint = (receiver) => receiver.endpoint({ name: 'hook', events: EXISTENCE });
  const server = await startReloadable({ apps: [app(endpoint(silent))] });
  const peer = await Peer.connect(server);
  await peer.subscribe('asked');
  await until(() => silent.requests.length === 1, 'a request');
  server.write({ apps: [app(endpoint(now))] });
  await server.reload(TAKEN);
  // Its own time-out is 10 seconds.
  await now.until(1, 6_000);
  assert.deepEqual([now.deliveries[0].id, now.deliveries[0].body], [silent.requests[0].id, silent.requests[0].body]);
});

test('an endpoint that is taken out gets no more, and begins anew when it is back', async () => {
  const [other, gone] = [await Receiver.start(), await Receiver.start()];
  const endpoints = [other.endpoint({ name: 'other', events: EXISTENCE }), gone.endpoint({ name: 'gone', events: ['presence'] })];
  const config = (webhooks, dir) => ({ webhooks: { dir }, apps: [app(...webhooks)] });
  const server = await startReloadable((directory) => config(endpoints, join(directory, 'hooks')));
  const dir = join(server.directory, 'hooks');
  const joins = async (user) => {
    const peer = await Peer.connect(server);
    await peer.join('presence-room', user, {});
    return peer;
  };
  const stays = await joins('stays');
  await gone.until(1);
  gone.answer = ANSWER.status(500);
  await joins('waits');
  await until(() => gone.requests.length >= 2, 'a refused request');

  server.write(config(endpoints.slice(0, 1), dir));
  await server.reload(TAKEN);
  await (await joins('unheard')).subscribe('next');
  await other.until(2);
  const dead = await until(async () => {
    const { stdout } = await runRaptor(['webhooks', 'list', '--state', 'dead', '--dir', dir]);
    return stdout.includes('gone') && stdout;
  }, 'a dead letter');
  assert.match(dead, /app 3  gone  1 event/);

  const asked = gone.requests.length;
  gone.answer = ANSWER.well;
  await sleep(2_500);
  assert.equal(gone.requests.length, asked);
  server.write(config(endpoints, dir));
  await server.reload(TAKEN);
  // Nobody knows whether the application still believes that this one is there.
  stays.socket.vanish();
  await joins('heard');
  await gone.until(2);
  await sleep(4_000);
  assert.deepEqual(gone.events.map(({ name, user_id: user }) => `${name} ${user}`), ['member_added stays', 'member_added heard']);
  assert.deepEqual(namesAbout(other, 'next'), ['channel_occupied']);
  assert.equal((await server.stop()).code, 0);
});

test('endpoints come, go and move again and again, and another one gets everything once and in order, also through kill -9', async () => {
  const [steady, moving] = [await Receiver.start(), await Receiver.start()];
  const config = (n, dir) => ({
    webhooks: { dir },
    apps: [
      app(steady.endpoint({ name: 'steady' }), ...(n % 3 === 0 ? [] : [moving.endpoint({ name: 'moving', url: `${moving.url}?${n}` })])),
      { ...appNamed('other'), webhooks: n % 2 === 0 ? [] : [moving.endpoint({ name: 'others' })] },
    ],
  });
  const server = await startReloadable((directory) => config(0, join(directory, 'hooks')));
  const dir = join(server.directory, 'hooks');
  const heard = new Heard();
  const { end, silent } = await heard.talk(server);
  for (let n = 1; n <= RELOADS; n++) {
    server.write(config(n, dir));
    await server.reload(TAKEN);
    await sleep(50);
  }
  await server.stop('SIGKILL');
  await end();
  await silent();
  const again = await server.restart('SIGKILL');
  await heard.isReceived(steady, 1, 30_000);
  assert.equal((await again.stop()).code, 0);
});

test('each node of several takes new endpoints, and the cluster tells them once', async () => {
  const redis = await startRedis();
  const [old, now] = [await Receiver.start({ answer: ANSWER.status(503) }), await Receiver.start()];
  const config = (...endpoints) => ({ redis: { url: redis.url }, apps: [app(...endpoints)] });
  const hook = (receiver) => receiver.endpoint({ name: 'hook', events: EXISTENCE });
  const more = await Receiver.start();
  const nodes = [await startReloadable(config(hook(old))), await startReloadable(config(hook(old)))];
  const peers = await Promise.all(nodes.map((node) => Peer.connect(node)));
  for (const [n, peer] of peers.entries()) await peer.subscribe(`waits-${n}`);
  await until(() => old.requests.length > 0, 'a request', 20_000);
  for (const node of nodes) {
    node.write(config(hook(now), more.endpoint({ name: 'more', events: EXISTENCE })));
    await node.reload(TAKEN);
  }
  for (const [n, peer] of peers.entries()) await peer.subscribe(`after-${n}`);
  await now.until(4, 20_000);
  assert.deepEqual(now.events.map(({ channel }) => channel).sort(), ['after-0', 'after-1', 'waits-0', 'waits-1']);
  await more.until(2);
  assert.deepEqual(more.events.map(({ channel }) => channel).sort(), ['after-0', 'after-1']);
  now.isExact();
  for (const node of nodes) assert.equal((await node.stop()).code, 0);
});

test('the first endpoint of nodes with a Redis waits for a restart, and that is said', async () => {
  const redis = await startRedis();
  const receiver = await Receiver.start();
  const server = await startReloadable({ redis: { url: redis.url }, apps: [APP] });
  server.write({ redis: { url: redis.url }, apps: [app(receiver.endpoint())] });
  await server.reload(TAKEN);
  assert.match(server.stderr(), /\[\[apps\.webhooks\]\], as there were none and nodes share a Redis/);
});
