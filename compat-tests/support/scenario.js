// What an application does with pusher-js, as sentences. The same steps run over every version, runtime and transport:
// a step gets a fresh world (`world.js`) and may not rely on another step. Sections are those of `pusher.md`.

import { collect, firstOf, once, onceArguments, sleep, until } from './events.js';
import { equal, match, ok } from './expect.js';
import { errorCode, errorMessage, supports } from './world.js';

const steps = [];

/** The steps that pusher-js of this version can take: `[{title, run(world)}]`. */
export function scenario(version) {
  return steps.filter(({ since, before }) => (!since || supports(version, since)) && !(before && supports(version, before)));
}

/** `since`, `before`: a key of `SINCE`. */
function step(title, run, { since, before } = {}) {
  steps.push({ title, run, since, before });
}

// 1: the connection

step('a client connects and is told a socket id of its own', async (world) => {
  const [a, b] = [await world.connect(), await world.connect()];
  match(a.connection.socket_id, /^\d+\.\d+$/);
  match(b.connection.socket_id, /^\d+\.\d+$/);
  ok(a.connection.socket_id !== b.connection.socket_id, 'two connections share one socket id');
});

step('an unknown app key is refused with 4001 and the client stays disconnected', async (world) => {
  const pusher = world.client({ key: 'no-such-key' });
  const error = await once(pusher.connection, 'error');
  equal(errorCode(error), 4001);
  await until(() => pusher.connection.state === 'disconnected');
  const attempts = collect(pusher.connection, 'connecting');
  await sleep(1_300); // the client's longest first delay before a reconnection is 1 s
  equal(attempts.length, 0, 'further attempts');
});

step('a quiet client asks whether the server is there, and is answered', async (world) => {
  const pusher = await world.connect({ activityTimeout: 150, pongTimeout: 1_000 });
  const states = collect(pusher.connection, 'state_change');
  const messages = collect(pusher.connection, 'message');
  await until(() => messages.filter(({ event }) => event === 'pusher:pong').length >= 3, 'three pongs');
  equal(states, []);
});

step('clients of a killed server see 1006, reconnect and subscribe again', async (world) => {
  const pusher = await world.connect();
  const channel = await world.subscribe(pusher, world.name());
  const before = pusher.connection.socket_id;
  const error = once(pusher.connection, 'error');
  const resubscribed = once(channel, 'pusher:subscription_succeeded');
  await world.restartServer('SIGKILL');
  equal(errorCode(await error), 1006);
  await resubscribed;
  ok(pusher.connection.socket_id !== before, 'a new connection has the old socket id');
  const got = once(channel, 'back');
  await world.trigger(channel.name, 'back', { n: 1 });
  equal(await got, { n: 1 });
});

// 2: channels

step('an event from the API reaches every subscriber of a public channel and nobody else', async (world) => {
  const [a, b, outsider] = [await world.connect(), await world.connect(), await world.connect()];
  const [name, elsewhere] = [world.name(), world.name()];
  const inside = [await world.subscribe(a, name), await world.subscribe(b, name)].map((channel) => collect(channel, 'news'));
  await world.subscribe(outsider, elsewhere);
  const outside = [];
  outsider.bind_global((event, data) => outside.push([event, data]));

  await world.trigger(name, 'news', { n: 1 });
  await world.trigger(elsewhere, 'end', { n: 2 });
  await Promise.all(inside.map((news) => news.until(1)));
  await until(() => outside.length > 0, 'the end');
  equal(inside, [[{ n: 1 }], [{ n: 1 }]]);
  equal(outside, [['end', { n: 2 }]]);
});

