// What a hostile page tries, and what it gets (`bayeux.md` 9.2).

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { describe, test } from 'node:test';

import { QUIET_MS, sleep, until } from '../support/events.js';
import { PASSWORD } from './support/both-protocols.js';
import { startBridge } from './support/bridge.js';
import { PLAIN_PUBLISH, handshake, post, request } from './support/http.js';
import { faye } from './support/in-node.js';
import { startBayeux } from './support/server.js';
import { VERSIONS, createWorld, deliveries } from './support/world.js';

/** What a poll brought besides its own reply. */
const messagesFor = async (session) => (await session.connect(0)).slice(1);

describe('publishing', { timeout: 60_000 }, () => {
  test('needs the token of an app that wants one, however it is sent', async () => {
    const { server, bayeux } = await startBridge({ bayeux: { client_publish: 'token' } });
    const subscriber = await handshake(server.url);
    await subscriber.subscribe('/news');
    for (const [form, send] of Object.entries(PLAIN_PUBLISH)) {
      for (const ext of [undefined, {}, { password: 'wrong' }, { password: [PASSWORD.password] }, { password: null }, { Password: PASSWORD.password }]) {
        const [{ successful, error }] = await send(server.url, { channel: '/news', data: form, ext });
        assert.deepEqual([successful, error.slice(0, 4)], [false, '403:'], `${form} with ${JSON.stringify(ext)}`);
      }
    }
    await assert.rejects(bayeux.publish(bayeux.client(), '/news', 1), { code: 403 });
    assert.deepEqual(await messagesFor(subscriber), []);
    assert.equal((await post(server.url, { channel: '/news', data: 'real', ext: PASSWORD }))[0].successful, true);
    assert.deepEqual(await messagesFor(subscriber), [{ channel: '/news', data: 'real' }]);
  });

  test('is nobody\'s where the app says none, the application\'s token excepted', async () => {
    const { server } = await startBridge({ bayeux: { client_publish: 'none' } });
    assert.equal((await post(server.url, { channel: '/news', data: 1 }))[0].successful, false);
    assert.equal((await post(server.url, { channel: '/news', data: 1, ext: PASSWORD }))[0].successful, true);
  });

  for (const version of VERSIONS) {
    test(`hands nothing forged to others: faye ${version}`, async () => {
      const { server } = await startBridge();
      const world = createWorld({ Faye: faye(version), url: server.url, transport: 'websocket', holdMs: 45_000 });
      const client = world.client();
      const got = await world.subscribe(client, '/forged');
      const { clientId } = client.seen.find(({ channel }) => channel === '/meta/handshake');
      const forged = {
        advice: { reconnect: 'none', interval: 1e9, timeout: 1 }, successful: false, error: '401::Unknown client', clientId, subscription: '/forged', connectionType: 'websocket',
        version: '9', supportedConnectionTypes: [], 'x-messages': 9, made_up: 1,
        ext: { ...PASSWORD, password: 'wrong', event: 'pusher_internal:member_added', cached: true, user_id: 'admin', socket_id: '1.1', presence: {}, ack: 7, timesync: {}, auth: 'x', own: 'kept' },
      };
      for (const id of ['1', '2', '3', '4', '5', '6']) await post(server.url, { channel: '/forged', data: id, id, ...forged });
      const named = { ...forged, ext: { ...forged.ext, event: 'admin:kick' } };
      await post(server.url, { channel: '/forged', data: 'named', ...named });
      await post(server.url, { channel: '/forged', data: 'last' });
      await got.until(1);
      await until(() => got.includes('last'), 'the client goes on');
      for (const message of deliveries(client)) {
        assert.deepEqual(Object.keys(message).filter((key) => !['channel', 'data', 'ext'].includes(key)), [], JSON.stringify(message));
        const { event = 'client-', own, ...ext } = message.ext ?? {};
        assert.ok(event.startsWith('client-'), event);
        assert.deepEqual(ext, {}, 'only what the server does not write itself may pass');
      }
      await world.publish(client, '/forged', 'still connected');
      world.close();
    });
  }
});

