// The HTTP below the API: connections that stay, bodies of every kind, methods and paths that nobody serves (`pusher.md` 5.1, 5.9).

import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import { test } from 'node:test';

import { converse } from '../support/converse.js';
import { sleep } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { Peer } from '../raw/peer.js';
import { Api, send, signedTarget } from './api.js';

const app = { ...TEST_APP, subscription_count_events: false };
const raptor = await startRaptor({ config: { apps: [app] } });
const prefixed = await startRaptor({ config: { apps: [app], path_prefix: '/realtime', request_body_bytes_max: 2000 } });
const api = new Api(raptor, app);

const EVENT = JSON.stringify({ name: 'e', channels: ['c'], data: 'x' });
const target = (method, path, body, rest) => signedTarget({ app, method, path: `/apps/${app.id}${path}`, body, ...rest });

async function isLean(answer) {
  const names = Object.keys(answer.headers).filter((name) => name.startsWith('access-control-') || ['set-cookie', 'x-powered-by', 'content-encoding'].includes(name));
  assert.deepEqual(names, []);
}

test('the connection is kept on success and on every error', async () => {
  const over = new Agent({ keepAlive: true, maxSockets: 1 });
  const requests = [
    [200, 'GET', target('GET', '/channels')],
    [401, 'GET', `/apps/${app.id}/channels`],
    [404, 'GET', '/nope'],
    [404, 'GET', '/apps/999/channels'],
    [400, 'POST', target('POST', '/events', 'x'), 'x'],
    [401, 'POST', target('POST', '/events', EVENT, { override: { body_md5: undefined } }), EVENT],
    [401, 'POST', `/apps/${app.id}/events`, EVENT],
    [404, 'POST', '/nope', EVENT],
    [413, 'POST', target('POST', '/events', tooMuch()), tooMuch()],
    [202, 'POST', target('POST', '/channels/c/events', 'x', { params: { name: 'e' } }), 'x'],
    [200, 'POST', target('POST', '/events', EVENT), EVENT],
  ];
  for (const [i, [status, method, path, body]] of requests.entries()) {
    const answer = await send(raptor, { method, target: path, body, over });
    assert.equal(answer.status, status, `${method} ${path}: ${answer.text}`);
    assert.notEqual(answer.headers.connection, 'close', `after ${status}`);
    if (i > 0) assert.ok(answer.reusedSocket, `the connection was closed after ${requests[i - 1][0]} for ${requests[i - 1][2].slice(0, 40)}`);
  }
  over.destroy();
});

function tooMuch() {
  return JSON.stringify({ name: 'e', channels: ['c'], data: 'x'.repeat(10241) });
}

test('a kept connection may rest longer than a handshake may take', async () => {
  const hasty = await startRaptor({ config: { apps: [app], handshake_timeout_secs: 1 } });
  const over = new Agent({ keepAlive: true, maxSockets: 1 });
  assert.equal((await send(hasty, { method: 'GET', target: target('GET', '/channels'), over })).status, 200);
  await sleep(2_500);
  const answer = await send(hasty, { method: 'POST', target: target('POST', '/events', EVENT), body: EVENT, over });
  over.destroy();
  assert.equal(answer.status, 200);
  assert.ok(answer.reusedSocket, 'the server had closed it');
});

test('requests may be pipelined', async () => {
  const one = `GET ${target('GET', '/channels/one')} HTTP/1.1\r\nHost: x\r\n\r\n`;
  const two = `POST ${target('POST', '/events', EVENT)} HTTP/1.1\r\nHost: x\r\nContent-Length: ${EVENT.length}\r\n\r\n${EVENT}`;
  const last = `GET ${target('GET', '/channels/presence-x/users')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`;
  const answer = await converse(raptor, one + two + last);
  assert.deepEqual(answer.match(/HTTP\/1.1 \d+/g), ['HTTP/1.1 200', 'HTTP/1.1 200', 'HTTP/1.1 200']);
  assert.ok(answer.endsWith('{"users":[]}') || answer.endsWith('0\r\n\r\n'));
});

test('HTTP/1.0 is answered', async () => {
  const answer = await converse(raptor, `GET ${target('GET', '/channels')} HTTP/1.0\r\n\r\n`);
  assert.match(answer, /^HTTP\/1\.[01] 200 /);
  assert.ok(answer.endsWith('{"channels":{}}'));
});

