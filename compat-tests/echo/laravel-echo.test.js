// Laravel Echo over pusher-js 8.6, with the events as Laravel's broadcaster publishes them.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import Echo from 'laravel-echo';

import { startApplication } from '../support/application.js';
import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { connectionTo, pusherClass } from '../support/in-node.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';

const server = await startRaptor();
const { url, calls: application } = await startApplication(server);
let rooms = 0;

/** An Echo as a page configures it. What the application says of this user goes into `params`, see `startApplication`. */
function echo({ member = null, user, forged, ...options } = {}) {
  const params = Object.fromEntries(Object.entries({ member: JSON.stringify(member), user: JSON.stringify(user), forged }).filter(([, value]) => value !== undefined));
  const created = new Echo({
    broadcaster: 'pusher',
    Pusher: pusherClass('8.6'),
    key: TEST_APP.key,
    cluster: 'mt1',
    forceTLS: false,
    ...connectionTo(server),
    channelAuthorization: { transport: 'ajax', endpoint: `${url}/pusher/auth`, params },
    userAuthentication: { transport: 'ajax', endpoint: `${url}/pusher/user-auth`, params },
    ...options,
  });
  atEnd(() => created.disconnect());
  return created;
}

const room = () => `orders.${++rooms}`;

/** Gathers what a listener of Echo is called with. */
function heard(listen) {
  const got = [];
  listen((value) => got.push(value));
  return Object.assign(got, { until: (count) => until(() => got.length >= count, `${count} calls, got ${got.length}`).then(() => [...got]) });
}

const subscribed = (channel) => heard((call) => channel.subscribed(() => call('subscribed'))).until(1);

