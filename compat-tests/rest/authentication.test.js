// Which requests are let in, and what the others are told, in the order of the checks (`pusher.md` 5.2–5.4).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep } from '../support/events.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { Api, hmac, md5, now, send, signedTarget, stringToSign } from './api.js';

const app = TEST_APP;
const other = { ...TEST_APP, id: '4', key: 'other-key', secret: 'other-secret' };
const disabled = { ...TEST_APP, id: '5', key: 'disabled-key', secret: 'disabled-secret', enabled: false };
const rotating = { ...TEST_APP, id: '6', key: undefined, secret: undefined, keys: [{ key: 'old', secret: 'old-secret' }, { key: 'new', secret: 'new-secret' }] };

const raptor = await startRaptor({ config: { apps: [app, other, disabled, rotating] } });
const api = new Api(raptor);
const EVENT = JSON.stringify({ name: 'e', channels: ['c'], data: 'x' });
const WRONG = '0'.repeat(64);

async function isAnswered(answer, status, body) {
  const { status: got, text, headers } = await answer;
  if (body instanceof RegExp) assert.match(text, body);
  else assert.equal(text, body);
  assert.equal(got, status);
  assert.equal(headers['content-type'], status === 200 ? 'application/json' : 'text/plain; charset=utf-8');
}

/** Both a GET and a POST with these options are answered so. */
async function areAnswered(options, status, body) {
  await isAnswered(api.get('/channels', {}, options), status, body);
  await isAnswered(api.post('/events', EVENT, options), status, body);
}

const without = (...names) => ({ override: Object.fromEntries(names.map((name) => [name, undefined])) });

test('a rightly signed request is let in', async () => {
  await isAnswered(api.get('/channels'), 200, '{"channels":{}}');
  await isAnswered(api.post('/events', EVENT), 200, '{}');
});

test('no auth_key', () => areAnswered(without('auth_key'), 401, 'Missing parameter: auth_key\n'));

test('no parameters at all', async () => {
  await isAnswered(send(raptor, { method: 'GET', target: `/apps/${app.id}/channels` }), 401, 'Missing parameter: auth_key\n');
  await isAnswered(send(raptor, { method: 'GET', target: `/apps/${app.id}/channels?` }), 401, 'Missing parameter: auth_key\n');
  await isAnswered(send(raptor, { method: 'POST', target: `/apps/${app.id}/events`, body: EVENT }), 401, 'Missing parameter: auth_key\n');
});

test('a key that is unknown, empty or of another app', async () => {
  for (const key of ['nobody', '', other.key, app.key.toUpperCase(), app.key.slice(1)]) await areAnswered({ override: { auth_key: key } }, 401, 'Unknown auth_key\n');
  await isAnswered(send(raptor, { method: 'GET', target: signedTarget({ app: other, method: 'GET', path: `/apps/${app.id}/channels` }) }), 401, 'Unknown auth_key\n');
});

test('no auth_version, or another one', async () => {
  await areAnswered(without('auth_version'), 401, 'Version required\n');
  for (const version of ['2.0', '1', '1.00', 'x']) await areAnswered({ override: { auth_version: version } }, 401, 'Version not supported\n');
});

test('no auth_timestamp', () => areAnswered(without('auth_timestamp'), 401, 'Timestamp required\n'));

/** Waits for the first half of a second, so that the server reads the same clock. */
async function earlyInASecond() {
  const ms = Date.now() % 1000;
  if (ms > 500) await sleep(1005 - ms);
  return now();
}

test('599 seconds to either side are within the window', async () => {
  for (const offset of [-599, 599]) {
    const time = await earlyInASecond();
    await isAnswered(api.get('/channels', {}, { override: { auth_timestamp: String(time + offset) } }), 200, '{"channels":{}}');
  }
});

test('600 seconds to either side are not, and the text says both times', async () => {
  for (const offset of [-600, 600, -86_400, 86_400]) {
    const time = await earlyInASecond();
    const iso = (seconds) => new Date(seconds * 1000).toISOString().replace('.000', '');
    await isAnswered(api.get('/channels', {}, { override: { auth_timestamp: String(time + offset) } }), 401, `Timestamp expired: Given timestamp (${iso(time + offset)}) not within 600s of server time (${iso(time)})\n`);
  }
});