test('success is JSON, an error is text that ends in one line feed, and nothing is said to browsers', async () => {
  for (const answer of [await api.get('/channels'), await api.post('/events', EVENT)]) {
    assert.equal(answer.headers['content-type'], 'application/json');
    assert.equal(typeof answer.json(), 'object');
    await isLean(answer);
  }
  for (const answer of [await api.post('/events', 'x'), await api.get('/channels', {}, { signature: 'x' }), await send(raptor, { method: 'GET', target: '/nope' }), await api.post('/events', tooMuch())]) {
    assert.equal(answer.headers['content-type'], 'text/plain; charset=utf-8');
    assert.match(answer.text, /[^\n]\n$/);
    await isLean(answer);
  }
});

test('nothing is compressed that nobody asked to compress', async () => {
  const answer = await api.get('/channels', {}, { headers: { 'Accept-Encoding': 'identity' } });
  assert.equal(answer.headers['content-encoding'], undefined);
  assert.equal(answer.text, '{"channels":{}}');
});

test('paths that nobody serves', async () => {
  for (const path of ['/', '/nope', '/apps', '/apps/', `/apps/${app.id}`, `/apps/${app.id}/nope`, `/apps/${app.id}/channels/a/nope`, `/apps/${app.id}/channels/a/users/more`, `/apps//${app.id}/channels`, `//apps/${app.id}/channels`, `/Apps/${app.id}/channels`, `/apps/${app.id}/users/1`, '/%2e%2e/', '/%ff', '/%00', '/%']) {
    for (const method of ['GET', 'POST']) {
      const answer = await send(raptor, { method, target: path });
      assert.ok([400, 404].includes(answer.status), `${method} ${path}: ${answer.status}`);
      if (answer.status === 404) assert.equal(answer.text, 'NOT FOUND\n');
    }
  }
});

test('an unserved path below an app is unserved, signed or not', async () => {
  const answer = await api.get('/nope');
  assert.deepEqual([answer.status, answer.text], [404, 'NOT FOUND\n']);
});

test('methods that a path does not have', async () => {
  for (const [method, path] of [['PUT', '/events'], ['DELETE', '/channels'], ['PATCH', '/channels/c'], ['GET', '/events'], ['GET', '/batch_events'], ['POST', '/channels'], ['POST', '/channels/c'], ['POST', '/channels/presence-c/users'], ['GET', '/users/1/terminate_connections'], ['PURGE', '/channels']]) {
    const answer = await api.call(method, path);
    assert.ok([404, 405].includes(answer.status), `${method} ${path}: ${answer.status}`);
    assert.match(answer.text, /[^\n]\n$/);
    assert.equal(answer.headers['content-type'], 'text/plain; charset=utf-8');
  }
});

test('HEAD is refused, or is the GET without its body', async () => {
  const answer = await api.call('HEAD', '/channels');
  assert.ok([200, 405].includes(answer.status), String(answer.status));
  assert.equal(answer.text, '');
  const unsigned = await send(raptor, { method: 'HEAD', target: target('GET', '/channels') });
  assert.ok([401, 405].includes(unsigned.status), 'the signature of a GET does not open a HEAD');
});

test('OPTIONS promises browsers nothing', async () => {
  const answer = await send(raptor, { method: 'OPTIONS', target: `/apps/${app.id}/events`, headers: { Origin: 'https://a.example', 'Access-Control-Request-Method': 'POST' } });
  await isLean(answer);
  const get = await api.get('/channels', {}, { headers: { Origin: 'https://a.example' } });
  assert.equal(get.status, 200);
  await isLean(get);
});

test('a body larger than the limit', async () => {
  for (const bytes of [1_048_577, 5_000_000]) {
    const body = JSON.stringify({ name: 'e', channels: ['c'], data: 'x'.repeat(bytes) });
    const answer = await api.post('/events', body).catch((error) => error);
    // A server may close on what it will not read; the sender then sees either the answer or a reset.
    if (!(answer instanceof Error)) assert.deepEqual([answer.status, answer.text], [413, 'Request body too large\n']);
    else assert.match(String(answer), /EPIPE|ECONNRESET/);
  }
  const answer = await api.post('/events', ' '.repeat(1_048_576 + 1));
  assert.deepEqual([answer.status, answer.text], [413, 'Request body too large\n']);
  assert.equal((await api.get('/channels')).status, 200);
});

test('a body of exactly the limit is read', async () => {
  const body = EVENT.padEnd(1_048_576);
  const answer = await api.post('/events', body);
  assert.deepEqual([answer.status, answer.text], [200, '{}']);
});

test('a chunked body is read like any other', async () => {
  const chunks = EVENT.match(/.{1,7}/g).map((part) => `${part.length.toString(16)}\r\n${part}\r\n`).join('');
  const head = `POST ${target('POST', '/events', EVENT)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n`;
  const answer = await converse(raptor, `${head}${chunks}0\r\n\r\n`);
  assert.match(answer, /^HTTP\/1.1 200 /);
});