step('data arrives as the application sent it', async (world) => {
  const pusher = await world.connect();
  const channel = await world.subscribe(pusher, world.name());
  const got = collect(channel, 'data');
  // The library sends text unchanged and everything else as JSON; pusher-js parses what is JSON and hands out the rest as text.
  const cases = [
    ['plain text', 'plain text'],
    ['', ''],
    ['123', 123],
    ['12 monkeys', '12 monkeys'],
    ['null', null],
    ['"quoted"', 'quoted'],
    ['{"broken', '{"broken'],
    [{ deep: { list: [1, 'two', null, { three: 3 }] } }, { deep: { list: [1, 'two', null, { three: 3 }] } }],
    [[1, 2], [1, 2]],
    [true, true],
    [0.1, 0.1],
    [{ text: 'Zoë 🦖 \u2028 "\\/\u0001' }, { text: 'Zoë 🦖 \u2028 "\\/\u0001' }],
    ['Zoë 🦖 \u2028 \n \\ "', 'Zoë 🦖 \u2028 \n \\ "'],
    ['x'.repeat(10_240), 'x'.repeat(10_240)],
    [{ long: 'ü'.repeat(4_500) }, { long: 'ü'.repeat(4_500) }],
  ];
  for (const [sent] of cases) await world.trigger(channel.name, 'data', sent);
  equal(await got.until(cases.length), cases.map(([, received]) => received));
});

step('event names are free: dots, backslashes, spaces and other scripts arrive unchanged', async (world) => {
  const pusher = await world.connect();
  const channel = await world.subscribe(pusher, world.name());
  for (const event of ['App\\Events\\OrderShipped', 'order.shipped', 'client-like', 'an event', 'Zoë 🦖', 'constructor']) {
    const got = once(channel, event);
    await world.trigger(channel.name, event, { event });
    equal(await got, { event });
  }
});

step('a thousand events of a busy channel arrive complete and in order', async (world) => {
  const pusher = await world.connect();
  const channel = await world.subscribe(pusher, world.name());
  const got = collect(channel, 'tick');
  for (let n = 0; n < 1_000; n += 10) {
    await world.triggerBatch(Array.from({ length: 10 }, (_, i) => ({ channel: channel.name, name: 'tick', data: n + i })));
  }
  equal(await got.until(1_000), Array.from({ length: 1_000 }, (_, i) => i));
});

step('an event for several channels arrives once on each', async (world) => {
  const pusher = await world.connect();
  const channels = [await world.subscribe(pusher, world.name()), await world.subscribe(pusher, world.name()), await world.subscribe(pusher, world.name())];
  const got = channels.map((channel) => collect(channel, 'both'));
  await world.trigger(channels.slice(0, 2).map(({ name }) => name), 'both', 1);
  await world.trigger(channels[2].name, 'both', 2);
  await got[2].until(1);
  equal(got, [[1], [1], [2]]);
});

step('an event does not come back to the socket id that caused it', async (world) => {
  const [author, reader] = [await world.connect(), await world.connect()];
  const name = world.name();
  const [own, others] = [collect(await world.subscribe(author, name), 'edit'), collect(await world.subscribe(reader, name), 'edit')];
  await world.trigger(name, 'edit', 'by the author', { socket_id: author.connection.socket_id });
  await world.trigger(name, 'edit', 'by somebody');
  equal([await own.until(1), await others.until(2)], [['by somebody'], ['by the author', 'by somebody']]);
});

step('fifty channels named before the connection exists are all subscribed when it does', async (world) => {
  const pusher = world.client();
  const channels = Array.from({ length: 50 }, () => pusher.subscribe(world.name()));
  await Promise.all(channels.map((channel) => once(channel, 'pusher:subscription_succeeded')));
  const got = channels.map((channel) => once(channel, 'hello'));
  await world.trigger(channels.map(({ name }) => name), 'hello', 1);
  equal(await Promise.all(got), channels.map(() => 1));
});