describe('Laravel Echo', { timeout: 30_000 }, () => {
  test('hears the events of a channel under class names, namespaced and plain names', async () => {
    const name = room();
    const channel = echo().channel(name);
    const got = heard((call) => channel
      .listen('OrderShipped', (data) => call(['OrderShipped', data]))
      .listen('\\Shop\\Events\\Paid', (data) => call(['Shop\\Events\\Paid', data]))
      .listen('.order.cancelled', (data) => call(['order.cancelled', data])));
    await subscribed(channel);
    await application.trigger(name, 'App\\Events\\OrderShipped', { order: 1 });
    await application.trigger(name, 'Shop\\Events\\Paid', { order: 2 });
    await application.trigger(name, 'order.cancelled', { order: 3 });
    assert.deepEqual(await got.until(3), [['OrderShipped', { order: 1 }], ['Shop\\Events\\Paid', { order: 2 }], ['order.cancelled', { order: 3 }]]);
  });

  test('hears everything of a channel with listenToAll', async () => {
    const name = room();
    const channel = echo().channel(name);
    const got = heard((call) => channel.listenToAll((event, data) => call([event, data])));
    await subscribed(channel);
    await application.trigger(name, 'App\\Events\\OrderShipped', 1);
    await application.trigger(name, 'custom', 2);
    assert.deepEqual(await got.until(2), [['OrderShipped', 1], ['.custom', 2]]);
  });

  test('stops hearing what it stopped listening to', async () => {
    const name = room();
    const channel = echo().channel(name);
    const got = heard((call) => channel.listen('.news', call));
    const ends = heard((call) => channel.listen('.end', call));
    await subscribed(channel);
    await application.trigger(name, 'news', 1);
    await got.until(1);
    channel.stopListening('.news');
    await application.trigger(name, 'news', 2);
    await application.trigger(name, 'end', 1);
    await ends.until(1);
    assert.deepEqual([...got], [1]);
  });

  test('joins a private channel and leaves out the page that caused an event (toOthers)', async () => {
    const name = room();
    const [author, reader] = [echo(), echo()];
    const [own, others] = [author, reader].map((page) => heard((call) => page.private(name).listen('OrderShipped', call)));
    await Promise.all([subscribed(author.private(name)), subscribed(reader.private(name))]);
    assert.match(author.socketId(), /^\d+\.\d+$/);
    await application.trigger(`private-${name}`, 'App\\Events\\OrderShipped', 'to others', { socket_id: author.socketId() });
    await application.trigger(`private-${name}`, 'App\\Events\\OrderShipped', 'to all');
    assert.deepEqual([await own.until(1), await others.until(2)], [['to all'], ['to others', 'to all']]);
  });

  test('hears notifications and encrypted channels', async () => {
    const name = room();
    const page = echo();
    const [notes, secrets] = [heard((call) => page.private(name).notification(call)), heard((call) => page.encryptedPrivate(name).listen('.secret', call))];
    await Promise.all([subscribed(page.private(name)), subscribed(page.encryptedPrivate(name))]);
    await application.trigger(`private-${name}`, 'Illuminate\\Notifications\\Events\\BroadcastNotificationCreated', { type: 'InvoicePaid' });
    await application.trigger(`private-encrypted-${name}`, 'secret', { pin: 1234 });
    assert.deepEqual([await notes.until(1), await secrets.until(1)], [[{ type: 'InvoicePaid' }], [{ pin: 1234 }]]);
  });

  test('tells who is here, joining and leaving', async () => {
    const name = room();
    const member = (id) => ({ user_id: id, user_info: { id, name: `User ${id}` } }); // as PresenceChannel authorization of Laravel answers
    const [ann, bob] = [echo({ member: member(1) }), echo({ member: member(2) })];
    const lobby = ann.join(name);
    const [here, joining, leaving] = [heard((call) => lobby.here(call)), heard((call) => lobby.joining(call)), heard((call) => lobby.leaving(call))];
    assert.deepEqual(await here.until(1), [[{ id: 1, name: 'User 1' }]]);

    const bobsView = heard((call) => bob.join(name).here(call));
    assert.deepEqual((await bobsView.until(1))[0].map(({ id }) => id).sort(), [1, 2]);
    assert.deepEqual(await joining.until(1), [{ id: 2, name: 'User 2' }]);
    bob.leave(name);
    assert.deepEqual(await leaving.until(1), [{ id: 2, name: 'User 2' }]);
    assert.equal(here.length, 1);
  });

  test('whispers to the others of private and presence channels', async () => {
    const name = room();
    const [ann, bob] = [echo({ member: { user_id: 1 } }), echo({ member: { user_id: 2 } })];
    for (const channelOf of [(page) => page.private(name), (page) => page.join(name)]) {
      const [own, others] = [heard((call) => channelOf(ann).listenForWhisper('typing', call)), heard((call) => channelOf(bob).listenForWhisper('typing', call))];
      await Promise.all([subscribed(channelOf(ann)), subscribed(channelOf(bob))]);
      channelOf(ann).whisper('typing', { name: 'Ann' });
      assert.deepEqual(await others.until(1), [{ name: 'Ann' }]);
      channelOf(bob).whisper('typing', { name: 'Bob' });
      assert.deepEqual(await own.until(1), [{ name: 'Bob' }]);
    }
  });

  test('hands a refused subscription to the error callback', async () => {
    const refused = heard((call) => echo({ forged: 1 }).private(room()).error(call));
    const [{ type, status, error }] = await refused.until(1);
    assert.deepEqual([type, status], ['AuthError', 401]);
    assert.match(error, /^Invalid signature/);
  });

  test('leaves the public, private and presence channel of a name at once', async () => {
    const name = room();
    const page = echo({ member: { user_id: 1 } });
    await Promise.all([page.channel(name), page.private(name), page.join(name)].map(subscribed));
    const occupied = () => Promise.all([name, `private-${name}`, `presence-${name}`].map(async (channel) => (await application.get(`/channels/${channel}`)).occupied));
    assert.deepEqual(await occupied(), [true, true, true]);
    page.leave(name);
    await until(async () => !(await occupied()).includes(true), 'all three are empty');
  });

  test('signs its user in', async () => {
    const page = echo({ user: { id: 'ann' } });
    const { pusher } = page.connector;
    const got = heard((call) => pusher.user.bind('greeting', call));
    await until(() => page.connectionStatus() === 'connected', 'connected');
    page.connector.signin();
    await until(() => pusher.user.serverToUserChannel?.subscribed, 'signed in');
    await application.sendToUser('ann', 'greeting', { hello: 'Ann' });
    assert.deepEqual(await got.until(1), [{ hello: 'Ann' }]);
  });

  test('works as the broadcaster "reverb"', async () => {
    const name = room();
    const channel = echo({ broadcaster: 'reverb' }).channel(name);
    const got = heard((call) => channel.listen('OrderShipped', call));
    await subscribed(channel);
    await application.trigger(name, 'App\\Events\\OrderShipped', 1);
    assert.deepEqual(await got.until(1), [1]);
  });
});
