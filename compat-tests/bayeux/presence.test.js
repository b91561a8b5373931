// Who is there, over both protocols at once, and who has vanished.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { sleep, until } from '../support/events.js';
import { signer, startBridge } from './support/bridge.js';
import { startNetwork } from './support/network.js';
import { faye } from './support/in-node.js';
import { createWorld } from './support/world.js';

const HOLD_SECS = 2;
const GRACE_SECS = 1;
/** The server looks for silent sessions once a second; the other second is the machine's. */
const SLACK_MS = 2_000;

const member = (user_id) => ({ user_id, user_info: { name: user_id } });

let names = 0;
const room = () => `room${++names}`;

/** A member of each protocol that notes who joins and leaves, as `+id` and `-id`. */
async function watchers({ pusher, bayeux, signing }, name) {
  const channel = await pusher.subscribe(await pusher.connect({ member: member('watcher') }), `presence-${name}`);
  const byPusher = [];
  channel.bind('pusher:member_added', ({ id }) => byPusher.push(`+${id}`));
  channel.bind('pusher:member_removed', ({ id }) => byPusher.push(`-${id}`));

  const client = signing({ member: member('watcher') });
  await bayeux.subscribe(client, `/presence/${name}`);
  const byBayeux = [];
  const news = await new Promise((resolve, reject) => {
    const subscription = client.subscribe(`/service/presence/${name}`, ({ event, user_id }) => { if (event !== 'list') byBayeux.push(`${event === 'join' ? '+' : '-'}${user_id}`); });
    subscription.callback(() => resolve(byBayeux));
    subscription.errback(reject);
  });
  return [byPusher, news];
}

const heard = (lists, count) => until(() => lists.every(({ length }) => length >= count), () => `${count} each, got ${JSON.stringify(lists)}`, 10_000);

const settings = { bayeux: { hold_secs: HOLD_SECS, presence_grace_secs: GRACE_SECS } };

describe('presence over both protocols', { concurrency: true, timeout: 60_000 }, () => {
  test('users of either protocol join once and leave once, one of them on both', async () => {
    const bridge = await startBridge(settings);
    const { pusher, bayeux, signing } = bridge;
    const name = room();
    const lists = await watchers(bridge, name);

    const inPusher = async (id) => { const client = await pusher.connect({ member: member(id) }); await pusher.subscribe(client, `presence-${name}`); return client; };
    const inBayeux = async (id) => { const client = signing({ member: member(id) }); await bayeux.subscribe(client, `/presence/${name}`); return { disconnect: () => client.disconnect() }; };

    const clients = [];
    for (const [id, join] of [['ann', inPusher], ['bob', inBayeux], ['both', inPusher], ['both', inBayeux], ['both', inBayeux]]) clients.push(await join(id));
    await heard(lists, 3);
    for (const client of clients) {
      client.disconnect();
      await sleep(100);
    }
    await heard(lists, 6);
    await sleep(1_000 * GRACE_SECS + SLACK_MS);
    for (const list of lists) assert.deepEqual(list, ['+ann', '+bob', '+both', '-ann', '-bob', '-both']);
  });

  for (const [transport, leaveWithinMs] of [['long-polling', 1_000 * (HOLD_SECS + GRACE_SECS)], ['websocket', 1_000 * GRACE_SECS]]) {
    test(`a client that vanishes over ${transport} leaves in time, and joins again when it comes back`, async () => {
      const bridge = await startBridge({ bayeux: { ...settings.bayeux, session_secs: 30 } });
      const network = await startNetwork(bridge.server);
      const world = createWorld({ Faye: faye('1.4'), url: network.url, transport, holdMs: 1_000 * HOLD_SECS });
      const name = room();
      const lists = await watchers(bridge, name);

      const client = world.client();
      client.addExtension(signer(bridge.application.url, { member: member('ghost') }));
      await world.connected(client);
      await world.subscribe(client, `/presence/${name}`);
      await heard(lists, 1);
      await sleep(4_000 * HOLD_SECS / 3); // idle cycles are no absence
      assert.deepEqual(lists, [['+ghost'], ['+ghost']]);

      const start = Date.now();
      network.cut();
      await heard(lists, 2);
      const took = Date.now() - start;
      assert.ok(took > 1_000 * GRACE_SECS - 100 && took < leaveWithinMs + SLACK_MS, `gone after ${took} ms`);
      network.mend();
      await heard(lists, 3);
      client.disconnect();
      await heard(lists, 4);
      for (const list of lists) assert.deepEqual(list, ['+ghost', '-ghost', '+ghost', '-ghost']);
    });
  }

  test('a client that comes back within the grace time was never away', async () => {
    const bridge = await startBridge({ bayeux: { ...settings.bayeux, presence_grace_secs: 5 } });
    const network = await startNetwork(bridge.server);
    const world = createWorld({ Faye: faye('1.4'), url: network.url, transport: 'websocket', holdMs: 1_000 * HOLD_SECS });
    const name = room();
    const lists = await watchers(bridge, name);
    const client = world.client();
    client.addExtension(signer(bridge.application.url, { member: member('ann') }));
    await world.connected(client);
    await world.subscribe(client, `/presence/${name}`);
    await heard(lists, 1);
    for (let n = 0; n < 3; n++) {
      network.cut();
      await sleep(300);
      network.mend();
      await sleep(700);
    }
    await sleep(1_500);
    assert.deepEqual(lists, [['+ann'], ['+ann']]);
    client.disconnect();
    await heard(lists, 2);
  });
});
