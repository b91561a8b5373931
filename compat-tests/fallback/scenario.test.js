// The scenario over each fallback transport alone. In Node and in Chromium they are the same code of pusher-js; pages add what browsers do with
// requests. The page is of another origin than the server, so that every request of it needs a preflight.

import { describe } from 'node:test';

import { scenarioInNode } from '../support/in-node.js';
import { scenarioInPage } from '../support/in-page.js';

const TRANSPORTS = ['xhr_streaming', 'xhr_polling'];

describe('the scenario', { concurrency: 4 }, () => {
  for (const transport of TRANSPORTS) {
    for (const version of ['4.4', '5.1', '7.6', '8.6']) scenarioInPage(version, { transports: [transport] });
    for (const version of ['5.1', '8.6']) scenarioInNode(version, { transports: [transport] });
  }
});
