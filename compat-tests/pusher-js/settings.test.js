// What an app's settings and limits look like from pusher-js.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { collect, firstOf, once, sleep } from '../support/events.js';
import { worldInNode } from '../support/in-node.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { errorCode, errorMessage } from '../support/world.js';

const VERSION = '8.6';
const REFUSED_OR_NOT = ['pusher:subscription_error', 'pusher:subscription_succeeded'];

/** A world whose server has the test app with other settings. */
async function worldWith(app, config = {}, options = {}) {
  return worldInNode(VERSION, await startRaptor({ config: { ...config, apps: [{ ...TEST_APP, ...app }] } }), options);
}

describe('settings', { concurrency: 4, timeout: 30_000 }, () => {
  test('a server without configuration serves app-key with every feature on', async () => {
    const server = await startRaptor({ config: null, args: ['--listen', '127.0.0.1:0'] });
    const world = await worldInNode(VERSION, server, { app: { id: 'app-id', key: 'app-key', secret: 'app-secret' } });
    const watcher = await world.connect({ user: { id: 'ann', watchlist: ['bob'] } });
    const offline = once(watcher.user.watchlist, 'offline');
    watcher.signin();
    assert.deepEqual((await offline).user_ids, ['bob']);

    const [a, b] = [await world.connect(), await world.connect()];
    const name = world.name('private-');
    const room = a.subscribe(name);
    assert.deepEqual(await once(room, 'pusher:subscription_count'), { subscription_count: 1 });
    const got = once(await world.subscribe(b, name), 'client-hello');
    room.trigger('client-hello', 'there');
    assert.equal(await got, 'there');
  });

  test('the app of the command line is the app of the server', async () => {
    const app = { id: '77', key: 'key-77', secret: 'secret-77' };
    const server = await startRaptor({ config: null, args: ['--listen', '127.0.0.1:0', '--app-id', app.id, '--app-key', app.key, '--app-secret', app.secret] });
    const world = await worldInNode(VERSION, server, { app });
    const channel = await world.subscribe(await world.connect(), world.name('private-'));
    const got = once(channel, 'news');
    await world.trigger(channel.name, 'news', 1);
    assert.equal(await got, 1);
  });

  test('two apps of one server share nothing', async () => {
    const other = { ...TEST_APP, id: '4', key: 'another-key', secret: 'another-secret' };
    const server = await startRaptor({ config: { apps: [TEST_APP, other] } });
    const [ours, theirs] = [await worldInNode(VERSION, server), await worldInNode(VERSION, server, { app: other })];
    const name = ours.name('presence-');
    const join = async (world, user_id) => world.subscribe(await world.connect({ member: { user_id } }), name);
    const [ourRoom, theirRoom] = [await join(ours, 'ann'), await join(theirs, 'bob')];
    assert.deepEqual([ourRoom.members.count, theirRoom.members.count], [1, 1]);

    const got = [collect(ourRoom, 'news'), collect(theirRoom, 'news')];
    await ours.trigger(name, 'news', 'ours');
    await theirs.trigger(name, 'news', 'theirs');
    await Promise.all(got.map((news) => news.until(1)));
    assert.deepEqual(got, [['ours'], ['theirs']]);

    const stray = (await worldInNode(VERSION, server, { app: other, key: TEST_APP.key })).client();
    const [event, { error }] = await firstOf(stray.subscribe(ours.name('private-')), REFUSED_OR_NOT);
    assert.deepEqual([event, error], ['pusher:subscription_error', "Invalid key in subscription auth data: 'another-key'"]);
  });

  test('every active key of an app opens the same app', async () => {
    const [old, fresh] = [{ key: 'old-key', secret: 'old-secret' }, { key: 'new-key', secret: 'new-secret' }];
    const app = { ...TEST_APP, key: undefined, secret: undefined, keys: [old, fresh] };
    const server = await startRaptor({ config: { apps: [app] } });
    const before = await worldInNode(VERSION, server, { app: { ...app, ...old } });
    const after = await worldInNode(VERSION, server, { app: { ...app, ...fresh } });
    const between = await worldInNode(VERSION, server, { app: { ...app, ...fresh }, key: old.key }); // page loaded before the application changed its key
    const name = before.name('private-');
    const got = [];
    for (const world of [before, after, between]) got.push(collect(await world.subscribe(await world.connect(), name), 'news'));
    await before.trigger(name, 'news', 'signed with the old key');
    await after.trigger(name, 'news', 'signed with the new key');
    for (const news of got) assert.deepEqual(await news.until(2), ['signed with the old key', 'signed with the new key']);
  });

  test('clients learn the activity timeout and live through quiet times many times as long', async () => {
    const world = await worldWith({}, { activity_timeout_secs: 1, pong_timeout_secs: 1 });
    const pusher = await world.connect();
    assert.equal(pusher.connection.activityTimeout, 1_000);
    const states = collect(pusher.connection, 'state_change');
    await states.quiet(4_500);
    assert.deepEqual(states, []);
  });

  test('a path prefix is where wsPath leads', async () => {
    const world = await worldWith({}, { path_prefix: '/realtime' });
    const pusher = await world.connect({ wsPath: '/realtime' });
    const channel = await world.subscribe(pusher, world.name());
    const got = once(channel, 'news');
    await world.trigger(channel.name, 'news', 1);
    assert.equal(await got, 1);
  });

  test('a full presence channel refuses a new user but not a known one', async () => {
    const world = await worldWith({ limits: { presence_members_max: 2 } });
    const name = world.name('presence-');
    const join = async (user_id) => (await world.connect({ member: { user_id } })).subscribe(name);
    await once(await join('a'), 'pusher:subscription_succeeded');
    await once(await join('b'), 'pusher:subscription_succeeded');

    const [event, error] = await firstOf(await join('c'), REFUSED_OR_NOT);
    assert.deepEqual([event, error], ['pusher:subscription_error', { type: 'LimitReached', error: `Presence channel ${name} is over its limit of 2 members`, status: 429 }]);
    const [secondTab, members] = await firstOf(await join('b'), REFUSED_OR_NOT);
    assert.deepEqual([secondTab, members.count], ['pusher:subscription_succeeded', 2]);
  });

  test('a connection has room for as many subscriptions as it may, and again for one that ended', async () => {
    const world = await worldWith({ limits: { subscriptions_per_connection_max: 2 } });
    const pusher = await world.connect();
    const [first] = [await world.subscribe(pusher, world.name()), await world.subscribe(pusher, world.name())];
    const [event, error] = await firstOf(pusher.subscribe(world.name()), REFUSED_OR_NOT);
    assert.deepEqual([event, error], ['pusher:subscription_error', { type: 'LimitReached', error: 'Connection is over its limit of 2 subscriptions', status: 429 }]);
    pusher.unsubscribe(first.name);
    await world.subscribe(pusher, world.name());
  });

  test('client events that are not switched on are refused with a hint', async () => {
    const world = await worldWith({ client_events: false });
    const pusher = await world.connect();
    const channel = await world.subscribe(pusher, world.name('private-'));
    const error = once(pusher.connection, 'error');
    channel.trigger('client-typing', {});
    assert.deepEqual([errorCode(await error), errorMessage(await error)], [null, 'To send client events, you must enable this feature in the Settings page of your dashboard.']);
  });

  test('a higher limit of client events lets more through', async () => {
    const world = await worldWith({ limits: { client_events_per_sec_max: 100 } });
    const name = world.name('private-');
    const [sender, reader] = [await world.subscribe(await world.connect(), name), await world.subscribe(await world.connect(), name)];
    const got = collect(reader, 'client-tick');
    for (let n = 0; n < 50; n += 1) sender.trigger('client-tick', n);
    assert.deepEqual(await got.until(50), Array.from({ length: 50 }, (_, n) => n));
  });

  test('higher limits of names and data let longer ones through', async () => {
    const world = await worldWith({ limits: { channel_name_chars_max: 200, event_data_bytes_max: 100_000 } });
    const channel = await world.subscribe(await world.connect(), 'x'.repeat(200));
    const got = once(channel, 'news');
    await world.trigger(channel.name, 'news', 'y'.repeat(100_000));
    assert.equal((await got).length, 100_000);
  });

  test('without their switches there are neither subscription counts nor watchlist events', async () => {
    const world = await worldWith({ subscription_count_events: false, watchlist_events: false });
    const pusher = await world.connect({ user: { id: 'ann', watchlist: ['bob'] } });
    const wire = collect(pusher.connection, 'message');
    pusher.signin();
    await pusher.user.signinDonePromise;
    const channel = await world.subscribe(pusher, world.name());
    const got = once(channel, 'end');
    await world.trigger(channel.name, 'end', {});
    await got;
    assert.deepEqual(wire.map(({ event }) => event).filter((event) => /count|watchlist/.test(event)), []);
    assert.equal(pusher.user.user_data.id, 'ann');
  });

  test('a cached event is forgotten after its time', async () => {
    const world = await worldWith({ limits: { cache_ttl_secs: 1 } });
    const [pusher, name] = [await world.connect(), world.name('cache-')];
    await world.trigger(name, 'state', 1);
    assert.equal(await once(pusher.subscribe(name), 'state'), 1);
    await sleep(1_200);
    await once((await world.connect()).subscribe(name), 'pusher:cache_miss');
  });
});
