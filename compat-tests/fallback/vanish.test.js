// What a session that vanishes gives back, and within which time: all that it held.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { describe, test } from 'node:test';

import { worldInNode } from '../support/in-node.js';
import { until } from '../support/events.js';
import { TEST_APP } from '../support/raptor.js';
import { samples, startObserved } from '../operate/metrics.js';
import { QUERY, clientOf, sockJsOf } from './peer.js';

const SESSIONS = 50;
const CUT_MS = 4_000; // two seconds, one to notice, and some time to ask
const ANSWERED_MS = 4_500; // three seconds

/** How each transport opens a session that receives; `cut` breaks what it holds open, `ms` is the time it has then. */
const TRANSPORTS = {
  xhr_streaming: async (server) => {
    const client = clientOf(server);
    const stream = await client.stream();
    return { client, cut: () => stream.abort(), ms: CUT_MS };
  },
  xhr: async (server) => {
    const client = clientOf(server);
    await client.poll();
    return { client, cut: () => {}, ms: ANSWERED_MS };
  },
  'xhr with a held poll': async (server) => {
    const client = clientOf(server);
    await client.poll();
    const held = client.request('xhr');
    return { client, cut: () => held.abort(), ms: CUT_MS };
  },
  'SockJS over eventsource': async (server) => {
    const client = sockJsOf(server);
    const stream = client.get('eventsource');
    await until(() => stream.text.includes('data: o'));
    await client.open();
    return { client, cut: () => stream.abort(), ms: CUT_MS };
  },
  'SockJS over jsonp': async (server) => {
    const client = sockJsOf(server);
    await client.get('jsonp?c=a').ended;
    await client.open();
    return { client, cut: () => {}, ms: ANSWERED_MS };
  },
};

const HELD = ['raptor_http_sessions', `raptor_connections{app="${TEST_APP.id}"}`, `raptor_subscriptions{app="${TEST_APP.id}"}`, `raptor_channels{app="${TEST_APP.id}"}`, 'raptor_outbox_bytes'];

describe('a session that vanishes', { concurrency: 3, timeout: 90_000 }, () => {
  for (const [name, openOne] of Object.entries(TRANSPORTS)) {
    test(`over ${name} gives back its place, its memberships, its queue, its sockets and its tasks`, async () => {
      const apps = [{ ...TEST_APP, limits: { connections_max: SESSIONS } }];
      const server = await startObserved({ config: { apps } });
      const world = await worldInNode('8.6', server);
      const held = async () => { const now = await samples(server); return HELD.map((of) => now.get(of) ?? 0); };
      const other = async () => { const now = await samples(server); return ['raptor_open_connections', 'raptor_tasks', 'process_open_fds'].map((of) => now.get(of)); };
      await world.trigger('room', 'news', 'opens a connection that is kept');
      const before = await other();

      const sessions = [];
      for (let n = 0; n < SESSIONS; n += 1) sessions.push(await openOne(server));
      await Promise.all(sessions.map(({ client }) => client.subscribe('room')));
      await until(async () => (await held()).slice(0, 3).every((count) => count === SESSIONS), 'all are there');
      const since = Date.now();
      sessions.forEach(({ cut }) => cut());
      for (let n = 0; n < 10; n += 1) await world.trigger('room', 'news', 'x'.repeat(9_000));
      assert.ok((await held())[4] > 0, 'something waits for them');
      await until(async () => (await held()).every((count) => count === 0), name, since + sessions[0].ms - Date.now());
      // A few for whoever asks.
      await until(async () => (await other()).every((count, nth) => count <= before[nth] + 3), 'sockets, tasks and file descriptors as before', 2_000);
      // Their places in the app's limit are free too.
      await world.connect();
    });
  }

  test('is a member no more, and who was there with it is told', async () => {
    const server = await startObserved();
    const world = await worldInNode('8.6', server);
    const watcher = await world.connect({ member: { user_id: 'watcher' } });
    const other = await worldInNode('8.6', server, { connection: { enabledTransports: ['xhr_streaming'] } });
    const room = await world.subscribe(watcher, 'presence-room');
    await other.subscribe(await other.connect({ member: { user_id: 'gone' } }), 'presence-room');
    await until(() => room.members.count === 2, 'two members');
    other.close();
    await until(() => room.members.count === 1, 'one member', CUT_MS);
  });

  test('without a sign, as when a cable is pulled, is gone when it answers nothing: a stream after activity and pong time-out, a poll after its answer', async () => {
    const server = await startObserved({ config: { activity_timeout_secs: 4, pong_timeout_secs: 1 } });
    // Nobody reads what comes, and nobody sends.
    const silent = (path, method = 'POST') => new Promise((resolve) => {
      const socket = connect(server.port, '127.0.0.1', () => {
        socket.write(`${method} ${path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n`, () => resolve(socket));
      });
      socket.pause();
    });
    const sessions = async () => (await samples(server)).get('raptor_http_sessions');
    const began = Date.now();
    const streams = [await silent(`/pusher/app/${TEST_APP.key}/1/aaaaaaaa/xhr_streaming?${QUERY}&t=1&n=1`)];
    const client = sockJsOf(server);
    streams.push(await silent(`${client.base}/eventsource`, 'GET'));
    await until(async () => (await sessions()) === 2, 'two sessions');
    await client.open();
    // Four and one, and two to notice; what is left says for a while that it was closed.
    await until(async () => (await samples(server)).get(HELD[1]) === undefined, 'streams are gone', began + 8_500 - Date.now());
    assert.ok(Date.now() - began > 4_000);
    await until(async () => (await sessions()) === 0, 'nothing is left', 6_000);

    const polling = clientOf(server);
    await polling.poll();
    const asked = Date.now();
    streams.push(await silent(`${polling.base}/xhr?${QUERY}&t=2&n=2`));
    await until(async () => (await sessions()) === 0, 'the poll is gone', 30_000);
    assert.ok(Date.now() - asked > 24_000);
    streams.forEach((socket) => socket.destroy());
  });

  test('gives back the seat of its address', async () => {
    const server = await startObserved({ config: { connections_per_address_max: 3 } });
    const headers = { 'X-Forwarded-For': '203.0.113.9' };
    const streams = [];
    for (let n = 0; n < 3; n += 1) streams.push(await clientOf(server).stream({ headers }));
    const refused = await clientOf(server).request('xhr', { headers }).ended;
    assert.equal(refused.status, 429);
    streams.forEach((stream) => stream.abort());
    await until(async () => (await clientOf(server).request('xhr', { headers }).ended).status === 200, 'a seat', CUT_MS);
  });
});