step('after unsubscribing nothing more arrives; after subscribing again each event arrives once', async (world) => {
  const pusher = await world.connect();
  const errors = collect(pusher.connection, 'error');
  const witness = await world.subscribe(pusher, world.name());
  const name = world.name();
  const first = collect(await world.subscribe(pusher, name), 'news');

  await world.trigger(name, 'news', 1);
  await first.until(1);
  pusher.unsubscribe(name);
  await until(async () => !(await world.get(`/channels/${name}`)).occupied, 'the channel is empty');
  await world.trigger(name, 'news', 2);
  await world.trigger(witness.name, 'end', {});

  const second = collect(await world.subscribe(pusher, name), 'news');
  await world.trigger(name, 'news', 3);
  equal([first, await second.until(1), errors], [[1], [3], []]);
});

step('unsubscribing and subscribing in one breath keeps the order of the two', async (world) => {
  const pusher = await world.connect();
  const errors = collect(pusher.connection, 'error');
  const name = world.name();
  await world.subscribe(pusher, name);
  for (let round = 0; round < 20; round += 1) {
    pusher.unsubscribe(name);
    await world.subscribe(pusher, name);
  }
  const got = once(pusher.channel(name), 'still');
  await world.trigger(name, 'still', 'here');
  equal([await got, errors], ['here', []]);
});

step('a private channel is joined with the signature of the application', async (world) => {
  const pusher = await world.connect();
  const channel = await world.subscribe(pusher, world.name('private-'));
  const got = once(channel, 'secret');
  await world.trigger(channel.name, 'secret', { for: 'members' });
  equal(await got, { for: 'members' });
});

for (const kind of ['private-', 'private-cache-', 'presence-', 'presence-cache-', 'private-encrypted-']) {
  step(`a forged signature for ${kind}… ends in pusher:subscription_error, and the connection goes on`, async (world) => {
    const pusher = await world.connect({ forged: true, member: { user_id: 'mallory' } });
    const errors = collect(pusher.connection, 'error');
    const name = world.name(kind);
    const channel = pusher.subscribe(name);
    const news = collect(channel, 'news');

    const [event, { type, status, error }] = await firstOf(channel, ['pusher:subscription_error', 'pusher:subscription_succeeded']);
    equal([event, type, status], ['pusher:subscription_error', 'AuthError', 401]);
    match(error, new RegExp(`^Invalid signature: Expected HMAC SHA256 hex digest of ${pusher.connection.socket_id}:${name}`));
    equal(errors.map(errorCode), [null]);
    equal(errorMessage(errors[0]), error);

    await world.trigger(name, 'news', 'for members only');
    const witness = await world.subscribe(pusher, world.name());
    equal([channel.subscribed, news.length, witness.subscribed], [false, 0, true]);
  });
}

step('an impossible channel name ends in pusher:subscription_error, and the connection goes on', async (world) => {
  const pusher = await world.connect();
  for (const name of ['not valid', 'ümlaut', `x${'y'.repeat(164)}`]) {
    const [event, { type, status }] = await firstOf(pusher.subscribe(name), ['pusher:subscription_error', 'pusher:subscription_succeeded']);
    equal([event, type, status], ['pusher:subscription_error', 'InvalidChannel', 400]);
  }
  ok((await world.subscribe(pusher, 'y'.repeat(164))).subscribed, 'a name of 164 characters is refused');
});

// 2.6: presence

step('a member finds everybody in its first list and learns who comes and goes', async (world) => {
  const name = world.name('presence-');
  const alice = await world.connect({ member: { user_id: 'alice', user_info: { name: 'Alice' } } });
  const room = await world.subscribe(alice, name);
  equal(roster(room), { alice: { name: 'Alice' } });
  equal(room.members.me, { id: 'alice', info: { name: 'Alice' } });

  const added = once(room, 'pusher:member_added');
  const bob = await world.connect({ member: { user_id: 'bob', user_info: { name: 'Zoë "B" 🦖', tags: ['x'] } } });
  const bobsRoom = await world.subscribe(bob, name);
  equal(await added, { id: 'bob', info: { name: 'Zoë "B" 🦖', tags: ['x'] } });
  equal(roster(room), { alice: { name: 'Alice' }, bob: { name: 'Zoë "B" 🦖', tags: ['x'] } });
  equal(roster(bobsRoom), roster(room));
  equal(bobsRoom.members.me.id, 'bob');

  const carol = await world.connect({ member: { user_id: 'carol' } });
  await world.subscribe(carol, name);
  await until(() => room.members.count === 3 && bobsRoom.members.count === 3);

  const unsubscribed = once(room, 'pusher:member_removed');
  bob.unsubscribe(name);
  equal((await unsubscribed).id, 'bob');
  const disconnected = once(room, 'pusher:member_removed');
  carol.disconnect();
  equal((await disconnected).id, 'carol');
  equal(roster(room), { alice: { name: 'Alice' } });
});