describe('private names', { timeout: 60_000 }, () => {
  test('cannot be reached by any spelling', async () => {
    const { server, application, pusher } = await startBridge();
    const member = { user_id: 'ann' };
    const victim = await pusher.connect({ member });
    const heard = [];
    for (const name of ['private-x', 'presence-x', 'private-encrypted-x']) {
      const channel = await pusher.subscribe(victim, name);
      channel.bind_global((event, data) => { if (!event.startsWith('pusher')) heard.push([name, event, data]); });
    }
    const spellings = ['private', 'presence', 'private-encrypted'].flatMap((kind) => [
      `/${kind}/x`, `/${kind}-x`, `${kind}-x`, `/${kind}.x`, `/${kind}/x/`, `/${kind}//x`, `//${kind}/x`, `/./${kind}/x`, `/${kind.toUpperCase()}/x`, ` /${kind}/x`, `/${kind}/x `, `/${kind}/x\n`, `/ok\n/${kind}/x`, `/${kind}/x\0`,
      `/${kind}/!~78`, `/!~70${kind.slice(1)}/x`, `/!~70${kind.slice(1)}-x`, `/!~3D!~3B70${kind.slice(1)}-x`, `/!~2E${kind}-x`, `/!~23server-to-user-ann`, `/%70${kind.slice(1)}/x`, `/\u0070${kind.slice(1)}\u002fx`, `/${kind}\u2215x`,
      `/public/../${kind}/x`, `/public/${kind}/x`, `/service/${kind}/x`, `/${kind}/*`, `/${kind}/**`, `/${kind}-x/*`, `/${kind}-x/**`,
    ]);
    spellings.push('/private/encrypted-x', '/private/encrypted-*', '/service/presence/x', '/*', '/**', '/*/x', '/*/*', '/**/x', ['/private/x'], [['/private/x']], { 0: '/private/x', length: 1 });
    const sent = 'must-not-pass';
    const session = await handshake(server.url);
    for (const subscription of spellings) {
      const given = Array.isArray(subscription) ? subscription : ['/ok', subscription];
      await session.subscribe(subscription);
      await session.subscribe(given);
      if (typeof subscription === 'string') await session.publish(subscription, sent);
      await post(server.url, { channel: subscription, data: sent });
    }
    await messagesFor(session);

    for (const name of ['private-x', 'presence-x', 'private-encrypted-x']) await application.calls.trigger(name, 'secret', { secret: name });
    await application.calls.trigger('open', 'public', 'public');
    const messages = [];
    await until(async () => messages.push(...(await messagesFor(session))), 'the public event');
    await sleep(QUIET_MS);
    messages.push(...(await messagesFor(session)));
    assert.ok(messages.some(({ channel }) => channel === '/open'));
    assert.deepEqual(messages.filter((message) => JSON.stringify(message).includes('secret')), []);
    assert.deepEqual(heard.filter(([, , data]) => JSON.stringify(data).includes(sent)), [], 'a stranger spoke on a private channel');
  });

  test('a session id is not what other users can see', async () => {
    const { server } = await startBridge();
    const { reply, clientId } = await handshake(server.url);
    const [{ error }] = await post(server.url, { channel: '/meta/connect', clientId: reply.ext.socket_id, connectionType: 'long-polling' });
    assert.match(error, /^401:/);
    assert.ok(clientId.length >= 25);
  });
});

