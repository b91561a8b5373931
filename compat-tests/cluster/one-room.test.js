// Unmodified clients of both protocols on different nodes of a cluster are in one room, whatever becomes of the nodes.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { after, before, describe, test } from 'node:test';

import { faye } from '../bayeux/support/in-node.js';
import { Peer } from '../raw/peer.js';
import { Api } from '../rest/api.js';
import { connectionTo, pusherClass } from '../support/in-node.js';
import { runRaptor, startRaptor } from '../support/raptor.js';
import { startRedis } from '../support/redis.js';

const APP = { id: 'app-id', key: 'app-key', secret: 'app-secret' };
/** A node that is lost is found lost within this. */
const LOSS_MS = 10_000;
/** After Redis is back, all is as it should be within this. */
const SYNC_MS = 5_000;

let redis;
let nodes;

before(async () => {
  redis = await startRedis();
  nodes = [await startNode(), await startNode(), await startNode()];
});

function startNode() {
  return startRaptor({ config: null, args: ['--listen', '127.0.0.1:0', '--redis', redis.url] });
}

const api = (nth) => new Api(nodes[nth], APP);

async function becomes(what, within, condition) {
  const deadline = Date.now() + within;
  for (;;) {
    if (await condition()) return;
    assert.ok(Date.now() < deadline, `not within ${within} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** A member of the presence channel, with the users it has been told of. */
class Member {
  static async join(node, user) {
    const member = new Member();
    member.transitions = [];
    const Pusher = pusherClass('8.6');
    member.pusher = new Pusher(APP.key, {
      cluster: '',
      ...connectionTo(node),
      forceTLS: false,
      disableStats: true,
      channelAuthorization: {
        customHandler: ({ socketId, channelName }, callback) => {
          const channel_data = JSON.stringify({ user_id: user, user_info: { name: user } });
          const signature = createHmac('sha256', APP.secret).update(`${socketId}:${channelName}:${channel_data}`).digest('hex');
          callback(null, { auth: `${APP.key}:${signature}`, channel_data });
        },
      },
    });
    member.channel = member.pusher.subscribe('presence-room');
    member.channel.bind('pusher:member_added', ({ id }) => member.transitions.push(`+${id}`));
    member.channel.bind('pusher:member_removed', ({ id }) => member.transitions.push(`-${id}`));
    member.heard = [];
    member.channel.bind('said', (data) => member.heard.push(data));
    await becomes(`${user} is subscribed`, 5000, () => member.channel.subscribed);
    return member;
  }

  get users() {
    return Object.keys(this.channel.members.members).sort();
  }

  close() {
    this.pusher.disconnect();
  }
}

describe('three nodes and one Redis', { concurrency: 1 }, () => {
  const opened = [];
  const join = async (nth, user) => {
    const member = await Member.join(nodes[nth], user);
    opened.push(member);
    return member;
  };
  after(() => opened.forEach((member) => member.close()));

  test('clients of both protocols on different nodes hear the same in the same order', { timeout: 60_000 }, async () => {
    const Faye = faye('1.4');
    const client = new Faye.Client(`${nodes[1].url}/faye`);
    const byFaye = [];
    await client.subscribe('/room', (data) => byFaye.push(data));
    const peer = await Peer.connect(nodes[0], { app: APP });
    peer.send({ event: 'pusher:subscribe', data: { channel: 'room' } });
    const byPusher = [];
    const reading = (async () => {
      while (byPusher.length < 60) {
        const frame = await peer.frame();
        if (frame.event === 'said') byPusher.push(frame.data);
      }
    })();
    await becomes('the room is counted on every node', 5000, async () => (await api(2).get('/channels/room', { info: 'subscription_count' })).json().subscription_count === 2);
    await Promise.all([0, 1, 2].map(async (nth) => {
      for (let n = 0; n < 20; n += 1) await api(nth).trigger('room', 'said', `${nth}-${n}`);
    }));
    await reading;
    await becomes('Faye hears all', 5000, () => byFaye.length === 60);
    assert.deepEqual(byFaye.map((data) => data.data ?? data), byPusher);
    await client.disconnect();
  });

  test('members of all nodes are in one roster, lists and counts are the same everywhere', { timeout: 60_000 }, async () => {
    const [one, two, three] = [await join(0, 'one'), await join(1, 'two'), await join(2, 'three')];
    for (const member of [one, two, three]) {
      await becomes('the roster is complete', 5000, () => member.users.join() === 'one,three,two');
    }
    assert.deepEqual(one.transitions, ['+two', '+three']);
    for (const nth of [0, 1, 2]) {
      const users = (await api(nth).get('/channels/presence-room/users')).json().users.map(({ id }) => id);
      assert.deepEqual(users, ['one', 'three', 'two']);
      const listed = (await api(nth).get('/channels', { filter_by_prefix: 'presence-', info: 'user_count' })).json();
      assert.deepEqual(listed, { channels: { 'presence-room': { user_count: 3 } } });
    }
    const { code, stdout } = await runRaptor(['nodes', '--redis', redis.url]);
    assert.equal(code, 0);
    assert.match(stdout, /^3 nodes\n/);
    for (const node of nodes) assert.match(stdout, new RegExp(`127\\.0\\.0\\.1:${node.port} `));
  });

  test('a node that is killed loses its members once', { timeout: 60_000 }, async () => {
    const [one] = opened;
    await nodes[1].stop('SIGKILL');
    opened[1].close();
    await becomes('the member has gone', LOSS_MS, () => one.users.join() === 'one,three');
    assert.deepEqual(one.transitions, ['+two', '+three', '-two']);
    assert.deepEqual(opened[2].transitions, ['-two']);
    nodes[1] = await startNode();
  });

  test('a node that is paused is taken out, and is back when it goes on', { timeout: 90_000 }, async () => {
    const [one, , three] = opened;
    process.kill(nodes[2].pid, 'SIGSTOP');
    await becomes('the member has gone', LOSS_MS, () => one.users.join() === 'one');
    process.kill(nodes[2].pid, 'SIGCONT');
    await becomes('the member is back', SYNC_MS, () => one.users.join() === 'one,three');
    assert.deepEqual(one.transitions.slice(3), ['-three', '+three']);
    await api(0).trigger('presence-room', 'said', 'again');
    await becomes('it hears again', SYNC_MS, () => three.heard.includes('again'));
    assert.ok(three.channel.subscribed);
  });

  test('while Redis is away each node serves its own; when it is back, empty, all are one again', { timeout: 90_000 }, async () => {
    const [one, , three] = opened;
    await redis.kill();
    await becomes('the nodes know', SYNC_MS, async () => /degraded/.test(await (await fetch(`${nodes[0].url}/readyz`)).text()));
    await api(0).trigger('presence-room', 'said', 'local');
    await becomes('its own hear it', 1000, () => one.heard.includes('local'));
    await redis.restart();
    await becomes('the nodes are back', SYNC_MS, async () => {
      const states = await Promise.all(nodes.map(async (node) => (await fetch(`${node.url}/readyz`)).text()));
      return states.every((state) => state.trim() === 'ready');
    });
    await becomes('lists are complete', SYNC_MS, async () => (await api(1).get('/channels/presence-room/users')).json().users.length === 2);
    await api(1).trigger('presence-room', 'said', 'shared');
    await becomes('all hear it', SYNC_MS, () => one.heard.includes('shared') && three.heard.includes('shared'));
    assert.deepEqual(one.transitions.slice(5), []);
    assert.deepEqual(one.users, ['one', 'three']);
  });
});
