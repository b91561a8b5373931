// pusher-js without WebSockets, and three nodes behind a load balancer that sends each request to the next of them: the scenario as with one
// server.

import { describe } from 'node:test';

import { scenarioInNode } from '../support/in-node.js';
import { scenarioInPage } from '../support/in-page.js';
import { startNodes } from '../support/nodes.js';
import { scenarioOverSockJs } from '../fallback/sockjs-scenario.js';

const through = (balancer) => () => startNodes({ balancer });

describe('the scenario', { concurrency: 3 }, () => {
  for (const transport of ['xhr_streaming', 'xhr_polling']) {
    scenarioInNode('8.6', { transports: [transport], start: through('nginx') });
    scenarioInPage('8.6', { transports: [transport], start: through(transport === 'xhr_polling' ? 'haproxy' : 'nginx') });
  }
  scenarioOverSockJs('8.6', ['iframe-eventsource'], { start: through('nginx') });
});