describe('odd messages', { timeout: 60_000 }, () => {
  test('get a Bayeux error or a bad request, and nobody else notices', async () => {
    const server = await startBayeux();
    const session = await handshake(server.url);
    const { clientId } = session;
    const watcher = await handshake(server.url);
    await watcher.subscribe('/alive');
    const odd = [null, true, 0, -1, 1.5, 1e400, '', 'x', '/x', '\ud800', '/a\0b', '/a\nb', [], [1], [[]], [null], {}, { a: 1 }, 'x'.repeat(5000), `/${'x'.repeat(5000)}`];
    const statuses = new Set();
    const send = async (body) => {
      const answer = await request(server.url, body);
      const text = await answer.text();
      statuses.add(answer.status);
      assert.ok([200, 400, 413].includes(answer.status), `${answer.status} for ${String(body).slice(0, 200)}`);
      if (answer.status === 200) for (const reply of JSON.parse(text)) assert.ok(typeof reply.successful === 'boolean' || 'data' in reply, `${text} for ${String(body).slice(0, 200)}`);
    };
    for (const value of odd) {
      await send(JSON.stringify([value]));
      await send(JSON.stringify({ channel: value, data: 1 }));
      await send(JSON.stringify({ channel: value, data: value, clientId: value, id: value, ext: value }));
      for (const field of ['subscription', 'clientId', 'id', 'ext']) await send(JSON.stringify({ channel: '/meta/subscribe', clientId, subscription: '/x', [field]: value }));
      for (const field of ['version', 'supportedConnectionTypes', 'id', 'ext', 'advice', 'minimumVersion']) await send(JSON.stringify({ channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['websocket'], [field]: value }));
      for (const field of ['connectionType', 'clientId', 'id', 'ext']) await send(JSON.stringify({ channel: '/meta/connect', clientId, connectionType: 'long-polling', advice: { timeout: 0 }, [field]: value }));
      await send(JSON.stringify({ channel: '/meta/connect', clientId, connectionType: 'eventsource', advice: { timeout: value } }));
    }
    for (const body of ['[1]', '{"channel":5,"data":1}', '['.repeat(100_000) + ']'.repeat(100_000), `{"channel":"/x","data":${'['.repeat(100_000)}${']'.repeat(100_000)}}`, '{"channel":"/x","channel":"/y","data":1}', '{"channel":"/x","data":1e999999}', '{"channel":"/x","data":"\\ud800"}']) await send(body);
    for (const body of [Buffer.from([0xff, 0xfe]), Buffer.from('{"channel":"/x","data":"\xff"}', 'latin1')]) {
      assert.equal((await fetch(server.url, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body })).status, 400);
    }
    assert.ok(statuses.has(200) && statuses.has(400));

    await post(server.url, { channel: '/alive', data: 'yes' });
    assert.deepEqual(await messagesFor(watcher), [{ channel: '/alive', data: 'yes' }]);
    assert.doesNotMatch(server.stderr(), /panic/);
  });

  test('a numeric channel gets the error of an invalid channel', async () => {
    const server = await startBayeux();
    const replies = await post(server.url, [{ channel: 5, data: 1, id: 'a' }, { data: 1, id: 'b' }]);
    assert.deepEqual(replies.map(({ id, successful, error }) => [id, successful, error]), [['a', false, replies[0].error], ['b', false, '405::Invalid channel']]);
    assert.match(replies[0].error, /^405:5?:Invalid channel$/);
  });
});

