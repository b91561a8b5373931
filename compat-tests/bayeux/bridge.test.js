// pusher-js and Faye clients on the same channels (`bayeux.md` 8).

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { QUIET_MS, SOON_MS, collect, once, onceArguments, sleep, until } from '../support/events.js';
import { PASSWORD, socketIdOf, startBridge } from './support/bridge.js';
import { handshake, post } from './support/http.js';
import { deliveries, replies } from './support/world.js';

const bridge = await startBridge();
const { server, application, pusher, bayeux, signing } = bridge;
const { trigger, get, sendToUser } = application.calls;

let names = 0;
const room = (prefix = '') => `${prefix}room${++names}`;

/** Every event of a pusher-js channel but the protocol's own, as `[name, data]`. */
function eventsOf(channel) {
  const events = [];
  channel.bind_global((event, data) => { if (!event.startsWith('pusher')) events.push([event, data]); });
  const arrived = (count) => until(() => events.length >= count, () => `${count} events, got ${JSON.stringify(events)}`).then(() => events);
  return Object.defineProperty(events, 'until', { value: arrived });
}

/** What the Faye client was delivered, as `[channel, data, ext]`. */
const delivered = (client) => deliveries(client).map(({ channel, data, ext }) => (ext === undefined ? [channel, data] : [channel, data, ext]));
const deliveredTo = (client, count) => until(() => deliveries(client).length >= count, () => `${count} deliveries, got ${JSON.stringify(delivered(client))}`).then(() => delivered(client));

/** The error of a refused operation. */
const refusal = (operation) => operation.then(() => assert.fail('was not refused'), ({ code, params, message }) => ({ code, params, message }));

