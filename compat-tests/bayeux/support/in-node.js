// Faye clients in Node, and the scenario run with them.

import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { PLAIN_PUBLISH, post } from './http.js';
import { startNetwork } from './network.js';
import { scenario } from './scenario.js';
import { HOLD_SECS, IS_FAYE, startServer } from './server.js';
import { createWorld } from './world.js';

const require = createRequire(import.meta.url);

/** The library of a version. */
export function faye(version) {
  return require(`faye-${version}`);
}

/** What a world calls, over `network` and beside it. */
export function callsTo(server, network) {
  let running = server;
  return {
    post: (messages) => post(server.url, messages),
    plainForms: async () => Object.keys(PLAIN_PUBLISH),
    publishPlainly: (form, message) => PLAIN_PUBLISH[form](server.url, message),
    cutNetwork: async () => network.cut(),
    mendNetwork: async () => network.mend(),
    restartServer: async () => { running = await running.restart(); },
  };
}

/** The steps that the server under test can pass. */
export function stepsToRun(transport) {
  return scenario().filter(({ fayeFails }) => !(IS_FAYE && fayeFails(transport)));
}

/** Registers the scenario as tests, one server for all its steps. */
export function scenarioInNode(version, transport) {
  describe(`faye ${version} in Node over ${transport}`, { concurrency: 1 }, () => {
    let world;
    async function start() {
      const server = await startServer();
      const network = await startNetwork(server);
      const calls = callsTo(server, network);
      return createWorld({ Faye: faye(version), url: network.url, transport, holdMs: 1000 * HOLD_SECS, call: (name, ...args) => calls[name](...args) });
    }
    for (const { title, run } of stepsToRun(transport)) {
      test(title, { timeout: 60_000 }, async () => {
        world ??= await start();
        try {
          await run(world);
        } finally {
          world.close();
        }
      });
    }
  });
}
