// The scenario over each fallback transport alone, in Node, with an old version of pusher-js and the newest.

import { describe } from 'node:test';

import { scenarioInNode } from '../support/in-node.js';

describe('the scenario', { concurrency: 4 }, () => {
  for (const transport of ['xhr_streaming', 'xhr_polling']) {
    for (const version of ['5.1', '8.6']) scenarioInNode(version, { transports: [transport] });
  }
});
