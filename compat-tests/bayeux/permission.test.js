// The application is asked by HTTP who may do what (`bayeux.md` 5.1, `webhook`): Faye's clients on one side, an application that answers as it likes on
// the other.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { describe, test } from 'node:test';

import Pusher from 'pusher';

import { atEnd } from '../support/at-end.js';
import { TEST_APP } from '../support/raptor.js';
import { handshake, post } from './support/http.js';
import { faye } from './support/in-node.js';
import { startBayeux } from './support/server.js';
import { createWorld } from './support/world.js';

const YES = (_, response) => response.setHeader('Content-Type', 'application/json').end('{"allow":true}');
const NO = (error) => (_, response) => response.end(JSON.stringify({ allow: false, error }));

/** An application that is asked. `asked` are the questions; `answer(question, response)` may be set at any time. */
async function startAsked(keys = {}, { app = {}, bayeux = {} } = {}) {
  const library = new Pusher({ appId: TEST_APP.id, key: TEST_APP.key, secret: TEST_APP.secret, cluster: 'any' });
  const application = { asked: [], answer: YES };
  const http = createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    // What the library checks is the signature alone; it needs events to say so.
    const signed = { headers: request.headers, rawBody: body };
    assert.equal(library.webhook(signed).isValid(), true, 'signed as webhooks are');
    assert.equal(request.method, 'POST');
    const question = JSON.parse(body);
    application.asked.push(question);
    await application.answer(question, response);
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  atEnd(() => { http.close(); http.closeAllConnections(); });
  const webhook = { url: `http://127.0.0.1:${http.address().port}/may?x=1`, allow_private_networks: true, ...keys };
  const server = await startBayeux({ app, bayeux: { client_publish: 'token', webhook, ...bayeux } });
  return { application, server };
}

const refusal = (operation) => operation.then(() => assert.fail('was not refused'), ({ code, message }) => [code, message]);