step('a user with two connections comes once and goes with the last of them', async (world) => {
  const name = world.name('presence-');
  const alice = await world.connect({ member: { user_id: 'alice' } });
  const room = await world.subscribe(alice, name);
  const [added, removed] = [collect(room, 'pusher:member_added'), collect(room, 'pusher:member_removed')];
  const connections = (count) => until(async () => (await world.get(`/channels/${name}`, { info: 'subscription_count' })).subscription_count === count, `${count} connections`);

  const tabs = [await world.connect({ member: { user_id: 'bob' } }), await world.connect({ member: { user_id: 'bob' } })];
  for (const tab of tabs) equal(Object.keys(roster(await world.subscribe(tab, name))).sort(), ['alice', 'bob']);
  await connections(3);
  tabs[0].disconnect();
  await connections(2);

  const carol = await world.connect({ member: { user_id: 'carol' } });
  await world.subscribe(carol, name);
  await added.until(2);
  equal([added.map(({ id }) => id), removed], [['bob', 'carol'], []]);

  tabs[1].disconnect();
  equal((await removed.until(1)).map(({ id }) => id), ['bob']);
});

step('a numeric user_id becomes a string for everybody', async (world) => {
  const name = world.name('presence-');
  const alice = await world.connect({ member: { user_id: 'alice' } });
  const room = await world.subscribe(alice, name);
  const added = once(room, 'pusher:member_added');
  const ten = await world.connect({ member: { user_id: 10, user_info: { n: 10 } } });
  const messages = collect(ten.connection, 'message');
  const tensRoom = await world.subscribe(ten, name);

  equal(await added, { id: '10', info: { n: 10 } });
  equal(messages.find(({ event }) => event === 'pusher_internal:subscription_succeeded').data.presence.ids.sort(), ['10', 'alice']);
  equal(tensRoom.members.me.info, { n: 10 });
  const removed = once(room, 'pusher:member_removed');
  ten.disconnect();
  equal((await removed).id, '10');
});

step('members without user_info are members', async (world) => {
  const name = world.name('presence-');
  const alice = await world.connect({ member: { user_id: 'alice' } });
  const room = await world.subscribe(alice, name);
  const added = once(room, 'pusher:member_added');
  const bobsRoom = await world.subscribe(await world.connect({ member: { user_id: 'bob' } }), name);
  equal((await added).id, 'bob');
  equal([room.members.count, bobsRoom.members.count], [2, 2]);
  equal([Object.keys(roster(room)).sort(), Object.keys(roster(bobsRoom)).sort()], [['alice', 'bob'], ['alice', 'bob']]);
  equal(bobsRoom.members.me.id, 'bob');
});

step('a member whose connection is renewed is still one member', async (world) => {
  const name = world.name('presence-');
  const pusher = await world.connect({ member: { user_id: 'alice' } });
  const room = await world.subscribe(pusher, name);
  pusher.disconnect();
  const again = once(room, 'pusher:subscription_succeeded');
  pusher.connect();
  await again;
  equal([room.members.count, room.members.me.id], [1, 'alice']);
});

