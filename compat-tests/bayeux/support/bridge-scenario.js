// pusher-js and Faye clients on the same channels (`bayeux.md` 8). Runs in Node and in pages.

import { QUIET_MS, SOON_MS, collect, onceArguments, sleep, until } from '../../support/events.js';
import { equal, match, ok } from '../../support/expect.js';
import { PASSWORD, socketIdOf } from './both-protocols.js';
import { deliveries, replies } from './world.js';

/** `[{title, run(bridge)}]`, each independent of the others; `bridge`: see `createBridge`. */
export const steps = [];

function step(title, run) {
  steps.push({ title, run });
}

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
const refusal = (operation) => operation.then(() => { throw new Error('was not refused'); }, ({ code, params, message }) => ({ code, params, message }));

// public channels

step('an event of the HTTP API reaches both, with its name in ext', async ({ pusher, bayeux, trigger, room }) => {
  const name = room();
  const channel = await pusher.subscribe(await pusher.connect(), `chat.${name}`);
  const [got, client] = [eventsOf(channel), bayeux.client()];
  await bayeux.subscribe(client, `/chat/${name}`);
  await trigger(`chat.${name}`, 'new-msg', { text: 'wörld', n: 1.50 });
  await trigger(`chat.${name}`, 'message', 'plain text');
  equal(await got.until(2), [['new-msg', { text: 'wörld', n: 1.5 }], ['message', 'plain text']]);
  equal(await deliveredTo(client, 2), [[`/chat/${name}`, { text: 'wörld', n: 1.5 }, { event: 'new-msg' }], [`/chat/${name}`, 'plain text']]);
});

step('what Faye publishes is a client event to pusher-js, an event if the publisher is trusted', async ({ pusher, bayeux, post, room }) => {
  const name = room();
  const got = eventsOf(await pusher.subscribe(await pusher.connect(), name));
  const client = bayeux.client();
  await bayeux.subscribe(client, `/${name}`);
  await bayeux.publish(client, `/${name}`, { from: 'Faye' });
  await post({ channel: `/${name}`, data: 'trusted', ext: PASSWORD });
  await post({ channel: `/${name}`, data: 'named', ext: { event: 'typing' } });
  await post({ channel: `/${name}`, data: 'both', ext: { ...PASSWORD, event: 'typing' } });
  equal(await got.until(4), [['client-message', { from: 'Faye' }], ['message', 'trusted'], ['client-typing', 'named'], ['typing', 'both']]);

  const heard = await deliveredTo(client, 4);
  equal(heard.map(([, data]) => data), [{ from: 'Faye' }, 'trusted', 'named', 'both']);
  ok(!JSON.stringify(heard).includes(PASSWORD.password), 'the password was passed on');
  equal(heard.slice(2).map(([, , ext]) => ext.event), ['client-typing', 'typing']);
});

step('data keeps its type through both protocols', async ({ pusher, bayeux, post, room }) => {
  const name = room();
  const channel = await pusher.subscribe(await pusher.connect(), name);
  const events = [];
  channel.bind('message', (data) => events.push(data));
  const client = bayeux.client();
  await bayeux.subscribe(client, `/${name}`);
  const values = [{ a: [1, null] }, [1], 'text', '123', '{"a":1}', 7, true, 0, false, ''];
  for (const data of values) await post({ channel: `/${name}`, data, ext: PASSWORD });
  equal((await deliveredTo(client, values.length)).map(([, data]) => data), values);
  await until(() => events.length >= values.length, 'all events');
  equal(events, values);
});

step('a pattern hears Pusher\'s events too', async ({ bayeux, trigger, room }) => {
  const client = bayeux.client();
  const name = room();
  await bayeux.subscribe(client, `/${name}/*`);
  await trigger([`${name}.1`, `${name}.2`, `${name}.2.x`, name], 'e', 1);
  equal((await deliveredTo(client, 2)).map(([channel]) => channel).sort(), [`/${name}/1`, `/${name}/2`]);
  await sleep(QUIET_MS);
  equal(deliveries(client).length, 2);
});

step('a pattern is told nothing of private, presence and user channels', async ({ pusher, bayeux, trigger, sendToUser, room }) => {
  const watchers = ['/**', '/private/**', '/presence/*'].map((pattern) => [pattern, bayeux.client()]);
  const name = room();
  await bayeux.subscribe(watchers[0][1], '/**');
  equal((await refusal(bayeux.subscribe(watchers[1][1], '/private/**'))).code, 403);
  equal((await refusal(bayeux.subscribe(watchers[2][1], '/presence/*'))).code, 403);
  const user = { id: `user-${name}` };
  await pusher.signedIn(user);
  await sendToUser(user.id, 'secret', 1);
  await trigger([`private-${name}`, `presence-${name}`, `private-encrypted-${name}`].slice(0, 2), 'secret', 1);
  await trigger(`private-encrypted-${name}`, 'secret', 1);
  await trigger(name, 'open', 1);
  await deliveredTo(watchers[0][1], 1);
  await sleep(QUIET_MS);
  const ours = delivered(watchers[0][1]).filter(([channel]) => channel.includes(name));
  equal(ours, [[`/${name}`, 1, { event: 'open' }]]);
  ok(!JSON.stringify(delivered(watchers[0][1])).includes('secret'));
});