test('a timestamp is read up to its first character that is no digit', async () => {
  for (const tail of ['.42', '.0', 'x', ' ']) await areAnswered({ override: { auth_timestamp: `${now()}${tail}` } }, 200, /^\{/);
  for (const timestamp of ['', 'x', '0', '-1', 'now']) {
    await isAnswered(api.get('/channels', {}, { override: { auth_timestamp: timestamp } }), 401, /^Timestamp (expired: Given timestamp \(.*\) not within 600s of server time \(.*\)|required)\n$/);
  }
  for (const timestamp of ['99999999999', '9'.repeat(40), `-${'9'.repeat(40)}`]) {
    await isAnswered(api.get('/channels', {}, { override: { auth_timestamp: timestamp } }), 401, /^Timestamp expired: .*\n$/);
  }
});

test('a wrong signature is answered with the text to sign, escaped, and not with the right one', async () => {
  const time = String(now());
  const toSign = stringToSign('POST', `/apps/${app.id}/events`, Object.entries({ auth_key: app.key, auth_timestamp: time, auth_version: '1.0', body_md5: md5(EVENT) }));
  for (const bad of ['bad', WRONG, '', 'ü']) {
    const answer = await api.post('/events', EVENT, { override: { auth_timestamp: time }, signature: bad });
    assert.equal(answer.text, `Invalid signature: you should have sent HmacSHA256Hex("${toSign.replaceAll('\n', '\\n')}", your_secret_key), but you sent "${bad}"\n`);
    assert.equal(answer.status, 401);
    assert.ok(!answer.text.includes(hmac(app.secret, toSign)) && !answer.text.includes(app.secret));
  }
});

test('quotes and backslashes in that text are escaped', async () => {
  const answer = await api.get('/channels', { note: 'say "hi" \\ #{x}' }, { signature: WRONG });
  assert.ok(answer.text.includes('note=say \\"hi\\" \\\\ '), answer.text);
  assert.equal(answer.text.split('\n').length, 2, 'one line');
});

test('no signature', async () => {
  for (const answer of [await api.get('/channels', {}, { signature: null }), await api.post('/events', EVENT, { signature: null })]) {
    assert.match(answer.text, /^Invalid signature: you should have sent HmacSHA256Hex\("(GET|POST)\\n.*", your_secret_key\), but you sent (nil|"")\n$/);
    assert.equal(answer.status, 401);
  }
});

test('a signature with one flipped digit, of another secret, method, path, time or parameter', async () => {
  const path = `/apps/${app.id}/channels`;
  const right = (options) => new URL(signedTarget({ app, method: 'GET', path, ...options }), raptor.url).searchParams.get('auth_signature');
  const good = right({});
  for (const bad of [
    (good[0] === 'a' ? 'b' : 'a') + good.slice(1), good.slice(0, -1), `${good}0`, right({ app: { ...app, secret: other.secret } }), right({ method: 'POST' }), right({ path: `${path}/` }),
    right({ override: { auth_timestamp: String(now() + 1) } }), right({ params: { info: '' } }),
  ]) {
    await isAnswered(api.get('/channels', {}, { signature: bad }), 401, /^Invalid signature: /);
  }
});

test('a signature in upper case is as good', async () => {
  const target = signedTarget({ app, method: 'GET', path: `/apps/${app.id}/channels` });
  await isAnswered(send(raptor, { method: 'GET', target: target.replace(/auth_signature=.*/, (text) => `auth_signature=${text.slice(15).toUpperCase()}`) }), 200, '{"channels":{}}');
});

test('each active key signs with its own secret, and only with that', async () => {
  for (const key of rotating.keys) await isAnswered(new Api(raptor, { ...rotating, ...key }).get('/channels'), 200, '{"channels":{}}');
  await isAnswered(new Api(raptor, { ...rotating, key: 'old', secret: 'new-secret' }).get('/channels'), 401, /^Invalid signature: /);
});

test('a disabled app', async () => {
  await isAnswered(new Api(raptor, disabled).get('/channels'), 403, 'App disabled\n');
  await isAnswered(new Api(raptor, disabled).post('/events', EVENT), 403, 'App disabled\n');
});

test('an app that does not exist', async () => {
  for (const id of ['999', 'nobody', '3%20', '03']) {
    await isAnswered(send(raptor, { method: 'GET', target: signedTarget({ app, method: 'GET', path: `/apps/${id}/channels` }) }), 404, 'Unknown app\n');
  }
});

// The order of the checks: each request has all the faults from its own on, and is told of the first.

test('of several faults the first in order is told', async () => {
  const faults = [
    ['auth_key', { auth_key: undefined }, 'Missing parameter: auth_key\n'],
    ['auth_key', { auth_key: 'nobody' }, 'Unknown auth_key\n'],
    ['auth_version', { auth_version: undefined }, 'Version required\n'],
    ['auth_version', { auth_version: '2.0' }, 'Version not supported\n'],
    ['auth_timestamp', { auth_timestamp: undefined }, 'Timestamp required\n'],
    ['auth_timestamp', { auth_timestamp: '1' }, /^Timestamp expired: /],
    ['body_md5', { body_md5: 'wrong' }, /^Invalid signature: /],
  ];
  for (let first = 0; first < faults.length; first += 1) {
    const override = {};
    for (const [name, fault] of faults.slice(first)) if (!(name in override)) Object.assign(override, fault);
    await isAnswered(api.post('/events', 'no json', { override, signature: WRONG }), 401, faults[first][2]);
  }
  await isAnswered(api.post('/events', 'no json', { override: { body_md5: 'wrong' } }), 401, 'Invalid body_md5\n');
  await isAnswered(api.post('/events', 'no json'), 400, 'Invalid JSON\n');
});

// body_md5

test('a body wants its MD5', async () => {
  for (const wrong of [undefined, '', 'x', md5(''), md5(`${EVENT} `), md5(JSON.stringify(JSON.parse(EVENT), null, 1))]) {
    await isAnswered(api.post('/events', EVENT, { override: { body_md5: wrong } }), 401, 'Invalid body_md5\n');
  }
});

test('the MD5 is taken over the bytes received', async () => {
  for (const body of [
    '{"name":"e","channels":["c"],"data":"http:\\/\\/x"}', '{"name":"e","channels":["c"],"data":"\\u00eb ë"}', ' {"data": "x" ,\n"channels":["c"],"name":"e"} \r\n',
    '{"name":"e","channels":["c"],"data":"1.0","n":1.0}',
  ]) {
    await isAnswered(api.post('/events', body), 200, '{}');
    await isAnswered(api.post('/events', body, { override: { body_md5: md5(JSON.stringify(JSON.parse(body))) } }), 401, 'Invalid body_md5\n');
  }
});

test('a GET may bring the MD5 of the empty body, as Python does', async () => {
  await isAnswered(api.get('/channels', {}, { override: { body_md5: 'd41d8cd98f00b204e9800998ecf8427e' } }), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { info: '' }, { override: { body_md5: 'd41d8cd98f00b204e9800998ecf8427e' } }), 200, '{"channels":{}}');
});

