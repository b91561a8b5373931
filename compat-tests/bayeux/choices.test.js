// What Raptor chose where Faye has nothing to go by, or does worse (`bayeux.md` 3.4, 3.6, 6, 8.1, 8.5).

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, test } from 'node:test';

import { WebSocket } from 'ws';

import { collect, until } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { startBridge } from './support/bridge.js';
import { handshake, post, request } from './support/http.js';
import { startBayeux } from './support/server.js';

const messagesFor = async (session) => (await session.connect(0)).slice(1);

describe('chosen', { concurrency: true, timeout: 90_000 }, () => {
  test('a socket whose peer is gone is pinged after 25 s, and given up after 25 more', async () => {
    const { port } = await startBayeux();
    const [silent, alive] = [false, true].map((autoPong) => new WebSocket(`ws://127.0.0.1:${port}/faye`, { autoPong }));
    const start = Date.now();
    const took = (promise) => promise.then(() => Date.now() - start);
    const [pinged, closed] = await Promise.all([took(once(silent, 'ping')), took(once(silent, 'close'))]);
    assert.ok(pinged > 24_500 && pinged < 30_000, `pinged after ${pinged} ms`);
    assert.ok(closed > pinged + 24_500 && closed < pinged + 30_000, `closed after ${closed} ms`);
    assert.equal(alive.readyState, WebSocket.OPEN);
    alive.terminate();
  });

  test('a socket that sends nothing but garbage is closed in the end', async () => {
    const { port } = await startBayeux();
    const socket = new WebSocket(`ws://127.0.0.1:${port}/faye`);
    await once(socket, 'open');
    const replies = collect(socket, 'message');
    for (let n = 0; n < 9; n++) socket.send('nope');
    socket.send('[]');
    await replies.until(1);
    assert.equal(socket.readyState, WebSocket.OPEN, 'nine are passed over');
    socket.send('nope');
    const [code] = await once(socket, 'close');
    assert.equal(code, 1008);
  });

  test('no reply sets a cookie, and none is asked for', async () => {
    const { url } = await startBayeux();
    const answer = await request(url, { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] });
    assert.equal(answer.headers.get('set-cookie'), null);
    const [{ clientId }] = await answer.json();
    const [connected] = await post(url, { channel: '/meta/connect', clientId, connectionType: 'long-polling', advice: { timeout: 0 } });
    assert.equal(connected.successful, true);
  });

  describe('polls of one browser', { concurrency: true }, () => {
    const shake = { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] };
    const HELD = { reconnect: 'retry', interval: 0, timeout: 2_000, maxInterval: 4_000 };
    const CROWDED = { ...HELD, interval: 1_000, 'multiple-clients': true };

    /** Sessions of one browser, each as `connect(ms)`, which resolves with the replies. */
    async function browser(url, count) {
      const first = await request(url, shake);
      const [cookie, attributes] = /^(BAYEUX_BROWSER=[0-9a-z]{16})(; Path=\/; HttpOnly)$/.exec(first.headers.get('set-cookie')).slice(1);
      assert.equal(attributes, '; Path=/; HttpOnly');
      const more = await Promise.all(Array.from({ length: count - 1 }, () => request(url, shake, { Cookie: `other=1; ${cookie}` })));
      for (const response of more) assert.equal(response.headers.get('set-cookie'), null, 'it has one');
      const ids = await Promise.all([first, ...more].map(async (response) => (await response.json())[0].clientId));
      return ids.map((clientId) => (timeout) => post(url, { channel: '/meta/connect', clientId, connectionType: 'long-polling', ...(timeout === undefined ? {} : { advice: { timeout } }) }, { Cookie: cookie }));
    }
    const start = () => startBayeux({ bayeux: { hold_secs: 2, session_secs: 4, browser_polls_max: 2, browser_interval_secs: 1 } });

    test('beyond a number are answered at once, with what is there and when to come back', async () => {
      const { url } = await start();
      const [one, two, three] = await browser(url, 3);
      const held = [one(), two()];
      await new Promise((resolve) => setTimeout(resolve, 200));
      const since = Date.now();
      assert.deepEqual((await three())[0].advice, CROWDED);
      assert.deepEqual((await three(0))[0].advice, HELD, 'this one wants no wait');
      const again = two();
      await held[1];
      assert.deepEqual((await three())[0].advice, CROWDED, 'a poll that takes the place of another is no further one');
      assert.ok(Date.now() - since < 1_000);
      const [other] = await browser(url, 1);
      held.push(other());
      for (const [{ advice, successful }] of await Promise.all([held[0], again, held[2]])) assert.deepEqual([successful, advice], [true, HELD]);
      const [{ advice }] = await three();
      assert.deepEqual(advice, HELD, 'there is room again');
    });

    test('are not counted without a cookie', async () => {
      const { url } = await start();
      const sessions = await Promise.all([1, 2, 3, 4].map(() => handshake(url)));
      for (const [{ advice }] of await Promise.all(sessions.map((session) => session.connect()))) assert.deepEqual(advice, HELD);
    });
  });

  test('members of a publisher\'s own making are passed on where the app says so, and none that a client would obey', async () => {
    const message = { channel: '/a', data: 1, timestamp: 'now', priority: { high: true }, id: 'x', clientId: 'forged', advice: { reconnect: 'none' }, successful: false,
      error: '500::x', subscription: '/b', connectionType: 'websocket', version: '2', minimumVersion: '2', supportedConnectionTypes: [], signature: 's' };
    for (const [forward, expected] of [[true, { timestamp: 'now', priority: { high: true } }], [false, {}]]) {
      const { url } = await startBayeux({ bayeux: { forward_unknown_members: forward } });
      const session = await handshake(url);
      await session.subscribe('/a');
      assert.equal((await post(url, message))[0].successful, true);
      assert.deepEqual(await messagesFor(session), [{ channel: '/a', data: 1, ...expected }]);
    }
  });

  test('a preflight without an origin is for any', async () => {
    const { url } = await startBayeux();
    const answer = await fetch(url, { method: 'OPTIONS', headers: { Referer: 'http://page.example/x', 'Access-Control-Request-Method': 'POST' } });
    assert.deepEqual([answer.status, answer.headers.get('access-control-allow-origin')], [200, '*']);
  });

  test('an encrypted channel takes ciphertext from its members, and nothing else', async () => {
    const { server, application } = await startBridge();
    const session = await handshake(server.url);
    const { socket_id } = session.reply.ext;
    const form = new URLSearchParams({ socket_id, channel_name: 'private-encrypted-x', member: 'null' });
    const { auth } = await (await fetch(`${application.url}/pusher/auth`, { method: 'POST', body: form })).json();
    assert.equal((await session.subscribe('/private/encrypted-x', { ext: { auth } })).successful, true);
    for (const data of ['clear', { text: 'clear' }, { nonce: 'n' }, null]) {
      assert.equal((await session.publish('/private/encrypted-x', data)).error, '403:/private/encrypted-x:Forbidden channel', JSON.stringify(data));
    }
    const ciphertext = { nonce: 'bm9uY2U=', ciphertext: 'Y2lwaGVy' };
    assert.equal((await session.publish('/private/encrypted-x', ciphertext)).successful, true);
    assert.deepEqual(await messagesFor(session), [{ channel: '/private/encrypted-x', data: ciphertext }]);
  });

  test('of two mounts the longer one counts, and apps do not hear each other', async () => {
    const app = (id, mounts) => ({ ...TEST_APP, id, key: `key-${id}`, bayeux: { mounts, client_publish: 'open' } });
    const { url } = await startRaptor({ config: { apps: [app('1', ['/a', '/old']), app('2', ['/a/b'])] } });
    const sessions = {};
    for (const mount of ['/a', '/old', '/a/b']) {
      sessions[mount] = await handshake(url + mount);
      await sessions[mount].subscribe('/room');
    }
    for (const path of ['/a/x', '/old', '/a/b/x', '/a/bx']) await post(url + path, { channel: '/room', data: path });
    const heard = async (mount) => (await messagesFor(sessions[mount])).map(({ data }) => data);
    assert.deepEqual(await heard('/a'), ['/a/x', '/old', '/a/bx']);
    assert.deepEqual(await heard('/old'), ['/a/x', '/old', '/a/bx']);
    assert.deepEqual(await heard('/a/b'), ['/a/b/x']);
  });

  test('in flat style prefixes are Pusher\'s, and /private is a word', async () => {
    const { server, application } = await startBridge({ bayeux: { style: 'flat' } });
    const session = await handshake(server.url);
    assert.equal((await session.subscribe('/private-room')).error, '403:/private-room:Authentication required');
    assert.equal((await session.subscribe('/private/room')).successful, true);
    await application.calls.trigger(['private-room', 'private.room'], 'e', 1);
    const got = [];
    await until(async () => got.push(...(await messagesFor(session))), 'the event');
    assert.deepEqual(got, [{ channel: '/private/room', data: 1, ext: { event: 'e' } }]);
  });

  test('in untyped style every name is an ordinary one, and private channels of Pusher clients stay theirs', async () => {
    const { server, application } = await startBridge({ bayeux: { style: 'untyped', client_publish: 'open' } });
    const session = await handshake(server.url);
    const names = ['/private/room', '/presence/room', '/private-room', '/presence-room', '/public-room'];
    for (const name of names) assert.equal((await session.subscribe(name)).successful, true, name);
    assert.equal((await session.subscribe('/**')).successful, true);
    await application.calls.trigger(['private-room', 'presence-room'], 'e', 'secret');
    for (const name of names) assert.equal((await session.publish(name, name)).successful, true, name);
    const got = [];
    await until(async () => got.push(...(await messagesFor(session))) >= names.length, 'all messages');
    assert.deepEqual(got, names.map((name) => ({ channel: name, data: name })));
  });

  test('the name of an event may stand in the data', async () => {
    const { server, application } = await startBridge({ bayeux: { event_in: 'data', client_publish: 'open' } });
    const session = await handshake(server.url);
    await session.subscribe('/cache-room');
    await application.calls.trigger('cache-room', 'new-msg', { a: 1 });
    await application.calls.trigger('cache-room', 'message', { a: 2 });
    await session.publish('/cache-room', 'plain');
    await session.publish('/cache-room', 'named', { ext: { event: 'typing' } });
    const got = [];
    await until(async () => got.push(...(await messagesFor(session))) >= 4, 'all messages');
    assert.deepEqual(got.map(({ data, ext }) => [data, ext]), [
      [{ event: 'new-msg', data: { a: 1 } }, undefined], [{ a: 2 }, undefined], ['plain', undefined], [{ event: 'client-typing', data: 'named' }, undefined],
    ]);
  });

  test('a client that does nothing but wait is told to go, one that does something stays', async () => {
    const server = await startBayeux({ bayeux: { inactivity_secs: 2 } });
    const start = Date.now(); // its time begins with the handshake, which the next one may come long after
    const [idle, busy] = [await handshake(server.url), await handshake(server.url)];
    let isOver = false;
    const work = (async () => {
      const errors = [];
      while (!isOver) {
        errors.push((await busy.publish('/work', 1)).error, (await busy.connect(200))[0].error);
      }
      return errors.filter((error) => error !== undefined);
    })();
    const [told] = await idle.connect();
    assert.deepEqual([told.successful, told.advice.reconnect], [true, 'none']);
    assert.ok(Date.now() - start >= 2_000 && Date.now() - start < 6_000, `told after ${Date.now() - start} ms`);
    isOver = true;
    assert.deepEqual(await work, []);
    assert.match((await idle.connect(0))[0].error, /^401:/);
  });
});
