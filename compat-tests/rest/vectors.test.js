// The checked-in vectors against the server: each request as a library sends it, with today's time; and as it stands, fourteen years late.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer } from '../raw/peer.js';
import { hmac, md5, now, send, stringToSign } from './api.js';

const raptor = await startRaptor({ config: { apps: [APP] } });
const documented = read('requests.json');
const ruby = read('ruby-requests.json');
const { subscriptions } = read('subscriptions.json');

// What the answers of the vectors speak of.
const peer = await Peer.connect(raptor);
await peer.subscribe('project-3');
await peer.subscribe('a;b=c@d,e.f_g-H');
await peer.subscribe('presence-foobar', { channelData: '{"user_id":10}' });

function read(name) {
  return JSON.parse(readFileSync(new URL(`../../fixtures/pusher/${name}`, import.meta.url)));
}

/** Moves a vector to the present and signs it again. */
function today({ query, string_to_sign: toSign }, secret = APP.secret) {
  const time = `auth_timestamp=${now()}`;
  const old = /auth_timestamp=\d+/;
  return { query: query.replace(old, time), signature: hmac(secret, toSign.replace(old, time)) };
}

function ask({ method, path, headers, body }, query, signature) {
  return send(raptor, { method, target: `${path}?${query}&auth_signature=${signature}`, headers, body: method === 'POST' ? body : undefined });
}

for (const vector of [...documented.requests, ...ruby.requests]) {
  test(`${vector.name}: the vector agrees with itself`, () => {
    assert.equal(hmac(documented.credentials.secret, vector.string_to_sign), vector.signature);
    const params = vector.query.split('&').map((pair) => {
      const [name, ...value] = pair.split('=').map((text) => decodeURIComponent(text.replaceAll('+', ' ')));
      return [name, value.join('=')];
    });
    assert.equal(stringToSign(vector.method, vector.path, params), vector.string_to_sign);
    if (vector.body) assert.equal(md5(vector.body), vector.body_md5);
  });

  test(`${vector.name}: is expired as it stands`, async () => {
    const answer = await ask(vector, vector.query, vector.signature);
    assert.match(answer.text, /^Timestamp expired: Given timestamp \(2012-11-16T17:49:39Z\) not within 600s of server time \(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\)\n$/);
    assert.equal(answer.status, 401);
  });

  test(`${vector.name}: is accepted today, and not with one digit or one byte changed`, async () => {
    const { query, signature } = today(vector);
    const answer = await ask(vector, query, signature);
    assert.equal(answer.status, vector.status ?? (vector.name === 'R7' ? 202 : 200), answer.text);
    if (vector.answer) assert.deepEqual(answer.json(), vector.answer);

    const flipped = (signature[0] === '0' ? '1' : '0') + signature.slice(1);
    assert.match((await ask(vector, query, flipped)).text, /^Invalid signature: /);
    if (vector.body) assert.equal((await ask({ ...vector, body: `${vector.body} ` }, query, signature)).text, 'Invalid body_md5\n');
  });
}

test('R12: the escapes survive to the subscriber', async () => {
  const vector = documented.requests.find(({ name }) => name === 'R12');
  const listener = await Peer.connect(raptor);
  await listener.subscribe('c');
  const { query, signature } = today(vector);
  assert.equal((await ask(vector, query, signature)).status, 200);
  await listener.receives({ event: 'foo', channel: 'c', data: '{"url":"http:\\/\\/x","n":"\\u00eb"}' });
});

test("what Ruby's trigger sends arrives", async () => {
  const vector = ruby.requests.find(({ name }) => name === 'trigger');
  const listener = await Peer.connect(raptor);
  await listener.subscribe('project-3');
  const { query, signature } = today(vector);
  await ask(vector, query, signature);
  await listener.receives({ event: 'foo', channel: 'project-3', data: '{"some":"data","url":"http://x/y","name":"Zoë"}' });
});

test("what Ruby's deprecated form sends arrives, and is answered with an empty 202, which it reads as true", async () => {
  const vector = ruby.requests.find(({ name }) => name.startsWith('publishing to one channel'));
  const listener = await Peer.connect(raptor);
  await listener.subscribe('project-3');
  const { query, signature } = today(vector);
  const answer = await ask(vector, query, signature);
  assert.deepEqual([answer.status, answer.text], [202, '']);
  await listener.receives({ event: 'foo', channel: 'project-3', data: '{"some":"data"}' });
});

for (const { name, channel, channel_data: channelData, user_data: userData, string, signature } of subscriptions) {
  test(`${name}: the form that is signed opens what it is for`, async () => {
    assert.equal(hmac(documented.credentials.secret, string), signature);
    const subscriber = await Peer.connect(raptor);
    const auth = `${APP.key}:${hmac(APP.secret, string.replace('1234.1234', subscriber.socketId))}`;
    if (userData) {
      subscriber.send({ event: 'pusher:signin', data: { auth, user_data: userData } });
      assert.equal((await subscriber.frame()).event, 'pusher:signin_success');
      return;
    }
    if (channel.startsWith('presence-') && channelData === undefined) await subscriber.signIn({ id: 'signed-in' });
    subscriber.send({ event: 'pusher:subscribe', data: { channel, auth, channel_data: channelData } });
    assert.equal((await subscriber.frame()).event, 'pusher_internal:subscription_succeeded');
  });

  test(`${name}: the vector's own digest, made for another socket, is refused`, async () => {
    const subscriber = await Peer.connect(raptor);
    const auth = `${APP.key}:${signature}`;
    subscriber.send(userData ? { event: 'pusher:signin', data: { auth, user_data: userData } } : { event: 'pusher:subscribe', data: { channel, auth, channel_data: channelData } });
    const { event, data } = await subscriber.frame();
    assert.equal(event, 'pusher:error');
    assert.match(data.message, new RegExp(channel?.startsWith('presence-') && channelData === undefined ? '^(Invalid signature|presence-foobar is a presence channel)' : '^Invalid signature'));
  });
}
