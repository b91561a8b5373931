// Any node serves any request of any session, byte for byte as its own node would: requests are passed on, sockets and nodes that stop make
// the session move. Here each request goes to the node that the test chooses.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import WebSocket from 'ws';

import { handshake, post, request } from '../bayeux/support/http.js';
import { clientOf, events, named, sockJsOf } from '../fallback/peer.js';
import { Peer, auth } from '../raw/peer.js';
import { Api } from '../rest/api.js';
import { sleep, until } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';

const redis = await startRedis();
const APP = { ...TEST_APP, bayeux: { mounts: ['/faye'], client_publish: 'open', hold_secs: 5 } };
const startNode = ({ url } = redis) => startRaptor({ config: { apps: [APP], redis: { url }, shutdown_spread_secs: 1 } });
/** Apart from all others. */
const twoNodes = async () => {
  const own = await startRedis();
  return Promise.all([startNode(own), startNode(own)]);
};
const nodes = await Promise.all([startNode(), startNode(), startNode()]);
const [a, b, c] = nodes;
const faye = (node) => `${node.url}/faye`;
const publish = (node, channel, data) => post(faye(node), { channel, data });
const datas = (replies) => replies.filter(({ channel, data }) => data !== undefined && !channel.startsWith('/meta/')).map(({ data }) => data);

/** The session of `at`, whose requests `to` the node that is named. */
async function session(at) {
  const { clientId, reply } = await handshake(faye(at));
  const send = async (node, message) => (await post(faye(node), { clientId, ...message }))[0];
  return {
    clientId,
    socketId: reply.ext.socket_id,
    send,
    subscribe: async (node, subscription) => assert.equal((await send(node, { channel: '/meta/subscribe', subscription })).successful, true),
    connect: (node, timeout) => post(faye(node), {
      channel: '/meta/connect', clientId, connectionType: 'long-polling', ...(timeout === undefined ? {} : { advice: { timeout } }),
    }),
  };
}

/** The messages of a socket, as they come. */
async function socketTo(node) {
  const socket = new WebSocket(`${node.url.replace('http', 'ws')}/faye`);
  const messages = [];
  socket.on('message', (text) => messages.push(...JSON.parse(text)));
  const closed = new Promise((resolve) => socket.once('close', resolve));
  await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
  return { messages, closed, send: (message) => socket.send(JSON.stringify([message])), close: () => socket.close() };
}

test('a Bayeux session is served by any node, in every operation, and gets each event once and in order', async () => {
  const client = await session(a);
  await client.subscribe(b, '/any/*');
  await client.subscribe(c, '/other');
  const got = [];
  for (let n = 0; n < 40; n += 1) {
    await publish(nodes[n % 3], n % 2 ? '/any/one' : '/any/two', n);
    if (n % 5 === 4) {
      const replies = await client.connect(nodes[n % 3], 0);
      assert.equal(replies[0].successful, true);
      got.push(...datas(replies));
    }
  }
  assert.deepEqual(got.toSorted((x, y) => x - y), Array.from({ length: 40 }, (_, n) => n));
  const held = client.connect(b);
  await sleep(100);
  await publish(c, '/other', 'at last');
  assert.deepEqual(datas(await held), ['at last']);
  assert.equal((await client.send(c, { channel: '/meta/unsubscribe', subscription: '/other' })).successful, true);
  assert.equal((await client.send(b, { channel: '/meta/disconnect' })).successful, true);
  await until(() => redis.cli('KEYS', `*:session:bayeux:*${client.clientId}`) === '', 'Redis forgets it');
  for (const node of nodes) {
    const [reply] = await client.connect(node, 0);
    assert.match(reply.error, /^401:/);
    assert.equal(reply.advice.reconnect, 'handshake');
  }
});

test('a held poll that its client gives up at another node loses nothing', async () => {
  const client = await session(a);
  await client.subscribe(b, '/given-up');
  const controller = new AbortController();
  const given = fetch(faye(c), {
    method: 'POST', signal: controller.signal, headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ channel: '/meta/connect', clientId: client.clientId, connectionType: 'long-polling' }),
  });
  await sleep(150);
  controller.abort();
  await assert.rejects(given);
  for (let n = 0; n < 3; n += 1) await publish(a, '/given-up', n);
  assert.deepEqual(datas(await client.connect(b)), [0, 1, 2]);
});

