// How every version of pusher-js takes the server's reasons to close, over WebSockets.

import { describe } from 'node:test';

import { closingTests } from '../support/closing.js';
import { worldInNode } from '../support/in-node.js';
import { VERSIONS } from '../support/world.js';

describe('closing', { concurrency: VERSIONS.length }, () => {
  for (const version of VERSIONS) {
    describe(`pusher-js ${version}`, { concurrency: 1, timeout: 60_000 }, () => closingTests((server) => worldInNode(version, server), { version, backMs: 800 }));
  }
});
