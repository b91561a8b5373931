// Recorded exchanges with plain HTTP and bare WebSockets: what clients of the scenario do not show. Letters are those of the transcripts.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';

import { WebSocket } from 'ws';

import { atEnd } from '../support/at-end.js';
import { QUIET_MS, sleep, until } from '../support/events.js';
import { handshake, post, request } from './support/http.js';
import { HOLD_SECS, IS_FAYE, startServer } from './support/server.js';

const HOLD_MS = 1000 * HOLD_SECS;
const RETRY = { reconnect: 'retry', interval: 0, timeout: HOLD_MS };
const TYPES = ['long-polling', 'cross-origin-long-polling', 'callback-polling', 'websocket', 'eventsource'];

const { url, port } = await startServer();
const origin = 'http://app.example';

let names = 0;
const name = () => `/http-${++names}`;

/** What Faye and we may differ in is left out: the publisher's id on deliveries, further members of the advice, of `ext` and of the list of types. */
function comparable(messages) {
  return messages.map(({ ext, id, advice, supportedConnectionTypes, ...rest }) => ({
    ...rest,
    ...(rest.successful !== undefined && id !== undefined ? { id } : {}),
    ...(advice ? { advice: Object.fromEntries(Object.entries(advice).filter(([key]) => key !== 'maxInterval' && !(key === 'interval' && advice.reconnect === 'handshake'))) } : {}),
    ...(supportedConnectionTypes ? { supportedConnectionTypes: supportedConnectionTypes.filter((type) => type !== 'in-process') } : {}),
  }));
}

const timed = async (promise) => {
  const start = Date.now();
  return [await promise, Date.now() - start];
};

