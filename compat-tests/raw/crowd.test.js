// 500 members join one presence channel at the same time, and half of them leave at the same time: every member learns of every
// other exactly once (`pusher.md` 2.6).

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { Peer, appNamed } from './peer.js';

const MEMBERS = 500;
const AT_ONCE = 50;
const SLOW_MS = 30_000;

const app = appNamed('crowd', { limits: { presence_members_max: 1000 } });
const raptor = await startRaptor({ config: { apps: [app] } });
const api = new Api(raptor, app);
const channel = 'presence-crowd';

/** A member with a ledger: how often it learned of each other, and how often it was told that one left. */
class Member {
  learned = new Map();
  left = new Map();

  constructor(peer, id) {
    this.peer = peer;
    this.id = id;
  }

  /** Reads until the channel's event `marker`; before it comes whatever is said of members. */
  async readUntil(marker) {
    for (;;) {
      const frame = await this.peer.frame(SLOW_MS);
      assert.equal(frame.channel, channel);
      if (frame.event === marker) return;
      this.#note(frame.event, JSON.parse(frame.data));
    }
  }

  #note(event, data) {
    switch (event) {
      case 'pusher_internal:subscription_succeeded':
        assert.equal(this.learned.size, 0, 'something came before the roster');
        assert.equal(data.presence.count, data.presence.ids.length);
        assert.deepEqual(Object.keys(data.presence.hash).sort(), [...data.presence.ids].sort());
        assert.ok(data.presence.ids.includes(this.id), 'the roster holds the member itself');
        for (const id of data.presence.ids) tally(this.learned, id);
        return;
      case 'pusher_internal:member_added':
        tally(this.learned, data.user_id);
        assert.deepEqual(data, { user_id: data.user_id, user_info: { of: data.user_id } });
        return;
      case 'pusher_internal:member_removed':
        tally(this.left, data.user_id);
        return;
      default:
        assert.fail(`unexpected ${event}`);
    }
  }
}

function tally(map, id) {
  map.set(id, (map.get(id) ?? 0) + 1);
}

function assertOnceEach(map, ids, what) {
  const missing = ids.filter((id) => !map.has(id));
  const repeated = [...map].filter(([, times]) => times !== 1).map(([id, times]) => `${id} ${times}×`);
  const strange = [...map.keys()].filter((id) => !ids.includes(id));
  assert.deepEqual({ missing, repeated, strange }, { missing: [], repeated: [], strange: [] }, what);
}

test(`${MEMBERS} join at once, half leave at once, and everyone knows`, { timeout: 90_000 }, async () => {
  const members = [];
  while (members.length < MEMBERS) {
    const peers = await Promise.all(Array.from({ length: AT_ONCE }, () => Peer.connect(raptor, { app })));
    members.push(...peers.map((peer, i) => new Member(peer, `m${members.length + i}`)));
  }
  const ids = members.map((member) => member.id);

  for (const { peer, id } of members) peer.askToSubscribe(channel, { channelData: JSON.stringify({ user_id: id, user_info: { of: id } }) });
  await countIs(MEMBERS);
  const joined = Promise.all(members.map((member) => member.readUntil('all-in')));
  await api.trigger(channel, 'all-in', '');
  await joined;
  for (const member of members) {
    assertOnceEach(member.learned, ids, `what ${member.id} learned`);
    assert.equal(member.left.size, 0);
  }

  const leaving = members.filter((_, i) => i % 2 === 1);
  const staying = members.filter((_, i) => i % 2 === 0);
  const ways = [(peer) => peer.unsubscribe(channel), (peer) => peer.socket.close(), (peer) => peer.socket.vanish(), (peer) => peer.socket.shutdown()];
  leaving.forEach(({ peer }, i) => ways[i % ways.length](peer));
  await countIs(staying.length);
  const rested = Promise.all(staying.map((member) => member.readUntil('half-gone')));
  await api.trigger(channel, 'half-gone', '');
  await rested;
  for (const member of staying) {
    assertOnceEach(member.left, leaving.map(({ id }) => id), `who left, for ${member.id}`);
    assert.equal(member.learned.size, MEMBERS);
  }

  const users = (await api.get(`/channels/${channel}/users`)).json().users.map((user) => user.id);
  assert.deepEqual(users.sort(), staying.map(({ id }) => id).sort());
});

test('joining and leaving in a rush leaves every view right', { timeout: 60_000 }, async () => {
  const room = 'presence-churn';
  const visitors = await Promise.all(Array.from({ length: 60 }, async (_, i) => new Visitor(await Peer.connect(raptor, { app }), `c${i % 40}`)));
  const reading = Promise.all(visitors.map((visitor) => visitor.read()));
  reading.catch(() => {});
  for (let round = 0; round < 20; round += 1) {
    visitors.forEach(({ peer, id }, i) => {
      const moves = (i + round) % 3 === 0;
      if (moves && round > 0) peer.unsubscribe(room);
      if (moves || round === 0) peer.askToSubscribe(room, { channelData: JSON.stringify({ user_id: id }) });
    });
    await new Promise((resolve) => setImmediate(resolve));
  }
  for (const { peer } of visitors) peer.send({ event: 'pusher:ping' });
  await Promise.race([reading, Promise.all(visitors.map((visitor) => visitor.ponged))]);
  await api.trigger(room, 'over', '');
  await reading;
  const everyone = [...new Set(visitors.map(({ id }) => id))].sort();
  for (const { view } of visitors) assert.deepEqual([...view].sort(), everyone);
});

/** Keeps its view of who is there by roster, added and removed, as a client library does. */
class Visitor {
  view = null;

  constructor(peer, id) {
    this.peer = peer;
    this.id = id;
    this.ponged = new Promise((resolve) => (this.onPong = resolve));
  }

  async read() {
    for (;;) {
      const { event, data } = await this.peer.frame(SLOW_MS);
      const user = event.startsWith('pusher_internal:member_') ? JSON.parse(data).user_id : null;
      switch (event) {
        case 'over':
          return;
        case 'pusher:pong':
          this.onPong();
          break;
        case 'pusher_internal:subscription_succeeded':
          this.view = new Set(JSON.parse(data).presence.ids);
          break;
        case 'pusher_internal:member_added':
          assert.ok(!this.view.has(user), `${user} was added twice`);
          this.view.add(user);
          break;
        case 'pusher_internal:member_removed':
          assert.ok(this.view.delete(user), `${user} was removed without having been there`);
          break;
        default:
          assert.fail(`${event} ${JSON.stringify(data)}`);
      }
    }
  }
}

/** Waits, for at most `SLOW_MS`, until the API counts so many. */
async function countIs(count) {
  const end = Date.now() + SLOW_MS;
  for (;;) {
    const answer = (await api.get(`/channels/${channel}`, { info: 'user_count,subscription_count' })).json();
    if (answer.user_count === count && answer.subscription_count === count) return;
    assert.ok(Date.now() < end, JSON.stringify(answer));
    await sleep(50);
  }
}
