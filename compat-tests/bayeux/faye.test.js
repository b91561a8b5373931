// The scenario with every version of Faye's client in Node, over both transports it has there, side by side, each with a server of its own.

import { describe } from 'node:test';

import { scenarioInNode } from './support/in-node.js';
import { VERSIONS } from './support/world.js';

describe('the scenario', { concurrency: 2 * VERSIONS.length }, () => {
  for (const version of VERSIONS) {
    for (const transport of ['websocket', 'long-polling']) scenarioInNode(version, transport);
  }
});