describe('the application is asked', { concurrency: true, timeout: 60_000 }, () => {
  for (const transport of ['websocket', 'long-polling']) {
    test(`about a session, subscriptions and publishes, with what a client shows: Faye over ${transport}`, async () => {
      const { application, server } = await startAsked();
      const world = createWorld({ Faye: faye('1.4'), url: server.url, transport, holdMs: 45_000 });
      const client = world.client();
      client.setHeader('Authorization', 'Bearer 1');
      client.setHeader('X-Other', 'unseen');
      client.addExtension({ outgoing: (message, next) => next(message.channel === '/meta/connect' ? message : { ...message, ext: { user: 7 } }) });
      const got = await world.subscribe(client, '/private/room');
      await world.publish(client, '/open', 1);
      await world.publish(client, '/private/room', 'hello');
      assert.deepEqual(await got.until(1), ['hello']);
      const headers = { authorization: 'Bearer 1' };
      const { clientId } = client.seen.find(({ channel }) => channel === '/meta/handshake');
      const asked = (channel, more) => ({ channel, clientId, ...more, ext: { user: 7 }, headers });
      assert.deepEqual(application.asked, [
        { channel: '/meta/handshake', ext: { user: 7 }, headers },
        asked('/meta/subscribe', { subscription: '/private/room' }),
        asked('/open'),
        asked('/private/room'),
      ]);
      world.close();
    });
  }

  test('what it refuses is refused with its words, and nothing else is done', async () => {
    const { application, server } = await startAsked();
    const world = createWorld({ Faye: faye('1.4'), url: server.url, transport: 'websocket', holdMs: 45_000 });
    const client = world.client();
    await world.connected(client);
    const lobby = await world.subscribe(client, '/lobby');
    application.answer = NO('411:room:Members only');
    assert.deepEqual(await refusal(world.subscribe(client, '/room')), [411, 'Members only']);
    application.answer = NO();
    assert.deepEqual(await refusal(world.subscribe(client, '/room')), [403, 'Refused by the application']);
    application.answer = (_, response) => response.writeHead(403).end('no');
    assert.deepEqual(await refusal(world.publish(client, '/lobby', 'refused')), [403, 'Refused by the application']);
    application.answer = YES;
    await world.publish(client, '/room', 'not subscribed');
    await world.publish(client, '/lobby', 'allowed');
    assert.deepEqual(await lobby.until(1), ['allowed']);
    world.close();
  });

  test('a denied handshake tells the client to stop', async () => {
    const { application, server } = await startAsked();
    application.answer = NO();
    const [reply] = await post(server.url, { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] });
    assert.deepEqual([reply.successful, reply.error, reply.advice], [false, '403::Refused by the application', { reconnect: 'none' }]);
  });

  test('no clear answer is no permission, and a client may come back later', async () => {
    const { application, server } = await startAsked({ timeout_secs: 1 });
    const session = await handshake(server.url);
    const unclear = {
      'an error': (_, response) => response.writeHead(500).end('{"allow":true}'),
      'no JSON': (_, response) => response.end('yes'),
      'a redirect': (_, response) => response.writeHead(302, { Location: '/' }).end(),
      'too much': (_, response) => response.end(`${' '.repeat(10_000)}{"allow":true}`),
      'a broken connection': (_, response) => response.socket.destroy(),
      silence: () => {},
    };
    for (const [what, answer] of Object.entries(unclear)) {
      application.answer = answer;
      assert.equal((await session.subscribe('/a')).error, '503::Application unreachable', what);
      assert.equal((await session.publish('/a', 1)).error, '503::Application unreachable', what);
    }
    const [denied] = await post(server.url, { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'] });
    assert.equal(denied.advice.reconnect, 'handshake');
    assert.ok(denied.advice.interval > 0);
    application.answer = YES;
    assert.equal((await session.subscribe('/a')).successful, true);
  });

  test('a decision is kept for the same question, and for no other', async () => {
    const { application, server } = await startAsked({ cache_secs: 2, about: ['subscribe', 'publish'], headers: ['x-user'] });
    const [one, two] = [await handshake(server.url), await handshake(server.url)];
    assert.equal(application.asked.length, 0, 'not about sessions');
    for (let n = 0; n < 3; n++) assert.equal((await one.publish('/a', n)).successful, true);
    assert.equal(application.asked.length, 1);
    application.answer = NO();
    assert.equal((await one.publish('/a', 3)).successful, true, 'still known');
    assert.equal((await one.publish('/b', 3)).successful, false);
    assert.equal((await two.publish('/a', 3)).successful, false);
    assert.equal((await one.publish('/a', 3, { ext: { x: 1 } })).successful, false);
    const message = { channel: '/a', clientId: one.clientId, data: 3 };
    assert.equal((await post(server.url, message, { 'X-User': '2' }))[0].successful, false);
    assert.equal(application.asked.length, 5);
    assert.deepEqual(application.asked[4].headers, { 'x-user': '2' });
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    assert.equal((await one.publish('/a', 4)).successful, false);
    assert.equal(application.asked.length, 6);
  });

  test('the application itself, with its token, is not asked; a signature that it asks for is needed as well', async () => {
    const { application, server } = await startAsked({ about: ['publish', 'subscribe'] }, { bayeux: { publish_tokens: [{ key: 'password', token: 'p' }], subscribe_tokens: [{ channels: '/vip', key: 'vip', token: 'v' }] } });
    const session = await handshake(server.url);
    assert.equal((await session.publish('/a', 1, { ext: { password: 'p' } })).successful, true);
    assert.equal((await session.subscribe('/vip')).error, 'Invalid subscription auth token');
    assert.equal(application.asked.length, 0);
    assert.equal((await session.subscribe('/vip', { ext: { vip: 'v' } })).successful, true);
    assert.equal(application.asked.length, 1);
  });

  test('an address in a private network is not asked unless the configuration allows it', async () => {
    const { application, server } = await startAsked({ allow_private_networks: false, about: ['subscribe'] });
    const session = await handshake(server.url);
    assert.equal((await session.subscribe('/a')).error, '503::Application unreachable');
    assert.equal(application.asked.length, 0);
  });

  test('a slow answer holds up its own client alone', async () => {
    const { application, server } = await startAsked({ about: ['subscribe'] });
    const [slow, quick] = [await handshake(server.url), await handshake(server.url)];
    let release;
    const released = new Promise((resolve) => { release = resolve; });
    application.answer = ({ clientId }, response) => (clientId === slow.clientId ? released.then(() => YES(null, response)) : YES(null, response));
    const waiting = slow.subscribe('/a');
    for (let n = 0; n < 20; n++) assert.equal((await quick.subscribe(`/a/${n}`)).successful, true);
    release();
    assert.equal((await waiting).successful, true);
  });
});