step('a user_id or user_info beyond its limit is refused', async (world) => {
  for (const member of [{ user_id: 'x'.repeat(129) }, { user_id: 'x', user_info: { text: 'y'.repeat(1_024) } }]) {
    const pusher = await world.connect({ member });
    const [event, { type, status }] = await firstOf(pusher.subscribe(world.name('presence-')), ['pusher:subscription_error', 'pusher:subscription_succeeded']);
    equal([event, type, status], ['pusher:subscription_error', 'LimitReached', 413]);
  }
});

function roster(channel) {
  const members = {};
  channel.members.each(({ id, info }) => { members[id] = info; });
  equal(Object.keys(members).length, channel.members.count, 'count of members');
  return members;
}

// 3: client events

step('a client event reaches the others of a private channel, not its sender', async (world) => {
  const name = world.name('private-');
  const [a, b] = [await world.subscribe(await world.connect(), name), await world.subscribe(await world.connect(), name)];
  const back = collect(a, 'client-typing');
  const payloads = [{ on: true }, 'text', '{"like":"json"}', 7, [1, { two: 2 }], false, 'Zoë 🦖'];
  const received = [{ on: true }, 'text', { like: 'json' }, 7, [1, { two: 2 }], false, 'Zoë 🦖'];
  const got = collect(b, 'client-typing');
  for (const payload of payloads) ok(a.trigger('client-typing', payload), 'not sent');
  equal(await got.until(payloads.length), received);

  b.trigger('client-typing', 'the answer');
  equal(await back.until(1), ['the answer']);
});

step('on a presence channel a client event names the user who sent it, also to that user\'s other connections', async (world) => {
  const name = world.name('presence-');
  const join = async (member) => world.subscribe(await world.connect({ member }), name);
  const [sender, otherTab, reader] = [await join({ user_id: 10 }), await join({ user_id: 10 }), await join({ user_id: 'reader' })];
  const got = Promise.all([onceArguments(otherTab, 'client-move'), onceArguments(reader, 'client-move')]);
  sender.trigger('client-move', { x: 1, user_id: 'forged' });
  equal(await got, [[{ x: 1, user_id: 'forged' }, { user_id: '10' }], [{ x: 1, user_id: 'forged' }, { user_id: '10' }]]);
});

step('client events on private channels, and events from the API, carry no user_id', async (world) => {
  const name = world.name('private-');
  const reader = await world.connect();
  const [from, to] = [await world.subscribe(await world.connect(), name), await world.subscribe(reader, name)];
  const wire = collect(reader.connection, 'message'); // the channel would not show it
  const stopped = once(to, 'client-stop');
  from.trigger('client-move', 1);
  await once(to, 'client-move');
  await world.trigger(name, 'client-stop', 2);
  await stopped;
  const events = wire.filter(({ event }) => event.startsWith('client-'));
  equal(events, [{ event: 'client-move', channel: name, data: 1 }, { event: 'client-stop', channel: name, data: 2 }]);
});

step('a client event on a public channel is refused and the connection goes on', async (world) => {
  const pusher = await world.connect();
  const channel = await world.subscribe(pusher, world.name());
  const error = once(pusher.connection, 'error');
  channel.trigger('client-typing', {});
  equal([errorCode(await error), errorMessage(await error)], [null, 'Client event rejected - only supported on private and presence channels']);
  ok((await world.subscribe(pusher, world.name())).subscribed, 'the connection is dead');
});

