// The scenario with the browser build that the server itself serves, over every transport that pages have, side by side.

import { describe } from 'node:test';

import { scenarioInPage } from './support/in-page.js';

describe('the scenario', { concurrency: 6 }, () => {
  for (const transport of ['websocket', 'eventsource', 'long-polling']) scenarioInPage(transport);
  for (const transport of ['websocket', 'cross-origin-long-polling', 'callback-polling']) scenarioInPage(transport, { isCrossOrigin: true });
});
