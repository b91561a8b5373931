// pusher-js in Node, and the scenario run with it.

import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { startApplication } from './application.js';
import { atEnd } from './at-end.js';
import { TEST_APP, startRaptor } from './raptor.js';
import { scenario } from './scenario.js';
import { createWorld } from './world.js';

const require = createRequire(import.meta.url);

// pusher-js 4.4 looks at `navigator` before it makes an encrypted channel; Node has one only since version 21.
globalThis.navigator ??= {};

/** The `Pusher` class of a version. The Node builds can decrypt. */
export function pusherClass(version) {
  return require(`pusher-js-${version}`);
}

/** The options of pusher-js that lead to `server` and nowhere else. */
export function connectionTo(server, enabledTransports = ['ws', 'wss']) {
  const { port } = server;
  return { wsHost: '127.0.0.1', wsPort: port, wssPort: port, httpHost: '127.0.0.1', httpPort: port, httpsPort: port, enabledTransports };
}

/**
 * A world in this process: clients of `version` that talk to `server`, and its application. Closed at the end of the test file.
 *
 * @param {object} [options] `app`: whose credentials the application has; `key`: what clients connect with; `connection`: further options of pusher-js
 */
export async function worldInNode(version, server, { app = TEST_APP, key = app.key, connection = {} } = {}) {
  const application = await startApplication(server, app);
  const world = createWorld({
    Pusher: pusherClass(version),
    version,
    key,
    connection: { ...connectionTo(server), ...connection },
    applicationUrl: application.url,
    call: (name, ...args) => application.calls[name](...args),
  });
  atEnd(world.close);
  return world;
}

/** Registers the scenario as tests, one server for all its steps. `transports`: `enabledTransports` of pusher-js; `start`: starts the server. */
export function scenarioInNode(version, { transports = undefined, start = startRaptor } = {}) {
  describe(`pusher-js ${version} in Node${transports ? ` over ${transports.join(', ')}` : ''}`, { concurrency: 1 }, () => {
    let world;
    for (const { title, run } of scenario(version)) {
      test(title, { timeout: 30_000 }, async () => {
        world ??= await worldInNode(version, await start(), { connection: transports && { enabledTransports: transports } });
        try {
          await run(world);
        } finally {
          world.close();
        }
      });
    }
  });
}
