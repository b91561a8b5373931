// The transports as bytes: what stands in answers, where they end, and what requests that are lost, repeated or late do (pusher.md 7.2–7.8).

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { worldInNode } from '../support/in-node.js';
import { startRaptor } from '../support/raptor.js';
import { PRELUDE, QUERY, clientOf, events, named } from './peer.js';

const UNITS_MAX = 256 * 1024;

describe('over HTTP', { concurrency: 4, timeout: 60_000 }, () => {
  test('a stream begins with a prelude and goes on in lines, marked for proxies and caches', async () => {
    const client = clientOf(await startRaptor());
    const stream = await client.stream();
    await until(() => stream.lines().length === 3);
    const [prelude, open, established] = stream.lines();
    assert.deepEqual([prelude, open], [PRELUDE, 'o']);
    const [{ event, data }] = events([established]);
    assert.deepEqual([event, JSON.parse(data).activity_timeout], ['pusher:connection_established', 120]);
    assert.equal(stream.status, 200);
    assert.equal(stream.headers['content-type'], 'application/javascript; charset=UTF-8');
    assert.equal(stream.headers['cache-control'], 'no-store, no-cache, no-transform, must-revalidate, max-age=0');
    assert.equal(stream.headers['x-accel-buffering'], 'no');
    assert.equal(stream.headers['access-control-allow-origin'], '*');
    assert.equal(stream.headers['transfer-encoding'], 'chunked');
    stream.abort();
  });

  test('the first poll opens the session, and the next ones bring what there is', async () => {
    const server = await startRaptor();
    const world = await worldInNode('8.6', server);
    const client = clientOf(server, { prefix: '' });
    const first = await client.poll();
    assert.equal(first.lines()[0], 'o');
    assert.equal(events(first.lines())[0].event, 'pusher:connection_established');
    const sent = await client.subscribe('room');
    assert.deepEqual([sent.status, sent.text], [204, '']);
    assert.equal(events((await client.poll()).lines())[0].event, 'pusher_internal:subscription_succeeded');
    const held = client.poll();
    await world.trigger('room', 'news', 'Zoë 🦖 \u2028');
    const { lines, text } = await held;
    assert.equal(events(lines()).find(({ event }) => event === 'news').data, 'Zoë 🦖 \u2028');
    assert.ok(!/[\u2028\u{10000}-\u{10ffff}]/u.test(text), text);
  });

  test('a refused client is told by an error event and a close, in one answer', async () => {
    const server = await startRaptor();
    for (const transport of ['xhr', 'xhr_streaming']) {
      const { status, lines } = await clientOf(server, { key: 'nobodys' }).request(transport).ended;
      assert.equal(status, 200);
      assert.deepEqual(lines(), ['o', 'a["{\\"event\\":\\"pusher:error\\",\\"data\\":{\\"code\\":4001,\\"message\\":\\"Application does not exist\\"}}"]', 'c[4001,"Application does not exist"]']);
    }
  });

  test('an empty array is answered by an array, never by a heartbeat', async () => {
    const client = clientOf(await startRaptor());
    const stream = await client.stream();
    await until(() => stream.lines().length === 3);
    const { status } = await client.request('xhr_send', { body: '[]' }).ended;
    await until(() => stream.lines().length === 4);
    assert.deepEqual([status, events(stream.lines()).at(-1)], [204, { event: 'pusher:pong', data: '{}' }]);
    stream.abort();
  });

  test('a quiet stream is not quiet for long, and a client that does not answer is given up (4201)', async () => {
    const server = await startRaptor({ config: { activity_timeout_secs: 4, pong_timeout_secs: 1 } });
    const client = clientOf(server);
    const stream = await client.stream();
    await stream.ended;
    const lines = stream.lines().slice(3);
    assert.ok(lines.includes('a[]') && lines.includes('h'), lines.join());
    assert.equal(lines.at(-1), 'c[4201,"Pong reply not received"]');
  });

  test('what cannot be read is refused as SockJS does, and changes nothing', async () => {
    const client = clientOf(await startRaptor());
    assert.equal((await client.subscribe('room')).status, 404);
    await client.poll();
    for (const [body, text] of [['', 'Payload expected.\n'], ['[', 'Broken JSON encoding.\n'], ['[1]', 'Broken JSON encoding.\n'], [Buffer.from([0x22, 0xff, 0x22]), 'Broken JSON encoding.\n']]) {
      const answer = await client.request('xhr_send', { body }).ended;
      assert.deepEqual([answer.status, answer.text], [500, text]);
    }
    await client.subscribe('room');
    assert.equal(events((await client.poll()).lines())[0].event, 'pusher_internal:subscription_succeeded');
  });

  test('a message that is too large closes the session as it closes a WebSocket', async () => {
    const client = clientOf(await startRaptor());
    await client.poll();
    const held = client.poll();
    await client.send({ event: 'x', data: 'x'.repeat(70_000) });
    assert.equal((await held).lines().at(-1), 'c[1009,"Message too large"]');
    assert.equal((await client.poll()).lines().at(-1), 'c[1009,"Message too large"]', 'the session says so again');
  });

  test('a preflight allows what a page of another origin asks for', async () => {
    const client = clientOf(await startRaptor());
    const answer = await client.request('xhr_streaming', { method: 'OPTIONS', headers: { Origin: 'http://page.example', 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'content-type' } }).ended;
    const { 'access-control-allow-origin': origin, 'access-control-allow-methods': methods, 'access-control-allow-headers': headers, 'access-control-max-age': age } = answer.headers;
    assert.deepEqual([answer.status, origin, methods, headers, age], [204, '*', 'POST, OPTIONS', 'content-type', '31536000']);
  });

  test('XDomainRequest sends no type, or plain text, and is served all the same', async () => {
    const server = await startRaptor();
    for (const type of [undefined, 'text/plain', 'text/plain;charset=UTF-8']) {
      for (const transport of ['xhr_streaming', 'xhr']) {
        const client = clientOf(server);
        const headers = { 'Content-Type': type, Origin: 'http://page.example' };
        const first = client.request(transport, { headers });
        await until(() => first.text.includes('connection_established'));
        assert.equal(first.headers['access-control-allow-origin'], '*');
        const sent = await client.request('xhr_send', { headers, body: JSON.stringify([JSON.stringify({ event: 'pusher:subscribe', data: { channel: 'room' } })]) }).ended;
        assert.deepEqual([sent.status, sent.headers['access-control-allow-origin']], [204, '*']);
        const next = transport === 'xhr' ? client.request('xhr', { headers }) : first;
        await until(() => next.text.includes('subscription_succeeded'));
        next.abort();
      }
    }
  });

  test('a peer of HTTP/1.0 gets a stream without chunks', async () => {
    const server = await startRaptor();
    const { connect } = await import('node:net');
    const socket = connect(server.port, '127.0.0.1');
    let text = '';
    socket.setEncoding('utf8').on('data', (more) => { text += more; });
    socket.write(`POST ${clientOf(server).base}/xhr_streaming?${QUERY}&t=1&n=1 HTTP/1.0\r\nContent-Length: 0\r\n\r\n`);
    await until(() => text.includes('connection_established'));
    const [head, body] = text.split('\r\n\r\n');
    assert.ok(!/transfer-encoding/i.test(head), head);
    assert.ok(body.startsWith(`${PRELUDE}\no\na[`), body.slice(2048, 2100));
    socket.destroy();
  });

  test('an answer ends with the line that takes it past 256 KiB, and a thousand events arrive once and in order over the next ones', async () => {
    const server = await startRaptor({ config: { outbox_bytes_max: 8_000_000 } });
    const world = await worldInNode('8.6', server);
    for (const transport of ['xhr_streaming', 'xhr']) {
      const client = clientOf(server);
      const name = world.name();
      let stop = false;
      const seen = [];
      const long = [];
      const reading = (async () => {
        while (!stop) {
          const answer = await client.request(transport).ended;
          assert.ok(!seen.length || !answer.lines().includes('o'), 'opened twice');
          seen.push(...named(answer.lines(), 'tick').map(([n]) => n));
          if (answer.text.length > UNITS_MAX) {
            long.push(answer.text.length);
            assert.ok(answer.text.slice(0, -1).lastIndexOf('\n') <= UNITS_MAX, 'more than one line past the limit');
          }
        }
      })();
      await until(async () => (await client.subscribe(name)).status === 204);
      await until(async () => (await world.get(`/channels/${name}`)).occupied);
      for (let n = 0; n < 1_000; n += 10) {
        await world.triggerBatch(Array.from({ length: 10 }, (_, i) => ({ channel: name, name: 'tick', data: [n + i, 'ü🦖'.repeat(300)] })));
      }
      // Fills up the last answer, so that it ends too.
      let filler = 0;
      await until(async () => { await world.trigger(name, 'filler', 'x'.repeat(10_000)); filler += 1; return seen.length === 1_000 && filler > 30; }, () => `1000 events, got ${seen.length}`, 30_000);
      stop = true;
      await world.trigger(name, 'filler', 'x'.repeat(10_000));
      for (let n = 0; n < 30; n += 1) await world.trigger(name, 'filler', 'x'.repeat(10_000));
      await reading;
      assert.deepEqual(seen, Array.from({ length: 1_000 }, (_, i) => i));
      if (transport === 'xhr_streaming') assert.ok(long.length >= 3, `${long.length} answers past the limit`);
    }
  });

  test('an answer that is dropped comes again to the same request, and with a later one it counts as received', async () => {
    const server = await startRaptor();
    const world = await worldInNode('8.6', server);
    const client = clientOf(server);
    await client.poll();
    await client.subscribe('room');
    await client.poll();
    const number = client.number();
    await world.trigger('room', 'news', '[1]');
    assert.deepEqual(named((await client.poll()).lines(), 'news'), [[1]]);
    assert.deepEqual(named((await client.poll({ number })).lines(), 'news'), [[1]], 'the same request again');
    await world.trigger('room', 'news', '[2]');
    assert.deepEqual(named((await client.poll()).lines(), 'news'), [[2]]);
  });

  test('the first request may come twice: either answer opens the session', async () => {
    const server = await startRaptor();
    const client = clientOf(server);
    const lost = await client.stream({ number: 1 });
    lost.abort();
    const again = await client.stream({ number: 1 });
    await until(() => again.lines().length === 3);
    assert.equal(again.lines()[1], 'o');
    assert.equal(events(again.lines())[0].event, 'pusher:connection_established');
    again.abort();
  });

  test('a late or repeated request disturbs nobody; a later one takes the place of one that hangs', async () => {
    const server = await startRaptor();
    const world = await worldInNode('8.6', server);
    const client = clientOf(server);
    await client.poll({ number: 5 });
    await client.request('xhr_send', { number: 6, body: JSON.stringify([JSON.stringify({ event: 'pusher:subscribe', data: { channel: 'room' } })]) }).ended;
    await client.poll({ number: 7 });
    const held = client.request('xhr', { number: 8 });
    await sleep(100);
    const another = 'c[2010,"Another connection still open"]';
    assert.deepEqual((await client.poll({ number: 7 })).lines(), [another]);
    assert.deepEqual((await client.poll({ number: 8 })).lines(), [another]);
    const next = client.poll({ number: 9 });
    assert.deepEqual((await held.ended).lines(), [another]);
    await world.trigger('room', 'news', '[1]');
    assert.deepEqual(named((await next).lines(), 'news'), [[1]]);
  });

  test('messages are taken once and in the order in which they were sent', async () => {
    const server = await startRaptor();
    const client = clientOf(server);
    await client.poll({ number: 1 });
    const body = (event) => JSON.stringify([JSON.stringify({ event, data: { channel: 'room' } })]);
    const requests = [];
    for (const [number, event] of [[4, 'pusher:subscribe'], [3, 'pusher:unsubscribe'], [2, 'pusher:subscribe'], [3, 'pusher:unsubscribe'], [4, 'pusher:subscribe']]) {
      requests.push(client.request('xhr_send', { number, body: body(event) }).ended);
    }
    await Promise.all(requests);
    const got = [];
    await until(async () => { got.push(...events((await client.poll({ number: 5 + got.length })).lines())); return got.filter(({ event }) => /succeeded/.test(event)).length >= 2; });
    assert.deepEqual(got.filter(({ event }) => event === 'pusher:error'), []);
  });

  test('a session that vanishes leaves its channels: two seconds after a cut, three after an answer, and a second to notice', async () => {
    const server = await startRaptor();
    const world = await worldInNode('8.6', server);
    const occupied = async (name) => (await world.get(`/channels/${name}`)).occupied;
    for (const [transport, cut, ms] of [['xhr_streaming', true, 3_500], ['xhr', true, 3_500], ['xhr', false, 4_500]]) {
      const [client, name] = [clientOf(server), world.name()];
      const first = client.request(transport);
      await until(() => first.text.includes('established'));
      await client.subscribe(name);
      await until(() => occupied(name));
      const request = transport === 'xhr' ? (await client.poll(), cut && client.request(transport)) : first;
      if (cut) { await sleep(100); request.abort(); }
      const since = Date.now();
      await until(async () => !(await occupied(name)), 'the session has left', ms);
      assert.ok(Date.now() - since > 1_500, 'it left at once');
    }
  });

  test('reports of pusher-js about itself are answered', async () => {
    const server = await startRaptor();
    const jsonp = await fetch(`${server.url}/timeline/v2/jsonp/7?version=OC42LjA%3D`);
    assert.deepEqual([jsonp.status, await jsonp.text()], [200, 'Pusher.ScriptReceivers[7](null, {});']);
    const xhr = await fetch(`${server.url}/timeline/v2/xhr/2?version=OC42LjA%3D`);
    assert.deepEqual([xhr.status, await xhr.json(), xhr.headers.get('access-control-allow-origin')], [200, {}, '*']);
    assert.equal((await fetch(`${server.url}/timeline/v2/jsonp/alert(1)`)).status, 404);
  });
});