test('a script and a form are passed on as they are', async () => {
  const client = await session(a);
  await client.subscribe(a, '/forms');
  await publish(b, '/forms', 'x');
  const connect = JSON.stringify([{ channel: '/meta/connect', clientId: client.clientId, connectionType: 'callback-polling', advice: { timeout: 0 } }]);
  const script = await fetch(`${faye(b)}?${new URLSearchParams({ message: connect, jsonp: 'mine' })}`);
  assert.equal(script.headers.get('content-type'), 'text/javascript; charset=utf-8');
  assert.deepEqual(datas(JSON.parse(/^\/\*\*\/mine\((.*)\);$/.exec(await script.text())[1])), ['x']);
  const form = await fetch(faye(c), { method: 'POST', body: new URLSearchParams([['message', connect], ['message', connect]]), headers: { Origin: 'http://x' } });
  assert.equal(form.headers.get('access-control-allow-origin'), 'http://x');
  assert.equal((await form.json()).length, 2);
});

test('an event stream of a session of another node brings what is published, and what it missed', async () => {
  const client = await session(a);
  await client.subscribe(a, '/streamed');
  await publish(a, '/streamed', 0);
  const controller = new AbortController();
  const open = async (node) => {
    const response = await fetch(`${faye(node)}/${client.clientId}`, { headers: { Accept: 'text/event-stream' }, signal: controller.signal });
    const seen = { text: '' };
    (async () => { for await (const part of response.body) seen.text += new TextDecoder().decode(part); })().catch(() => {});
    seen.datas = () => [...seen.text.matchAll(/^data: (.*)\r?$/gm)].flatMap(([, json]) => datas(JSON.parse(json)));
    return seen;
  };
  const first = await open(b);
  for (let n = 1; n < 5; n += 1) await publish(c, '/streamed', n);
  await until(() => first.datas().length === 5, () => first.text);
  assert.deepEqual(first.datas(), [0, 1, 2, 3, 4]);
  controller.abort();
});

test('a socket that names the session of another node has it move there, with what waits', async () => {
  const client = await session(a);
  await client.subscribe(a, '/sockets');
  for (let n = 0; n < 3; n += 1) await publish(c, '/sockets', n);
  const socket = await socketTo(b);
  const connect = () => socket.send({ channel: '/meta/connect', clientId: client.clientId, connectionType: 'websocket' });
  connect();
  await until(() => datas(socket.messages).length === 3, () => JSON.stringify(socket.messages));
  await publish(a, '/sockets', 3);
  await until(() => datas(socket.messages).length === 4);
  assert.deepEqual(datas(socket.messages), [0, 1, 2, 3]);
  socket.close();
  await socket.closed;
  await publish(a, '/sockets', 4);
  assert.deepEqual(datas(await client.connect(c)), [4]);
  const next = await socketTo(c);
  next.send({ channel: '/meta/connect', clientId: client.clientId, connectionType: 'websocket' });
  await publish(a, '/sockets', 5);
  await until(() => datas(next.messages).length === 1);
  assert.deepEqual(datas(next.messages), [5]);
  next.close();
});

const said = (lines) => events(lines).filter(({ event }) => event === 'said').map(({ data }) => JSON.parse(data));

test('a session of pusher-js over xhr_polling is served by any node', async () => {
  const client = clientOf(a);
  const lines = [];
  let turn = 0;
  const poll = async () => {
    const answer = await client.poll({ at: nodes[turn++ % 3] });
    assert.equal(answer.status, 200, answer.text);
    lines.push(...answer.lines());
  };
  await poll();
  assert.equal(lines[0], 'o');
  while (!named(lines, 'pusher:connection_established').length) await poll();
  await client.sendAt(b, { event: 'pusher:subscribe', data: { channel: 'any-polled' } });
  while (!events(lines).some(({ event }) => event === 'pusher_internal:subscription_succeeded')) await poll();
  for (let n = 0; n < 12; n += 1) {
    await new Api(nodes[n % 3], APP).trigger('any-polled', 'said', n);
    if (n % 2) while (said(lines).length <= n) await poll();
  }
  assert.deepEqual(said(lines), Array.from({ length: 12 }, (_, n) => n));
  for (let n = 0; n < 6; n += 1) await client.sendAt(nodes[n % 3], { event: 'pusher:ping', data: {} });
  while (events(lines).filter(({ event }) => event === 'pusher:pong').length < 6) await poll();
});