step('names of either protocol are spelled as the table says', async ({ pusher, bayeux, trigger }) => {
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
  equal((await deliveredTo(client, Object.keys(spelled).length)).map(([channel, data]) => [data, channel]), Object.entries(spelled));
  equal(await refusal(bayeux.subscribe(client, '/private-room')), { code: 403, params: ['/private-room'], message: 'Forbidden channel' });
});

step('the sender that an application excludes is excluded on either protocol', async ({ bayeux, trigger, room }) => {
  const name = room();
  const [excluded, other] = [bayeux.client(), bayeux.client()];
  for (const client of [excluded, other]) await bayeux.subscribe(client, `/${name}`);
  match(socketIdOf(excluded), /^\d+\.\d+$/);
  await trigger(name, 'e', 'not for all', { socket_id: socketIdOf(excluded) });
  await trigger(name, 'e', 'for all');
  await deliveredTo(other, 2);
  await deliveredTo(excluded, 1);
  equal(delivered(excluded).map(([, data]) => data), ['for all']);
});

step('a Bayeux session counts as a connection', async ({ pusher, bayeux, get, room }) => {
  const name = room();
  const client = bayeux.client();
  await bayeux.subscribe(client, `/${name}`);
  const channel = await pusher.subscribe(await pusher.connect(), name);
  equal(await get(`/channels/${name}`, { info: 'subscription_count' }), { occupied: true, subscription_count: 2 });
  // With several nodes the count of both may come only now.
  const counts = collect(channel, 'pusher:subscription_count');
  client.disconnect();
  await until(() => counts.at(-1)?.subscription_count === 1, () => JSON.stringify(counts));
  equal(counts.filter(({ subscription_count: count }) => count !== 2), [{ subscription_count: 1 }]);
});

step('a cache channel gives a Faye client its last event', async ({ bayeux, trigger, room }) => {
  const name = room('cache-');
  const early = bayeux.client();
  await bayeux.subscribe(early, `/${name}`);
  equal(replies(early, '/meta/subscribe')[0].ext.cache, 'miss');
  await trigger(name, 'price', 42);
  await deliveredTo(early, 1);
  const late = bayeux.client();
  await bayeux.subscribe(late, `/${name}`);
  equal(await deliveredTo(late, 1), [[`/${name}`, 42, { event: 'price', cached: true }]]);
});

// private channels

step('the application\'s Pusher endpoint signs for Faye clients', async ({ bayeux, signing, trigger, room }) => {
  const name = room();
  const client = signing();
  await bayeux.subscribe(client, `/private/${name}`);
  await bayeux.subscribe(client, `/private/App/Models/${name}`);
  await trigger([`private-${name}`, `private-App.Models.${name}`], 'e', 1);
  equal((await deliveredTo(client, 2)).map(([channel]) => channel).sort(), [`/private/App/Models/${name}`, `/private/${name}`]);
});

step('without the right signature there is nothing to hear and nothing to say', async ({ bayeux, signing, applicationUrl, subscribeAsAnother, room }) => {
  const name = `/private/${room()}`;
  equal(await refusal(bayeux.subscribe(bayeux.client(), name)), { code: 403, params: [name], message: 'Authentication required' });
  equal((await refusal(bayeux.subscribe(signing({ forged: true }), name))).code, 403);
  equal((await refusal(bayeux.publish(bayeux.client(), name, 1))).code, 403);
  // Not of the session that shows it.
  const proof = await (await fetch(`${applicationUrl}/pusher/auth`, { method: 'POST', body: new URLSearchParams({ socket_id: '1.1', channel_name: `private-${name.slice(9)}`, member: 'null' }) })).json();
  equal((await subscribeAsAnother(name, proof)).successful, false);
});

step('client events pass both ways; a Faye publisher hears itself, a pusher-js sender does not', async ({ pusher, bayeux, signing, room }) => {
  const name = room();
  const channel = await pusher.subscribe(await pusher.connect(), `private-${name}`);
  const got = eventsOf(channel);
  const client = signing();
  const heard = await bayeux.subscribe(client, `/private/${name}`);
  channel.trigger('client-typing', { by: 'pusher-js' });
  equal(await deliveredTo(client, 1), [[`/private/${name}`, { by: 'pusher-js' }, { event: 'client-typing' }]]);
  await bayeux.publish(client, `/private/${name}`, { by: 'Faye' });
  equal(await got.until(1), [['client-message', { by: 'Faye' }]]);
  equal(await heard.until(2), [{ by: 'pusher-js' }, { by: 'Faye' }]);
});