test('a chunked body without end is cut off at the limit', async () => {
  const head = `POST ${target('POST', '/events', EVENT)} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n`;
  const chunk = `${(10_000).toString(16)}\r\n${'x'.repeat(10_000)}\r\n`;
  const then = (socket) => {
    const write = () => {
      while (!socket.destroyed && socket.write(chunk));
    };
    socket.on('drain', write);
    write();
  };
  const answer = await converse(raptor, head, { then });
  assert.match(answer, /^(HTTP\/1.1 413 |$)/);
  assert.equal((await api.get('/channels')).status, 200);
});

test('bad chunks, two lengths and other smuggling are refused', async () => {
  const head = `POST ${target('POST', '/events', EVENT)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n`;
  for (const rest of [
    `Transfer-Encoding: chunked\r\n\r\nzz\r\n${EVENT}\r\n0\r\n\r\n`, `Content-Length: ${EVENT.length}\r\nContent-Length: 5\r\n\r\n${EVENT}`, `Content-Length: -1\r\n\r\n${EVENT}`,
    `Content-Length: x\r\n\r\n${EVENT}`, `Content-Length: 99999999999999999999\r\n\r\n${EVENT}`, `Transfer-Encoding: nonsense\r\n\r\n${EVENT}`,
  ]) {
    assert.match(await converse(raptor, head + rest), /^(HTTP\/1.1 [45]\d\d |$)/, rest.slice(0, 50));
  }
  assert.equal((await api.get('/channels')).status, 200);
});

test('a body shorter than announced is not published', async () => {
  const peer = await Peer.connect(raptor, { app });
  await peer.subscribe('cut-short');
  const body = EVENT.replace('"c"', '"cut-short"');
  await converse(raptor, `POST ${target('POST', '/events', body)} HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length + 10}\r\n\r\n${body}`, { then: (socket) => socket.end() });
  await peer.receivesNothing();
});

test('Expect: 100-continue is answered, as PHP wants for large bodies', async () => {
  const head = `POST ${target('POST', '/events', EVENT)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: ${EVENT.length}\r\n\r\n`;
  const answer = await converse(raptor, head, { then: (socket) => socket.once('data', () => socket.write(EVENT)) });
  assert.match(answer, /^HTTP\/1.1 100 Continue\r\n\r\nHTTP\/1.1 200 /);
});

test('a request for another host or in absolute form is for us', async () => {
  const answer = await converse(raptor, `GET http://other.example${target('GET', '/channels')} HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n`);
  assert.match(answer, /^HTTP\/1.1 200 /);
});

test('a fragment and a fragile URL do no harm', async () => {
  for (const path of [`/apps/${app.id}/channels#x`, `/apps/${app.id}/channels?#`, `/apps/${app.id}/channels;x`, `/apps/${app.id}/../3/channels`, `/apps/${'9'.repeat(10_000)}/channels`, `/apps/${'%41'.repeat(5_000)}/channels`]) {
    const answer = await converse(raptor, `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
    assert.match(answer, /^(HTTP\/1.1 4\d\d |$)/, path.slice(0, 40));
  }
});

test('behind a path prefix both paths are served, and the signature is made without it', async () => {
  const plain = `/apps/${app.id}/channels`;
  const ask = (path, signedPath) => send(prefixed, { method: 'GET', target: signedTarget({ app, method: 'GET', path, signedPath }) });
  assert.equal((await ask(plain, plain)).status, 200);
  assert.equal((await ask(`/realtime${plain}`, plain)).status, 200);
  assert.equal((await ask(`/realtime${plain}/`, `${plain}/`)).status, 200);
  assert.equal((await ask(`/realtime${plain}`, `/realtime${plain}`)).status, 401);
  assert.equal((await ask(`/realtime/realtime${plain}`, plain)).status, 404);
  assert.equal((await ask(`/real${plain}`, plain)).status, 404);
  assert.equal((await send(raptor, { method: 'GET', target: signedTarget({ app, method: 'GET', path: `/realtime${plain}`, signedPath: plain }) })).status, 404);
});

test('the limit of a body is the configured one', async () => {
  const small = new Api(prefixed, app);
  assert.equal((await small.post('/events', EVENT.padEnd(2000))).status, 200);
  const answer = await small.post('/events', EVENT.padEnd(2001));
  assert.deepEqual([answer.status, answer.text], [413, 'Request body too large\n']);
});

test('a hundred requests at once are all answered', async () => {
  const over = new Agent({ keepAlive: true, maxSockets: 100 });
  const answers = await Promise.all(Array.from({ length: 100 }, () => send(raptor, { method: 'POST', target: target('POST', '/events', EVENT), body: EVENT, over })));
  assert.ok(answers.every((answer) => answer.status === 200));
  over.destroy();
});