describe('limits', { timeout: 60_000 }, () => {
  test('sessions, subscriptions, messages and bytes end where the app says', async () => {
    const server = await startBayeux({ bayeux: { sessions_max: 5, subscriptions_per_session_max: 10, messages_per_request_max: 50, request_bytes_max: 20_000, data_bytes_max: 2_000, queue_messages_max: 20, queue_bytes_max: 8_000 } });
    const sessions = [];
    for (let n = 0; n < 5; n++) sessions.push(await handshake(server.url));
    const [refused] = await post(server.url, { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] });
    assert.equal(refused.successful, false);
    assert.ok(refused.advice.reconnect === 'none' || refused.advice.interval > 0, `a refused client must not come back at once: ${JSON.stringify(refused)}`);

    const [session, slow, huge] = sessions;
    for (let n = 0; n < 10; n++) assert.equal((await session.subscribe(n % 2 ? `/s${n}` : `/s${n}/**`)).successful, true);
    assert.match((await session.subscribe('/one-more')).error, /^429:/);
    assert.match((await session.subscribe(['/one-more/*', '/two-more'])).error, /^429:/);
    assert.equal((await session.subscribe('/s1')).successful, true, 'what it has counts once');
    await session.unsubscribe('/s1');
    assert.equal((await session.subscribe('/one-more')).successful, true);

    assert.match((await post(server.url, { channel: '/x', data: 'x'.repeat(3_000) }))[0].error, /^413:/);
    assert.ok([400, 413].includes((await request(server.url, { channel: '/x', data: 'x'.repeat(30_000) })).status));
    const many = await request(server.url, Array.from({ length: 51 }, () => ({ channel: '/x', data: 1 })));
    assert.ok([400, 413].includes(many.status), `status ${many.status}`);

    for (const [victim, data, times] of [[slow, 1, 30], [huge, 'x'.repeat(1_900), 10]]) {
      await victim.subscribe('/flood');
      for (let n = 0; n < times; n++) await post(server.url, { channel: '/flood', data });
      const [reply] = await victim.connect(0);
      assert.deepEqual([reply.error, reply.advice.reconnect], [`401:${victim.clientId}:Unknown client`, 'handshake'], 'a session whose queue is full ends, so that its client begins anew');
    }
  });

  test('what a client asks for in advice is bounded by the hold', async () => {
    const server = await startBayeux({ bayeux: { hold_secs: 1 } });
    const session = await handshake(server.url);
    for (const timeout of [1e12, -1, 'x', null, {}]) {
      const start = Date.now();
      const [reply] = await session.connect(timeout);
      assert.equal(reply.successful, true);
      assert.ok(Date.now() - start < 3_000, `held for ${Date.now() - start} ms with ${JSON.stringify(timeout)}`);
    }
  });

  test('a flood of handshakes, subscriptions and patterns takes a bounded amount of memory', async () => {
    const server = await startBayeux({ bayeux: { sessions_max: 200, subscriptions_per_session_max: 50 } });
    const flood = async () => {
      for (let round = 0; round < 20; round++) {
        const replies = await post(server.url, Array.from({ length: 500 }, () => ({ channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] })));
        const ids = replies.filter(({ successful }) => successful).map(({ clientId }) => clientId);
        for (const clientId of ids) await post(server.url, Array.from({ length: 100 }, (_, n) => ({ channel: '/meta/subscribe', clientId, subscription: `/flood/${clientId}/${round}-${n}/**` })));
      }
    };
    await flood();
    const before = residentBytes(server.pid);
    await flood();
    assert.ok(residentBytes(server.pid) < before + 16 * 2 ** 20, `${before} bytes, then ${residentBytes(server.pid)}`);
  });

  test('bodies that never end are given up, and of many event streams of a session only the newest is kept', async () => {
    const server = await startBayeux();
    const open = (head) => {
      const socket = connect(server.port, '127.0.0.1').on('error', () => {});
      socket.text = '';
      socket.on('data', (data) => { socket.text += data; });
      socket.write(`${head}\r\nHost: test\r\n`);
      return socket;
    };
    const slow = Array.from({ length: 50 }, () => open('POST /faye HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100000'));
    for (const socket of slow) socket.write('\r\n[');
    const dripping = setInterval(() => slow.forEach((socket) => socket.writable && socket.write(' ')), 1_000);

    const session = await handshake(server.url);
    await session.subscribe('/stream');
    const streams = Array.from({ length: 100 }, () => open(`GET /faye/${session.clientId} HTTP/1.1\r\nAccept: text/event-stream`));
    for (const socket of streams) socket.write('\r\n');
    await until(() => streams.filter(({ closed }) => closed).length === streams.length - 1, 'all streams but one are over');
    await post(server.url, { channel: '/stream', data: 'one' });
    await until(() => streams.some(({ text }) => text.includes('"one"')), 'the message');
    assert.equal(streams.filter(({ text }) => text.includes('"one"')).length, 1);

    await until(() => slow.every(({ closed }) => closed), 'the slow are over', 45_000);
    clearInterval(dripping);
    assert.ok(slow.every(({ text }) => text.startsWith('HTTP/1.1 400 ')));
    for (const socket of streams) socket.destroy();
  });

  test('patterns can be switched off', async () => {
    const server = await startBayeux({ bayeux: { wildcards: 'off' } });
    const session = await handshake(server.url);
    for (const pattern of ['/*', '/**', '/a/*', ['/a', '/a/**']]) assert.match((await session.subscribe(pattern)).error, /^403:/);
    assert.equal((await session.subscribe('/a')).successful, true);
  });
});

function residentBytes(pid) {
  return 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
}