/** A bare WebSocket with the messages of each frame it received. */
async function openSocket(path = '', protocols = []) {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/faye${path}`, protocols);
  const frames = [];
  socket.on('message', (text) => frames.push(JSON.parse(text)));
  await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
  atEnd(() => socket.terminate());
  const send = (message) => socket.send(typeof message === 'string' ? message : JSON.stringify(message));
  const got = (test, what) => until(() => frames.flat().find(test), what);
  return { socket, frames, send, got };
}

describe('handshake and connect (A, B)', { concurrency: true, timeout: 30_000 }, () => {
  test('a handshake gets an id, all transports and advice', async () => {
    const [reply] = await post(url, [{ channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling', 'callback-polling'], id: '1' }]);
    assert.match(reply.clientId, /^[0-9a-z]{25,64}$/);
    const { clientId, ...rest } = comparable([reply])[0];
    assert.deepEqual({ ...rest, supportedConnectionTypes: rest.supportedConnectionTypes.toSorted() },
      { id: '1', channel: '/meta/handshake', successful: true, version: '1.0', supportedConnectionTypes: TYPES.toSorted(), advice: RETRY });
  });

  test('a batch is answered in order of completion', async () => {
    const session = await handshake(url);
    const { clientId } = session;
    const q = name();
    const replies = await post(url, [
      { channel: '/meta/subscribe', clientId, subscription: q, id: 'g' },
      { channel: q, clientId, data: 'own', id: 'h' },
      { channel: '/meta/connect', clientId, connectionType: 'long-polling', id: 'i', advice: { timeout: 0 } },
      { channel: q, clientId, data: 'own2', id: 'j' },
    ]);
    assert.deepEqual(comparable(replies), [
      { id: 'g', clientId, channel: '/meta/subscribe', successful: true, subscription: q },
      { id: 'h', clientId, channel: q, successful: true },
      { id: 'j', clientId, channel: q, successful: true },
      { id: 'i', clientId, channel: '/meta/connect', successful: true, advice: RETRY },
      { channel: q, data: 'own' },
      { channel: q, data: 'own2' },
    ]);
  });

  test('an idle connect is held for the advised time, one of type eventsource not at all', async () => {
    const session = await handshake(url);
    const [[idle], took] = await timed(session.connect(undefined, { id: 'k' }));
    assert.deepEqual(comparable([idle]), [{ id: 'k', clientId: session.clientId, channel: '/meta/connect', successful: true, advice: RETRY }]);
    assert.ok(took > HOLD_MS - 100 && took < 2 * HOLD_MS, `${took} ms`);

    const [[stream], tookStream] = await timed(session.connect(undefined, { id: 'l', connectionType: 'eventsource' }));
    assert.deepEqual(comparable([stream])[0].advice, { reconnect: 'retry', interval: HOLD_MS, timeout: 0 });
    assert.ok(tookStream < HOLD_MS / 2, `${tookStream} ms`);
  });

  test('a held connect brings what is published, and ends with its session', async () => {
    const session = await handshake(url);
    const q = name();
    await session.subscribe(q);
    const held = session.connect();
    await sleep(QUIET_MS);
    await post(url, { channel: q, data: 'to the poll' });
    assert.deepEqual(comparable(await held).map(({ data }) => data), [undefined, 'to the poll']);

    const [waiting, took] = [session.connect(), Date.now()];
    await sleep(QUIET_MS);
    assert.equal((await session.disconnect()).successful, true);
    await waiting;
    assert.ok(Date.now() - took < HOLD_MS, 'the connect was not released');
    assert.deepEqual(await session.disconnect(), { channel: '/meta/disconnect', successful: false, error: `401:${session.clientId}:Unknown client` });
  });

  test('two sessions of one request, and two connects of different sessions in another', async () => {
    const shake = { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'], id: '1' };
    const [a, b] = await post(url, [shake, shake]);
    assert.notEqual(a.clientId, b.clientId);
    const connect = ({ clientId }, id) => ({ channel: '/meta/connect', clientId, connectionType: 'long-polling', id });
    const [replies, took] = await timed(post(url, [connect(a, 'p1'), { ...connect(b, 'p2'), advice: { timeout: 0 } }]));
    assert.deepEqual(replies.map(({ id, successful }) => [id, successful]), [['p2', true], ['p1', true]]);
    assert.ok(took > HOLD_MS - 100, `${took} ms`);
  });

  test('a session that was silent for twice the hold is unknown', async () => {
    const session = await handshake(url);
    await sleep(2 * HOLD_MS + 1_200);
    const error = `401:${session.clientId}:Unknown client`;
    assert.deepEqual(await session.subscribe('/foo', { id: 't' }), { id: 't', clientId: session.clientId, channel: '/meta/subscribe', successful: false, error, subscription: '/foo' });
    assert.deepEqual(comparable(await session.connect(0, { id: 'u' })), [{ id: 'u', channel: '/meta/connect', successful: false, error, advice: { reconnect: 'handshake' } }]);
  });

  test('a subscription is a string or a list, and the reply repeats it', async () => {
    const session = await handshake(url);
    const accepted = [name(), [name(), `${name()}/*`, `${name()}/**`], []];
    for (const subscription of accepted) assert.deepEqual(await session.subscribe(subscription), { clientId: session.clientId, channel: '/meta/subscribe', successful: true, subscription });
    const refused = [[['/ok1', '/bad one', '/ok2'], '405:/bad one:Invalid channel'], ['/meta/subscribe/x', '403:/meta/subscribe/x:Forbidden channel'], [['/ok', '/meta/x'], '403:/meta/x:Forbidden channel']];
    for (const [subscription, error] of refused) assert.deepEqual(await session.subscribe(subscription), { clientId: session.clientId, channel: '/meta/subscribe', successful: false, subscription, error });
  });

  test('ids come back with their type', async () => {
    const q = name();
    const replies = await post(url, [{ channel: q, data: 1, id: 7 }, { channel: q, data: 1, id: 'x' }, { channel: q, data: 1, id: null }]);
    assert.deepEqual(replies, [{ id: 7, channel: q, successful: true }, { id: 'x', channel: q, successful: true }, { channel: q, successful: true }]);
  });
});

describe('HTTP (A, B, C, D)', { concurrency: true, timeout: 30_000 }, () => {
  test('headers of a reply, without and with an origin', async () => {
    const plain = await request(url, []);
    assert.equal(await plain.text(), '[]');
    const headers = { 'content-type': 'application/json; charset=utf-8', 'cache-control': 'no-cache, no-store', 'x-content-type-options': 'nosniff', 'access-control-allow-origin': null };
    for (const [key, value] of Object.entries(headers)) assert.equal(plain.headers.get(key), value, key);
    const cross = await request(url, [], { Origin: origin });
    assert.equal(cross.headers.get('access-control-allow-origin'), origin);
    assert.equal(cross.headers.get('access-control-allow-credentials'), 'true');
  });

  test('a preflight allows what Faye clients send', async () => {
    for (const path of ['', '/connect']) {
      const answer = await fetch(url + path, { method: 'OPTIONS', headers: { Origin: origin, 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'content-type,pragma' } });
      assert.equal(answer.status, 200);
      assert.equal(answer.headers.get('access-control-allow-origin'), origin);
      assert.equal(answer.headers.get('access-control-allow-credentials'), 'true');
      assert.equal(answer.headers.get('access-control-max-age'), '86400');
      const listed = (header) => answer.headers.get(header).toLowerCase().split(/, */);
      for (const wanted of ['accept', 'authorization', 'content-type', 'pragma', 'x-requested-with']) assert.ok(listed('access-control-allow-headers').includes(wanted), wanted);
      for (const wanted of ['post', 'get']) assert.ok(listed('access-control-allow-methods').includes(wanted), wanted);
    }
  });

  test('a script answers by its callback, and nothing in it ends the script early', async () => {
    const q = name();
    const answer = await fetch(`${url}?${new URLSearchParams({ message: `{"channel":"${q}","data":1,"id":"x\\u2028y"}`, jsonp: 'cb.a_1$' })}`);
    assert.equal(answer.headers.get('content-type'), 'text/javascript; charset=utf-8');
    assert.equal(answer.headers.get('content-disposition'), 'attachment; filename=f.txt');
    assert.equal(await answer.text(), `/**/cb.a_1$([{"id":"x\\u2028y","channel":"${q}","successful":true}]);`);
    const unnamed = await fetch(`${url}?${new URLSearchParams({ message: `{"channel":"${q}","data":1}` })}`);
    assert.match(await unnamed.text(), /^\/\*\*\/jsonpcallback\(\[/);
  });

  test('what cannot be read is a bad request', async () => {
    const message = encodeURIComponent('{"channel":"/foo","data":1}');
    const unreadable = [request(url, 'nope'), request(url, '42'), request(url, ''), fetch(url), fetch(`${url}?message=${message}&jsonp=a%20b`), fetch(url, { method: 'HEAD' }), fetch(url, { method: 'DELETE' })];
    for (const answer of await Promise.all(unreadable)) assert.equal(answer.status, 400);
  });

  test('the files of a Faye server', async () => {
    const files = { '.js': 'faye-browser-min.js', '/client.js': 'faye-browser-min.js', '/a/b/client.js': 'faye-browser-min.js', '/faye-browser-min.js': 'faye-browser-min.js', '/faye-browser.js': 'faye-browser.js' };
    for (const [path, file] of Object.entries(files)) {
      const answer = await fetch(url + path);
      assert.equal(answer.status, 200, path);
      assert.equal(answer.headers.get('content-type'), 'text/javascript; charset=utf-8');
      const etag = answer.headers.get('etag');
      assert.equal(sha1(Buffer.from(await answer.arrayBuffer())), sha1(readFileSync(new URL(`../node_modules/faye-1.4/client/${file}`, import.meta.url))), path);
      assert.equal((await fetch(url + path, { headers: { 'If-None-Match': etag } })).status, 304);
    }
    const map = await fetch(`${url}/faye-browser-min.js.map`);
    assert.deepEqual([map.status, map.headers.get('content-type')], [200, 'application/json; charset=utf-8']);
    assert.equal((await fetch(`${url}/nope.js`)).status, 404);
  });

  test('an event stream', async () => {
    const session = await handshake(url);
    const q = name();
    await session.subscribe(q);
    const stream = await fetch(`${url}/${session.clientId}`, { headers: { Accept: 'text/event-stream' } });
    assert.equal(stream.headers.get('content-type'), 'text/event-stream');
    const reader = stream.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    const reading = (async () => { for (;;) { const { value, done } = await reader.read(); if (done) return; text += value; } })().catch(() => {});
    await session.connect(undefined, { connectionType: 'eventsource' });
    await post(url, { channel: q, data: 'line1\nline2' });
    await until(() => text.includes('line2'), () => text);
    await reader.cancel();
    await reading;
    const events = text.split('\r\n\r\n').filter(Boolean);
    assert.equal(events[0], 'retry: 5000');
    const [{ channel, data }] = JSON.parse(/^data: (.*)$/.exec(events.find((event) => event.startsWith('data')))[1]);
    assert.deepEqual([channel, data], [q, 'line1\nline2']);
  });
});