describe('public channels', { timeout: 30_000 }, () => {
  test('an event of the HTTP API reaches both, with its name in ext', async () => {
    const name = room();
    const channel = await pusher.subscribe(await pusher.connect(), `chat.${name}`);
    const [got, client] = [eventsOf(channel), bayeux.client()];
    await bayeux.subscribe(client, `/chat/${name}`);
    await trigger(`chat.${name}`, 'new-msg', { text: 'wörld', n: 1.50 });
    await trigger(`chat.${name}`, 'message', 'plain text');
    assert.deepEqual(await got.until(2), [['new-msg', { text: 'wörld', n: 1.5 }], ['message', 'plain text']]);
    assert.deepEqual(await deliveredTo(client, 2), [[`/chat/${name}`, { text: 'wörld', n: 1.5 }, { event: 'new-msg' }], [`/chat/${name}`, 'plain text']]);
  });

  test('what Faye publishes is a client event to pusher-js, an event if the publisher is trusted', async () => {
    const name = room();
    const got = eventsOf(await pusher.subscribe(await pusher.connect(), name));
    const client = bayeux.client();
    await bayeux.subscribe(client, `/${name}`);
    await bayeux.publish(client, `/${name}`, { from: 'Faye' });
    await post(server.url, { channel: `/${name}`, data: 'trusted', ext: PASSWORD });
    await post(server.url, { channel: `/${name}`, data: 'named', ext: { event: 'typing' } });
    await post(server.url, { channel: `/${name}`, data: 'both', ext: { ...PASSWORD, event: 'typing' } });
    assert.deepEqual(await got.until(4), [['client-message', { from: 'Faye' }], ['message', 'trusted'], ['client-typing', 'named'], ['typing', 'both']]);

    const heard = await deliveredTo(client, 4);
    assert.deepEqual(heard.map(([, data]) => data), [{ from: 'Faye' }, 'trusted', 'named', 'both']);
    assert.ok(!JSON.stringify(heard).includes(PASSWORD.password), 'the password was passed on');
    assert.deepEqual(heard.slice(2).map(([, , ext]) => ext.event), ['client-typing', 'typing']);
  });

  test('data keeps its type through both protocols', async () => {
    const name = room();
    const channel = await pusher.subscribe(await pusher.connect(), name);
    const events = [];
    channel.bind('message', (data) => events.push(data));
    const client = bayeux.client();
    await bayeux.subscribe(client, `/${name}`);
    const values = [{ a: [1, null] }, [1], 'text', '123', '{"a":1}', 7, true, 0, false, ''];
    for (const data of values) await post(server.url, { channel: `/${name}`, data, ext: PASSWORD });
    assert.deepEqual((await deliveredTo(client, values.length)).map(([, data]) => data), values);
    await until(() => events.length >= values.length, 'all events');
    assert.deepEqual(events, values);
  });

  test('a pattern hears Pusher\'s events too', async () => {
    const client = bayeux.client();
    const name = room();
    await bayeux.subscribe(client, `/${name}/*`);
    await trigger([`${name}.1`, `${name}.2`, `${name}.2.x`, name], 'e', 1);
    assert.deepEqual((await deliveredTo(client, 2)).map(([channel]) => channel).sort(), [`/${name}/1`, `/${name}/2`]);
    await sleep(QUIET_MS);
    assert.equal(deliveries(client).length, 2);
  });

  test('a pattern is told nothing of private, presence and user channels', async () => {
    const watchers = ['/**', '/private/**', '/presence/*'].map((pattern) => [pattern, bayeux.client()]);
    const name = room();
    await bayeux.subscribe(watchers[0][1], '/**');
    assert.equal((await refusal(bayeux.subscribe(watchers[1][1], '/private/**'))).code, 403);
    assert.equal((await refusal(bayeux.subscribe(watchers[2][1], '/presence/*'))).code, 403);
    const user = { id: `user-${name}` };
    await pusher.signedIn(user);
    await sendToUser(user.id, 'secret', 1);
    await trigger([`private-${name}`, `presence-${name}`, `private-encrypted-${name}`].slice(0, 2), 'secret', 1);
    await trigger(`private-encrypted-${name}`, 'secret', 1);
    await trigger(name, 'open', 1);
    await deliveredTo(watchers[0][1], 1);
    await sleep(QUIET_MS);
    const ours = delivered(watchers[0][1]).filter(([channel]) => channel.includes(name));
    assert.deepEqual(ours, [[`/${name}`, 1, { event: 'open' }]]);
    assert.ok(!JSON.stringify(delivered(watchers[0][1])).includes('secret'));
  });

  test('names of either protocol are spelled as the table says', async () => {
    const spelled = {
      'public-room': '/public/room', 'a,b': '/a!~2Cb', 'order=28': '/order!~3D28', 'a..b': '/a/!~2Eb', '.a': '/!~2Ea', 'a.': '/a!~2E', 'private.room': '/!~70rivate/room',
      'meta.x': '/!~6Deta/x', service: '/!~73ervice', 'users.me@x': '/users/me@x', 'foo-bar.=;28foobar=;29': '/foo-bar/(foobar)', '=;7Euser.=;24x': '/~user/$x', 'cache-news': '/cache-news',
    };
    const client = bayeux.client();
    const connection = await pusher.connect();
    for (const [key, name] of Object.entries(spelled)) {
      await bayeux.subscribe(client, name);
      const got = eventsOf(await pusher.subscribe(connection, key));
      await trigger(key, 'to-both', key);
      await got.until(1);
    }
    assert.deepEqual((await deliveredTo(client, Object.keys(spelled).length)).map(([channel, data]) => [data, channel]), Object.entries(spelled));
    assert.deepEqual(await refusal(bayeux.subscribe(client, '/private-room')), { code: 403, params: ['/private-room'], message: 'Forbidden channel' });
  });

  test('the sender that an application excludes is excluded on either protocol', async () => {
    const name = room();
    const [excluded, other] = [bayeux.client(), bayeux.client()];
    for (const client of [excluded, other]) await bayeux.subscribe(client, `/${name}`);
    assert.match(socketIdOf(excluded), /^\d+\.\d+$/);
    await trigger(name, 'e', 'not for all', { socket_id: socketIdOf(excluded) });
    await trigger(name, 'e', 'for all');
    await deliveredTo(other, 2);
    await deliveredTo(excluded, 1);
    assert.deepEqual(delivered(excluded).map(([, data]) => data), ['for all']);
  });

  test('a Bayeux session counts as a connection', async () => {
    const name = room();
    const client = bayeux.client();
    await bayeux.subscribe(client, `/${name}`);
    const channel = await pusher.subscribe(await pusher.connect(), name);
    assert.deepEqual(await get(`/channels/${name}`, { info: 'subscription_count' }), { occupied: true, subscription_count: 2 });
    const count = once(channel, 'pusher:subscription_count');
    client.disconnect();
    assert.deepEqual(await count, { subscription_count: 1 });
  });

  test('a cache channel gives a Faye client its last event', async () => {
    const name = room('cache-');
    const early = bayeux.client();
    await bayeux.subscribe(early, `/${name}`);
    assert.equal(replies(early, '/meta/subscribe')[0].ext.cache, 'miss');
    await trigger(name, 'price', 42);
    await deliveredTo(early, 1);
    const late = bayeux.client();
    await bayeux.subscribe(late, `/${name}`);
    assert.deepEqual(await deliveredTo(late, 1), [[`/${name}`, 42, { event: 'price', cached: true }]]);
  });
});