// presence channels

const member = (user_id) => ({ user_id, user_info: { name: user_id } });

step('there is one roster, and each side hears of the other', async ({ pusher, bayeux, signing, get, room }) => {
  const name = room();
  const channel = await pusher.subscribe(await pusher.connect({ member: member('ann') }), `presence-${name}`);
  const [added, removed] = [collect(channel, 'pusher:member_added'), collect(channel, 'pusher:member_removed')];

  const bob = signing({ member: member('bob') });
  await bayeux.subscribe(bob, `/presence/${name}`);
  const { presence } = replies(bob, '/meta/subscribe')[0].ext;
  equal({ ...presence, ids: presence.ids.toSorted() }, { count: 2, ids: ['ann', 'bob'], hash: { ann: { name: 'ann' }, bob: { name: 'bob' } } });
  await added.until(1);
  equal(added.map(({ id, info }) => [id, info]), [['bob', { name: 'bob' }]]);

  const news = await bayeux.subscribe(bob, `/service/presence/${name}`);
  const [list] = await news.until(1);
  equal([list.event, list.ids.toSorted(), list.count], ['list', ['ann', 'bob'], 2]);

  const carol = await pusher.connect({ member: member('carol') });
  await pusher.subscribe(carol, `presence-${name}`);
  await news.until(2);
  equal(news[1], { event: 'join', user_id: 'carol', user_info: { name: 'carol' }, count: 3 });
  carol.disconnect();
  await news.until(3);
  equal(news[2], { event: 'leave', user_id: 'carol', count: 2 });
  equal((await get(`/channels/presence-${name}/users`)).users.map(({ id }) => id).sort(), ['ann', 'bob']);

  bob.disconnect();
  await removed.until(2);
  equal(removed.map(({ id }) => id), ['carol', 'bob']);
  equal(deliveries(bob).filter(({ channel }) => channel === `/presence/${name}`), [], 'the room itself must carry application data only');
});

step('a client event names its user on both sides', async ({ pusher, bayeux, signing, room }) => {
  const name = room();
  const channel = await pusher.subscribe(await pusher.connect({ member: member('ann') }), `presence-${name}`);
  const client = signing({ member: member('bob') });
  await bayeux.subscribe(client, `/presence/${name}`);
  channel.trigger('client-wave', 1);
  equal(await deliveredTo(client, 1), [[`/presence/${name}`, 1, { event: 'client-wave', user_id: 'ann' }]]);
  const got = onceArguments(channel, 'client-message', SOON_MS);
  await bayeux.publish(client, `/presence/${name}`, 2);
  equal(await got, [2, { user_id: 'bob' }]);
});

step('only members learn who is there, and a fresh list can be asked for', async ({ bayeux, signing, room }) => {
  const name = room();
  equal((await refusal(bayeux.subscribe(bayeux.client(), `/service/presence/${name}`))).code, 403);
  const client = signing({ member: member('bob') });
  await bayeux.subscribe(client, `/presence/${name}`);
  const news = await bayeux.subscribe(client, `/service/presence/${name}`);
  await bayeux.publish(client, `/service/presence/${name}`, {});
  await news.until(2);
  equal(news[1], { event: 'list', ids: ['bob'], hash: { bob: { name: 'bob' } }, count: 1 });
  equal((await refusal(bayeux.publish(bayeux.client(), `/service/presence/${name}`, {}))).code, 403);
});

// users

step('a signed-in session hears what is sent to its user', async ({ bayeux, sendToUser, applicationUrl, room }) => {
  const user = { id: room('user-') };
  const client = bayeux.client();
  await bayeux.connected(client);
  equal((await refusal(bayeux.subscribe(client, '/service/user'))).code, 403);
  const form = new URLSearchParams({ socket_id: socketIdOf(client), user: JSON.stringify(user) });
  const proof = await (await fetch(`${applicationUrl}/pusher/user-auth`, { method: 'POST', body: form })).json();
  equal((await refusal(bayeux.publish(client, '/service/user', { ...proof, user_data: '{"id":"somebody-else"}' }))).code, 403);
  await bayeux.publish(client, '/service/user', proof);
  const got = await bayeux.subscribe(client, '/service/user');
  await sendToUser(user.id, 'greeting', { hello: user.id });
  equal(await got.until(1), [{ hello: user.id }]);
  equal(delivered(client)[0], ['/service/user', { hello: user.id }, { event: 'greeting' }]);
});