test('a session of pusher-js over xhr_streaming is opened by one node, sends to others, and streams from any', async () => {
  const client = clientOf(a);
  const first = await client.stream();
  await until(() => named(first.lines(), 'pusher:connection_established').length === 1, () => first.text);
  await client.sendAt(b, { event: 'pusher:subscribe', data: { channel: 'any-streamed' } });
  await until(() => events(first.lines()).some(({ event }) => event === 'pusher_internal:subscription_succeeded'), () => first.text);
  for (let n = 0; n < 5; n += 1) await new Api(nodes[n % 3], APP).trigger('any-streamed', 'said', n);
  await until(() => said(first.lines()).length === 5, () => first.text);
  const second = await client.stream({ at: c });
  await first.ended;
  for (let n = 5; n < 10; n += 1) await new Api(nodes[n % 3], APP).trigger('any-streamed', 'said', n);
  await until(() => said(second.lines()).length === 5, () => second.text);
  assert.deepEqual(said(second.lines()), [5, 6, 7, 8, 9]);
  second.abort();
});

test('a session of SockJS is served by any node', async () => {
  const client = sockJsOf(a);
  assert.equal((await client.post('xhr', { at: b }).ended).text, 'o\n');
  const lines = [];
  let turn = 0;
  const poll = async () => lines.push(...(await client.post('xhr', { at: nodes[turn++ % 3] }).ended).lines());
  assert.equal((await client.open({ at: c })).status, 204);
  while (!named(lines, 'pusher:connection_established').length) await poll();
  assert.equal((await client.subscribe('any-sockjs', { at: b })).status, 204);
  while (!events(lines).some(({ event }) => event === 'pusher_internal:subscription_succeeded')) await poll();
  for (let n = 0; n < 4; n += 1) await new Api(nodes[n % 3], APP).trigger('any-sockjs', 'said', n);
  while (said(lines).length < 4) await poll();
  assert.deepEqual(said(lines), [0, 1, 2, 3]);
});

