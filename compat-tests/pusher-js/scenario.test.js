// The scenario with every version of pusher-js in Node. The versions run side by side, each with a server of its own.

import { describe } from 'node:test';

import { scenarioInNode } from '../support/in-node.js';
import { VERSIONS } from '../support/world.js';

describe('the scenario', { concurrency: VERSIONS.length }, () => {
  for (const version of VERSIONS) scenarioInNode(version);
});