step('more than ten client events in a second are refused with 4301 and the connection goes on', async (world) => {
  const name = world.name('private-');
  const [sender, reader] = [await world.connect(), await world.connect()];
  const from = await world.subscribe(sender, name);
  const got = collect(await world.subscribe(reader, name), 'client-flood');
  const errors = collect(sender.connection, 'error');
  for (let n = 0; n < 30; n += 1) from.trigger('client-flood', n);
  await until(() => errors.length + got.length >= 30, 'thirty answers');

  equal([...new Set(errors.map(errorCode))], [4301]);
  ok(got.length >= 10 && got.length < 30, `${got.length} of 30 client events passed`);
  equal(got.slice(0, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  equal(sender.connection.state, 'connected');
});

// 2.7: cache channels

for (const kind of ['cache-', 'private-cache-', 'presence-cache-']) {
  step(`${kind}… tells the first subscriber of a miss and later ones the last event`, async (world) => {
    const name = world.name(kind);
    const member = (user_id) => world.connect({ member: { user_id } });
    const early = (await member('early')).subscribe(name);
    const order = [];
    early.bind_global((event) => order.push(event));
    await once(early, 'pusher:cache_miss');
    equal(order.filter((event) => event !== 'pusher:subscription_count'), ['pusher:subscription_succeeded', 'pusher:cache_miss']);

    const both = collect(early, 'state');
    await world.trigger(name, 'state', { n: 1 });
    await world.trigger(name, 'state', { n: 2 });
    await both.until(2);

    const late = (await member('late')).subscribe(name);
    const seen = [];
    late.bind_global((event, data) => seen.push([event, data]));
    await once(late, 'state');
    equal(seen.filter(([event]) => !event.startsWith('pusher:')), [['state', { n: 2 }]]);
    equal(seen[0][0], 'pusher:subscription_succeeded');
  });
}

step('a cached event survives the last subscriber and also goes to the connection that was excluded from it', async (world) => {
  const name = world.name('cache-');
  const pusher = await world.connect();
  await world.trigger(name, 'state', 'kept', { socket_id: pusher.connection.socket_id });
  for (let round = 0; round < 2; round += 1) {
    equal(await once(pusher.subscribe(name), 'state'), 'kept');
    pusher.unsubscribe(name);
    await until(async () => !(await world.get(`/channels/${name}`)).occupied, 'the channel is empty');
  }
});

step('neither joining members nor client events replace the cached event', async (world) => {
  const name = world.name('presence-cache-');
  const join = async (user_id) => (await world.connect({ member: { user_id } })).subscribe(name);
  const first = await join('first');
  await once(first, 'pusher:cache_miss');

  const second = await join('second');
  await once(second, 'pusher:cache_miss'); // and not the member_added that the first one got
  const whispered = once(first, 'client-whisper');
  second.trigger('client-whisper', 'not for the cache');
  await whispered;
  await once(await join('third'), 'pusher:cache_miss');

  const published = once(first, 'state');
  await world.trigger(name, 'state', 'for the cache');
  await published;
  equal(await once(await join('fourth'), 'state'), 'for the cache');
  equal(await once(await join('fifth'), 'state'), 'for the cache');
});

// 8: encrypted channels

step('an encrypted channel carries ciphertext that its members can read', async (world) => {
  const pusher = await world.connect();
  const name = world.name('private-encrypted-');
  const channel = await world.subscribe(pusher, name);
  const wire = collect(pusher.connection, 'message');
  for (const data of [{ secret: 'Zoë 🦖' }, 'text', 'x'.repeat(7_000)]) {
    const got = once(channel, 'secret');
    await world.trigger(name, 'secret', data);
    equal(await got, data);
  }
  for (const { event, data } of wire.filter(({ channel: on, event: of }) => on === name && of === 'secret')) {
    equal([event, Object.keys(data).sort()], ['secret', ['ciphertext', 'nonce']]);
  }
});

step('an encrypted cache channel repeats the ciphertext', async (world) => {
  const name = world.name('private-encrypted-cache-');
  const early = (await world.connect()).subscribe(name);
  await once(early, 'pusher:cache_miss');
  const published = once(early, 'secret');
  await world.trigger(name, 'secret', { n: 1 });
  equal(await published, { n: 1 });
  equal(await once((await world.connect()).subscribe(name), 'secret'), { n: 1 });
});

// 2.8: subscription_count

step('subscribers are told how many they are, as they come and go', async (world) => {
  const name = world.name();
  const [a, b] = [await world.connect(), await world.connect()];
  const room = a.subscribe(name);
  const counts = collect(room, 'pusher:subscription_count');
  equal(await counts.until(1), [{ subscription_count: 1 }]);
  const other = b.subscribe(name);
  equal(await once(other, 'pusher:subscription_count'), { subscription_count: 2 });
  await counts.until(2);
  b.unsubscribe(name);
  equal(await counts.until(3), [{ subscription_count: 1 }, { subscription_count: 2 }, { subscription_count: 1 }]);
  equal(room.subscriptionCount, 1);
}, { since: 'subscriptionCount' });

step('there is no subscription count on presence channels', async (world) => {
  const pusher = await world.connect({ member: { user_id: 'alice' } });
  const room = await world.subscribe(pusher, world.name('presence-'));
  const counts = collect(room, 'pusher:subscription_count');
  const got = once(room, 'end');
  await world.trigger(room.name, 'end', {});
  await got;
  equal(counts, []);
}, { since: 'subscriptionCount' });

step('a client too old for subscription counts is not disturbed by them', async (world) => {
  const pusher = await world.connect();
  const wire = collect(pusher.connection, 'message');
  const room = pusher.subscribe(world.name());
  const seen = [];
  room.bind_global((event) => seen.push(event));
  await until(() => wire.some(({ event }) => event === 'pusher_internal:subscription_count'), 'a count on the wire');
  const got = once(room, 'end');
  await world.trigger(room.name, 'end', {});
  await got;
  equal(seen, ['pusher:subscription_succeeded', 'end']);
}, { before: 'subscriptionCount' });

// 4: users

const user = (id, more) => ({ id: `${id}-${Math.random().toString(36).slice(2, 8)}`, ...more });

step('a signed-in user is reached on every connection of theirs, and nobody else is', async (world) => {
  const [ann, bob] = [user('ann', { user_info: { name: 'Änn' }, extra: [1] }), user('bob')];
  const [tab1, tab2, other] = [await world.signedIn(ann), await world.signedIn(ann), await world.signedIn(bob)];
  equal(tab1.user.user_data, ann);
  const [got1, got2, gotOther] = [tab1, tab2, other].map((pusher) => collect(pusher.user, 'greeting'));
  await world.sendToUser(ann.id, 'greeting', { hello: 'ann' });
  await world.sendToUser(bob.id, 'greeting', { hello: 'bob' });
  await Promise.all([got1, got2, gotOther].map((got) => got.until(1)));
  equal([got1, got2, gotOther], [[{ hello: 'ann' }], [{ hello: 'ann' }], [{ hello: 'bob' }]]);
}, { since: 'signin' });

step('sending to somebody who is not there is no error', async (world) => {
  await world.sendToUser(user('nobody').id, 'greeting', {});
}, { since: 'signin' });

step('a forged sign-in is refused with 4009 and the connection goes on without a user', async (world) => {
  const mallory = user('mallory');
  const pusher = await world.connect({ user: mallory, forged: true });
  const error = once(pusher.connection, 'error');
  pusher.signin();
  equal(errorCode(await error), 4009);
  match(errorMessage(await error), /^Invalid signature: Expected HMAC SHA256 hex digest of \d+\.\d+::user::\{"id"/);
  const greetings = collect(pusher.connection, 'message');
  await world.sendToUser(mallory.id, 'greeting', {});
  ok((await world.connect()) && (pusher.connection.state === 'connected'), 'the connection is dead');
  const channel = pusher.subscribe(world.name());
  await until(() => greetings.some(({ event, channel: on }) => event === 'pusher_internal:subscription_succeeded' && on === channel.name));
  equal([pusher.user.user_data, greetings.filter(({ event }) => event === 'greeting')], [null, []]);
}, { since: 'signin' });

step('a client signs in again by itself when its connection is renewed', async (world) => {
  const ann = user('ann');
  const pusher = await world.signedIn(ann);
  const messages = collect(pusher.connection, 'message');
  pusher.disconnect();
  pusher.connect();
  await until(() => messages.some(({ event, channel }) => event === 'pusher_internal:subscription_succeeded' && channel === `#server-to-user-${ann.id}`), 'signed in again');
  const got = once(pusher.user, 'greeting');
  await world.sendToUser(ann.id, 'greeting', 'again');
  equal(await got, 'again');
}, { since: 'signin' });

step('a signed-in user joins a presence channel under the identity of the sign-in', async (world) => {
  const ann = user('ann', { user_info: { name: 'Ann' } });
  const pusher = await world.signedIn(ann);
  const room = await world.subscribe(pusher, world.name('presence-'));
  equal(roster(room), { [ann.id]: { name: 'Ann' } });
  equal(room.members.me.id, ann.id);
}, { since: 'presenceOfSignedInUser' });

step('channel data overrides the identity of the sign-in', async (world) => {
  const ann = user('ann', { user_info: { name: 'Ann' } });
  const pusher = await world.signedIn(ann, { member: { user_id: 'masked', user_info: { name: '?' } } });
  const room = await world.subscribe(pusher, world.name('presence-'));
  equal(roster(room), { masked: { name: '?' } });
}, { since: 'presenceOfSignedInUser' });

step('a watchlist tells who is online at sign-in and who comes and goes', async (world) => {
  const [ann, bob, carol] = [user('ann'), user('bob'), user('carol')];
  await world.signedIn(bob);

  const pusher = await world.connect({ user: { ...ann, watchlist: [bob.id, carol.id] } });
  const [online, offline] = [collect(pusher.user.watchlist, 'online'), collect(pusher.user.watchlist, 'offline')];
  pusher.signin();
  await Promise.all([online.until(1), offline.until(1)]);
  equal([online[0].user_ids, offline[0].user_ids], [[bob.id], [carol.id]]);

  const tabs = [await world.signedIn(carol), await world.signedIn(carol)];
  await online.until(2);
  tabs[0].disconnect();
  await online.quiet(); // one tab is left: nothing may be said
  tabs[1].disconnect();
  await offline.until(2);
  equal([online.map(({ user_ids }) => user_ids), offline.map(({ user_ids }) => user_ids)], [[[bob.id], [carol.id]], [[carol.id], [carol.id]]]);
}, { since: 'watchlist' });

step('a watchlist beyond 100 users signs in and is told by 4302', async (world) => {
  const crowd = Array.from({ length: 101 }, (_, n) => `watched-${n}`);
  const pusher = await world.connect({ user: user('ann', { watchlist: crowd }) });
  const offline = collect(pusher.user.watchlist, 'offline');
  const error = once(pusher.connection, 'error');
  pusher.signin();
  equal(errorCode(await error), 4302);
  await offline.until(1);
  equal(offline[0].user_ids.slice().sort(), crowd.slice(0, 100).sort());
  ok(pusher.user.user_data, 'not signed in');
}, { since: 'watchlist' });

step('a terminated user is disconnected everywhere and stays so; others go on', async (world) => {
  const [ann, bob] = [user('ann'), user('bob')];
  const [tab1, tab2, other] = [await world.signedIn(ann), await world.signedIn(ann), await world.signedIn(bob)];
  const errors = [tab1, tab2].map((pusher) => collect(pusher.connection, 'error'));
  await world.terminate(ann.id);
  await until(() => [tab1, tab2].every(({ connection }) => connection.state === 'disconnected'), 'both are disconnected');
  equal(errors.map((seen) => errorCode(seen[0])), [4009, 4009]);

  const got = once(other.user, 'greeting');
  await world.sendToUser(bob.id, 'greeting', 1);
  await got;
  await sleep(1_300); // the client's longest first delay before a reconnection is 1 s
  equal([tab1, tab2].map(({ connection }) => connection.state), ['disconnected', 'disconnected']);
}, { since: 'signin' });