test('it is part of what is signed, and it is checked', async () => {
  const target = signedTarget({ app, method: 'GET', path: `/apps/${app.id}/channels` });
  await isAnswered(send(raptor, { method: 'GET', target: target.replace('&auth_signature', '&body_md5=d41d8cd98f00b204e9800998ecf8427e&auth_signature') }), 401, /^Invalid signature: /);
  await isAnswered(api.get('/channels', {}, { override: { body_md5: md5('x') } }), 401, 'Invalid body_md5\n');
});

// Parameters

test('every parameter is signed, known or not, in whatever order it was sent', async () => {
  for (const params of [{ appId: '9', channelName: 'x', socket_id: 'y' }, { zzz: '1', AAA: '2', a: '3' }, { empty: '' }, { 'ë key': 'ë value' }, { and: 'a&b=c', percent: '100%', slash: 'a/b', '=': '=' }]) {
    await isAnswered(api.get('/channels', params), 200, '{"channels":{}}');
    await isAnswered(api.get('/channels', params, { signedParams: {} }), 401, /^Invalid signature: /);
  }
});

test('keys are signed in lower case, values as they are', async () => {
  await isAnswered(api.get('/channels', { NaMe: 'VaLuE' }), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { name: 'VaLuE' }, { signedParams: { name: 'value' } }), 401, /^Invalid signature: /);
});

