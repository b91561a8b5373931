// SockJS as bytes (pusher.md 7.7), and in pages: where its script comes from and whom it tells of what.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { serveWorld } from '../support/in-page.js';
import { worldInNode } from '../support/in-node.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { sample, startObserved } from '../operate/metrics.js';
import { ask, events, sockJsOf } from './peer.js';

/** The frames in an answer of each transport. */
const FRAMES_OF = {
  xhr: (text) => text.split('\n').slice(0, -1),
  xhr_streaming: (text) => text.split('\n').slice(1, -1),
  eventsource: (text) => text.split('\r\n\r\n').slice(0, -1).map((event) => unescape(event.trim().slice('data: '.length))),
  'htmlfile?c=_jp.a': (text) => [...text.matchAll(/<script>\np\((".*")\);\n<\/script>\r\n/g)].map(([, frame]) => JSON.parse(frame)),
  'jsonp?c=_jp.a': (text) => [JSON.parse(/^\/\*\*\/_jp\.a\((.*)\);\r\n$/.exec(text)[1])],
};
const STREAMS = ['xhr_streaming', 'eventsource', 'htmlfile?c=_jp.a'];
const POLLS = ['xhr', 'jsonp?c=_jp.a'];
const method = (transport) => (transport.startsWith('xhr') ? 'POST' : 'GET');
const TYPE_OF = { xhr: 'application/javascript', xhr_streaming: 'application/javascript', eventsource: 'text/event-stream', 'htmlfile?c=_jp.a': 'text/html', 'jsonp?c=_jp.a': 'application/javascript' };