describe('a bare WebSocket (K)', { concurrency: true, timeout: 30_000 }, () => {
  test('what is no message leaves the socket open, and an empty list is an empty list', async () => {
    const { frames, send, got } = await openSocket('/sub/path');
    for (const odd of ['nope', '42', 'null', '[]']) send(odd);
    send([{ channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['websocket'], id: '1' }]);
    const { successful } = await got(({ id }) => id === '1', 'the handshake');
    assert.equal(successful, true);
    assert.equal(frames.flat().length, 1);
  });

  test('messages for a session wait until it has sent a connect on the socket', async () => {
    const { frames, send, got } = await openSocket();
    const [w, session] = [name(), await handshake(url)];
    const { clientId } = session;
    send({ channel: '/meta/subscribe', clientId, subscription: w, id: '1' });
    await got(({ id, successful }) => id === '1' && successful, 'subscribed');
    await post(url, { channel: w, data: 'early' });
    await sleep(QUIET_MS);
    assert.ok(!frames.flat().some(({ data }) => data), 'delivered before a connect');
    send({ channel: '/meta/connect', clientId, connectionType: 'websocket', id: '2' });
    await got(({ data }) => data === 'early', 'the queue');
    await post(url, { channel: w, data: 'late' });
    await got(({ data }) => data === 'late', 'a message');
    assert.ok(!frames.flat().some(({ id }) => id === '2'), 'a message must not answer the held connect of a socket');
    await got(({ id }) => id === '2', 'the connect after the hold');

    send({ channel: '/meta/connect', clientId, connectionType: 'websocket', id: '3' });
    send({ channel: '/meta/disconnect', clientId, id: '4' });
    await got(({ id, successful }) => id === '4' && successful, 'disconnected');
  });

  test('a session that connects on another transport takes its messages along, in order', async () => {
    const first = await openSocket();
    const [w, session] = [name(), await handshake(url)];
    const { clientId } = session;
    await session.subscribe(w);
    const numbers = Array.from({ length: 60 }, (_, n) => n);
    const got = [];
    for (const n of numbers) {
      if (n === 10) first.send({ channel: '/meta/connect', clientId, connectionType: 'websocket' });
      if (n === 30) {
        // What is on its way to a socket that is torn down is nobody's any more.
        await until(() => first.frames.flat().filter(({ data }) => data !== undefined).length >= 30, 'what the socket was sent');
        first.socket.terminate();
        await sleep(QUIET_MS);
      }
      await post(url, { channel: w, data: n });
    }
    got.push(...first.frames.flat(), ...(await session.connect(0)));
    assert.deepEqual(got.map(({ data }) => data).filter((data) => data !== undefined), numbers);
  });
});

