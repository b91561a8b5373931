// One server, or several nodes that are one, its application, pusher-js and Faye clients: what the tests that look at both protocols hold in their
// hands.

import { describe, test } from 'node:test';

import { startApplication } from '../../support/application.js';
import { worldInNode } from '../../support/in-node.js';
import { PASSWORD, createBridge } from './both-protocols.js';
import { handshake } from './http.js';
import { callsTo, faye } from './in-node.js';
import { startNetwork } from './network.js';
import { startBayeux } from './server.js';
import { createWorld } from './world.js';

/**
 * @param {object} [options] as `startBayeux`; `transport`: of the Faye clients
 * @returns {Promise<object>} what `createBridge` returns, with `server` and `application`
 */
export async function startBridge({ transport = 'websocket', ...options } = {}) {
  const { server, application, network, holdMs, call } = await startHouse(options);
  const pusher = await worldInNode('8.6', server);
  const world = (over, url) => createWorld({ Faye: faye('1.4'), url, transport: over, holdMs });
  const worlds = { pusher, bayeux: world(transport, network.url), beside: world('websocket', server.url) };
  return { server, application, ...createBridge({ ...worlds, applicationUrl: application.url, call }) };
}

/** What such tests need outside a page: `server`, `application`, `network` between Bayeux clients and it, `call` for `createBridge`. */
export async function startHouse({ bayeux: settings = {}, ...options }) {
  const publishTokens = Object.entries(PASSWORD).map(([key, token]) => ({ key, token }));
  const server = await startBayeux({ bayeux: { publish_tokens: publishTokens, ...settings }, ...options });
  const application = await startApplication(server);
  const network = await startNetwork(server);
  const calls = {
    ...application.calls,
    ...callsTo(server, network),
    subscribeAsAnother: async (channel, ext) => (await handshake(server.url)).subscribe(channel, { ext }),
  };
  return { server, application, network, holdMs: 1000 * (settings.hold_secs ?? 45), call: (name, ...args) => calls[name](...args) };
}

/** Registers steps as tests in Node, one server for all of them. `options`: as for `startBridge`. */
export function bridgeInNode(steps, options = {}) {
  describe(`in Node over ${options.transport ?? 'websocket'}`, { concurrency: 1 }, () => {
    let bridge;
    for (const { title, run } of steps) {
      test(title, { timeout: 60_000 }, async () => {
        bridge ??= await startBridge(options);
        try {
          await run(bridge);
        } finally {
          bridge.close();
        }
      });
    }
  });
}