describe('SockJS', { concurrency: 4, timeout: 60_000 }, () => {
  test('/info says what there is, differently each time', async () => {
    const server = await startRaptor();
    const asked = [await ask(server, '/pusher/info').ended, await ask(server, '/pusher/info').ended];
    for (const { status, text, headers } of asked) {
      const { entropy, ...info } = JSON.parse(text);
      assert.deepEqual([status, info], [200, { websocket: false, origins: ['*:*'], cookie_needed: false, server_heartbeat_interval: 25_000 }]);
      assert.ok(Number.isInteger(entropy));
      assert.deepEqual([headers['access-control-allow-origin'], headers['content-type']], ['*', 'application/json']);
      assert.match(headers['cache-control'], /no-store/);
    }
    assert.notEqual(asked[0].text, asked[1].text);
    const preflight = await ask(server, '/pusher/info', { method: 'OPTIONS' }).ended;
    assert.deepEqual([preflight.status, preflight.headers['access-control-allow-methods']], [204, 'OPTIONS, GET']);
  });

  for (const transport of STREAMS) {
    test(`a stream over ${transport}: opened at once, established when the app is named, then every event`, async () => {
      const server = await startRaptor();
      const world = await worldInNode('8.6', server);
      const client = sockJsOf(server);
      const stream = client[method(transport).toLowerCase()](transport);
      const frames = () => FRAMES_OF[transport](stream.text);
      await until(() => frames().includes('o'), () => JSON.stringify(stream.text.slice(-300)));
      assert.ok(stream.headers['content-type'].startsWith(TYPE_OF[transport]), stream.headers['content-type']);
      assert.deepEqual([stream.headers['x-accel-buffering'], stream.headers['x-content-type-options'], stream.headers['access-control-allow-origin']], ['no', 'nosniff', '*']);
      if (transport.startsWith('htmlfile')) assert.ok(stream.text.length > 1024 && stream.text.includes('parent._jp.a'));
      await sleep(100);
      assert.deepEqual(frames(), ['o'], 'nothing before the app is named');
      assert.deepEqual([(await client.open()).status, (await client.subscribe('private-encrypted-x')).status, (await client.subscribe('cache-x')).status], [204, 204, 204]);
      await until(() => events(frames()).length >= 6);
      assert.deepEqual(events(frames()).map(({ event }) => event), ['pusher:connection_established', 'pusher:error', 'pusher:subscription_error', 'pusher_internal:subscription_succeeded', 'pusher:cache_miss', 'pusher_internal:subscription_count']);
      await world.trigger('cache-x', 'news', '</script>% 100%25 "ü🦖\u2028');
      await until(() => events(frames()).length >= 7);
      assert.equal(events(frames())[6].data, '</script>% 100%25 "ü🦖\u2028');
      if (transport.startsWith('htmlfile')) assert.equal(stream.text.split('</script>').length - 1, stream.text.split('<script>').length - 1);
      stream.abort();
    });
  }

  for (const transport of POLLS) {
    test(`polls over ${transport}: opened at once, then one answer at a time`, async () => {
      const server = await startRaptor();
      const world = await worldInNode('8.6', server);
      const client = sockJsOf(server);
      const poll = async () => { const answer = await client[method(transport).toLowerCase()](transport).ended; assert.equal(answer.status, 200); return FRAMES_OF[transport](answer.text); };
      assert.deepEqual(await poll(), ['o']);
      await client.open();
      assert.deepEqual(events(await poll()).map(({ event }) => event), ['pusher:connection_established']);
      await client.subscribe('room');
      assert.equal(events(await poll())[0].event, 'pusher_internal:subscription_succeeded');
      const held = (async () => { for (;;) { const news = events(await poll()).find(({ event }) => event === 'news'); if (news) return news.data; } })();
      await world.trigger('room', 'news', 'x');
      assert.equal(await held, 'x');
    });
  }

  test('jsonp_send takes forms and plain text, and says ok or what was wrong', async () => {
    const server = await startRaptor();
    const client = sockJsOf(server);
    const form = { 'Content-Type': 'application/x-www-form-urlencoded' };
    const path = JSON.stringify([JSON.stringify({ path: `/app/${TEST_APP.key}?protocol=7` })]);
    assert.equal((await client.post('jsonp_send', { body: `d=${encodeURIComponent(path)}`, headers: form }).ended).status, 404);
    await client.get('jsonp?c=a').ended;
    const sent = await client.post('jsonp_send?i=a', { body: `d=${encodeURIComponent(path)}`, headers: form }).ended;
    assert.deepEqual([sent.status, sent.text], [200, 'ok\n']);
    assert.match((await client.get('jsonp?c=a').ended).text, /connection_established/);
    const plain = await client.post('jsonp_send', { body: JSON.stringify([JSON.stringify({ event: 'pusher:subscribe', data: { channel: 'room' } })]), headers: { 'Content-Type': 'text/plain' } }).ended;
    assert.equal(plain.status, 200);
    assert.match((await client.get('jsonp?c=a').ended).text, /subscription_succeeded/);
    for (const [body, text] of [['', 'Payload expected.\n'], ['d=', 'Payload expected.\n'], ['x=1', 'Payload expected.\n'], ['d=%5B', 'Broken JSON encoding.\n']]) {
      const refused = await client.post('jsonp_send', { body, headers: form }).ended;
      assert.deepEqual([refused.status, refused.text], [500, text], body);
    }
  });

  test('a callback is a name or nothing', async () => {
    const server = await startRaptor();
    for (const transport of ['jsonp', 'htmlfile']) {
      for (const [query, text] of [['', '"callback" parameter required\n'], ['?c=alert(1)', 'invalid "callback" parameter\n'], ['?c=%3Cscript%3E', 'invalid "callback" parameter\n']]) {
        const refused = await sockJsOf(server).get(transport + query).ended;
        assert.deepEqual([refused.status, refused.text, refused.headers['content-type']], [500, text, 'text/plain; charset=utf-8']);
      }
    }
  });

  test('a first message that names no app, or none that is there, is answered by a close', async () => {
    const server = await startRaptor();
    for (const [message, close] of [
      ['{"path":"/app/nobodys?protocol=7"}', [4001, 'Application does not exist']],
      [`{"path":"/app/${TEST_APP.key}?protocol=3"}`, [4007, 'Unsupported protocol version']],
      [`{"path":"/app/${TEST_APP.key}"}`, [4008, 'No protocol version supplied']],
      ['{"path":"/elsewhere"}', [4005, 'Path not found']],
      ['{"event":"pusher:ping","data":{}}', [4005, 'Path not found']],
      ['', [4005, 'Path not found']],
      ['[]', [4005, 'Path not found']],
    ]) {
      for (const transport of ['xhr_streaming', 'jsonp?c=_jp.a']) {
        const client = sockJsOf(server);
        const ask = () => client[method(transport).toLowerCase()](transport);
        const first = ask();
        await until(() => first.text.includes('o'));
        await client.send([message]);
        const last = transport === 'xhr_streaming' ? await first.ended : await ask().ended;
        assert.equal(FRAMES_OF[transport](last.text).at(-1), `c${JSON.stringify(close)}`, message);
      }
    }
  });

  test('a session whose app is never named ends after ten seconds, and is no connection until then', async () => {
    const server = await startObserved();
    const client = sockJsOf(server);
    const began = Date.now();
    const stream = client.get('eventsource');
    await until(() => stream.text.includes('data: o'));
    assert.equal(await sample(server, 'raptor_http_sessions'), 1);
    assert.equal(await sample(server, `raptor_connections{app="${TEST_APP.id}"}`), 0);
    await stream.ended;
    assert.equal(FRAMES_OF.eventsource(stream.text).at(-1), 'c[4201,"No path was sent in time"]');
    assert.ok(Date.now() - began > 9_000);
  });

  test('no page says for another whose origin is not allowed, not even in the iframe of this server', async () => {
    const server = await startRaptor({ config: { apps: [{ ...TEST_APP, allowed_origins: ['https://good.example'] }] } });
    for (const [headers, code] of [
      [{ Origin: 'https://good.example' }, undefined],
      [{ Origin: 'https://evil.example' }, 4009],
      [{ Origin: 'null' }, 4009],
      [{ Origin: server.url, 'X-Parent-Origin': 'https://good.example' }, undefined],
      [{ Origin: server.url, 'X-Parent-Origin': 'https://evil.example' }, 4009],
    ]) {
      const client = sockJsOf(server);
      await client.post('xhr').ended;
      await client.open({ headers });
      const answer = await client.post('xhr').ended;
      assert.equal(/^c\[(\d+)/m.exec(answer.text)?.[1], code && String(code), JSON.stringify(headers));
    }
    const preflight = await sockJsOf(server).post('xhr_send', { method: 'OPTIONS', headers: { Origin: 'https://evil.example', 'Access-Control-Request-Headers': 'content-type,x-parent-origin' } }).ended;
    assert.deepEqual([preflight.status, preflight.headers['access-control-allow-headers']], [204, 'content-type']);
  });

  test('the page of the iframe is kept for a day and loads nothing, whatever its query says', async () => {
    const server = await startRaptor();
    const page = await ask(server, '/pusher/iframe.html?js_path=http%3A%2F%2Fevil.example%2Fx.js').ended;
    assert.deepEqual([page.status, page.headers['content-type'], page.headers['cache-control']], [200, 'text/html; charset=UTF-8', 'public, max-age=86400']);
    assert.ok(!page.text.includes('evil.example') && !/<script[^>]+src/.test(page.text));
    assert.equal((await ask(server, '/pusher/iframe-0.3.4.html').ended).text, page.text);
    const again = await ask(server, '/pusher/iframe.html', { headers: { 'If-None-Match': page.headers.etag } }).ended;
    assert.deepEqual([again.status, again.text], [304, '']);
    assert.equal((await ask(server, '/pusher/iframe.html', { method: 'POST' }).ended).status, 405);
  });

  test('an answer that ends is followed by another, and nothing is lost or comes twice', async () => {
    const server = await startRaptor({ config: { outbox_bytes_max: 8_000_000 } });
    const world = await worldInNode('8.6', server);
    for (const transport of ['eventsource', 'jsonp?c=_jp.a']) {
      const [client, name, got] = [sockJsOf(server), world.name(), []];
      let answers = 0;
      let isOver = false;
      const reading = (async () => {
        while (!isOver) {
          const { text } = await client.get(transport).ended;
          answers += 1;
          got.push(...events(FRAMES_OF[transport](text)).filter(({ event }) => event === 'tick').map(({ data }) => JSON.parse(data)[0]));
        }
      })();
      await until(async () => (await client.open()).status === 204);
      await client.subscribe(name);
      await until(async () => (await world.get(`/channels/${name}`)).occupied);
      for (let n = 0; n < 400; n += 10) await world.triggerBatch(Array.from({ length: 10 }, (_, i) => ({ channel: name, name: 'tick', data: [n + i, '%"</script>ü🦖'.repeat(200)] })));
      await until(async () => { await world.trigger(name, 'filler', 'x'.repeat(10_000)); return got.length >= 400; }, () => `400 events, got ${got.length}`, 30_000);
      isOver = true;
      for (let n = 0; n < 30; n += 1) await world.trigger(name, 'filler', 'x'.repeat(10_000));
      await reading;
      assert.deepEqual(got, Array.from({ length: 400 }, (_, n) => n));
      assert.ok(answers > 3, `${answers} answers`);
    }
  });
});

describe('SockJS in pages', { concurrency: 1, timeout: 60_000 }, () => {
  const connect = (page) => page.evaluate(async () => {
    const pusher = world.client();
    const channel = pusher.subscribe(world.name());
    await new Promise((resolve, reject) => {
      channel.bind('pusher:subscription_succeeded', resolve);
      pusher.connection.bind('error', (error) => reject(new Error(JSON.stringify(error))));
      setTimeout(() => reject(new Error(`still ${pusher.connection.state}`)), 15_000);
    });
    const got = new Promise((resolve) => { channel.bind('news', resolve); });
    await world.trigger(channel.name, 'news', { n: 1 });
    return [pusher.connection.connection.transport.name, await got];
  });

  test('with the script in the page nobody but its own server is asked', async () => {
    const server = await startRaptor();
    const { open, address } = await serveWorld('7.6', server, { transports: ['sockjs'] });
    const page = await open();
    const hosts = new Set();
    page.on('request', (request) => hosts.add(new URL(request.url()).host));
    assert.deepEqual(await connect(page), ['sockjs', { n: 1 }]);
    hosts.delete(new URL(address).host);
    assert.deepEqual([...hosts], [`127.0.0.1:${server.port}`]);
  });

  test('a page without the script gets it where pusher-js looks for it, and needs it nowhere else', async () => {
    const server = await startRaptor();
    const { open } = await serveWorld('7.6', server, { transports: ['sockjs'] });
    const loaded = [];
    const page = await open(undefined, { before: () => { delete window.SockJS; Object.defineProperty(window, 'SockJS', { configurable: true, get: () => undefined, set: () => {} }); } });
    await page.evaluate(() => { delete window.SockJS; });
    await page.route('http://js.pusher.com/**', async (route) => {
      loaded.push(new URL(route.request().url()).pathname);
      await route.fulfill({ contentType: 'text/javascript', body: await readFile(new URL('../node_modules/pusher-js-7.6/dist/web/sockjs.min.js', import.meta.url), 'utf8') });
    });
    assert.deepEqual(await connect(page), ['sockjs', { n: 1 }]);
    assert.deepEqual(loaded, ['/7.6.0/sockjs.js']);
  });

  test('the origin of the page counts, though its iframe asks', async () => {
    const server = await startRaptor({ config: { apps: [{ ...TEST_APP, allowed_origins: ['https://good.example'] }] } });
    const page = await (await serveWorld('7.6', server, { transports: ['sockjs'] })).open();
    await assert.rejects(connect(page), /"code":4009/);
  });

  test('a page that goes away is gone three seconds later', async () => {
    const server = await startObserved();
    const page = await (await serveWorld('7.6', server, { transports: ['sockjs'] })).open();
    await connect(page);
    assert.equal(await sample(server, `raptor_connections{app="${TEST_APP.id}"}`), 1);
    await page.close();
    await until(async () => (await sample(server, 'raptor_http_sessions')) === 0, 'the session is gone', 4_500);
  });
});