describe('private channels', { timeout: 30_000 }, () => {
  test('the application\'s Pusher endpoint signs for Faye clients', async () => {
    const name = room();
    const client = signing();
    await bayeux.subscribe(client, `/private/${name}`);
    await bayeux.subscribe(client, `/private/App/Models/${name}`);
    await trigger([`private-${name}`, `private-App.Models.${name}`], 'e', 1);
    assert.deepEqual((await deliveredTo(client, 2)).map(([channel]) => channel).sort(), [`/private/App/Models/${name}`, `/private/${name}`]);
  });

  test('without the right signature there is nothing to hear and nothing to say', async () => {
    const name = `/private/${room()}`;
    assert.deepEqual(await refusal(bayeux.subscribe(bayeux.client(), name)), { code: 403, params: [name], message: 'Authentication required' });
    assert.equal((await refusal(bayeux.subscribe(signing({ forged: true }), name))).code, 403);
    assert.equal((await refusal(bayeux.publish(bayeux.client(), name, 1))).code, 403);
    const session = await handshake(server.url); // a signature of another session
    const proof = await (await fetch(`${application.url}/pusher/auth`, { method: 'POST', body: new URLSearchParams({ socket_id: '1.1', channel_name: `private-${name.slice(9)}`, member: 'null' }) })).json();
    assert.equal((await session.subscribe(name, { ext: proof })).successful, false);
  });

  test('client events pass both ways; a Faye publisher hears itself, a pusher-js sender does not', async () => {
    const name = room();
    const channel = await pusher.subscribe(await pusher.connect(), `private-${name}`);
    const got = eventsOf(channel);
    const client = signing();
    const heard = await bayeux.subscribe(client, `/private/${name}`);
    channel.trigger('client-typing', { by: 'pusher-js' });
    assert.deepEqual(await deliveredTo(client, 1), [[`/private/${name}`, { by: 'pusher-js' }, { event: 'client-typing' }]]);
    await bayeux.publish(client, `/private/${name}`, { by: 'Faye' });
    assert.deepEqual(await got.until(1), [['client-message', { by: 'Faye' }]]);
    assert.deepEqual(await heard.until(2), [{ by: 'pusher-js' }, { by: 'Faye' }]);
  });
});