test('a node that stops sends its sessions to others, with all that waits, and nobody sees anybody come or go', { timeout: 60_000 }, async () => {
  const leaving = await startNode();
  const watcher = await Peer.connect(b, { app: APP });
  await watcher.join('presence-moving', 'watcher', {});
  await watcher.subscribe('moving');

  const faye = await session(leaving);
  await faye.subscribe(leaving, '/moving');
  const socket = await socketTo(leaving);
  const socketed = await session(leaving);
  await socketed.subscribe(leaving, '/moving');
  socket.send({ channel: '/meta/connect', clientId: socketed.clientId, connectionType: 'websocket' });
  const polling = clientOf(leaving);
  const polled = [];
  const poll = async (at) => polled.push(...(await polling.poll({ at })).lines());
  while (!named(polled, 'pusher:connection_established').length) await poll(leaving);
  const [{ socket_id: socketId }] = named(polled, 'pusher:connection_established');
  const channel_data = JSON.stringify({ user_id: 'polling' });
  const member = { channel: 'presence-moving', auth: auth(APP, socketId, 'presence-moving', channel_data), channel_data };
  await polling.send({ event: 'pusher:subscribe', data: member }, { event: 'pusher:subscribe', data: { channel: 'moving' } });
  while (events(polled).filter(({ event }) => event === 'pusher_internal:subscription_succeeded').length < 2) await poll(leaving);
  const streaming = clientOf(leaving);
  const stream = await streaming.stream();
  await until(() => named(stream.lines(), 'pusher:connection_established').length === 1);
  await streaming.subscribe('moving');
  await until(() => events(stream.lines()).some(({ event }) => event === 'pusher_internal:subscription_succeeded'));
  await sleep(200);
  await watcher.arrivingNow();

  const held = faye.connect(leaving);
  const heldPoll = polling.poll({ at: leaving });
  let [sent, stopped] = [0, false];
  const publishing = (async () => {
    while (!stopped) await Promise.all([new Api(nodes[sent % 3], APP).trigger('moving', 'said', sent++), sleep(10)]);
  })();
  await sleep(100);
  const end = leaving.stop();

  const got = { faye: datas(await held), polled: said((await heldPoll).lines()) };
  while (got.faye.length < 20 || got.faye.at(-1) < 150) got.faye.push(...datas(await faye.connect(nodes[got.faye.length % 3])));
  await stream.ended;
  assert.ok(stream.text.length > 256 * 1024, 'pusher-js takes the end of a shorter answer for the end of the session');
  const next = await streaming.stream({ at: c });
  await socket.closed;
  const again = await socketTo(a);
  again.send({ channel: '/meta/connect', clientId: socketed.clientId, connectionType: 'websocket' });
  while ((got.polled.at(-1) ?? 0) < 150) got.polled.push(...said((await polling.poll({ at: a })).lines()));
  assert.equal((await end).code, 0);
  stopped = true;
  await publishing;
  await until(() => said(next.lines()).at(-1) === sent - 1, () => next.text.slice(-300));
  await until(() => datas(again.messages).at(-1) === sent - 1, () => JSON.stringify(again.messages.slice(-3)));

  const inOrder = (numbers, what) => assert.deepEqual(numbers, Array.from({ length: numbers.length }, (_, n) => n), what);
  inOrder(got.faye, 'polls of Faye');
  inOrder(got.polled, 'xhr_polling');
  inOrder([...said(stream.lines()), ...said(next.lines())], 'xhr_streaming');
  inOrder([...datas(socket.messages), ...datas(again.messages)], 'a socket of Faye');
  const seen = await watcher.arrivingNow();
  assert.deepEqual(seen.filter(({ event }) => event !== 'said'), [], 'nobody came or went');
  await polling.sendAt(b, { event: 'client-moved', channel: 'presence-moving', data: 'x' });
  await watcher.receives({ event: 'client-moved', channel: 'presence-moving', data: 'x', user_id: 'polling' });
  next.abort();
  again.close();
});

test('sessions of a node that stops are offered again to one that could not take them', { timeout: 60_000 }, async () => {
  const [leaving, busy] = await twoNodes();
  const before = await session(leaving);
  await before.subscribe(leaving, '/kept');
  process.kill(busy.pid, 'SIGSTOP');
  const end = leaving.stop('SIGTERM', 20_000);
  // An offer that is not answered within 3 seconds is taken back.
  await sleep(4_000);
  process.kill(busy.pid, 'SIGCONT');
  assert.deepEqual(await end, { code: 0, signal: null });
  await publish(busy, '/kept', 'still here');
  const got = [];
  await until(async () => got.push(...datas(await before.connect(busy, 1_000))), () => `${got}`);
  assert.deepEqual(got, ['still here']);
});

test('a socket waits for a session that is on its way to another node, whatever becomes of that', { timeout: 60_000 }, async () => {
  const own = await startRedis();
  const [leaving, busy, free] = await Promise.all([startNode(own), startNode(own), startNode(own)]);
  const clients = await Promise.all(Array.from({ length: 8 }, () => session(leaving)));
  process.kill(busy.pid, 'SIGSTOP');
  const end = leaving.stop('SIGTERM', 20_000);
  // Some of them are offered to the busy one first, for three seconds.
  await sleep(900);
  const sockets = await Promise.all(clients.map(() => socketTo(free)));
  sockets.forEach((socket, n) => socket.send({ channel: '/meta/connect', clientId: clients[n].clientId, connectionType: 'websocket', advice: { timeout: 0 } }));
  await until(() => sockets.every(({ messages }) => messages.length > 0), () => JSON.stringify(sockets.map(({ messages }) => messages)), 15_000);
  assert.deepEqual(sockets.flatMap(({ messages }) => messages).filter(({ successful }) => !successful), []);
  for (const socket of sockets) socket.close();
  process.kill(busy.pid, 'SIGCONT');
  assert.deepEqual(await end, { code: 0, signal: null });
});