test('a key without = has an empty value', async () => {
  const target = signedTarget({ app, method: 'GET', path: `/apps/${app.id}/channels`, params: { flag: '' } });
  await isAnswered(send(raptor, { method: 'GET', target: target.replace('flag=', 'flag') }), 200, '{"channels":{}}');
});

test('array parameters are signed one after the other, in their order', async () => {
  await isAnswered(api.get('/channels', { channels: ['a', 'b'] }), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { channels: ['b', 'a'], after: '1' }), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { channels: ['b', 'a'] }, { signedParams: { channels: ['a', 'b'] } }), 401, /^Invalid signature: /);
  const raw = { encode: (text) => encodeURIComponent(text).replaceAll('%5B', '[').replaceAll('%5D', ']') };
  await isAnswered(api.get('/channels', { channels: ['a', 'b'] }, raw), 200, '{"channels":{}}');
});

test('a plus in the URL may be a space or a plus', async () => {
  const plus = { encode: (text) => encodeURIComponent(text).replaceAll('%20', '+').replaceAll('%2B', '+') };
  await isAnswered(api.get('/channels', { note: 'a b' }, plus), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { note: 'a+b' }, plus), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { note: 'a+b c' }), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { note: 'a_b' }, { ...plus, signedParams: { note: 'a b' } }), 401, /^Invalid signature: /);
});

test('a value may be sent unescaped, as Node and Go do', async () => {
  const raw = { encode: (text) => text };
  await isAnswered(api.get('/channels', { filter_by_prefix: 'presence-', info: 'user_count,subscription_count' }, raw), 200, '{"channels":{}}');
  await isAnswered(api.get('/channels', { note: "a;b,c=d@e/f?g:h'i" }, raw), 200, '{"channels":{}}');
});

test('escapes may be in lower case, and needless', async () => {
  await isAnswered(api.get('/channels', { note: 'a,b' }, { encode: (text) => [...Buffer.from(text)].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('') }), 200, '{"channels":{}}');
});

test('escapes that are none do no harm', async () => {
  for (const note of ['%', '%zz', '%2', '%ff', '%c3%28', '%00', '%u0041']) {
    const answer = await api.get('/channels', { note }, { encode: (text) => text });
    assert.ok([200, 400, 401].includes(answer.status), `${note}: ${answer.status} ${answer.text}`);
    assert.equal((await api.get('/channels')).status, 200);
  }
});

test('an authentication parameter that comes twice is refused', async () => {
  for (const name of ['auth_key', 'auth_timestamp', 'auth_version', 'auth_signature']) {
    const target = signedTarget({ app, method: 'GET', path: `/apps/${app.id}/channels` });
    const pair = new RegExp(`${name}=[^&]*`).exec(target)[0];
    for (const second of [pair, `${name}=x`]) {
      for (const doubled of [target.replace(pair, `${pair}&${second}`), target.replace(pair, `${second}&${pair}`)]) {
        const answer = await send(raptor, { method: 'GET', target: doubled });
        assert.ok([400, 401].includes(answer.status), `${name}: ${answer.status}`);
      }
    }
  }
});

test('a hundred kilobytes of query do no harm', async () => {
  const answer = await api.get('/channels', { note: 'x'.repeat(100_000) }).catch((error) => error);
  assert.ok(answer instanceof Error || answer.status === 200 || (answer.status >= 400 && answer.status < 500), String(answer.status));
  assert.equal((await api.get('/channels')).status, 200);
});