describe('presence channels', { timeout: 30_000 }, () => {
  const member = (user_id) => ({ user_id, user_info: { name: user_id } });

  test('there is one roster, and each side hears of the other', async () => {
    const name = room();
    const channel = await pusher.subscribe(await pusher.connect({ member: member('ann') }), `presence-${name}`);
    const [added, removed] = [collect(channel, 'pusher:member_added'), collect(channel, 'pusher:member_removed')];

    const bob = signing({ member: member('bob') });
    await bayeux.subscribe(bob, `/presence/${name}`);
    const { presence } = replies(bob, '/meta/subscribe')[0].ext;
    assert.deepEqual({ ...presence, ids: presence.ids.toSorted() }, { count: 2, ids: ['ann', 'bob'], hash: { ann: { name: 'ann' }, bob: { name: 'bob' } } });
    await added.until(1);
    assert.deepEqual(added.map(({ id, info }) => [id, info]), [['bob', { name: 'bob' }]]);

    const news = await bayeux.subscribe(bob, `/service/presence/${name}`);
    const [list] = await news.until(1);
    assert.deepEqual([list.event, list.ids.toSorted(), list.count], ['list', ['ann', 'bob'], 2]);

    const carol = await pusher.connect({ member: member('carol') });
    await pusher.subscribe(carol, `presence-${name}`);
    await news.until(2);
    assert.deepEqual(news[1], { event: 'join', user_id: 'carol', user_info: { name: 'carol' }, count: 3 });
    carol.disconnect();
    await news.until(3);
    assert.deepEqual(news[2], { event: 'leave', user_id: 'carol', count: 2 });
    assert.deepEqual((await get(`/channels/presence-${name}/users`)).users.map(({ id }) => id).sort(), ['ann', 'bob']);

    bob.disconnect();
    await removed.until(2);
    assert.deepEqual(removed.map(({ id }) => id), ['carol', 'bob']);
    assert.deepEqual(deliveries(bob).filter(({ channel }) => channel === `/presence/${name}`), [], 'the room itself must carry application data only');
  });

  test('a client event names its user on both sides', async () => {
    const name = room();
    const channel = await pusher.subscribe(await pusher.connect({ member: member('ann') }), `presence-${name}`);
    const client = signing({ member: member('bob') });
    await bayeux.subscribe(client, `/presence/${name}`);
    channel.trigger('client-wave', 1);
    assert.deepEqual(await deliveredTo(client, 1), [[`/presence/${name}`, 1, { event: 'client-wave', user_id: 'ann' }]]);
    const got = onceArguments(channel, 'client-message', SOON_MS);
    await bayeux.publish(client, `/presence/${name}`, 2);
    assert.deepEqual(await got, [2, { user_id: 'bob' }]);
  });

  test('only members learn who is there, and a fresh list can be asked for', async () => {
    const name = room();
    assert.equal((await refusal(bayeux.subscribe(bayeux.client(), `/service/presence/${name}`))).code, 403);
    const client = signing({ member: member('bob') });
    await bayeux.subscribe(client, `/presence/${name}`);
    const news = await bayeux.subscribe(client, `/service/presence/${name}`);
    await bayeux.publish(client, `/service/presence/${name}`, {});
    await news.until(2);
    assert.deepEqual(news[1], { event: 'list', ids: ['bob'], hash: { bob: { name: 'bob' } }, count: 1 });
    assert.equal((await refusal(bayeux.publish(bayeux.client(), `/service/presence/${name}`, {}))).code, 403);
  });
});

describe('users', { timeout: 30_000 }, () => {
  test('a signed-in session hears what is sent to its user', async () => {
    const user = { id: room('user-') };
    const client = bayeux.client();
    await bayeux.connected(client);
    assert.equal((await refusal(bayeux.subscribe(client, '/service/user'))).code, 403);
    const form = new URLSearchParams({ socket_id: socketIdOf(client), user: JSON.stringify(user) });
    const proof = await (await fetch(`${application.url}/pusher/user-auth`, { method: 'POST', body: form })).json();
    assert.equal((await refusal(bayeux.publish(client, '/service/user', { ...proof, user_data: '{"id":"somebody-else"}' }))).code, 403);
    await bayeux.publish(client, '/service/user', proof);
    const got = await bayeux.subscribe(client, '/service/user');
    await sendToUser(user.id, 'greeting', { hello: user.id });
    assert.deepEqual(await got.until(1), [{ hello: user.id }]);
    assert.deepEqual(delivered(client)[0], ['/service/user', { hello: user.id }, { event: 'greeting' }]);
  });
});