test('a session that is held up, as it asks again and again, keeps no other from moving', { timeout: 60_000 }, async () => {
  const [leaving, staying] = await twoNodes();
  const [greedy, quiet, faye] = [clientOf(leaving), clientOf(leaving), await session(leaving)];
  for (const client of [greedy, quiet]) await client.poll();
  await quiet.subscribe('kept');
  await quiet.poll();
  await faye.subscribe(leaving, '/kept');
  const kept = (async () => {
    const got = said((await quiet.poll()).lines());
    while (got.length === 0) got.push(...said((await quiet.poll({ at: staying })).lines()));
    return got;
  })();
  // Twenty seconds' worth.
  const asked = greedy.send(...Array(20_000).fill({ event: 'client-x', channel: 'x', data: 1 })).catch(() => {});
  await sleep(200);
  const begin = Date.now();
  assert.deepEqual(await leaving.stop('SIGTERM', 20_000), { code: 0, signal: null });
  assert.ok(Date.now() - begin < 12_000, `${Date.now() - begin} ms`);
  await asked;
  await new Api(staying, APP).trigger('kept', 'said', 1);
  assert.deepEqual(datas(await faye.connect(staying, 1_000)), [1]);
  assert.deepEqual(await kept, [1]);
});

test('the sessions of a node that is killed are lost to their clients within 10 s, at any node, and nobody keeps them', { timeout: 60_000 }, async () => {
  const killed = await startNode();
  const client = await session(killed);
  await client.subscribe(b, '/killed');
  const held = request(faye(b), { channel: '/meta/connect', clientId: client.clientId, connectionType: 'long-polling' });
  const polling = clientOf(killed);
  await polling.poll();
  await sleep(100);
  await killed.stop('SIGKILL');
  const from = Date.now();
  // It may not say that the session is lost before it is sure.
  assert.equal((await held).status, 503);
  for (;;) {
    const response = await request(faye(c), { channel: '/meta/connect', clientId: client.clientId, connectionType: 'long-polling' });
    if (response.status !== 503) {
      const [reply] = await response.json();
      assert.match(reply.error, /^401:/);
      assert.equal(reply.advice.reconnect, 'handshake');
      break;
    }
    await sleep(100);
  }
  assert.ok(Date.now() - from < 10_000, `${Date.now() - from} ms`);
  const again = await session(c);
  await again.subscribe(a, '/killed');
  await publish(b, '/killed', 1);
  assert.deepEqual(datas(await again.connect(b)), [1]);
  // Each node knows it within a second of the other.
  await until(async () => (await polling.sendAt(a, { event: 'pusher:ping', data: {} })).status === 404);
  assert.match((await polling.poll({ at: b })).text, /^o\n/, 'its name is free again');
});

test('while Redis is away a session is served by its own node; once it is back, though empty, by any', { timeout: 60_000 }, async () => {
  const client = await session(a);
  await client.subscribe(a, '/away');
  await redis.kill();
  await until(async () => (await request(faye(b), { channel: '/meta/connect', clientId: client.clientId, connectionType: 'long-polling' })).status === 503);
  await until(async () => (await (await fetch(`${a.url}/readyz`)).text()).includes('degraded'), 'the node knows', 15_000);
  await publish(a, '/away', 1);
  assert.deepEqual(datas(await client.connect(a)), [1]);
  await redis.restart();
  const from = Date.now();
  for (;;) {
    const response = await request(faye(b), { channel: '/meta/connect', clientId: client.clientId, connectionType: 'long-polling', advice: { timeout: 0 } });
    const [reply] = response.status === 200 ? await response.json() : [{}];
    if (reply.successful) break;
    assert.ok(Date.now() - from < 10_000, `${response.status} ${JSON.stringify(reply)}`);
    await sleep(100);
  }
  await until(async () => !(await (await fetch(`${c.url}/readyz`)).text()).includes('degraded'), 'all are there again', 10_000);
  await publish(c, '/away', 2);
  assert.deepEqual(datas(await client.connect(b)), [2]);
});
