// Who is there, over both protocols at once, and who has vanished. Runs in Node and in pages.

import { sleep, until } from '../../support/events.js';
import { equal, ok } from '../../support/expect.js';

const HOLD_SECS = 2;
/** A browser opens a stream that broke again after 5 s, as it is told. */
const graceSecs = (transport) => (transport === 'eventsource' ? 7 : 2);
/** The settings of `[apps.bayeux]` for which the steps are made. */
export const settingsFor = (transport) => ({ hold_secs: HOLD_SECS, presence_grace_secs: graceSecs(transport), session_secs: 30 });

/** The server looks for silent sessions once a second; the other second is the machine's. */
const SLACK_MS = 2_000;
/** Over these the server sees at once that a client is gone; over others when the next poll does not come. */
const SEEN_AT_ONCE = ['websocket'];

/** `[{title, run(bridge)}]`, each independent of the others; `bridge`: see `createBridge`. */
export const steps = [];

function step(title, run) {
  steps.push({ title, run });
}

const member = (user_id) => ({ user_id, user_info: { name: user_id } });

/** A member of each protocol that notes who joins and leaves, as `+id` and `-id`. */
async function watchers({ pusher, beside, signing }, name) {
  const channel = await pusher.subscribe(await pusher.connect({ member: member('watcher') }), `presence-${name}`);
  const byPusher = [];
  channel.bind('pusher:member_added', ({ id }) => byPusher.push(`+${id}`));
  channel.bind('pusher:member_removed', ({ id }) => byPusher.push(`-${id}`));

  const client = signing({ member: member('watcher') }, { world: beside });
  await beside.subscribe(client, `/presence/${name}`);
  const byBayeux = [];
  const news = await new Promise((resolve, reject) => {
    const subscription = client.subscribe(`/service/presence/${name}`, ({ event, user_id }) => { if (event !== 'list') byBayeux.push(`${event === 'join' ? '+' : '-'}${user_id}`); });
    subscription.callback(() => resolve(byBayeux));
    subscription.errback(reject);
  });
  return [byPusher, news];
}

const heard = (lists, count) => until(() => lists.every(({ length }) => length >= count), () => `${count} each, got ${JSON.stringify(lists)}`, 15_000);

step('users of either protocol join once and leave once, one of them on both', async (bridge) => {
  const { pusher, bayeux, signing } = bridge;
  const name = bridge.room();
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
  await sleep(1_000 * graceSecs(bayeux.transport) + SLACK_MS);
  for (const list of lists) equal(list, ['+ann', '+bob', '+both', '-ann', '-bob', '-both']);
});

step('a client that vanishes leaves in time, and joins again when it comes back', async (bridge) => {
  const { bayeux, signing } = bridge;
  const graceMs = 1_000 * graceSecs(bayeux.transport);
  const leaveWithinMs = graceMs + (SEEN_AT_ONCE.includes(bayeux.transport) ? 0 : 1_000 * HOLD_SECS);
  const name = bridge.room();
  const lists = await watchers(bridge, name);

  const client = signing({ member: member('ghost') });
  await bayeux.connected(client);
  await bayeux.subscribe(client, `/presence/${name}`);
  await heard(lists, 1);
  await sleep(4_000 * HOLD_SECS / 3); // idle cycles are no absence
  equal(lists, [['+ghost'], ['+ghost']]);

  const start = Date.now();
  await bridge.cutNetwork();
  await heard(lists, 2);
  const took = Date.now() - start;
  ok(took > graceMs - 100 && took < leaveWithinMs + SLACK_MS, `gone after ${took} ms`);
  await bridge.mendNetwork();
  await heard(lists, 3);
  client.disconnect();
  await heard(lists, 4);
  for (const list of lists) equal(list, ['+ghost', '-ghost', '+ghost', '-ghost']);
});

step('a client that comes back within the grace time was never away', async (bridge) => {
  const { bayeux, signing } = bridge;
  const name = bridge.room();
  const lists = await watchers(bridge, name);
  const client = signing({ member: member('ann') });
  await bayeux.connected(client);
  await bayeux.subscribe(client, `/presence/${name}`);
  await heard(lists, 1);
  for (let n = 0; n < 3; n++) {
    await bridge.cutNetwork();
    await sleep(300);
    await bridge.mendNetwork();
    await sleep(700);
  }
  await sleep(1_000 * graceSecs(bayeux.transport) + 500);
  equal(lists, [['+ann'], ['+ann']]);
  client.disconnect();
  await heard(lists, 2);
  for (const list of lists) equal(list, ['+ann', '-ann']);
});