describe('better than Faye', { concurrency: true, timeout: 30_000, skip: IS_FAYE }, () => {
  test('a superseded connect is answered at once and told to wait, the new one gets the messages', async () => {
    const session = await handshake(url);
    const q = name();
    await session.subscribe(q);
    const first = timed(session.connect(undefined, { id: 'm1' }));
    await sleep(QUIET_MS);
    const second = session.connect(undefined, { id: 'm2' });
    const [[reply, ...events], took] = await first;
    assert.deepEqual([reply.id, reply.successful, events.length], ['m1', true, 0]);
    assert.ok(reply.advice.interval >= HOLD_MS && took < 1_000 + QUIET_MS, `${JSON.stringify(reply)} after ${took} ms`);
    await post(url, { channel: q, data: 'new' });
    assert.deepEqual((await second).map(({ data }) => data), [undefined, 'new']);
  });

  test('10,000 numbered messages arrive in order and once, while the session goes from one transport to another and back', { timeout: 120_000 }, async () => {
    const [count, change, batch, lagMax] = [10_000, 700, 10, 300];
    const [q, session] = [name(), await handshake(url)];
    const { clientId } = session;
    await session.subscribe(q);
    const phases = [];
    const received = () => phases.reduce((sum, { got }) => sum + got.length, 0);
    const numbers = (messages) => messages.filter(({ channel }) => channel === q).map(({ data }) => data);

    /** Each takes messages from its first connect on, until the next one's first connect. */
    const over = {
      async websocket(phase) {
        const socket = await openSocket();
        const connect = () => socket.send({ channel: '/meta/connect', clientId, connectionType: 'websocket' });
        socket.socket.on('message', (text) => {
          const messages = JSON.parse(text);
          phase.got.push(...numbers(messages));
          if (!phase.isOver && messages.some(({ channel }) => channel === '/meta/connect')) connect();
        });
        connect();
        await until(() => phase.got.length > 0, 'the first on the socket');
      },
      async 'long-polling'(phase) {
        (async () => {
          while (!phase.isOver) phase.got.push(...numbers(await session.connect()));
        })().catch((error) => phase.got.push(error));
      },
      async eventsource(phase) {
        const { body } = await fetch(`${url}/${clientId}`, { headers: { Accept: 'text/event-stream' } });
        (async () => {
          let text = '';
          for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
            const lines = (text + chunk).split('\r\n');
            text = lines.pop();
            for (const line of lines) if (line.startsWith('data: ')) phase.got.push(...numbers(JSON.parse(line.slice('data: '.length))));
          }
        })().catch((error) => phase.got.push(error));
        await session.connect(0, { connectionType: 'eventsource' });
      },
    };
    const kinds = Object.values(over);
    let changes = 0;
    async function goOn() {
      const phase = { got: [], isOver: false };
      const before = phases.at(-1);
      if (before) before.isOver = true;
      phases.push(phase);
      await kinds[changes++ % kinds.length](phase);
    }

    let [sent, changing] = [0, goOn()];
    while (sent < count) {
      await post(url, Array.from({ length: batch }, () => ({ channel: q, data: sent++ })));
      if (sent % change === 0) changing = changing.then(goOn);
      await until(() => received() >= sent - lagMax, () => `${received()} of ${sent}: ${phases.map(({ got }) => got.length)}`, 20_000);
    }
    await changing;
    await until(() => received() >= count, () => `${received()} of ${count}`);
    assert.deepEqual(phases.flatMap(({ got }) => got), Array.from({ length: count }, (_, n) => n));
    assert.equal(changes, 1 + Math.floor(count / change));
    assert.ok(phases.every(({ got }) => got.length > 0));
  });

  test('a message written into an aborted poll comes with the next', async () => {
    const session = await handshake(url);
    const q = name();
    await session.subscribe(q);
    for (let n = 0; n < 20; n++) {
      const abort = new AbortController();
      const poll = fetch(url, { method: 'POST', signal: abort.signal, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ channel: '/meta/connect', clientId: session.clientId, connectionType: 'long-polling' }) });
      await sleep(20);
      abort.abort();
      await assert.rejects(poll);
      await post(url, { channel: q, data: n });
      assert.deepEqual((await session.connect(0)).map(({ data }) => data), [undefined, n]);
    }
  });

  test('a disconnect on a socket answers the held connect before the socket closes', async () => {
    const { socket, frames, send, got } = await openSocket();
    const { clientId } = await handshake(url);
    send({ channel: '/meta/connect', clientId, connectionType: 'websocket', id: '1' });
    await sleep(QUIET_MS);
    const closed = new Promise((resolve) => { socket.once('close', resolve); });
    send({ channel: '/meta/disconnect', clientId, id: '2' });
    await got(({ id }) => id === '2', 'the disconnect');
    assert.equal(await closed, 1000);
    assert.equal(frames.flat().find(({ id }) => id === '1').advice.reconnect, 'none');
  });

  test('a socket gets the first sub-protocol that it offers', async () => {
    const { socket } = await openSocket('', ['bayeux', 'x']);
    assert.equal(socket.protocol, 'bayeux');
  });

  test('an event stream of an unknown session ends the browser\'s attempts', async () => {
    assert.equal((await fetch(`${url}/nosuchsession`, { headers: { Accept: 'text/event-stream' } })).status, 204);
  });

  test('JSON of other types than application/json, and a preflight with headers of the application', async () => {
    const q = name();
    for (const type of ['application/vnd.api+json', 'Application/JSON ; charset=utf-8']) {
      assert.equal((await post(url, { channel: q, data: 1 }, { 'Content-Type': type }))[0].successful, true, type);
    }
    const answer = await fetch(url, { method: 'OPTIONS', headers: { Origin: origin, 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'x-csrf-token' } });
    assert.match(answer.headers.get('access-control-allow-headers').toLowerCase(), /\bx-csrf-token\b/);
  });
});

function sha1(bytes) {
  return createHash('sha1').update(bytes).digest('hex');
}
