// What only pages do: they have an origin, and they are closed without a goodbye.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { once, until } from '../support/events.js';
import { worldInNode } from '../support/in-node.js';
import { serveWorld } from '../support/in-page.js';
import { TEST_APP, startRaptor } from '../support/raptor.js';
import { startRelay } from '../support/relay.js';

describe('pages', { timeout: 30_000 }, () => {
  test('a page of an allowed origin connects, one of another origin is refused and stays away', async () => {
    const relay = await startRelay(); // the page must know the server's port and the server the page's
    const { address, open } = await serveWorld('8.6', relay);
    const origin = new URL(address).origin;
    relay.forward(await startRaptor({ config: { apps: [{ ...TEST_APP, allowed_origins: [origin] }] } }));

    const allowed = await open();
    assert.equal(await allowed.evaluate(async () => (await world.connect()).connection.state), 'connected');

    const stranger = await open(address.replace('127.0.0.1', 'localhost'));
    const states = await stranger.evaluate(async () => {
      const { connection } = world.client();
      const seen = [];
      connection.bind('state_change', ({ current }) => seen.push(current));
      connection.bind('error', ({ error }) => seen.push(error.data));
      await new Promise((resolve) => setTimeout(resolve, 1_500)); // the client's longest first delay before a reconnection is 1 s
      return seen;
    });
    assert.deepEqual(states, [{ code: 4009, message: 'Origin not allowed' }, 'disconnected']);
  });

  test('a page that is closed or left is gone from its presence channel', async () => {
    const server = await startRaptor();
    const { open } = await serveWorld('8.6', server);
    const inNode = await worldInNode('8.6', server);
    const name = inNode.name('presence-');
    const room = await inNode.subscribe(await inNode.connect({ member: { user_id: 'watcher' } }), name);

    for (const [user_id, leave] of [['closed', (page) => page.close()], ['left', (page) => page.goto('about:blank')]]) {
      const page = await open();
      await page.evaluate(async ([member, channel]) => { await world.subscribe(await world.connect({ member }), channel); }, [{ user_id }, name]);
      await until(() => room.members.get(user_id), `${user_id} is there`);
      const removed = once(room, 'pusher:member_removed');
      await leave(page);
      assert.equal((await removed).id, user_id);
    }
  });
});
