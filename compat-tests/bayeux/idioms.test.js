// How existing Faye applications say who may do what (`bayeux.md` 5), with Faye's own client and the extensions that their pages have.

import assert from 'node:assert/strict';
import { createHash, createHmac } from 'node:crypto';
import { describe, test } from 'node:test';

import { handshake, post } from './support/http.js';
import { faye } from './support/in-node.js';
import { startBayeux } from './support/server.js';
import { createWorld, deliveries } from './support/world.js';

const SECRET = 'a-secret-of-the-application';
const MINUTE_MS = 60_000;

/** A server with these keys of `[apps.bayeux]`, and a world of Faye clients whose messages `outgoing` completes. */
async function start(bayeux, outgoing = () => ({})) {
  const server = await startBayeux({ bayeux });
  const world = createWorld({ Faye: faye('1.4'), url: server.url, transport: 'websocket', holdMs: 45_000 });
  const client = world.client();
  client.addExtension({ outgoing: (message, next) => next({ ...message, ...outgoing(message) }) });
  return { server, world, client };
}

const refusal = (operation) => operation.then(() => assert.fail('was not refused'), ({ code, message }) => [code, message]);

const isAbout = (message, channel) => message.channel === '/meta/subscribe' && message.subscription === channel;

describe('the application says who may do what', { concurrency: true, timeout: 60_000 }, () => {
  for (const prefix of ['private_pub', 'danthes']) {
    const signature = (channel, timestamp) => createHash('sha1').update(`${SECRET}${channel}${timestamp}`).digest('hex');
    const signed = (channel, timestamp) => ({ [`${prefix}_signature`]: signature(channel, timestamp), [`${prefix}_timestamp`]: timestamp });

    test(`${prefix} signs subscriptions, and only the application publishes`, async () => {
      const now = Date.now();
      const { server, world, client } = await start({ client_publish: 'token', [prefix]: { secret: SECRET, expiration_secs: 3_600 } }, (message) => {
        if (isAbout(message, '/messages/new')) return { ext: signed('/messages/new', now) };
        if (isAbout(message, '/messages/old')) return { ext: signed('/messages/old', now - 61 * MINUTE_MS) };
        if (isAbout(message, '/messages/other')) return { ext: signed('/messages/new', now) };
        return {};
      });
      const got = await world.subscribe(client, '/messages/new');
      assert.deepEqual(await refusal(world.subscribe(client, '/messages/old')), [null, 'Signature has expired.']);
      for (const channel of ['/messages/other', '/messages/unsigned', '/messages/*', '/**']) assert.deepEqual(await refusal(world.subscribe(client, channel)), [null, 'Incorrect signature.'], channel);
      assert.deepEqual(await refusal(world.publish(client, '/messages/new', { eval: 'alert(1)' })), [null, 'Incorrect token.']);

      // Digits that move from the channel to the timestamp leave the signed text as it was.
      const rooms = signed('/rooms/12', now);
      const session = await handshake(server.url);
      const moved = { ...rooms, [`${prefix}_timestamp`]: `2${now}` };
      assert.equal((await session.subscribe('/rooms/1', { ext: moved })).error, 'Incorrect signature.');
      assert.equal((await session.subscribe(['/rooms/12'], { ext: rooms })).error, 'Incorrect signature.');
      assert.equal((await session.subscribe('/rooms/12', { ext: rooms })).successful, true);

      const data = { channel: '/messages/new', data: { text: 'hello' } };
      const form = new URLSearchParams({ message: JSON.stringify({ channel: '/messages/new', data, ext: { [`${prefix}_token`]: SECRET } }) });
      assert.equal((await (await fetch(server.url, { method: 'POST', body: form })).json())[0].successful, true);
      assert.deepEqual(await got.until(1), [data]);
      assert.ok(!JSON.stringify(deliveries(client)).includes(SECRET));
      world.close();
    });
  }

  test('some channels need no JWT, and a pattern that shows more than those does', async () => {
    const { server, world, client } = await start({ client_publish: 'open', jwt_secret: SECRET, jwt_exempt: ['/lobby', '/open/**'] });
    for (const free of ['/lobby', '/open/a', '/open/a/b', '/open/*', '/open/a/**']) await world.subscribe(client, free);
    await world.publish(client, '/open/a', 1);
    for (const guarded of ['/lobby/x', '/open', '/**', '/*', '/opening/x']) assert.deepEqual(await refusal(world.subscribe(client, guarded)), [null, 'Invalid signature'], guarded);
    assert.deepEqual(await refusal(world.publish(client, '/open', 1)), [null, 'Invalid signature']);
    const session = await handshake(server.url);
    assert.equal((await session.subscribe(['/lobby', '/open/a'])).successful, true);
    assert.equal((await session.subscribe(['/lobby', '/other'])).error, 'Invalid signature');
    world.close();
  });

  test('a channel that needs no JWT is not for everybody if it is private', async () => {
    const { server } = await start({ jwt_secret: SECRET, jwt_exempt: ['/**'] });
    const session = await handshake(server.url);
    assert.equal((await session.subscribe('/private/x')).error, '403:/private/x:Authentication required');
    assert.equal((await session.subscribe('/x')).successful, true);
    assert.equal((await session.publish('/x', 1)).successful, true);
  });

  test('a JWT is for its channel and its client', async () => {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const sign = (claims, { alg = 'HS256', secret = SECRET } = {}) => {
      const text = `${part({ alg })}.${part(claims)}`;
      return `${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`;
    };
    const exp = Math.floor(Date.now() / 1_000) + 60;
    const { world, client } = await start({ client_publish: 'token', jwt_secret: SECRET }, ({ channel, subscription = channel, clientId }) => {
      const claims = { channel: subscription, clientId, exp };
      switch (subscription) {
        case '/good': return { signature: sign(claims) };
        case '/expired': return { signature: sign({ ...claims, exp: exp - 120 }) };
        case '/of-another': return { signature: sign({ ...claims, clientId: 'somebody' }) };
        case '/elsewhere': return { signature: sign({ ...claims, channel: '/good' }) };
        case '/forged': return { signature: sign(claims, { secret: 'guessed' }) };
        case '/without-algorithm': return { signature: sign(claims, { alg: 'none' }) };
        default: return {};
      }
    });
    const errors = { '/expired': 'Expired signature', '/of-another': 'Required argument not signed', '/elsewhere': 'Required argument not signed', '/forged': 'Invalid signature', '/without-algorithm': 'Invalid signature', '/unsigned': 'Invalid signature' };
    const got = await world.subscribe(client, '/good');
    for (const [channel, error] of Object.entries(errors)) {
      assert.deepEqual(await refusal(world.subscribe(client, channel)), [null, error], channel);
      assert.deepEqual(await refusal(world.publish(client, channel, 1)), [null, error], channel);
    }
    await world.publish(client, '/good', 'hello');
    assert.deepEqual(await got.until(1), ['hello']);
    assert.deepEqual(deliveries(client), [{ channel: '/good', data: 'hello' }]);
    world.close();
  });

  test('a subscribe token guards what a pattern would show', async () => {
    const { server, world, client } = await start({ subscribe_tokens: [{ channels: '/staff/**', key: 'authToken', token: SECRET }] }, ({ channel }) => (channel === '/meta/subscribe' ? { ext: { authToken: SECRET } } : {}));
    const session = await handshake(server.url);
    for (const subscription of ['/staff/1', '/staff/*', '/**', ['/open', '/staff/1']]) {
      for (const ext of [undefined, { authToken: 'wrong' }]) assert.equal((await session.subscribe(subscription, { ext })).error, 'Invalid subscription auth token', String(subscription));
    }
    assert.equal((await session.subscribe('/open')).successful, true);
    const got = await world.subscribe(client, '/staff/*');
    await post(server.url, { channel: '/staff/1', data: 'hush' });
    assert.deepEqual(await got.until(1), ['hush']);
    world.close();
  });

  test('a handshake token is asked of whoever wants a session', async () => {
    const { server, world, client } = await start({ handshake_tokens: [{ key: 'token', token: SECRET }] }, ({ channel }) => (channel === '/meta/handshake' ? { ext: { token: SECRET } } : {}));
    for (const ext of [undefined, { token: 'wrong' }, { token: [SECRET] }]) {
      const [reply] = await post(server.url, { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'], ext });
      assert.deepEqual([reply.successful, reply.error, reply.advice], [false, '403::Handshake denied', { reconnect: 'none' }]);
    }
    await world.subscribe(client, '/anything');
    world.close();
  });
});
